"""The agent as a state machine without I/O: events in, effects out.

An answer is durable before it is sent, and only those bytes are ever sent again. What the work wants to
remember is proposed with the answer, and becomes the party's memory when it hears that it was counted.
That an answer was not taken settles nothing: an earlier sending of the same bytes may have been."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hansa import tensors
from hansa.agent.seats import ATTEMPTS, Seats, seen
from hansa.contribution import Array, Ask, Values
from hansa.crypto.agreement import Identity
from hansa.database import Drop, Put
from hansa.errors import ConsentError, HansaError
from hansa.secure.terms import Phase, Rules, Step, Work, numbered
from hansa.tensors import Buffer

Key = tuple[str, int]

CAME_BACK = re.compile(r"(.+)~(\d{1,15})-[0-9a-f]{6}")
"""The name of a run that goes on from a backup: of which run, and from which exchange on."""

READY = 8  # vectors that are kept for an attempt to take; another is worked out again when it is asked for
OVER = 1024  # runs whose end of an exchange is known: a coordinator may name any; what is forgotten is done in vain
MEMORIES = 256  # runs whose memory is kept: those that counted this party last
COUNTED = "counted"  # in place of the digest of an ask whose answer was counted: to work on it again would cost again


@dataclass(frozen=True)
class Asked:
    """The coordinator wants work done."""

    run: str
    ask: Ask
    attempt: int
    federation: str
    entropy: bytes = field(default=b"", compare=False)  # 32 bytes of a CSPRNG, for a secure sum
    paid: bool = field(default=False, compare=False)  # charged before a restart, and never given


class Sitting(NamedTuple):
    """What is given to a secure sum, and to which: see `Seats.take`."""

    work: Work
    rules: Rules
    fresh: bool
    vector: Array


@dataclass(frozen=True)
class Worked:
    """The work is done: the contribution, and what to remember if it is counted, if anything; both as tensors;
    and what it costs, for the ledger. In place of the contribution what goes into a secure sum."""

    asked: Asked
    weight: float
    body: Buffer
    memory: bytes
    charge: Mapping[str, Any] = field(default_factory=dict)
    sitting: Sitting | None = None


@dataclass(frozen=True)
class CouldNot:
    """The work cannot be done, or may not be; and what trying cost, for the ledger."""

    asked: Asked
    reason: str
    charge: Mapping[str, Any] = field(default_factory=dict)
    about: tuple[str, ...] = ()  # the parties of whom it complains, in a secure sum


@dataclass(frozen=True)
class Settled:
    """The coordinator says what became of an answer."""

    run: str
    version: int
    counted: bool


@dataclass(frozen=True)
class Heard:
    """The coordinator asks for a step of a secure sum; with the words of identities that the owner confirmed."""

    step: Step
    pins: Mapping[str, str] = field(default_factory=dict)


AgentEvent = Asked | Worked | CouldNot | Settled | Heard


@dataclass(frozen=True)
class Held:
    """An answer that is durable here and not yet settled."""

    run: str
    version: int
    attempt: int
    round: int
    weight: float
    body: Buffer
    memory: bytes


@dataclass
class Effects:
    """What one event leads to: rows to commit first, then work to begin, answers, steps or excuses to send."""

    changes: list[Put | Drop] = field(default_factory=list)
    work: list[Asked] = field(default_factory=list)
    send: list[Held] = field(default_factory=list)
    excuse: list[CouldNot] = field(default_factory=list)
    say: list[Step] = field(default_factory=list)


@dataclass(frozen=True)
class Latest:
    """The latest ask of a run that this party worked on: a later one has a higher number, and the same
    number is the same ask of the same study, to the bit."""

    run: str
    federation: str
    version: int
    digest: str

    def follows(self, earlier: Latest) -> bool:
        """Whether this may come after an earlier one."""
        if self.federation != earlier.federation:
            return False
        return self.version > earlier.version or self == earlier


class Machine:
    """The agent, from the rows of its tables ``answer``, ``memory`` and ``latest``, and its seats."""

    def __init__(
        self,
        held: Iterable[Mapping[str, Any]] = (),
        memories: Iterable[Mapping[str, Any]] = (),
        latest: Iterable[Mapping[str, Any]] = (),
        seats: Seats | None = None,
    ) -> None:
        self._seats = seats or Seats("", Identity(bytes(32)))
        self._ready: dict[Key, Worked] = {}  # vectors that an attempt may still take
        self.held = {(row["run"], row["version"]): Held(**row) for row in held}
        self.memories: dict[str, bytes] = {row["run"]: row["body"] for row in memories}
        self.latest = {row["run"]: Latest(**row) for row in latest}
        self.over: dict[str, int] = {}  # the latest exchange of each run that is known to be over
        self._working: set[tuple[str, int, int]] = set()

    @property
    def pending(self) -> list[Key]:
        """Exchanges with an answer or secrets here, not known to be over; the latest runs first."""
        return sorted({*self.held, *self._seats.unsettled}, reverse=True)

    def done(self, asked: Asked) -> bool:
        """Whether work that has not begun need not: its exchange is over."""
        over = asked.ask.version <= self.over.get(asked.run, -1)
        self._working -= {_key(asked)} if over else set()
        return over

    def memory(self, asked: Asked) -> bytes:
        """What this party remembers of a run; of one that goes on from a backup (`hansa.coordinator.restored`), what it
        remembers of the run before, if it worked on no exchange that the coordinator forgot."""
        run = asked.run
        while run not in self.memories and (name := CAME_BACK.fullmatch(run)):
            run, latest = name[1], self.latest.get(name[1])
            if latest is not None and (latest.version >= int(name[2]) or latest.federation != asked.federation):
                return b""
        if self.memories.get(run) == b"":
            what = f"it has forgotten what it remembered of this run: {MEMORIES} others counted it since"
            raise ConsentError(what, remedy="Run the study anew")
        return self.memories.get(run, b"")

    def handle(self, event: AgentEvent) -> Effects:
        """One step."""
        effects = Effects()
        match event:
            case Asked():
                self._asked(effects, event)
            case Worked():
                self._worked(effects, event)
            case CouldNot(asked):
                self._working.discard(_key(asked))
                if event.charge:
                    effects.changes.append(Put("charge", event.charge))
                effects.excuse.append(event)
            case Settled(run, version, counted):
                self._settled(effects, (run, version), counted)
            case Heard():
                self._heard(effects, event)
        return effects

    def _asked(self, effects: Effects, asked: Asked) -> None:
        held, latest = self.held.get(_key(asked)[:2]), _latest(asked)
        ready, known = self._ready.get(_key(asked)[:2]), self.latest.get(asked.run, latest)
        if held is not None and held.attempt == asked.attempt and latest.version < known.version:
            effects.send.append(held)  # it was evaluated, say, before its late update counted
        elif (known.federation, known.version, known.digest) == (latest.federation, latest.version, COUNTED):
            effects.excuse.append(CouldNot(asked, "its answer to this exchange was counted already"))
        elif not latest.follows(known):
            reason = "another study or another ask than before comes under the same name and number"
            effects.excuse.append(CouldNot(asked, reason))
        elif held is not None and held.attempt == asked.attempt:
            effects.send.append(held)
        elif self._seats.closed(*_key(asked)[:2]):  # to work again would cost, for nothing
            effects.excuse.append(CouldNot(asked, "its vector for this exchange is in a sum, or may be yet"))
        elif ready and _latest(ready.asked) == latest and not self._seats.given(*_key(asked)[:2]):
            self._sit(effects, replace(ready, asked=asked))
        elif _key(asked) not in self._working:
            if asked.ask.version <= self.over.get(asked.run, -1):  # a run that failed goes on
                self.over[asked.run] = asked.ask.version - 1
            self._working.add(_key(asked))
            effects.work.append(replace(asked, paid=True) if self._paid(asked) else asked)

    def _paid(self, asked: Asked) -> bool:
        """Whether the vector of this very ask has a row in the ledger, but not yet left: a restart forgot it."""
        seat, (_, *number) = self._seats.latest(asked.run), _key(asked)
        if seat is None or seat.work is None or seat.sent or seat.ended:
            return False
        place = numbered(*number), asked.federation, asked.ask.digest
        return (seat.attempt, seat.session, seat.work.model.hex()) == place

    def _worked(self, effects: Effects, event: Worked) -> None:
        asked = event.asked
        self._working.discard(_key(asked))
        if event.charge:  # whatever becomes of it, and in one transaction with what is sent
            effects.changes.append(Put("charge", event.charge))
        if asked.ask.version <= self.over.get(asked.run, -1):
            return  # too late: nobody waits for it any more
        if event.sitting is None:
            self._answered(effects, event)
        else:
            self._sit(effects, event)

    def _answered(self, effects: Effects, event: Worked) -> None:
        asked = event.asked
        latest = _latest(asked)
        if not latest.follows(self.latest.get(asked.run, latest)):
            return  # another ask under this number was answered in the meantime
        self.latest[asked.run] = latest
        run, version, attempt = _key(asked)
        held = Held(run, version, attempt, asked.ask.round, event.weight, event.body, event.memory)
        self.held[run, version] = held
        effects.changes.append(Put("answer", vars(held)))
        effects.changes.append(Put("latest", vars(latest)))
        effects.send.append(held)

    # --- secure sums

    def _sit(self, effects: Effects, event: Worked) -> None:
        """Take a seat for a vector in the attempt that asked for it."""
        asked, sitting = event.asked, event.sitting
        assert sitting is not None
        place = Step(*_key(asked), Phase.ADVERTISE, asked.entropy)
        try:
            effects.changes += self._seats.take(place, asked.federation, *sitting[:3])
        except HansaError as error:
            effects.excuse.append(CouldNot(asked, error.message))
            return
        self._ready[_key(asked)[:2]] = event
        while len(self._ready) > READY:
            del self._ready[next(iter(self._ready))]
        effects.say += self._seats.advert(place)
        self._give(effects, asked.run)

    def _heard(self, effects: Effects, event: Heard) -> None:
        step = event.step
        try:
            changes, answers = self._seats.hear(step, event.pins)
        except HansaError as error:
            ask = Ask("secure sum", step.version, 0, Values(), ())
            reason = f"{error.message}. {error.remedy}" if error.remedy else error.message
            effects.excuse.append(CouldNot(Asked(step.run, ask, step.attempt, ""), reason, about=error.about))
            if isinstance(error, ConsentError) and (ready := self._ready.get((step.run, step.version))):
                effects.changes += seen(step, ready.asked.ask.parties, event.pins)
            return
        effects.changes += changes
        effects.say += answers
        self._give(effects, step.run)

    def _give(self, effects: Effects, run: str) -> None:
        """Mask the vector, once it is there and asked for: it and the seat that gave it are one transaction."""
        seat = self._seats.latest(run)
        key = run, seat.attempt >> 16 if seat else 0
        ready = self._ready.get(key)
        if seat is None or seat.sent or seat.phase != Phase.MASK or ready is None or ready.sitting is None:
            return
        try:
            changes, masked = self._seats.commit(seat, ready.sitting.vector)
        except HansaError as error:
            effects.excuse.append(CouldNot(replace(ready.asked, attempt=seat.attempt % ATTEMPTS), error.message))
            return
        effects.changes += changes
        self._answered(effects, replace(ready, body=tensors.write({"masked": masked})))

    def _settled(self, effects: Effects, key: Key, counted: bool) -> None:
        run, version = key
        self.over[run] = max(version, self.over.pop(run, -1))
        if len(self.over) > OVER:
            del self.over[next(iter(self.over))]
        latest = self.latest.get(run)
        if counted and latest and latest.version == version and latest.digest != COUNTED:
            self.latest[run] = latest = Latest(run, latest.federation, version, COUNTED)
            effects.changes.append(Put("latest", vars(latest)))
        self._ready.pop(key, None)
        effects.changes += self._seats.close(run, version)
        if held := self.held.pop(key, None):
            effects.changes.append(Drop("answer", {"run": run, "version": version}))
        if held is not None and counted and held.memory:
            self.memories.pop(run, None)
            self.memories[run] = held.memory
            old = [one for one, body in self.memories.items() if body][:-MEMORIES]
            self.memories |= dict.fromkeys(old, b"")
            effects.changes += [Put("memory", {"run": one, "body": self.memories[one]}) for one in (*old, run)]


def _latest(asked: Asked) -> Latest:
    return Latest(asked.run, asked.federation, asked.ask.version, asked.ask.digest)


def _key(asked: Asked) -> tuple[str, int, int]:
    return asked.run, asked.ask.version, asked.attempt
