"""One coordinator or two, a few agents and what lies between them: one thread, simulated time, all from a seed.

The coordinator's `Engine` and the agents' `Agent` are those of production, with their machines, seats, ledgers and
desks. What is simulated: disks, links, clocks, processes that die and supervisors that start them again.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from tests.faults import plan as plans
from tests.faults.invariants import RUN, Record, Sent, ViolationError, require
from tests.faults.plan import IDENTITIES, NAMES, PINS, SECRET, Plan, Spell, generator
from tests.faults.stores import Change, Guard, Memory, SimulatedAgentStore, SimulatedCoordinatorStore

from hansa import tensors
from hansa.agent import desk as agent_desk
from hansa.agent import service as agent_service
from hansa.agent.machine import Asked, CouldNot, Held
from hansa.agent.service import Agent
from hansa.aggregation import reduce
from hansa.contribution import Ask, Values
from hansa.coordinator import engine as coordinator_engine
from hansa.coordinator import events as ev
from hansa.coordinator import inbox
from hansa.coordinator import machine as coordinator_machine
from hansa.coordinator import store as coordinator_store
from hansa.coordinator import sums as coordinator_sums
from hansa.coordinator.engine import Engine, Resume, Waiting
from hansa.database import Put
from hansa.errors import HansaError, StoreError, TrustError, UnreachableError
from hansa.secure.terms import Phase, Step

LONGEST = 4000.0
"""Simulated seconds within which a run ends once nothing goes wrong any more."""

PATIENCE = 5.0
"""Seconds after which a side notices that its link is broken."""

ENDED = ("finished", "failed")
"""How a run may stand when it ends; one that failed may be let go on."""

LEAVES = 60.0
"""Seconds after which an agent, at the latest, leaves a coordinator that does not answer."""

PULSE = 2.0
"""Seconds after which a coordinator, at the latest, looks whether another one has taken over."""


class Crash(BaseException):
    """A process dies; no code may catch it."""


def driven(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run to its end a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("it waits for something")


class Halt:
    """Awaited by a coordinator that stands still, until it wakes up."""

    def __await__(self) -> Iterator[None]:
        yield


class Pause:
    """Awaited by an agent's work: so many seconds pass."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __await__(self) -> Iterator[float]:
        yield self.seconds


class World:
    """All of it, from a plan."""

    def __init__(self, plan: Plan, disks: Callable[[str], Any] | None = None) -> None:
        self.plan, self.now, self.ended_at = plan, 0.0, 0.0
        self.calm = plan.calm
        self.rates = {fault: rate for fault, rate in plan.rates.items() if rate}
        self._random = generator(plan.seed, "world")
        self.draw = self._random.random
        self._heap: list[tuple[float, int, Machine | None, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self.trace: list[tuple[Any, ...]] = []
        self.record = Record(plan)
        self.skew = 0.0
        self._clock = -1.0, ""
        self.partitioned: set[str] = set()
        made = disks or _in_memory
        self.coordinator = Coordinator(self, "", made(""))  # who took the newest epoch
        self.coordinators = [self.coordinator]
        self.session: Coordinator | None = None  # whose session of the database has the lock, if they are two
        if plan.spells:
            self.coordinators.append(Coordinator(self, "second", self.coordinator.disk))
        self.chance = generator(plan.seed, "takeovers")
        self.parties = {name: Party(self, name, made(name)) for name in (*plan.names, *plan.joins)}
        self._resumed = 0

    # --- time and chance

    def at(self, seconds: float, owner: Machine | None, do: Callable[..., None], *args: Any) -> None:
        """Do something later; not if its owner has died by then."""
        self._count += 1
        life = owner.life if owner else 0
        heapq.heappush(self._heap, (self.now + seconds, self._count, owner, life, do, args))

    def hits(self, fault: str) -> bool:
        """Whether a fault happens now."""
        if fault not in self.rates:
            return False
        if self.now >= self.calm:  # for good
            self.rates = {}
            return False
        if not self.record.events and fault not in ("before", "after"):  # the study is yet to be handed in
            return False
        if self.draw() >= self.rates[fault]:
            return False
        self.note("fault", fault)
        return True

    def soon(self, longest: float = 0.02) -> float:
        """Seconds that something takes; at times much longer."""
        seconds = 0.001 + self.draw() * longest
        return seconds + self.draw() * 20 if "slow" in self.rates and self.hits("slow") else seconds

    def note(self, *what: Any) -> None:
        self.trace.append((self.now, *what))

    def clock(self) -> str:
        """What the machines' clocks say."""
        at = self.now + self.skew
        if at != self._clock[0]:
            self._clock = at, f"2030-01-01T{at:.3f}Z"
        return self._clock[1]

    # --- what happens

    def run(self) -> Record:
        """Until the run has ended, and everybody knows."""
        for coordinator in self.coordinators:
            coordinator.start()
        for name in self.plan.names:
            self.at(self.soon(), None, self.parties[name].start)
        self.at(0.5, None, self._submit)
        self.at(1.0, None, self._weather)
        heap, record = self._heap, self.record
        while record.status not in ENDED or not self._over():
            require(heap, "nothing happens any more, and the run has not ended")
            self.now, _, owner, life, do, args = heapq.heappop(heap)
            if owner is not None:
                if owner.life != life or owner.process is None:
                    continue
                if owner.still:
                    owner.held.append((do, args))
                    continue
            if self.now >= self.calm + LONGEST:
                raise ViolationError("the run does not end")
            try:
                do(*args)
            except Crash:
                assert owner is not None
                self.note("dies", owner.name)
                owner.crash()
            record.after()
        self._judge()
        return record

    def _over(self) -> bool:
        """Whether a run that has come to an end is over: its operator wants no more of it, and every party knows."""
        if self.record.status == "failed" and not self._beyond_help():
            return False
        if not self.ended_at:
            self.ended_at = self.now
            self.calm = min(self.calm, self.now + 2.0)
            for seconds in (60.0, 90.0):  # what a party gave after the end, it hears of when it comes back
                self.at(seconds, None, self._reconnect)
        alone = all((one.process is not None) == (one is self.coordinator) for one in self.coordinators)
        up = alone and not self.coordinator.still
        return up and self.now > self.calm and all(party.settled for party in self.parties.values())

    def _reconnect(self) -> None:
        for party in self.parties.values():
            if not party.settled:
                party.unplug()

    def _beyond_help(self) -> bool:
        """Whether parties gave vectors without noise to a sum that never opened, and will not give them again."""
        return plans.KINDS[self.plan.kind].repeats and self.record.refused(
            "in the sum of an earlier attempt, or may be yet"
        )

    def close(self) -> None:
        """Let go of the stores, and of work that was under way."""
        for machine in (*self.coordinators, *self.parties.values()):
            if isinstance(machine, Party) and machine.process is not None:
                machine.process.end()
            if machine.store is not None:
                machine.store.close()

    def _answering(self) -> CoordinatorProcess | None:
        """The coordinator, as its operator reaches it."""
        process: CoordinatorProcess | None = None if self.coordinator.still else self.coordinator.process
        return process

    # --- a second coordinator

    def unlocked(self) -> None:
        """A session of the database has ended, and who stands by finds its lock free."""
        self.session = None
        for one in self.coordinators:
            if one.stands_by:
                self.at(self.chance.random() * 0.25, None, one.ask_again, one.life)

    def _spell(self, number: int = 0) -> None:
        """Whoever coordinates is soon not there, and does not know it; and so on."""
        spell, on = self.plan.spells[number], self.coordinator
        if on.process is None or on.still:
            self.at(0.2, None, self._spell, number)
            return
        on.halted(spell)
        if self.plan.spells[number + 1 :]:
            self.at(self.plan.spells[number + 1].after, None, self._spell, number + 1)

    # --- those who run it

    def _submit(self) -> None:
        """The operator hands in the study, again if that comes to nothing."""
        process = self._answering()
        if self.record.events:
            if self.plan.spells:
                self.at(self.plan.spells[0].after, None, self._spell)
            for name, seconds in self.plan.leaves.items():
                self.at(seconds, None, self._remove, name)
            for name, seconds in self.plan.back.items():
                self.at(seconds, None, self._rejoin, name)
            for name, seconds in self.plan.joins.items():
                self.at(seconds, None, self._join, name)
            return
        there = sum(guest.listening for guest in process.machine.guests.values()) if process else 0
        if process is not None and there == self.plan.parties and not process.machine.runs:
            process.post(ev.Submitted(RUN, self.plan.federation))
        self.at(1.0, None, self._submit)

    def resume(self) -> None:
        """The operator lets a failed run go on."""
        if self.record.status != "failed" or self._beyond_help():
            return
        require(self._resumed < 8, "the run fails whatever its operator does")
        if (process := self._answering()) is not None:
            self._resumed += 1
            self.note("resume")
            process.post(Resume(RUN))
        self.at(3.0, None, self.resume)

    def _remove(self, name: str) -> None:
        process = self._answering()
        if self.record.status != "running" or process is None:
            return
        self.note("remove", name)
        with suppress(HansaError):
            process.post(ev.Removed(name, "it moved away"))

    def _rejoin(self, name: str) -> None:
        process, party = self._answering(), self.parties[name]
        guest = process.machine.guests.get(name) if process else None
        if process is None or guest is None:
            self.at(1.0, None, self._rejoin, name)
        elif guest.state == "removed":
            self.note("rejoin", name)
            party.gone = False
            process.post(ev.Joined(name, f"{self.now}", "later"))
            if party.process is None:
                party.start()

    def _join(self, name: str) -> None:
        """A party is invited, joins once that is durable, and starts its agent."""
        process = self._answering()
        if process is None or process.store.row("party", name=name) is None:
            if process is not None:
                process.post(ev.Joined(name, "1", "later"))
            self.at(0.1, None, self._join, name)
            return
        self.note("joins", name)
        self.parties[name].gone = False
        self.parties[name].start()

    def _weather(self) -> None:
        """What happens to nobody in particular, and to nobody's doing."""
        if self.now >= self.calm:
            self.skew = 0.0
            self.partitioned.clear()
            return
        self.at(0.3, None, self._weather)
        for machine in (*self.coordinators, *self.parties.values()) if "idle" in self.rates else ():
            if machine.process is not None and self.hits("idle"):
                self.note("dies", machine.name)
                machine.crash()
        if self.hits("clock"):
            self.skew = self._random.uniform(-1e5, 1e5)
        if self.partitioned:
            if self.draw() < 0.2:
                self.partitioned.clear()
        elif self.hits("partition"):
            self.partitioned = {name for name in self.parties if self.draw() < 0.5}
            for name in sorted(self.partitioned):
                self.parties[name].unplug()

    def _judge(self) -> None:
        """At the end: the bits, and nothing left behind."""
        process = self.coordinator.process
        assert process is not None
        self.coordinator.compare()
        store, versions = process.store, len(self.record.arrived)
        present = {name: party.process._machine for name, party in self.parties.items() if party.process}
        remembered = {name: machine.memories.get(RUN, b"") for name, machine in present.items()}
        self.record.ended(store.read_blob(RUN, versions, "checkpoint"), remembered)
        require(not process._bodies and not process._tails, "the coordinator keeps what nobody needs")
        require(not process.alarms, "the coordinator waits for the deadline of a run that ended")
        left = [row["name"] for row in store.rows("blob", run=RUN) if row["name"] != "checkpoint"]
        require(self.record.status == "failed" or not left, f"blobs are left: {left}")
        for name, party in self.parties.items():
            if party.process is not None:
                party.compare()
                missing = party.process._ledger.missing and not party.cheat
                require(not missing, f"{name}'s ledger is older than its answers")


def _in_memory(name: str) -> Memory:
    return Memory(SimulatedAgentStore if name else SimulatedCoordinatorStore)


class Machine:
    """A machine with a disk, on which one process runs at a time, and a supervisor that starts it again."""

    def __init__(self, world: World, name: str, disk: Any) -> None:
        self.world, self.name, self.disk = world, name, disk
        self.life = 0
        self.process: Any = None
        self.store: Any = None
        self.still = False  # it has stopped, and may go on as if nothing had been
        self.held: list[tuple[Callable[..., None], tuple[Any, ...]]] = []  # what happened to it meanwhile

    def start(self) -> None:
        """Start the process; if its disk is full, or it dies at once, again later."""
        if self.process is not None:
            return
        self.life += 1
        self.world.note("starts", self.name)
        self.store = Guard(self.disk.open(), self._before, self._after)
        self.attempt()

    def attempt(self) -> None:
        """Begin, or die of it."""
        try:
            self.begin()
        except (Crash, StoreError):
            self.world.note("dies", self.name)
            self.crash()

    def begin(self) -> None:
        raise NotImplementedError

    def crash(self) -> None:
        """The process is gone; what it did not sync is, too."""
        self.life += 1
        self.process, self.still, self.held = None, False, []
        self.disk.crash(self.store)
        self.world.at(self.world.soon(2.0), None, self.start)

    def _before(self, changes: list[Change]) -> None:
        if self.world.hits("full"):
            raise StoreError("the database refuses to write: the disk is full")
        self.dies("before")

    def _after(self, changes: list[Change]) -> None:
        self.dies("after")

    def dies(self, where: str) -> None:
        if where in self.world.rates and self.world.hits(where):
            raise Crash


# --- the coordinator


@dataclass(eq=False)
class Session:
    """A connection of an agent, with what is on its way."""

    party: Party
    at: Coordinator
    broken: bool = False
    latest: dict[str, float] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)  # streams that a message was lost of
    waiting: list[ev.Notice] = field(default_factory=list)  # notices that were told and not yet sent
    uploads: deque[Parcel] = field(default_factory=deque)
    at_work: bool = False


class Parcel:
    """What a party uploads: an answer, an excuse, or a step; with the digest of an answer, as it left."""

    def __init__(self, what: Held | CouldNot | Step) -> None:
        self.what, self.digest = what, b""
        self.about: tuple[Any, ...]
        if isinstance(what, Held):
            self.digest = tensors.digest(what.body)
            self.about = "answer", what.version, what.attempt, self.digest.hex()[:8]
        elif isinstance(what, CouldNot):
            self.about = "excuse", what.asked.ask.version, what.asked.attempt, what.reason
        else:
            self.about = "step", what.version, what.attempt, Phase(what.phase).name


class Coordinator(Machine):
    """The machine on which the coordinator runs."""

    def __init__(self, world: World, name: str, disk: Any) -> None:
        super().__init__(world, name, disk)
        self.spools: dict[tuple[Any, ...], bytearray] = {}
        self.stands_by = False
        self.spell: Spell | None = None  # which is to come, or is

    def begin(self) -> None:
        self.stands_by = bool(self.world.plan.spells) and not self._takes_over()
        if self.stands_by:
            return
        self.process = CoordinatorProcess(self, self.store)
        driven(self.process.restore())
        self.compare()
        for name in self.world.plan.names:
            if name not in self.process.machine.guests:
                self.process.post(ev.Joined(name, "1", "later"))

    def crash(self) -> None:
        super().crash()
        self.spell, self.stands_by = None, False
        for spool in self.spools.values():  # its end was not synced
            del spool[int(len(spool) * self.world.draw()) :]
        for party in self._listeners():
            party.unplug()
        if self.world.session is self:
            self.world.unlocked()

    def _listeners(self) -> list[Party]:
        return [party for party in self.world.parties.values() if party.session and party.session.at is self]

    # --- one of two

    def _takes_over(self) -> bool:
        """Take the next epoch, if nobody else's session has the lock."""
        world = self.world
        if world.session not in (None, self):
            return False
        world.session = self
        require(self.store.take(self.name, self.name, "keys"), "who has the lock gets no epoch")
        world.coordinator = self
        world.note("takes over", self.name, self.store.epoch)
        return True

    def ask_again(self, life: int) -> None:
        if life == self.life and self.stands_by:
            self.attempt()

    def halted(self, spell: Spell) -> None:
        """It is soon not there; at the latest in a while."""
        self.spell = spell
        if spell.where == "idle":
            self.stop(spell)
        else:
            self.world.at(1.0, self, self.stop, spell)

    def stop(self, spell: Spell) -> None:
        """It stands still, or is cut off. What it sent is under way, and what it said to the database was done, or is
        yet to be done; what happens to it, it finds when it wakes up.
        """
        if spell is not self.spell or self.still:
            return
        world, self.still = self.world, True
        world.note("is cut off" if spell.cut else "stands still", self.name, spell.where)
        for party in self._listeners():
            if spell.cut:
                party.unplug()
            else:
                party.leaves_late()
        world.at(spell.session, None, self._forgotten, spell)
        world.at(spell.lasts, None, self._wake, spell)

    def _forgotten(self, spell: Spell) -> None:
        """The database ends its session."""
        if spell is self.spell and self.world.session is self:
            self.world.unlocked()

    def _wake(self, spell: Spell) -> None:
        """It goes on where it was, sure of its place; the database hears of it again."""
        if spell is not self.spell:
            return
        world, self.spell, self.still = self.world, None, False
        world.note("wakes up", self.name)
        held, self.held = self.held, []
        for do, args in held:
            world.at(0.0, self, do, *args)
        world.session = world.session or self
        world.at(world.chance.random() * PULSE, self, self._pulse)

    def _pulse(self) -> None:
        """See, until it has the lock again, that nobody has taken over: also while nothing is to be written."""
        self.world.session = self.world.session or self
        if self.world.session is not self:
            self.world.at(PULSE, self, self._pulse)
        try:
            self.store.peers()
        except StoreError as error:
            self.world.note("steps down", self.name, str(error))
            raise Crash from error

    def compare(self) -> None:
        """What is in the store is what became durable."""
        rows = self.store.rows("event", "seq", columns=("seq", "kind"), run=RUN)
        same = [(row["seq"], row["kind"]) for row in rows] == [(e["seq"], e["kind"]) for e in self.world.record.events]
        require(same, "the event log is not what it was")

    def _after(self, changes: list[Change]) -> None:
        self.world.record.committed(changes)
        require(self.world.coordinator is self, "who was replaced has committed")
        kinds = [change.values["kind"] for change in changes if change.table == "event" and isinstance(change, Put)]
        if kinds:
            self.world.note("committed", *kinds)
        if "failed" in kinds:
            self.world.at(3.0, None, self.world.resume)
        super()._after(changes)

    def describe(self, party: str) -> tuple[bytes, Any]:
        """The study, and among whom it runs, as a party is told."""
        if self.process is None or self.still:
            raise UnreachableError("the coordinator is down")
        row = self.store.row("run", id=RUN)
        require(party in row["setup"]["parties"], f"{party} is asked, and is not among the parties of the run")
        return row["federation"], row["setup"]

    def accept(self, session: Session, hello: ev.Connected) -> None:
        """A party dials."""
        process: CoordinatorProcess = self.process
        guest = process.machine.guests.get(session.party.name)
        if guest is None:
            session.party.breaks(session)
            return
        if guest.state != "active":
            self.world.at(self.world.soon(), session.party, session.party.removed, session)
            return
        process.sessions[session.party.name] = session
        process.post(hello, ticket=partial(self._heard, session))

    def _heard(self, session: Session, said: object) -> None:
        """The machine knows that a party listens, or could not take it in."""
        if isinstance(said, Exception):
            session.party.breaks(session)

    def lost(self, session: Session) -> None:
        """It notices that a link is broken."""
        process: CoordinatorProcess = self.process
        if process.sessions.get(session.party.name) is session:
            del process.sessions[session.party.name]
            process.post(ev.Disconnected(session.party.name))

    def receive(self, session: Session, parcel: Parcel, large: bool = False) -> None:
        """What `Coordinator.upload` does with one upload, up to the machine."""
        process: CoordinatorProcess = self.process
        name, what = session.party.name, parcel.what
        guest = process.machine.guests.get(name)
        if guest is None or guest.state != "active":
            session.party.breaks(session)
            return
        ticket = partial(self._received, session, parcel, large)
        if isinstance(what, Step):
            process.post(ev.Said(ticket, name, what))
            return
        if isinstance(what, CouldNot):
            asked = what.asked
            which = ticket, name, asked.run, asked.ask.version, asked.attempt
            process.post(ev.Failed(*which, what.reason, what.about))
            return
        body, digest = what.body, parcel.digest
        damaged = self.world.plan.cheats.get(name) == "damaged"
        if damaged:  # on its way, which only its own network can have done
            body = bytes(reversed(body))
        head: Any = SimpleNamespace(
            run=what.run, version=what.version, attempt=what.attempt, weight=what.weight, size=len(body), digest=digest
        )
        signal = inbox.expected(process.machine.runs.get(what.run), head, name)
        refusal = inbox.too_large(signal, head.size)
        if large and not refusal:
            spool = self.spools.setdefault((name, what.run, what.version, what.attempt), bytearray())
            if body[: len(spool)] != spool:
                spool.clear()
            if self.world.hits("cut"):  # it goes on at this byte
                spool += body[len(spool) : len(spool) + int(self.world.draw() * (len(body) - len(spool)))]
                session.party.breaks(session)
                return
            body = bytes(spool) + body[len(spool) :]
        refusal = refusal or inbox.refusal(body, head, signal)
        kept = b"" if refusal else body
        which = ticket, name, what.run, what.version, what.attempt
        process.post(ev.Delivered(*which, what.weight, digest.hex(), kept, refusal))

    def _received(self, session: Session, parcel: Parcel, large: bool, said: object) -> None:
        """The machine gives its receipt."""
        assert isinstance(said, tuple)
        what = parcel.what
        self.world.note("receipt", session.party.name, *parcel.about, *said)
        if said[0] and isinstance(what, Held):
            sent = Sent(what.attempt, what.weight, what.body)
            self.world.record.acknowledged(session.party.name, what.version, what.attempt, sent)
        if not large:
            self.world.at(self.world.soon(), session.party, session.party.next_upload, session)

    def send(self, session: Session) -> None:
        """Put what waits for a party into one message, or into several."""
        some = len(session.waiting)
        if some > 1 and self.world.hits("apart"):
            some = 1
        notices, session.waiting = session.waiting[:some], session.waiting[some:]
        session.party.carry(session, "notices", session.party, session.party.hear, notices)
        if session.waiting:
            self.world.at(self.world.soon(), self, self.send, session)


class CoordinatorProcess(Engine):
    """The coordinator as it runs."""

    def __init__(self, on: Coordinator, store: Any) -> None:
        super().__init__(store, self._told, self._is_over, SECRET)
        self._on, self._world = on, on.world
        self._queue: list[Any] = []
        self.sessions: dict[str, Session] = {}
        self.alarms: dict[ev.DeadlinePassed, int] = {}

    async def read(self, query: Callable[..., Any], *args: Any) -> Any:
        spell = self._on.spell
        if spell is None or self._on.still:
            return query(*args)
        if spell.where == "before":
            await Halt()
        said = query(*args)
        if spell.where == "after":
            await Halt()
        return said

    def post(self, event: ev.MachineEvent | Resume, *also: Put, ticket: Any = None) -> None:
        if not self._queue:
            self._world.at(self._world.soon(0.005), self._on, self._work)
        self._queue.append((event, also, ticket))

    async def _more(self, batch: list[Waiting], effects: ev.Effects) -> bool:
        return False

    def _work(self) -> None:
        batch, self._queue = self._queue, []
        for event, *_ in batch:
            what = type(event).__name__
            self._world.note("step", what, getattr(event, "party", ""))
        self._go_on(self._step(batch))

    def _go_on(self, step: Coroutine[Any, Any, None]) -> None:
        """Take a step until it is done, or halted in its middle."""
        on = self._on
        try:
            step.send(None)
        except StopIteration:
            if on.spell is not None and on.spell.where == "told":
                on.stop(on.spell)
            return
        except StoreError as error:  # it cannot remember, so it stops
            self._world.note("stops", str(error))
            raise Crash from error
        assert on.spell is not None
        on.stop(on.spell)
        on.held.append((self._go_on, (step,)))

    def _answer(self, ticket: Any, said: object) -> None:
        self._on.dies("between")
        if ticket is not None:
            ticket(said)

    def _told(self, party: str, notice: ev.Notice) -> None:
        self._on.dies("between")
        if isinstance(notice, ev.SettledNotice):
            self._world.record.told(party, notice.version, notice.counted)
        session = self.sessions.get(party)
        if session is None:
            return
        if not session.waiting:
            self._world.at(self._world.soon(0.002), self._on, self._on.send, session)
        session.waiting.append(notice)

    def _is_over(self, settled: Iterable[tuple[str, int]], ended: Iterable[str]) -> None:
        for key in [key for key in self._on.spools if key[1:3] in set(settled) or key[1] in ended]:
            del self._on.spools[key]

    def _set_alarms(self, effects: ev.Effects) -> None:
        for event, seconds in effects.alarms:
            self.alarms[event] = self._world._count
            self._world.at(seconds, self._on, self._ring, event, self._world._count)
        for key in [k for k in self.alarms if (k.run, k.version) in effects.settled or k.run in effects.ended]:
            del self.alarms[key]

    def _ring(self, event: ev.DeadlinePassed, number: int) -> None:
        if self.alarms.get(event) == number:
            self._world.note("deadline", event.version, event.attempt, event.phase)
            self.post(event)

    def _reduce(self, run: str, version: int, *rest: Any) -> ev.Reduced:
        reduced = super()._reduce(run, version, *rest)
        self._world.record.summed(version, self.machine.runs[run].attempt, reduced.total)
        return reduced


# --- the parties


class Party(Machine):
    """The machine on which a party's agent runs, and its link."""

    process: AgentProcess | None

    def __init__(self, world: World, name: str, disk: Any) -> None:
        super().__init__(world, name, disk)
        self.identity, self.party, self.address = IDENTITIES[name], name, "coordinator"
        self.session: Session | None = None
        self.gone = name in world.plan.joins  # removed, and not back; or not yet there
        self.cheat = world.plan.cheats.get(name, "")
        self._drawn = 0
        self._prepared = False

    # what an agent asks of its home
    @property
    def folder(self) -> Party:
        return self

    def __truediv__(self, name: str) -> Party:
        return self

    def secret(self) -> bytes:
        """32 bytes, as if of the operating system's generator: never the same twice in a world."""
        self._drawn += 1
        return plans.entropy(self.name, self._drawn)

    def begin(self) -> None:
        if self.gone:
            return
        if not self._prepared:
            self._prepare()
        self.process = AgentProcess(self)
        self.compare()
        self.world.at(self.world.soon(), self, self.dial)

    def _prepare(self) -> None:
        """What the owner says before the agent first starts."""
        self.store.apply(_said_before(self.world.plan.budget))
        self._prepared = True

    def crash(self) -> None:
        if self.process is not None:
            self.process.end()
        super().crash()
        self.unplug()
        self.session = None

    def _after(self, changes: list[Change]) -> None:
        ready = self.process._machine._ready if self.process else {}
        vectors = {version: one.sitting.vector for (_, version), one in ready.items() if one.sitting}
        self.world.record.kept(self.name, changes, vectors)
        super()._after(changes)

    def compare(self) -> None:
        """What is in the store is what became durable."""
        memories = {row["run"]: row["body"] for row in self.store.rows("memory")}
        require(
            memories.get(RUN) == self.world.record.memories.get(self.name), f"{self.name}'s memory is not what it was"
        )

    @property
    def settled(self) -> bool:
        """Whether it is connected and knows of everything what became of it, or is gone."""
        if self.gone:
            return True
        return self.process is not None and self.session is not None and not self.process._machine.pending

    # --- the link

    def carry(self, session: Session, stream: str, to: Machine, do: Callable[..., None], *args: Any) -> None:
        """Bring a message to the other side, in the order of its stream; or lose it with the link."""
        world, seconds = self.world, self.world.soon()
        if session.broken and not world.hits("ghost"):
            session.lost.add(stream)
        elif stream not in session.lost and world.hits("cut"):
            self.breaks(session)
            session.lost.add(stream)
        if stream in session.lost:  # nothing of a stream arrives after what it lost
            return
        when = max(world.now + seconds, session.latest.get(stream, 0.0))
        session.latest[stream] = when
        world.at(when - world.now, to, self._arrives, session, stream, do, args)
        if world.hits("twice") and to is not self:
            world.at(when - world.now + world.soon(1.0), to, self._arrives, session, stream, do, args)

    def _arrives(self, session: Session, stream: str, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if session.broken and not self.world.hits("ghost"):
            session.lost.add(stream)
        if stream not in session.lost:
            do(session, *args)

    def breaks(self, session: Session) -> None:
        """A link breaks, and each side notices in its own time."""
        if not session.broken:
            session.broken = True
            self.world.note("link breaks", self.name)
            self.world.at(self.world.soon(PATIENCE), self, self.lost, session)
            self.world.at(self.world.soon(PATIENCE), session.at, session.at.lost, session)

    def unplug(self) -> None:
        if self.session is not None:
            self.breaks(self.session)

    def leaves_late(self) -> None:
        """Its coordinator is silent: it breaks the link in the end."""

        def leave(session: Session | None) -> None:
            if session is not None and session is self.session:
                self.breaks(session)

        self.world.at(self.world.chance.random() ** 3 * LEAVES, self, leave, self.session)

    def _address(self) -> Coordinator:
        """One of the addresses that it knows; who stands by sends it on."""
        world = self.world
        if not world.plan.spells:
            return world.coordinator
        there = [one for one in world.coordinators if one.process and not (one.still and one.spell and one.spell.cut)]
        return world.chance.choice(there or world.coordinators)

    def dial(self) -> None:
        """Reach for the coordinator, again and again."""
        world, process = self.world, self.process
        if self.session is not None or process is None or self.gone:
            return
        at = self._address()
        if at.process is None or self.name in world.partitioned:
            world.at(world.soon(1.0), self, self.dial)
            return
        self.session = session = Session(self, at)
        process._client = session
        pending = tuple(ev.Unsettled(run, version) for run, version in process._machine.pending)
        world.note("dials", self.name, pending)
        hello = ev.Connected(self.name, (plans.offered(self.name),), pending, self.identity.public)
        self.carry(session, "hello", at, at.accept, hello)
        if at.still:
            self.leaves_late()

    def lost(self, session: Session) -> None:
        """It notices that its link is broken."""
        process = self.process
        if self.session is session:
            self.session = None
            if process is not None:
                process.hang_up()
                self.world.at(self.world.soon(0.5), self, self.dial)

    def removed(self, session: Session) -> None:
        """The coordinator does not know it any more: it ends for good, unless it is invited again."""
        if self.world.coordinator.process is not None:
            guest = self.world.coordinator.process.machine.guests.get(self.name)
            if guest is not None and guest.state == "active":  # in the meantime it joined anew
                self.breaks(session)
                return
        self.world.note("ends", self.name)
        if self.process is not None:
            self.process.end()
        self.life += 1
        self.gone, self.process, self.session = True, None, None
        session.broken = True
        self.disk.crash(self.store)

    def hear(self, session: Session, notices: list[ev.Notice]) -> None:
        """Take a message in."""
        if session is not self.session or self.process is None:
            return
        self.world.note("hears", self.name, [_said(notice) for notice in notices])
        message = _message(notices)
        try:
            driven(self.process._noticed(message))
        except TrustError:
            self.removed(session)
        except StoreError as error:
            self.world.note("stops", self.name, str(error))
            raise Crash from error

    # --- uploads

    def upload(self, what: Held | CouldNot | Step) -> None:
        """Give something to the link: small things one after the other, large ones by themselves."""
        session = self.session
        if session is None:
            return
        for one in self._cheated(what):
            parcel = Parcel(one)
            self._recorded(one)
            self.world.note("uploads", self.name, *parcel.about)
            if isinstance(one, Held) and self.world.hits("torn"):
                self.carry(session, f"{self.world._count}", session.at, session.at.receive, parcel, True)
                continue
            session.uploads.append(parcel)
            if not session.at_work:
                self._next(session)

    def _recorded(self, what: Held | CouldNot | Step) -> None:
        if self.cheat:
            if isinstance(what, Held):
                self.world.record.cheats(Sent(what.attempt, what.weight, what.body))
        elif isinstance(what, Held):
            self.world.record.leaves(self.name, what.version, what.attempt, what.body)
        elif isinstance(what, Step):
            self.world.record.says(self.name, what.number, what.phase, what.payload)

    def next_upload(self, session: Session) -> None:
        """The receipt is here."""
        if session is self.session:
            session.at_work = False
            if session.uploads:
                self._next(session)

    def _next(self, session: Session) -> None:
        session.at_work = True
        self.carry(session, "uploads", session.at, session.at.receive, session.uploads.popleft())

    def _cheated(self, what: Held | CouldNot | Step) -> list[Held | CouldNot | Step]:
        """What a cheat sends instead."""
        if self.cheat == "silent" and self.world.draw() < 0.7:
            return []
        if self.cheat == "babble" and isinstance(what, Step):
            return [replace(what, payload=what.payload[::-1]), what]
        if not isinstance(what, Held):
            return [what]
        match self.cheat:
            case "nan":
                return [_altered(what, lambda value: value * np.nan if value.dtype.kind == "f" else value[:-1])]
            case "shape":
                return [_altered(what, lambda value: value[:1])]
            case "weight":
                return [replace(what, weight=1e9), what]
            case "negative":
                return [replace(what, weight=-1.0)]
            case "other":
                return [_altered(what, lambda value: value + 1), what]
            case "unknown":
                return [replace(what, run="nowhere"), what]
            case "stale":
                return [replace(what, attempt=what.attempt + 1), replace(what, version=what.version + 1), what]
        return [what]


@cache
def _said_before(epsilon: float | None) -> tuple[Change, ...]:
    rows = [Put("rule", {"name": "honest", "value": 1})]
    rows += [Put("member", {"name": n, "identity": None, "words": PINS[n]}) for n in NAMES]
    if epsilon is not None:
        rows.append(Put("budget", {"unit": "example", "epsilon": epsilon, "delta": 1e-5}))
        rows.append(Put("rule", {"name": "order", "value": 4}))  # to find it anew takes long
    return tuple(rows)


def _altered(held: Held, how: Callable[[Any], Any]) -> Held:
    values = {name: how(value) for name, value in tensors.read(held.body).items()}
    return replace(held, body=tensors.write(values))


def _said(notice: ev.Notice) -> str:
    if isinstance(notice, ev.WorkNotice):
        return f"work {notice.ask.version}.{notice.attempt}"
    if isinstance(notice, ev.SettledNotice):
        return f"settled {notice.version} {notice.counted}"
    return (
        f"step {notice.version}.{notice.attempt} {Phase(notice.phase).name}" if isinstance(notice, Step) else "removed"
    )


def _message(notices: Iterable[ev.Notice]) -> Any:
    """A message as the service makes it of several notices: by kind."""
    message = SimpleNamespace(settled=[], steps=[], work=[], removed=None)
    for notice in notices:
        if isinstance(notice, ev.SettledNotice):
            for told in (message.work, message.steps):
                told[:] = [one for one in told if (one.run, one.version) != (notice.run, notice.version)]
            message.settled.append(notice)
        elif isinstance(notice, Step):
            message.steps.append(notice)
        elif isinstance(notice, ev.WorkNotice):
            of = notice.ask
            message.work.append(SimpleNamespace(**vars(notice), version=of.version, work=of.work))
        elif isinstance(notice, ev.RemovedNotice):
            message.removed = notice
    removed = message.removed is not None
    message.HasField = lambda name: name == "removed" and removed
    return message


class AgentProcess(Agent):
    """The agent as it runs."""

    def __init__(self, on: Party) -> None:
        self._on, self._world = on, on.world
        super().__init__(on, [plans.offers()[on.name]], lambda said: None)
        self._tasks: dict[Coroutine[Any, Any, Any], bool] = {}

    def hang_up(self) -> None:
        """The session ends; work that is under way outlives it."""
        self._client = None
        self._close([task for task, call in self._tasks.items() if call])

    def end(self) -> None:
        """The process is gone."""
        self._close(list(self._tasks))

    def _close(self, tasks: list[Coroutine[Any, Any, Any]]) -> None:
        for task in tasks:
            del self._tasks[task]
            if not task.cr_running:
                task.close()

    def _begin(self, doing: Any, among: Any) -> None:
        self._tasks[doing] = among is self._calling
        self._on.dies("between")
        self._go_on(doing)

    def _go_on(self, doing: Coroutine[Any, Any, Any]) -> None:
        """Let a task run until it waits, or ends."""
        if doing not in self._tasks:
            return
        try:
            seconds = doing.send(None)
            self._world.at(seconds, self._on, self._go_on, doing)
            return
        except StopIteration:
            pass
        except UnreachableError:
            self._on.unplug()
        except StoreError as error:
            self._world.note("stops", self._on.name, str(error))
            raise Crash from error
        self._tasks.pop(doing, None)

    async def _understood(self, work: Any) -> Asked:
        await Pause(self._world.soon(0.05))
        if not self._desk.knows(work.run, work.ask.among):
            at = self._on.session.at if self._on.session else self._world.coordinator
            self._desk.describe(work.run, *at.describe(self._on.name))
        return Asked(work.run, work.ask, work.attempt, work.federation, self._on.secret())

    async def _work(self, asked: Asked) -> None:
        await Pause(self._world.soon(0.5))
        self._world.note("works", self._on.name, asked.ask.version, asked.attempt, asked.paid)
        memory = self._machine.memories.get(asked.run, b"")
        try:
            worked: Any = self._desk.work(asked, memory)
        except agent_service.SpentError as spent:
            worked = self._failed(asked, _expected(spent.error), spent.charge)
        except HansaError as error:
            worked = self._failed(asked, error, {})
        await self._handle(worked)

    async def _send(self, held: Held) -> None:
        self._on.upload(held)

    async def _excuse(self, could_not: CouldNot) -> None:
        self._on.upload(could_not)

    async def _say_step(self, step: Step) -> None:
        self._on.upload(step)


def _expected(error: Exception) -> Exception:
    if not isinstance(error, HansaError):
        raise error
    return error


@contextmanager
def stage() -> Iterator[Callable[[World], None]]:
    """Put the simulated world in place of the real one, where production reaches for it by name; each world that
    is to run is set in it first.
    """
    here: list[World] = []

    def clock() -> str:
        return here[0].clock()

    agents = {
        "AgentStore": lambda home: home.store,
        "kept_key": lambda path: SECRET,
        "Left": lambda path: None,
        "ThreadPoolExecutor": lambda *_: None,
    }
    logs, clocks = (agent_service, coordinator_engine), (agent_desk, coordinator_machine, coordinator_sums)
    stand_ins: list[tuple[Any, str, Any]] = [(agent_service, name, made) for name, made in agents.items()]
    stand_ins += [(module, "LOG", _Silent()) for module in logs]
    stand_ins.append((reduce, "ThreadPoolExecutor", _NoThreads))
    stand_ins += [(module, "now", clock) for module in (*logs, *clocks)]
    with ExitStack() as stack:
        for place in stand_ins:
            stack.enter_context(mock.patch.object(*place))

        def enter(world: World) -> None:
            here[:] = [world]
            for module in (coordinator_engine, coordinator_store):
                module.INLINE = world.plan.inline

        inline = coordinator_store.INLINE
        try:
            yield enter
        finally:
            coordinator_engine.INLINE = coordinator_store.INLINE = inline


class _NoThreads:
    """As many threads as there are: one."""

    def __init__(self, *_: int) -> None:
        self.map = map

    def __enter__(self) -> _NoThreads:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Silent:
    """A log that nobody reads."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


__all__ = ["Ask", "Crash", "Values", "ViolationError", "World", "stage"]
