"""What the coordinator holds in memory: the parties it knows, and the runs under way."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from hansa import tensors
from hansa.contribution import Ask, Json, Values
from hansa.coordinator.events import Offered
from hansa.errors import StoreError
from hansa.federation import Federation, deployed
from hansa.methods.base import Setup
from hansa.methods.course import Course, Progress
from hansa.run import draw, goal, needed
from hansa.secure.coordinator import Table
from hansa.secure.terms import Kept, Phase, Rules, decode, numbered
from hansa.tensors import Buffer

ANY = "*"  # among a party's serial numbers: one was forgotten, so that until it renews any of its certificates will do


@dataclass
class Guest:
    """A party as the coordinator knows it; ``counted`` is the latest exchange of each run that counted it."""

    state: str
    serial: str
    expires: str
    offers: tuple[Offered, ...] = ()
    listening: bool = False
    identity: bytes = b""
    counted: dict[str, int] = field(default_factory=dict)

    def has(self, serial: str) -> bool:
        """Whether it is a member with this certificate, of which a coordinator from a backup may not know (`ANY`)."""
        return self.state == "active" and not {serial, ANY}.isdisjoint(self.serial.split())

    def rows(self, dataset: str) -> int:
        """More than it offers under that name, since it tells the power of two below; never less than 2."""
        return max(2, sum(2 * offer.rows for offer in self.offers if offer.dataset == dataset))

    def to_row(self) -> dict[str, Any]:
        """What is kept of it, without its name."""
        kept = {"state": self.state, "serial": self.serial, "expires": self.expires}
        return {**kept, "offers": [offer.to_json() for offer in self.offers], "identity": self.identity}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Guest:
        """The inverse of `to_row`; nobody listens yet."""
        offers = tuple(Offered.from_json(body) for body in row["offers"])
        return cls(row["state"], row["serial"], row["expires"], offers, identity=row["identity"] or b"")


LATE = "it came late, and counts in the next sum"  # of a late answer that was taken, until it has counted


@dataclass
class Answered:
    """One party's answer to the open ask: taken, or not and why."""

    attempt: int
    digest: str
    weight: float
    taken: bool
    reason: str = ""
    size: int = 0


@dataclass
class Past(Kept):
    """What the coordinator remembers of the attempts at one secure sum, durably."""

    failures: int = 0  # that came to nothing since the exchange began, or its run was resumed
    # who complained of whom; the first ``heeded`` of them in attempts that are over
    complaints: tuple[tuple[str, str], ...] = ()
    heeded: int = 0
    # of each attempt, or bucket of one, that has provably no sum: who was at it and their signatures
    proofs: tuple[tuple[int, tuple[str, ...], bytes], ...] = ()

    def blamed(self) -> dict[str, str]:
        """Those without whom no complaint is left, with the author of one: whoever has been in the most, and of
        two alike who is named. So one that accuses all costs nobody its place, nor does one that all accuse."""
        weight, found = Counter(name for pair in self.complaints for name in pair), dict[str, str]()
        for one, other in sorted(self.complaints[self.heeded :], key=lambda pair: -max(weight[n] for n in pair)):
            if not {one, other} & set(found):
                found[one if weight[one] > weight[other] else other] = one
        return found


@dataclass
class Live:
    """A run that the coordinator holds in memory."""

    id: str
    federation: Federation
    hash: str
    course: Course
    progress: Progress
    seq: int
    status: str = "running"
    attempt: int = 1
    ask: Ask | None = None
    answers: dict[str, Answered] = field(default_factory=dict)
    # parties of which was said, in this exchange, that it waits for them; whether it still does
    missing: dict[str, bool] = field(default_factory=dict)
    unfit: dict[str, str] = field(default_factory=dict)  # why a party could not join when the latest round opened
    reducing: bool = False
    rules: Rules | None = None  # of the secure sum that the open ask ends in; None if its answers are seen
    # of parties for the roster of an attempt that is about to open
    adverts: dict[str, bytes] = field(default_factory=dict)
    desk: Table | None = None  # the attempt that is open
    # parties that will say no more, though more could be used; after a restart they are asked again
    gone: set[str] = field(default_factory=set)
    past: Past = field(default_factory=Past)  # what came of the attempts at this exchange
    # in a run that counts late answers, who works on which exchange, and at which attempt; its asks
    begun: dict[str, tuple[int, int]] = field(default_factory=dict)
    asks: dict[int, Ask] = field(default_factory=dict)
    # answers to earlier exchanges that the next sum of updates counts
    late: dict[str, Answered] = field(default_factory=dict)
    # in this exchange, as far as this process knows; summed: who is in the sum that is made
    told: set[str] = field(default_factory=set)
    summed: tuple[str, ...] = ()

    def take(self, ask: Ask | None) -> None:
        """Open an ask, or none."""
        self.ask, self.rules, self.past = ask, None, self.past if ask else Past()
        if ask is not None and ask.parties and (signal := self.course.signals(ask)[-1]).hidden:
            self.rules = self.federation.rules(len(self.course.setup.parties), signal.buckets)
        self.anew()

    def anew(self) -> None:
        """Begin an attempt at it, without those who are left out."""
        left_out = {party: answer for party, answer in self.answers.items() if not answer.taken}
        self.answers, self.adverts, self.desk, self.gone = left_out if self.rules else {}, {}, None, set()

    @property
    def number(self) -> int:
        """Of the attempt, in the run."""
        return numbered(self.progress.version, self.attempt)

    @property
    def phase(self) -> int:
        """Of the attempt; 0 before its roster."""
        return self.desk.phase if self.desk else 0

    def out(self, party: str) -> bool:
        """Whether nothing more is expected of a party; who is left out may still sign that there is no sum."""
        answer = self.answers.get(party)
        signing = self.desk.open if self.desk and self.desk.phase == Phase.SURVIVORS else ()
        if signing and any(party in desk.terms.names for desk in signing if not desk.survivors):  # that there is no sum
            return party in self.gone
        return party in self.gone or (answer is not None and not (answer.taken and self.rules))

    @property
    def waiting(self) -> list[str]:
        """The parties for which the open ask waits."""
        return [*self.due, *[p for p in self.begun if self.behind(p) and p not in {**self.late, **self.answers}]]

    @property
    def due(self) -> list[str]:
        """Those of them who are to answer this very ask."""
        asked = self.ask.parties if self.ask else ()
        due = set(self.desk.missing) if self.desk else set(asked).difference(self.adverts)
        return [p for p in asked if p in due and not self.out(p) and not (self.begun and self.busy(p))]

    @property
    def trains(self) -> bool:
        """Whether the open ask is for updates, among which late ones count."""
        return self.ask is not None and self.ask.work == "train"

    def behind(self, party: str) -> bool:
        """Whether what a party works on, or has answered late, is an earlier exchange."""
        return self.ask is not None and self.begun.get(party, (self.ask.version,))[0] < self.ask.version

    def busy(self, party: str) -> bool:
        """Whether it is not asked now for that."""
        return self.trains if party in self.late else self.behind(party)

    def asked(self, party: str, version: int, attempt: int) -> Ask | None:
        """The ask that an answer of these numbers is to, if one of this party is expected."""
        if self.ask is None:
            return None
        if (version, attempt) == self.begun.get(party):
            return self.asks[version]
        here = party in self.ask.parties and (version, attempt) == (self.ask.version, self.attempt)
        return self.ask if here and not self.busy(party) else None

    def place(self, party: str) -> tuple[Ask, Answered]:
        """The answer of a party in the sum that is made, and to which ask it is."""
        assert self.ask is not None
        if self.trains and party in self.late:
            return self.asks[self.begun[party][0]], self.late[party]
        return self.ask, self.answers[party]

    @property
    def enough(self) -> bool:
        """Whether it need not wait for the others: the goal is reached, or those who still work are late already."""
        if self.ask is None or self.rules or not ((pace := self.federation.pace).goal or pace.late):
            return False
        # Behind noise, who is refused keeps its place: who comes instead would be one more that a neighbour moves.
        keeps, wanted = self.trains and self.federation.aggregation.protects, goal(self.federation, self.ask)
        taken = sum(answer.taken or keeps for answer in self.answers.values()) + len(self.late) * self.trains
        if wanted and taken >= wanted:
            return True
        return not (self.trains and wanted) and not self.due and taken >= needed(self.federation, self.ask)

    def about(self, party: str, version: int = -1) -> dict[str, Json]:
        """What an event about a party says first: in the open ask, unless it is another one."""
        ask = self.ask if version < 0 else self.asks[version]
        assert ask is not None
        return {"party": party, "round": ask.round, "work": ask.work}


def revived(
    row: Mapping[str, Any],
    packed: Buffer,
    seq: int,
    ask: Mapping[str, Any] | None = None,
    answers: Sequence[Mapping[str, Any]] = (),
    secret: bytes = b"",
    desk: bytes = b"",
    past: bytes = b"",
    begun: bytes = b"",
    earlier: Callable[[int], tuple[Buffer, Sequence[Mapping[str, Any]]]] = lambda version: (b"", ()),
) -> Live:
    """A run as it stood at its last commit, from its row, its latest checkpoint, the number of its last event,
    and the rows of the exchange that was open and of the answers to it; and what an ``earlier`` one sent, with the
    rows of answers to it, if some still work on that.

    Raises StoreError if an ask that is made again is not the one that parties were given."""
    federation = Federation.from_json(row["federation"])
    course = deployed(federation, Setup.from_json(row["setup"]), secret, row["id"])
    progress, _ = Progress.unpack(packed)
    live = Live(row["id"], federation, federation.hash, course, progress, seq, row["status"])
    live.past = decode(past, Past) if past else live.past
    if ask is None:
        return live
    live.attempt = ask["attempt"]
    made = course.ask(progress)
    live.take(None if made is None else draw(federation, course, made))
    if live.ask is None or live.ask.digest != ask["digest"]:
        was = f"exchange {ask['version']} of run {live.id} cannot be made again as it was"
        raise StoreError(f"{was}: another version of Hansa began it", remedy="Start that version")
    kept = [one.name for one in fields(Answered)]

    def read(rows: Sequence[Mapping[str, Any]], late: bool) -> dict[str, Answered]:
        found = {row["party"]: Answered(**{name: row[name] for name in kept}) for row in rows}
        return {party: answer for party, answer in found.items() if (answer.reason == LATE) == late}

    live.answers, live.late = read(answers, False), read(answers, True)
    known, headers = json.loads(begun or "[[], []]")
    live.begun, live.asks = {party: (at, attempt) for party, at, attempt in known}, {live.ask.version: live.ask}
    for header in headers:
        sent, rows = earlier(header["version"])
        live.asks[header["version"]] = Ask.from_header(header, Values(tensors.read(sent)))
        live.late |= read(rows, True)
    open_: Table | None = decode(desk, Table) if desk else None
    if open_ is not None and open_.desks[0].terms.attempt == live.number:
        vectors = [name for name, answer in live.answers.items() if answer.taken]
        live.desk = open_.holding(vectors) if open_.phase == Phase.MASK else open_
    return live
