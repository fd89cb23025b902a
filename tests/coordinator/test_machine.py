"""The two state machines against each other, without I/O: a network that repeats, forgets and crashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

import hansa as hs
from hansa import aggregation as agg
from hansa import tensors
from hansa.agent import machine as party
from hansa.agent import store as party_store
from hansa.agent.desk import Desk
from hansa.agent.policy import Offer
from hansa.agent.seats import Seats
from hansa.aggregation.reduce import Reduction, discounted
from hansa.aggregation.ring import parted
from hansa.contribution import Array, Contribution, Contributions, Total, Values
from hansa.coordinator import store
from hansa.coordinator.events import (
    Connected,
    DeadlinePassed,
    Delivered,
    Disconnected,
    Effects,
    Failed,
    Joined,
    MachineEvent,
    Offered,
    Reduced,
    Removed,
    Renewed,
    Resumed,
    Said,
    SettledNotice,
    Submitted,
    Unsettled,
    WorkNotice,
)
from hansa.coordinator.live import Guest, Past, revived
from hansa.coordinator.machine import Machine
from hansa.coordinator.sums import LONGEST_REASON
from hansa.crypto.agreement import Identity, words
from hansa.database import Drop, Put
from hansa.errors import ConsentError, RunError, StudyError, TrustError
from hansa.methods import GradientMethod
from hansa.methods.base import METHODS
from hansa.run import Event, Run
from hansa.secure.coordinator import total, unfit
from hansa.secure.terms import Phase, Step

pytestmark = pytest.mark.untraced

RUN = "run"


class Remembering(GradientMethod):
    """A method that goes wrong at once if a memory is lost, kept too soon, or kept twice."""

    kind: ClassVar[str] = "remembering"
    memory: ClassVar[tuple[str, ...]] = ("past",)

    def finish(
        self, parameters: Array, received: Values, memory: Values, steps: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        update = parameters - received.parameters + 0.1 * memory.past
        return {"update": update}, {"past": 0.5 * memory.past + update}


@pytest.fixture(autouse=True, scope="module")
def known() -> Iterator[None]:
    before = dict(METHODS._known)
    METHODS.register(Remembering)
    yield
    METHODS._known.clear()
    METHODS._known.update(before)


def tables() -> dict[str, hs.Table]:
    random = np.random.default_rng(3)
    made = {}
    for name, rows in {"a": 5, "b": 9, "c": 7}.items():
        x = random.normal(size=rows)
        made[name] = hs.Table.of({"x": x, "y": 2 * x + 1})
    return made


TABLES = tables()


def study(**parts: Any) -> hs.Federation:
    fields: dict[str, Any] = {
        "name": "lines",
        "task": hs.LinearRegression(target="y"),
        "method": Remembering(local=hs.SGD(lr=0.1, batch_size="all")),
        "rounds": 3,
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0, holdout=0),
        **parts,
    }
    return hs.Federation(**fields)


class Rows:
    """What is durable: tables of rows by primary key."""

    def __init__(self, metadata: Any) -> None:
        self._keys = {t.name: [c.name for c in t.primary_key] for t in metadata.sorted_tables}
        self._tables: dict[str, dict[tuple[Any, ...], dict[str, Any]]] = {n: {} for n in self._keys}

    def apply(self, changes: list[Put | Drop]) -> None:
        for change in changes:
            rows = self._tables[change.table]
            if isinstance(change, Put):
                key = tuple(change.values[name] for name in self._keys[change.table])
                rows[key] = {**rows.get(key, {}), **change.values}
            else:
                for key in [k for k, row in rows.items() if _matches(row, change.values)]:
                    del rows[key]

    def rows(self, table: str, **where: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in self._tables[table].values() if _matches(row, where)]

    def row(self, table: str, **where: Any) -> dict[str, Any] | None:
        return next(iter(self.rows(table, **where)), None)


def _matches(row: dict[str, Any], where: Any) -> bool:
    return all(row[name] == value for name, value in where.items())


WORK: dict[tuple[str, str, bytes], tuple[float, bytes, bytes, dict[str, Any], party.Sitting | None]] = {}


KEYS = {name: Identity(name.encode() * 32) for name in TABLES}
PINS = {name: words(key.public) for name, key in KEYS.items()}


@dataclass
class Guild:
    """One party: its machine, what it has on disk, its link and what it is at."""

    name: str
    rows: Rows = field(default_factory=lambda: Rows(party_store.metadata))
    machine: party.Machine = field(init=False)
    linked: bool = False
    inbox: list[WorkNotice | SettledNotice | Step] = field(default_factory=list)
    work: list[party.Asked] = field(default_factory=list)
    drawn: int = 0

    def __post_init__(self) -> None:
        self.crash()

    def feed(self, event: party.AgentEvent) -> list[party.Held | Step]:
        effects = self.machine.handle(event)
        self.rows.apply(effects.changes)
        self.work += effects.work
        return [*effects.send, *effects.say]

    def read(self, notice: WorkNotice | SettledNotice | Step) -> list[party.Held | Step]:
        if isinstance(notice, WorkNotice):
            self.drawn += 1  # no two seats are taken with the same randomness
            chance = blake3(f"{self.name} {self.drawn}".encode()).digest()
            return self.feed(party.Asked(notice.run, notice.ask, notice.attempt, notice.federation, chance))
        if isinstance(notice, Step):
            return self.feed(party.Heard(notice, PINS))
        return self.feed(party.Settled(notice.run, notice.version, notice.counted))

    def do(self, desk: Desk) -> list[party.Held | Step]:
        asked = self.work.pop(0)
        memory = self.machine.memories.get(asked.run, b"")
        key = (self.name + asked.federation, asked.ask.digest, memory)
        if key not in WORK:
            worked = desk.work(asked, memory)
            WORK[key] = (worked.weight, worked.body, worked.memory, {}, worked.sitting)
        return self.feed(party.Worked(asked, *WORK[key]))

    def crash(self) -> None:
        seats = Seats(self.name, KEYS[self.name], self.rows.rows("seat"))
        self.machine = party.Machine(*(self.rows.rows(t) for t in ("answer", "memory", "latest")), seats=seats)
        self.inbox, self.work, self.linked = [], [], False


class World:
    """A coordinator, three parties, and whatever is between them."""

    def __init__(self, federation: hs.Federation) -> None:
        self.federation = federation
        self.rows = Rows(store.metadata)
        self.machine = Machine()
        self.guilds = {name: Guild(name) for name in TABLES}
        self.flying: list[tuple[str, party.Held | Step]] = []
        self.said: dict[tuple[str, int, int], set[bytes]] = {}
        self.inside: list[MachineEvent] = []
        self.alarms: list[DeadlinePassed] = []
        self.fates: dict[tuple[str, int], set[bool]] = {}
        self.attempts: dict[tuple[str, int, int], set[bytes]] = {}
        self.acknowledged: set[tuple[str, int]] = set()
        for name in TABLES:
            self.feed(Joined(name, "1", "later"))
            self.link(name)
        self.feed(Submitted(RUN, federation))
        row = self.rows.row("run", id=RUN)
        assert row is not None
        self.desks = {}
        for name, table in TABLES.items():
            desk = Desk(name, [Offer("lines", table, ("linear-regression",))])
            desk.describe(RUN, row["federation"], row["setup"])
            self.desks[name] = desk

    # --- the coordinator

    def feed(self, event: MachineEvent, crash: str = "", merge: bool = False) -> Effects:
        """One event; with ``merge``, the sum that it makes possible is in the same transaction."""
        before = deepcopy(self.rows)
        effects = self.machine.handle(event)
        self.commit(effects)
        while merge and effects.reduce:
            summed = self.machine.handle(self.reduced(*effects.reduce.pop(0)))
            self.commit(summed)
            for name, found in vars(summed).items():
                getattr(effects, name).extend(found)
        if crash == "before":
            self.rows = before
        if crash:
            self.crash()
            return effects
        self.carry_out(effects)
        return effects

    def quietly(self, event: MachineEvent) -> None:
        """Feed an event whose ticket is nobody's."""
        effects = self.machine.handle(event)
        self.commit(effects)
        effects.receipts.clear()
        self.carry_out(effects)

    def commit(self, effects: Effects) -> None:
        bodies = [b"".join(blob.body) if isinstance(blob.body, list) else blob.body for blob in effects.blobs]
        some = zip(effects.blobs, bodies, strict=True)
        blobs = [Put("blob", {**vars(blob), "body": body, "digest": "-"}) for blob, body in some]
        self.rows.apply([*effects.changes, *blobs])

    def carry_out(self, effects: Effects) -> None:
        for ticket, taken, _ in effects.receipts:
            assert isinstance(ticket, tuple)
            name, held = ticket
            if isinstance(held, Step):
                continue
            answer = self.rows.row("answer", run=RUN, version=held.version, party=name)
            assert not taken or (answer is not None and answer["digest"] == digest(held))
            if taken:
                self.acknowledged.add((name, held.version))
        for name, notice in effects.notices:
            if isinstance(notice, SettledNotice):
                self.fates.setdefault((name, notice.version), set()).add(notice.counted)
            guild = self.guilds[name]
            if guild.linked and isinstance(notice, WorkNotice | SettledNotice | Step):
                guild.inbox.append(notice)
        for run, version, parties in effects.reduce:
            self.inside.append(self.reduced(run, version, parties))
        self.alarms += [passed for passed, _ in effects.alarms]

    def reduced(self, run: str, version: int, parties: tuple[str, ...]) -> Reduced:
        live = self.machine.runs[run]
        assert live.ask is not None
        if live.desk is not None:
            return self.unmasked(live, parties)
        fields = live.course.signals(live.ask)[-1].fields
        reduction = Reduction(fields, [*dict.fromkeys((*live.ask.parties, *parties))])
        for name in parties:
            since = live.place(name)[0]
            blob = self.rows.row("blob", run=run, version=since.version, name=f"answer {name}")
            answer = self.rows.row("answer", run=run, version=since.version, party=name)
            assert blob is not None
            assert answer is not None
            given = Contribution(Values(tensors.read(blob["body"])), answer["weight"])
            factor = live.federation.pace.discount(live.ask.round - since.round)
            reduction.add(name, discounted(Contributions.of(name, given), fields, factor).one(0))
        return Reduced(run, version, reduction.total(len(live.course.setup.parties)))

    def unmasked(self, live: Any, parties: tuple[str, ...]) -> Reduced:
        def vector(name: str) -> bytes:
            blob = self.rows.row("blob", run=RUN, version=live.ask.version, name=f"answer {name}")
            assert blob is not None
            return tensors.read(blob["body"])["masked"].tobytes()

        values = parted(total(live.desk.desks[0], vector), live.course.signals(live.ask)[-1].fields)
        return Reduced(RUN, live.ask.version, Total(values, parties, len(TABLES), float(len(parties))))

    def crash(self) -> None:
        """Everything but the rows is lost; every link breaks."""
        guests = {row["name"]: Guest.from_row(row) for row in self.rows.rows("party")}
        lives = {row["id"]: self.revive(row) for row in self.rows.rows("run", status="running")}
        self.machine = Machine(guests, lives)
        self.inside, self.alarms = [], []
        for guild in self.guilds.values():
            guild.linked, guild.inbox = False, []
        effects = self.machine.restart()
        self.commit(effects)
        self.carry_out(effects)

    def applied(self) -> int:
        return max(int(row["version"]) for row in self.rows.rows("blob", run=RUN, name="checkpoint"))

    def revive(self, row: dict[str, Any]) -> Any:
        version = self.applied()
        packed = self.rows.row("blob", run=RUN, version=version, name="checkpoint")
        assert packed is not None
        seq = len(self.rows.rows("event", run=RUN))
        kept = (self.rows.row("blob", run=RUN, version=version, name=name) for name in ("desk", "past", "begun"))
        desk, past, begun = (blob["body"] if blob else b"" for blob in kept)
        ask = self.rows.row("ask", run=RUN, version=version)
        if row["status"] != "running":
            live = revived(row, packed["body"], seq, past=past)
            live.attempt = ask["attempt"] if ask else 1
            return live
        answers = self.rows.rows("answer", run=RUN, version=version)
        return revived(row, packed["body"], seq, ask, answers, b"", desk, past, begun, self.earlier)

    def earlier(self, version: int) -> tuple[bytes, list[dict[str, Any]]]:
        sent = self.rows.row("blob", run=RUN, version=version, name="ask")
        assert sent is not None
        return sent["body"], self.rows.rows("answer", run=RUN, version=version)

    # --- parties

    def link(self, name: str) -> None:
        """A party dials, again if it must."""
        guild = self.guilds[name]
        guild.linked, guild.inbox = True, []
        pending = []
        for run, version in guild.machine.pending:
            answer = self.rows.row("answer", run=run, version=version, party=name)
            taken = bool(answer and answer["taken"])
            pending.append(Unsettled(run, version, taken, self.applied()))
        columns = TABLES[name].schema()
        offer = Offered("lines", TABLES[name].rows, columns, ("linear-regression",))
        self.feed(Connected(name, (offer,), tuple(pending), KEYS[name].public))

    def unlink(self, name: str) -> None:
        self.guilds[name].linked, self.guilds[name].inbox = False, []
        self.feed(Disconnected(name))

    def send(self, name: str, answers: list[party.Held | Step]) -> None:
        for held in answers:
            key = (name, held.version, held.attempt)
            if isinstance(held, Step):
                self.said.setdefault((name, held.number, held.phase), set()).add(held.payload)
            else:
                self.attempts.setdefault(key, set()).add(held.body)
            self.flying.append((name, held))

    def arrive(self, name: str, held: party.Held | Step, crash: str = "", merge: bool = False) -> None:
        if isinstance(held, Step):
            self.feed(Said((name, held), name, held), crash, merge)
            return
        event = Delivered(
            (name, held), name, held.run, held.version, held.attempt, held.weight, digest(held), held.body
        )
        self.feed(event, crash, merge)

    # --- what may happen next

    def choices(self) -> list[Callable[[], object]]:
        """Everything that could happen now, the harmless and the harmful."""
        found: list[Callable[[], object]] = [self.crash]
        for name, guild in self.guilds.items():
            if guild.inbox:
                found.append(partial(self.hear, name))
            if guild.work:
                found.append(partial(self.toil, name))
            found.append(partial(self.unlink if guild.linked else self.link, name))
            found.append(partial(self.perish, name))
        for index in range(len(self.flying)):
            found.append(partial(self.land, index, keep=True))
            found.append(partial(self.flying.pop, index))
            for crash, merge in product(("", "before", "after"), (False, True)):
                found.append(partial(self.land, index, crash=crash, merge=merge))
        if self.inside:
            found += [partial(self.think, crash) for crash in ("", "before", "after")]
        return found

    def hear(self, name: str) -> None:
        guild = self.guilds[name]
        self.send(name, guild.read(guild.inbox.pop(0)))

    def toil(self, name: str) -> None:
        self.send(name, self.guilds[name].do(self.desks[name]))

    def perish(self, name: str) -> None:
        self.unlink(name)
        self.guilds[name].crash()

    def land(self, index: int, keep: bool = False, crash: str = "", merge: bool = False) -> None:
        name, held = self.flying[index] if keep else self.flying.pop(index)
        self.arrive(name, held, crash, merge)

    def think(self, crash: str = "") -> None:
        self.feed(self.inside.pop(0), crash)

    def finish(self) -> None:
        """From here on nothing goes wrong."""
        for _ in range(200):
            if RUN not in self.machine.runs:
                break
            flying = bool(self.flying)
            for name, guild in self.guilds.items():
                if not guild.linked or not (guild.inbox or guild.work or flying):
                    self.link(name)
                while guild.inbox:
                    self.hear(name)
                while guild.work:
                    self.toil(name)
            while self.flying:
                self.land(0)
            while self.inside:
                self.think()
        for name in self.guilds:
            self.link(name)
            while self.guilds[name].inbox:
                self.guilds[name].read(self.guilds[name].inbox.pop(0))

    # --- what must hold

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        rows = sorted(self.rows.rows("event", run=RUN), key=lambda row: row["seq"])
        assert [row["seq"] for row in rows] == list(range(1, len(rows) + 1))
        return [row["body"] for row in rows if not kinds or row["kind"] in kinds]

    def checkpoint(self) -> bytes:
        row = self.rows.row("blob", run=RUN, version=self.applied(), name="checkpoint")
        assert row is not None
        return bytes(row["body"])

    def judge(self) -> None:
        arrived = [body["version"] for body in self.events("arrived")]
        assert len(arrived) == len(set(arrived)), "a version was summed twice"
        assert all(len(fates) == 1 for fates in self.fates.values()), "one answer had two fates"
        assert all(len(bodies) == 1 for bodies in self.attempts.values()), "other bytes were sent"
        assert all(len(payloads) == 1 for payloads in self.said.values()), "another answer was given"
        for body in self.events("arrived"):
            assert len(body["counted"]) + len(body["excluded"]) == len(TABLES)


def digest(held: party.Held) -> str:
    return blake3(held.body).hexdigest()


def undisturbed() -> tuple[bytes, dict[str, bytes]]:
    world = World(study())
    world.finish()
    return world.checkpoint(), {n: g.machine.memories[RUN] for n, g in world.guilds.items()}


def test_undisturbed_it_ends_with_the_bits_of_the_simulation() -> None:
    run = study().run(hs.Local(TABLES))
    assert run.progress is not None
    assert undisturbed()[0] == run.progress.pack()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 1 << 16), max_size=80))
def test_whatever_repeats_is_lost_or_crashes_the_bits_are_the_undisturbed_ones(script: list[int]) -> None:
    world = World(study())
    for number in script:
        choices = world.choices()
        choices[number % len(choices)]()
    world.finish()
    world.judge()
    [row] = world.rows.rows("run")
    assert (row["status"], row["round"]) == ("finished", 3)
    checkpoint, memories = undisturbed()
    assert world.checkpoint() == checkpoint
    assert {n: g.machine.memories[RUN] for n, g in world.guilds.items()} == memories
    assert not any(g.machine.pending for g in world.guilds.values())


def harm(world: World) -> list[Callable[[], object]]:
    """What can go wrong for good: time is up, a party fails, a party is removed."""
    found: list[Callable[[], object]] = [partial(world.feed, alarm) for alarm in dict.fromkeys(world.alarms)]
    for name, guest in world.machine.guests.items():
        live = world.machine.runs.get(RUN)
        if live is not None and live.ask is not None:
            ask, attempt = live.ask, live.attempt
            for version in (ask.version, ask.version + 1):
                failed = Failed(None, name, RUN, version, attempt, "no\x00 light")
                found.append(partial(world.quietly, failed))
        if guest.state == "active" and name == "c":
            found.append(partial(world.feed, Removed(name, "moved away")))
    return found


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> hs.Federation:
    """A study of secure sums, with roundings by the seed, so that its bits can be compared."""
    course = hs.Federation.course
    monkeypatch.setattr(hs.Federation, "course", lambda self, setup, secret=b"": course(self, setup))
    monkeypatch.setattr(hs.Federation, "noised", False)
    return study(
        method=hs.FedAvg(local=hs.SGD(lr=0.1, batch_size="all"), weights="equal"),
        aggregation=agg.clip(1.0) >> agg.grid(bits=10) >> agg.secure_sum(threshold=0.6),
        cohort=hs.All(minimum=2),
        rounds=2,
    )


def test_secure_sums_have_the_bits_of_plain_ones_whatever_repeats_is_lost_or_crashes(summed: hs.Federation) -> None:
    run = summed.run(hs.Local(TABLES))
    assert run.progress is not None

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 1 << 16), max_size=120))
    def play(script: list[int]) -> None:
        world = World(summed)
        for number in script:
            choices = world.choices()
            choices[number % len(choices)]()
        world.finish()
        world.judge()
        assert world.checkpoint() == run.progress.pack()
        assert not world.events("attempt")
        for guild in world.guilds.values():
            for row in guild.rows.rows("seat"):
                assert b'"entropy":""' in row["body"]

    play()


def test_secure_sums_that_lose_parties_are_those_of_who_was_counted_or_none(summed: hs.Federation) -> None:
    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.integers(0, 1 << 16), max_size=90))
    def play(script: list[int]) -> None:
        world = World(summed)
        for number in script:
            choices = [*world.choices(), *harm(world)]
            choices[number % len(choices)]()
        if world.machine.guests["c"].state == "removed" and RUN in world.machine.runs:
            world.feed(Joined("c", "2", "later"))
        world.finish()
        if RUN in world.machine.runs:  # somebody is gone, and will not come back
            for alarm in dict.fromkeys(world.alarms):
                world.feed(alarm)
            world.finish()
        world.judge()
        [row] = world.rows.rows("run")
        assert row["status"] in {"finished", "failed"}
        if row["status"] == "finished":
            rows = sorted(world.rows.rows("event", run=RUN), key=lambda row: row["seq"])
            events = [Event(row["seq"], row["at"], row["kind"], row["body"]) for row in rows]
            again = summed.run(hs.Local(TABLES, replay=Run(RUN, summed, events=events)))
            assert again.progress is not None
            assert world.checkpoint() == again.progress.pack()

    play()


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 1 << 16), max_size=60))
def test_deadlines_failures_and_removals_are_recorded_and_the_run_ends(script: list[int]) -> None:
    world = World(study(cohort=hs.All(minimum=2)))

    for number in script:
        choices = [*world.choices(), *harm(world)]
        choices[number % len(choices)]()
    if world.machine.guests["c"].state == "removed" and RUN in world.machine.runs:
        world.feed(Joined("c", "2", "later"))  # invited anew, so that the rest can be played
    world.finish()
    world.judge()
    [row] = world.rows.rows("run")
    assert row["status"] in {"finished", "failed"}
    if row["status"] == "failed":
        assert "the study needs 2" in row["reason"]
    excluded = {
        (body["version"], name): reason for body in world.events("arrived") for name, reason in body["excluded"].items()
    }
    assert all(reason for reason in excluded.values())
    refused = world.events("refused")
    assert len(refused) >= len(excluded)
    assert all("\x00" not in body["reason"] for body in refused)
    for (name, version), fates in world.fates.items():
        if fates == {True}:
            counted = [b["counted"] for b in world.events("arrived") if b["version"] == version]
            assert name in counted[0]


# --- one thing at a time


def test_a_stale_answer_is_refused_and_says_to_which_exchange_it_belongs() -> None:
    world = World(study())
    stale = Delivered(("a", None), "a", RUN, 7, 1, 1.0, "d", b"")
    [(_, taken, reason)] = world.machine.handle(stale).receipts
    assert not taken
    assert reason == "stale: an answer to exchange 7.1, and the run is at 0.1"
    unknown = Delivered(("a", None), "a", "another", 0, 1, 1.0, "d", b"")
    [(_, taken, reason)] = world.machine.handle(unknown).receipts
    assert (taken, reason) == (False, "no run 'another' waits for answers")


def test_an_answer_after_the_deadline_hears_why_it_is_not_counted() -> None:
    world = World(study())
    for guild in ("a", "b"):
        world.hear(guild)
        world.toil(guild)
    world.land(0)
    world.quietly(DeadlinePassed(RUN, 0, 1))
    late = Delivered(("b", None), "b", RUN, 0, 1, 1.0, "d", b"")
    assert world.machine.handle(late).receipts[0][1] is False
    assert RUN not in world.machine.runs
    [row] = world.rows.rows("run")
    assert row["status"] == "failed"
    assert "b: no answer within 600 s" in row["reason"]
    assert "resume" not in row["reason"]  # the way out is told by whoever shows it


def test_a_second_different_answer_is_refused_and_the_first_one_counts() -> None:
    world = World(study())
    first = Delivered(("a", None), "a", RUN, 0, 1, 1.0, "one", b"x")
    world.commit(world.machine.handle(first))
    again = world.machine.handle(first)
    assert again.receipts[0][1:] == (True, "")
    assert not again.changes
    other = Delivered(("a", None), "a", RUN, 0, 1, 1.0, "two", b"y")
    assert world.machine.handle(other).receipts[0][1:] == (False, "another answer to this ask was taken already")


def test_a_sum_that_cannot_be_made_fails_the_run_and_not_the_coordinator() -> None:
    world = World(study())
    for name in TABLES:
        world.commit(world.machine.handle(Delivered((), name, RUN, 0, 1, 1.0, name, b"x")))
    nothing = Total(Values(), (), 3, 0.0)
    effects = world.machine.handle(Reduced(RUN, 0, nothing, failure="the blob is damaged"))
    assert effects.ended == [RUN]
    world.commit(effects)
    [row] = world.rows.rows("run")
    assert "the blob is damaged" in row["reason"]


def test_an_answer_that_could_not_be_added_is_excluded_with_its_reason() -> None:
    world = World(study())
    for name in TABLES:
        world.hear(name)
        world.toil(name)
    while world.flying:
        world.land(0)
    world.inside.clear()
    total = world.reduced(RUN, 0, ("a", "b")).total
    world.feed(Reduced(RUN, 0, total, {"c": "with it the sum overflows"}))
    [arrived] = world.events("arrived")
    assert arrived["excluded"] == {"c": "with it the sum overflows"}
    assert world.fates["c", 0] == {False}
    assert world.fates["a", 0] == {True}
    answer = world.rows.row("answer", run=RUN, version=0, party="c")
    assert answer is not None
    assert answer["taken"] is False


def test_answers_to_a_run_that_failed_are_settled_as_not_counted() -> None:
    world = World(study())
    world.hear("a")
    world.toil("a")
    world.land(0)
    world.unlink("a")
    world.feed(DeadlinePassed(RUN, 0, 1))
    for crashed in (False, True):
        if crashed:
            world.crash()
        world.link("a")
        notice = world.guilds["a"].inbox[-1]
        assert notice == SettledNotice(RUN, 0, False)
    world.guilds["a"].read(notice)
    assert world.guilds["a"].machine.memories == {}
    [row] = world.rows.rows("run")
    world.feed(Resumed(world.revive(row)))
    world.finish()
    [row] = world.rows.rows("run")
    assert row["status"] == "finished"
    assert world.checkpoint() == undisturbed()[0]


def test_a_finished_run_is_not_resumed_and_one_under_way_neither() -> None:
    world = World(study())
    [row] = world.rows.rows("run")
    with pytest.raises(RunError, match="is under way"):
        world.machine.handle(Resumed(world.revive(row)))
    world.finish()
    [row] = world.rows.rows("run")
    with pytest.raises(RunError, match="nothing to resume"):
        world.machine.handle(Resumed(world.revive(row)))


def test_a_renewal_does_not_bring_back_a_party_that_was_removed_meanwhile() -> None:
    world = World(study())
    renewed = Renewed("c", "1", "2", "later")
    world.feed(renewed)
    assert world.machine.guests["c"].serial == "2 1"
    with pytest.raises(TrustError):
        world.machine.handle(Renewed("c", "0", "3", "later"))
    world.feed(Removed("c", "moved away"))
    with pytest.raises(TrustError):
        world.machine.handle(Renewed("c", "2", "3", "later"))
    assert world.machine.guests["c"].state == "removed"
    with pytest.raises(StudyError, match="party 'c' was removed already"):
        world.machine.handle(Removed("c", "again"))


def test_nobody_joins_in_the_name_of_a_party_that_is_there() -> None:
    world = World(study())
    with pytest.raises(TrustError, match="joined already"):
        world.machine.handle(Joined("a", "2", "later"))
    assert world.machine.guests["a"].serial == "1"


def test_a_study_whose_kind_too_few_allow_names_a_party_and_the_way_out() -> None:
    world = World(study())
    for name in TABLES:
        offer = Offered("lines", 3, TABLES[name].schema(), ())
        world.machine.handle(Connected(name, (offer,)))
    with pytest.raises(ConsentError, match="party 'a': its owner allows nothing on 'lines'"):
        world.machine.handle(Submitted("second", study()))
    assert "second" not in world.machine.runs


def test_what_a_party_says_is_kept_on_one_line_and_short() -> None:
    world = World(study())
    world.quietly(Failed((), "a", RUN, 0, 1, "x\n" * 5000))
    [refused] = world.events("refused")
    assert len(refused["reason"]) < LONGEST_REASON + 10
    assert "\n" not in refused["reason"]


# --- attempts at secure sums


def until(world: World, phase: int, attempt: int = 1) -> Any:
    """Play until a phase of the first secure sum has been opened; nobody has heard of it yet."""
    for _ in range(200):
        live = world.machine.runs[RUN]
        if live.rules and (live.attempt, live.phase) == (attempt, phase):
            return live
        for name, guild in world.guilds.items():
            while guild.inbox:
                world.hear(name)
            while guild.work:
                world.toil(name)
        if world.flying:
            world.land(0)
        if world.inside:
            world.think()
    raise AssertionError("the phase does not come")


def complain(world: World, party: str, *others: str) -> None:
    live = world.machine.runs[RUN]
    of = RUN, live.progress.version, live.attempt
    world.guilds[party].inbox.clear()
    world.quietly(Failed(None, party, *of, f"of {others}", others))


@pytest.mark.parametrize(
    ("attempts", "blamed"),
    [
        ([{"a": "d", "b": "d", "c": "d"}], ["d"]),  # everybody complains of one
        ([{"a": "bcd"}], ["a"]),  # one complains of everybody
        ([{"a": "bcd", "b": "a", "c": "a"}], ["a"]),
        ([{"a": "b"}], ["b"]),  # that cannot be told
        ([{"a": "b"}, {"a": "c"}], ["a"]),  # but not for ever
        ([{"a": "d", "b": "d", "d": "abc"}], ["d"]),
        ([{"a": "b", "c": "d"}], ["b", "d"]),
        ([{}], []),
    ],
)
def test_it_is_left_out_whom_the_most_complaints_concern(attempts: list[Any], blamed: list[str]) -> None:
    past = Past()
    for complaints in attempts:
        past.heeded = len(past.complaints)
        past.complaints += tuple((name, other) for name, others in complaints.items() for other in others)
    assert sorted(past.blamed()) == blamed


@pytest.mark.parametrize("crash", [False, True])
@pytest.mark.parametrize("phase", [Phase.ROSTER, Phase.MASK])
def test_a_party_of_which_the_others_complain_is_left_out_instead_of_them(
    summed: hs.Federation, phase: int, crash: bool
) -> None:
    world = World(summed)
    until(world, phase)
    complain(world, "a", "c", "a", "nobody")
    if crash:
        world.crash()
        for name in TABLES:
            world.link(name)
    complain(world, "b", "c")
    live = until(world, Phase.ROSTER, 2)
    assert [body["without"] for body in world.events("attempt")] == [{"c": "a: of ('c', 'a', 'nobody')"}]
    assert live.desk.names == ("a", "b")
    world.finish()
    [row] = world.rows.rows("run")
    assert row["status"] == "finished"


def test_a_party_that_complains_of_one_after_the_other_is_left_out_itself(summed: hs.Federation) -> None:
    world = World(summed)
    until(world, Phase.ROSTER)
    complain(world, "a", "b")
    until(world, Phase.ROSTER, 2)
    complain(world, "a", "c")
    while RUN in world.machine.runs:
        for guild in world.guilds:
            world.hear(guild) if world.guilds[guild].inbox else None
        world.land(0) if world.flying else None
    assert [body["without"] for body in world.events("attempt")] == [
        {"b": "a: of ('b',)"},
        {"a": "of ('c',)", "b": "a: of ('b',)"},
    ]


def test_a_party_with_the_identity_of_another_has_none_and_is_left_out(summed: hs.Federation) -> None:
    world = World(summed)
    offer = Offered("lines", TABLES["c"].rows, TABLES["c"].schema(), ("linear-regression",))
    world.feed(Connected("c", (offer,), (), KEYS["a"].public))
    live = until(world, Phase.ROSTER)
    assert live.desk.names == ("a", "b")
    assert world.machine.guests["a"].identity == KEYS["a"].public
    assert "another party's" in live.answers["c"].reason


def test_an_advert_with_a_key_of_small_order_comes_on_no_roster(summed: hs.Federation) -> None:
    world = World(summed)
    live = until(world, 0)
    for at in (0, 32):
        said = bytearray(b"\x09" * 128)
        said[at : at + 32] = bytes(32)
        assert "small order" in unfit(bytes(said))
    step = Step(RUN, live.progress.version, live.attempt, Phase.ADVERTISE, bytes(128))
    world.quietly(Said((), "c", step))
    assert "small order" in live.answers["c"].reason


def alone(world: World) -> Any:
    """Let only one vector come: too few for a sum, and too few to sign that there will be none."""
    until(world, Phase.MASK)
    for name in "bc":
        world.guilds[name].inbox.clear()
    world.hear("a")
    world.land(0)
    live = world.machine.runs[RUN]
    world.feed(DeadlinePassed(RUN, live.progress.version, 1, Phase.MASK))
    assert live.phase == Phase.SURVIVORS
    return live


@pytest.mark.parametrize("crash", [False, True])
def test_who_was_late_signs_too_that_there_is_no_sum_and_who_was_away_hears_of_it_before_it_works(
    summed: hs.Federation, crash: bool
) -> None:
    world = World(summed)
    live = alone(world)
    assert live.desk.survivors == ()
    world.unlink("a")
    for name in "bc":
        while world.guilds[name].inbox:
            world.hear(name)
        while world.flying:
            world.land(0)
    assert [body["ended"] for body in world.events("attempt")] == ["abandoned"]
    if crash:
        world.crash()
    assert world.machine.runs[RUN].past.failures == 1  # of as many as there may be
    world.link("a")
    assert [type(notice) for notice in world.guilds["a"].inbox] == [Step, WorkNotice]
    world.finish()
    [row] = world.rows.rows("run")
    assert row["status"] == "failed"  # without those two
    world.feed(Resumed(world.revive(row)))
    world.finish()
    assert world.events("arrived")[-1]["counted"] == ["a", "b", "c"]
    assert world.rows.rows("run")[0]["status"] == "finished"


def test_who_does_not_sign_that_there_is_no_sum_is_waited_for_until_its_time_is_up(summed: hs.Federation) -> None:
    world = World(summed)
    live = alone(world)
    assert live.waiting == ["a", "b", "c"]
    world.hear("a")
    world.land(0)
    assert live.waiting == ["b", "c"]
    world.feed(Removed("c", "moved away"))
    assert live.waiting == ["b"]
    world.feed(DeadlinePassed(RUN, live.progress.version, 1, Phase.SURVIVORS))
    assert [body["ended"] for body in world.events("attempt")] == ["failed"]


def test_a_desk_that_may_make_its_sum_makes_it_after_a_crash(summed: hs.Federation) -> None:
    world = World(summed)
    until(world, Phase.UNMASK)
    for name in TABLES:
        world.hear(name)
    while len(world.flying) > 1:
        world.land(0)
    world.land(0, crash="after")
    assert world.machine.runs[RUN].desk.ended == "summed"
    assert world.inside
    world.finish()
    assert world.rows.rows("run")[0]["status"] == "finished"
    assert not world.events("attempt")
