"""What must hold after every event, and at the end: kept from what became durable and from what left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from tests.faults import plan as plans
from tests.faults.plan import SECRET, Plan
from tests.faults.stores import Change

from hansa import tensors
from hansa.aggregation.reduce import Reduction, discounted
from hansa.aggregation.ring import joined, parted
from hansa.contribution import Array, Ask, Contribution, Contributions, Total, Values
from hansa.coordinator.live import LATE
from hansa.database import Put
from hansa.federation import deployed
from hansa.methods.course import Course, Progress
from hansa.party import Party
from hansa.run import draw

RUN = "run"


class ViolationError(AssertionError):
    """A promise that was broken."""


class Sent(NamedTuple):
    """A body that left a party."""

    attempt: int
    weight: float
    body: bytes


class Decided(NamedTuple):
    """What the events say of an exchange: who is in its sum; of a secure sum, the attempts from which the parties'
    noise is; the digests of answers that are not honest ones; by how many exchanges answers were late; and who had
    joined by then.
    """

    counted: tuple[str, ...]
    noise: tuple[int, ...] = ()
    odd: tuple[tuple[str, tuple[str, float]], ...] = ()
    lags: tuple[tuple[str, int], ...] = ()
    joined: tuple[str, ...] = ()


def require(holds: object, what: str) -> None:
    if not holds:
        raise ViolationError(what)


class Record:
    """What became durable, what left and what was told; each of its methods raises a `ViolationError`."""

    def __init__(self, plan: Plan) -> None:
        self._plan, self._changed = plan, False
        self.events: list[dict[str, Any]] = []
        self.answers: dict[tuple[int, str], dict[str, Any]] = {}
        self.status = ""
        self.joined: tuple[str, ...] = ()
        self._setup: list[str] = []  # of the run's row
        self._charges: dict[tuple[str, int], list[int]] = {}
        self._noise: dict[tuple[str, int, int], int] = {}
        self._bodies: dict[tuple[str, int, int], bytes] = {}
        self._steps: dict[tuple[str, int, int, int], bytes] = {}
        self._proposed: dict[tuple[str, int], bytes] = {}
        self._held: dict[tuple[str, int, int], bytes] = {}
        self.memories: dict[str, bytes] = {}
        self.arrived: dict[int, dict[str, Any]] = {}
        self._open: tuple[int, int] = (-1, 0)  # version and attempt, as the events say
        self._summed: dict[tuple[int, int], bytes] = {}
        self._given_up: set[tuple[int, int]] = set()  # attempts that came to nothing, and the events say so
        self._acknowledged: dict[tuple[int, int, str], str] = {}
        self._in: set[tuple[int, str]] = set()  # counted: the exchange that asked, and the party
        self._unsettled: set[tuple[int, int, str]] = set()
        self.decisions: list[Decided] = []
        self.fates: dict[str, int] = {}

    # --- at the coordinator

    def committed(self, changes: Iterable[Change]) -> None:
        """The coordinator's changes of one transaction became durable."""
        self._changed = True
        checkpoints = set[int]()
        arrived = list[int]()
        for change in changes:
            row = change.values
            match change.table, isinstance(change, Put):
                case "event", True:
                    self._event(dict(row), arrived)
                case "answer", True:
                    place = row["version"], row["party"]
                    self.answers[place] = {**self.answers.get(place, {}), **row}
                case "blob", True:
                    if row["name"] == "checkpoint":
                        checkpoints.add(row["version"])
                case "run", True:
                    self.status = row.get("status", self.status)
                    self._setup = row["setup"]["parties"] if "setup" in row else self._setup
                case "answer", False:
                    for place in [p for p, kept in self.answers.items() if _matches(kept, row)]:
                        del self.answers[place]
                case "event", False:
                    raise ViolationError("an event was taken back")
        require(not self._setup or self._setup == self.roster, "a run is among others than its events say")
        if arrived:  # of several in one transaction, the last one's is enough
            require(arrived[-1] + 1 in checkpoints, f"exchange {arrived[-1]} arrived without its checkpoint")

    def _event(self, row: dict[str, Any], arrived: list[int]) -> None:
        require(row["seq"] == len(self.events) + 1, f"event {row['seq']} follows event {len(self.events)}")
        self.events.append(row)
        kind, body = row["kind"], row["body"]
        if kind == "asked":
            require(body["version"] == len(self.arrived), f"exchange {body['version']} is asked out of order")
            self._open = body["version"], body["attempt"]
            whole = body["parties"] == self.roster and body.get("among", len(self.roster)) == len(self.roster)
            require(whole, f"exchange {body['version']} is asked among others than take part")
        elif kind == "joined":
            require(body["party"] not in self.roster, f"{body['party']} joins twice")
            require(self._open[0] < len(self.arrived), f"{body['party']} joins in the middle of an exchange")
            self.joined += (body["party"],)
        elif kind == "attempt":
            require(self._open == (body["version"], body["attempt"]), "an attempt ends that was not open")
            self._given_up.add(self._open)
            self._open = body["version"], body["attempt"] + 1
        elif kind == "arrived":
            version = body["version"]
            require(version not in self.arrived, f"exchange {version} arrived twice")
            counted, excluded = set(body["counted"]), set(body["excluded"])
            require(len(counted) == len(body["counted"]), "a party is counted twice")
            require(not counted & excluded, "a party is counted and excluded")
            self._counted(version, counted, excluded, body.get("lags", {}))
            require(all(body["excluded"].values()), "a party is excluded without a reason")
            self.arrived[version] = body
            self.decisions.append(self._decided(version, body["counted"]))
            arrived.append(version)
        elif kind == "failed":
            require("cannot be restored" not in body["reason"], body["reason"])
            self._given_up.add(self._open)
        elif kind == "refused":
            require(body["reason"], "a refusal without a reason")

    @property
    def roster(self) -> list[str]:
        """Among whom the run is, as its events say."""
        return [*self._plan.names, *self.joined]

    def _counted(self, version: int, counted: set[str], excluded: set[str], lags: Mapping[str, int]) -> None:
        """Every answer is counted once, in the exchange that asked for it or in a later one."""
        asked = set(self._asked["parties"])
        missing = asked - counted - excluded
        require(not missing or self._plan.federation.pace.goal, f"{missing} have no fate in exchange {version}")
        for party in counted:
            place = version - lags.get(party, 0), party
            require(place not in self._in, f"{party}'s answer to exchange {place[0]} is counted twice")
            self._in.add(place)

    @property
    def _asked(self) -> dict[str, Any]:
        return next(row["body"] for row in reversed(self.events) if row["kind"] == "asked")

    def _decided(self, version: int, counted: list[str]) -> Decided:
        odd = []
        for party in counted:
            row = self.answers.get((version - self.arrived[version].get("lags", {}).get(party, 0), party))
            if row is None:
                continue
            if party in self._plan.cheats and (row["digest"], row["weight"]) in ODD:
                odd.append((party, (row["digest"], row["weight"])))
        noise = [self._noise.get((party, *self._open), 0) for party in counted]
        lags = tuple((party, lag) for party, lag in self.arrived[version].get("lags", {}).items())
        return Decided(tuple(counted), tuple(noise), tuple(odd), lags, self.joined)

    def acknowledged(self, party: str, version: int, attempt: int, sent: Sent) -> None:
        """The coordinator says that it took an answer."""
        place = version, attempt, party
        digest = blake3(sent.body).hexdigest()
        require(self._acknowledged.setdefault(place, digest) == digest, f"{party}: two answers were taken")
        if version not in self.arrived or self._plan.late:
            self._unsettled.add(place)
        self.fate(place)

    def fate(self, place: tuple[int, int, str]) -> None:
        """An acknowledged answer has exactly one fate, or is open; all of that is durable."""
        version, attempt, party = place
        digest = self._acknowledged[place]
        if (version, party) in self._in:
            fate = "counted"
        elif version in self.arrived and party in self.arrived[version]["excluded"]:
            fate = "excluded"
        elif (version, attempt) in self._given_up:
            fate = "given up"
        else:
            row = self.answers.get((version, party))
            if self._plan.late and (row is None or row["reason"] != LATE) and self._refused(party):
                fate = "excluded"
                self.fates[fate] = self.fates.get(fate, 0) + 1
                self._unsettled.discard(place)
                return
            require(row, f"{party}: what was acknowledged in exchange {version} is not durable")
            assert row is not None
            if row["taken"] or row["reason"] == LATE:
                require(row["digest"] == digest, f"{party}: another answer is kept than was acknowledged")
            else:
                require(self._refused(party), f"{party}: excluded from exchange {version}, and no event says why")
            return
        self.fates[fate] = self.fates.get(fate, 0) + 1
        self._unsettled.discard(place)

    def refused(self, why: str) -> bool:
        """Whether somebody was refused in the open exchange for this reason."""
        found = (row["body"] for row in self.events if row["kind"] == "refused")
        return any(why in body["reason"] and body["round"] == self._asked["round"] for body in found)

    def _refused(self, party: str) -> bool:
        return any(row["kind"] == "refused" and row["body"]["party"] == party for row in self.events)

    def told(self, party: str, version: int, counted: bool) -> None:
        """The coordinator tells a party what became of its answer."""
        if counted:
            there = (version, party) in self._in
            require(there, f"{party} is told that exchange {version} counted it, and no durable event says so")
        elif version in self.arrived:
            said = f"{party} is told that exchange {version} did not count it, and it did"
            require((version, party) not in self._in, said)

    def summed(self, version: int, attempt: int, total: Total) -> None:
        """A sum was made: of masked vectors it is the only one, whatever died before it was durable."""
        if not plans.KINDS[self._plan.kind].hidden:
            return
        values = b"".join(total.values[name].tobytes() for name in sorted(total.values))
        value = repr(total.parties).encode() + values
        require(self._summed.setdefault((version, attempt), value) == value, "a second sum from one attempt")

    def after(self) -> None:
        """After every event: if anything has changed, every answer that was acknowledged has its fate."""
        if not self._changed:  # a fate is read from nothing but what `committed` was given, and then it has changed
            return
        self._changed = False
        for place in list(self._unsettled):
            self.fate(place)

    # --- at a party

    def kept(self, party: str, changes: Iterable[Change], vectors: Mapping[int, Array]) -> None:
        """A party's changes of one transaction became durable; it has these vectors ready for secure sums."""
        for change in changes:
            row = change.values
            match change.table, isinstance(change, Put):
                case "charge", True:
                    self._charges.setdefault((party, row["version"]), []).append(row["attempt"])
                case "answer", True:
                    place = party, row["version"], row["attempt"]
                    self._held[place] = row["body"]
                    self._noise[place] = self._charged(*place, vectors.get(row["version"]))
                    self._proposed[party, row["version"]] = row["memory"]
                case "memory", True:
                    counted = [v for v, name in self._in if name == party]
                    same = row["body"] in {self._proposed.get((party, v)) for v in counted}
                    require(same, f"{party} remembers what was not counted")
                    self.memories[party] = row["body"]

    def _charged(self, party: str, version: int, attempt: int, vector: Array | None) -> int:
        """The attempt whose noise is in an answer, which the ledger says; 0 for what is seen."""
        charges = self._charges.get((party, version), [])
        if vector is None:
            if attempt not in charges:
                raise ViolationError(f"{party}: an answer to exchange {version}.{attempt} is not charged")
            return 0
        # An attempt may take a vector that was made for an earlier one, and charged then, and never given.
        for of in range(1, attempt + 1):
            if np.array_equal(vector, self._vector(party, version, of)):
                known = {n for (name, v, _), n in self._noise.items() if (name, v) == (party, version)}
                require(len(known | {of}) <= len(charges), f"{party}: a vector for exchange {version} is not charged")
                return of
        raise ViolationError(f"{party}: there is other noise in its answer to exchange {version}.{attempt} than it has")

    def _vector(self, party: str, version: int, attempt: int) -> Array:
        """What an honest party gives to the sum of an exchange in an attempt at it."""
        of = self._plan.kind, self._plan.parties
        return given(*of, tuple(self.decisions[:version]), party, attempt)

    def cheats(self, sent: Sent) -> None:
        """An answer leaves a cheat."""
        ODD[blake3(sent.body).hexdigest(), sent.weight] = sent

    def leaves(self, party: str, version: int, attempt: int, body: bytes) -> None:
        """An answer leaves a party."""
        place = party, version, attempt
        require(self._held.get(place) == body, f"{party}: an answer leaves that is not durable")
        require(self._bodies.setdefault(place, body) == body, f"{party}: other bytes leave under the same number")

    def says(self, party: str, number: int, phase: int, payload: bytes) -> None:
        """A step of a secure sum leaves a party."""
        same = self._steps.setdefault((party, number, phase, 0), payload) == payload
        require(same, f"{party}: two answers in phase {phase} of one attempt")

    # --- at the end

    def ended(self, checkpoint: bytes, remembered: Mapping[str, bytes]) -> None:
        """The run ended: its bits are those of a replay of its decisions, as are the parties' memories."""
        require(not self._unsettled, f"{self._unsettled} have no fate")
        progress, memories = replayed(self._plan.kind, self._plan.parties, tuple(self.decisions))
        require(progress.pack() == checkpoint, "a replay of the decisions ends with other bits")
        if self._plan.waits:
            everyone = (Decided(self._plan.names),) * len(self.decisions)
            undisturbed, _ = replayed(self._plan.kind, self._plan.parties, everyone)
            require(undisturbed.pack() == checkpoint, "the undisturbed run ends with other bits")
        for party, memory in remembered.items():
            if party not in self._plan.cheats:
                due = tensors.write(memories[party]) if memories.get(party) else b""
                require(memory == due, f"{party} remembers something else than what was counted")


ODD: dict[tuple[str, float], Sent] = {}
"""What cheats sent, by digest and weight, which are all that a decision says of it."""


@cache
def course_of(kind: str, parties: int, joined: tuple[str, ...] = ()) -> Course:
    setup = plans.setup(kind, parties)
    grown = replace(setup, parties=(*setup.parties, *joined))
    return deployed(plans.federation(kind, parties), grown, SECRET, RUN)


@cache
def party_of(kind: str, parties: int, name: str) -> Party:
    return Party(name, plans.tables()[name], course_of(kind, parties))


@cache
def replayed(kind: str, parties: int, decisions: tuple[Decided, ...]) -> tuple[Progress, dict[str, Values]]:
    """Where a run with these decisions stands, in a plain loop: no machine, no store, no masks."""
    if not decisions:
        return course_of(kind, parties).begin(), {}
    progress, memories = replayed(kind, parties, decisions[:-1])
    *before, decided = decisions
    course = course_of(kind, parties, decided.joined)
    ask, hidden = asked_of(course, kind, parties, progress)
    memories, odd = dict(memories), dict(decided.odd)
    fields = course.signals(ask)[-1].fields
    if hidden:
        vectors = [
            given(kind, parties, tuple(before), *one) for one in zip(decided.counted, decided.noise, strict=True)
        ]
        summed = np.sum(vectors, axis=0, dtype=vectors[0].dtype)
        total = Total(parted(summed, fields), decided.counted, parties, float(len(vectors)))
        return course.apply(progress, ask, total), memories
    reduction = Reduction(fields, ask.parties)
    lags, discount = dict(decided.lags), plans.federation(kind, parties).pace.discount
    for name in decided.counted:
        if lag := lags.get(name, 0):
            begun = tuple(before[: len(before) - lag])
            there = course_of(kind, parties, before[len(begun)].joined)
            since, _ = asked_of(there, kind, parties, replayed(kind, parties, begun)[0])
        else:
            since = ask
        if name in odd:
            sent = ODD[odd[name]]
            contribution = Contribution(Values(tensors.read(sent.body)), sent.weight)
        else:
            answer = party_of(kind, parties, name).answer(since, memories.get(name, Values()))
            contribution = answer.contribution
            if answer.memory:
                memories[name] = Values({**memories.get(name, Values()), **answer.memory})
        stack, _ = course.open(since, Contributions.of(name, contribution))
        stack = discounted(stack, fields, discount(lag))
        for opened in stack.parties:
            reduction.add(opened, stack.one(0))
    return course.apply(progress, ask, reduction.total(parties + len(decided.joined))), memories


@cache
def given(kind: str, parties: int, before: tuple[Decided, ...], name: str, attempt: int) -> Array:
    """The vector that a party gives to a secure sum after these decisions, with the noise of an attempt."""
    progress, memories = replayed(kind, parties, before)
    ask, _ = asked_of(course_of(kind, parties), kind, parties, progress)
    answer = party_of(kind, parties, name).again(attempt).answer(ask, memories.get(name, Values()))
    return joined(answer.contribution.values, course_of(kind, parties).signals(ask)[-1].fields)


def asked_of(course: Course, kind: str, parties: int, progress: Progress) -> tuple[Ask, bool]:
    """What is asked next, and whether it ends in a secure sum."""
    ask = course.ask(progress)
    assert ask is not None
    ask = draw(plans.federation(kind, parties), course, ask)
    return ask, course.signals(ask)[-1].hidden


def _matches(row: Mapping[str, Any], values: Mapping[str, Any]) -> bool:
    return all(row.get(name, value) == value for name, value in values.items())


def digest(trace: list[Any]) -> str:
    rounded = [(round(at, 6), *what) for at, *what in trace]
    return blake3(json.dumps(rounded, ensure_ascii=False, default=str).encode()).hexdigest()[:16]
