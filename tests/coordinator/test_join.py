"""Parties that join a run: the two machines against each other, with crashes and losses in between."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np
import pytest
from tests.coordinator.test_machine import KEYS, PINS, RUN, TABLES, Guild, Remembering, World, harm, study
from tests.coordinator.test_pace import Buffered, fates, record, replayed, work

import hansa as hs
from hansa import tensors
from hansa.agent import desk
from hansa.agent.desk import Desk
from hansa.agent.policy import Offer
from hansa.coordinator.admission import joining
from hansa.coordinator.events import Connected, Disconnected, Failed, Joined, Offered, Removed, Resumed
from hansa.coordinator.live import Guest
from hansa.crypto.agreement import Identity, words
from hansa.methods.base import METHODS, Setup
from hansa.methods.course import Progress

NEW, NEWER = "aachen", "d"  # whose places by name would be the first and the last
EXTRA = {
    NEW: hs.Table.of({"x": [0.5, -1.0, 2.0, 0.1], "y": [2.0, -1.0, 5.5, 1.0]}),
    NEWER: hs.Table.of({"x": [1.0, 3.0, -2.0, 0.3, 0.2], "y": [3.0, 7.0, -3.0, 1.5, 1.4]}),
}
SGD = hs.SGD(lr=0.1, batch_size="all")
SCAFFOLD = hs.methods.Scaffold(local=SGD, weights="equal")
KIND = "linear-regression"


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))
    METHODS.register(Remembering)
    METHODS.register(Buffered)
    monkeypatch.setattr(desk, "FEWEST", 1)
    for name in EXTRA:
        monkeypatch.setitem(KEYS, name, Identity(name.encode().ljust(32, b"-")))
        monkeypatch.setitem(PINS, name, words(KEYS[name].public))
    yield
    for name in EXTRA:
        TABLES.pop(name, None)


class Open(World):
    """A world to which parties come later."""

    def join(self, name: str, *, link: bool = True) -> None:
        """A party is invited, joins the federation, and starts its agent."""
        TABLES[name] = EXTRA[name]
        self.feed(Joined(name, "1", "later"))
        self.guilds[name] = Guild(name)
        self.desks[name] = Desk(name, [Offer("lines", EXTRA[name], (KIND,))])
        if link:
            self.link(name)

    def toil(self, name: str) -> None:
        """As an agent does: it has the run described anew if more take part in it than it knows of."""
        if not self.desks[name].knows(RUN, self.guilds[name].work[0].ask.among):
            [row] = self.rows.rows("run")
            assert name in row["setup"]["parties"]
            self.desks[name].describe(RUN, row["federation"], row["setup"])
        super().toil(name)


PACES: dict[str, dict[str, Any]] = {
    "all": {"cohort": hs.All(minimum=1, open=True)},
    "scaffold": {"cohort": hs.All(minimum=1, open=True), "method": SCAFFOLD},
    "sample": {"cohort": hs.Fixed(size=2, minimum=1, open=True)},
    "goal": {"cohort": hs.All(goal=2, open=True)},
    "late": {"cohort": hs.All(minimum=1, late=2, open=True), "method": SCAFFOLD},
    "goal-late": {"cohort": hs.All(goal=2, late=2, staleness=1.0, open=True)},
    "fedbuff": {"method": Buffered(local=SGD, buffer=2, concurrency=2), "cohort": hs.All(open=True)},
}


def opened(name: str = "all", **more: Any) -> Open:
    parts: dict[str, Any] = {"rounds": 4, "evaluation": hs.Evaluate(every=2, holdout=0.25), **PACES[name], **more}
    return Open(study(**parts))


def roster(world: World) -> list[str]:
    [row] = world.rows.rows("run")
    parties: list[str] = row["setup"]["parties"]
    return parties


@pytest.mark.parametrize("seed", range(60) if os.environ.get("HANSA_LONG") else (1, 2))
@pytest.mark.parametrize("name", PACES)
def test_who_joins_takes_part_and_every_answer_has_one_fate_and_the_record_gives_the_same_bits(
    name: str, seed: int
) -> None:
    random, world = Random(f"{name} {seed}"), opened(name)
    coming = {random.randrange(40): party for party in EXTRA}
    for step in range(40):
        if step in coming:
            world.join(coming[step])
        random.choice(world.choices() + (harm(world) if seed % 3 == 2 else []))()
    world.finish()
    [row] = world.rows.rows("run")
    fates(world)
    joined = [body["party"] for body in world.events("joined")]
    assert roster(world) == ["a", "b", "c", *joined]
    if row["status"] == "failed":
        assert seed % 3 == 2
        return
    assert (row["status"], row["round"]) == ("finished", 4)
    for body in world.events("joined"):
        among = [
            one["among"] for one in world.events("asked") if one["round"] >= body["round"] and one["work"] == "train"
        ]
        assert not among or min(among) > roster(world).index(body["party"])
    run = record(world)
    assert run.setup is not None
    assert list(run.setup.parties) == roster(world)
    replayed(world)


def test_who_joins_is_asked_from_the_next_training_round_on_and_in_no_exchange_before() -> None:
    world = opened(evaluation=hs.Evaluate(every=1, holdout=0.25))
    world.join(NEW)
    assert not world.guilds[NEW].inbox
    assert roster(world) == ["a", "b", "c"]
    for name in "abc":
        work(world, name)
    assert [(body["work"], body["parties"]) for body in world.events("asked")] == [
        ("train", ["a", "b", "c"]),
        ("evaluate", ["a", "b", "c"]),
    ]
    for name in "abc":
        work(world, name)
    assert world.events("joined") == [{"party": NEW, "round": 2, "work": "train"}]
    assert world.events("asked")[-1]["parties"] == roster(world) == ["a", "b", "c", NEW]
    for name in world.guilds:
        work(world, name)
    assert (world.events("asked")[-1]["work"], world.events("asked")[-1]["among"]) == ("evaluate", 4)
    assert world.events("arrived")[-1]["counted"] == ["a", "b", "c", NEW]
    world.finish()
    replayed(world)


@pytest.mark.parametrize("crash", ["before", "after"])
def test_a_coordinator_that_dies_when_somebody_joins_goes_on_among_the_same(crash: str) -> None:
    world, calm = opened(), opened()
    for one in (world, calm):
        one.join(NEW)
        for name in "abc":
            one.hear(name)
            one.toil(name)
        for _ in range(3):
            one.land(0)
    world.think(crash)
    for name in world.guilds:
        world.link(name)
    assert roster(world) == ["a", "b", "c"] + [NEW] * (crash == "after")
    assert len(world.events("joined")) == (crash == "after")
    world.finish()
    calm.finish()
    assert world.checkpoint() == calm.checkpoint()
    assert world.events("joined") == calm.events("joined")
    replayed(world)


def test_scaffolds_controls_weigh_as_many_parties_as_there_are() -> None:
    world = opened("scaffold", rounds=3, evaluation=hs.Evaluate(every=0, holdout=0))
    work(world, "a", "b", "c")
    world.join(NEW)
    world.finish()
    assert [len(body["counted"]) for body in world.events("arrived")] == [3, 3, 4]
    mine = [tensors.read(guild.machine.memories[RUN])["train.control"] for guild in world.guilds.values()]
    progress, _ = Progress.unpack(world.checkpoint())
    np.testing.assert_allclose(progress.states["train"].values["control"], sum(mine) / 4, rtol=1e-12)


def test_a_run_that_failed_repeats_its_round_among_those_who_were_asked_before() -> None:
    world = opened(cohort=hs.All(minimum=3, open=True))
    world.join(NEW)
    for name in "abc":
        world.quietly(Failed(None, name, RUN, 0, 1, "no light"))
    [row] = world.rows.rows("run")
    assert row["status"] == "failed"
    world.feed(Resumed(world.revive(row)))
    assert roster(world) == ["a", "b", "c"]
    assert {body["ask"] for body in world.events("asked")} == {world.events("asked")[0]["ask"]}
    world.finish()
    assert [body["round"] for body in world.events("joined")] == [2]
    replayed(world)


def test_nobody_joins_a_study_that_is_not_open() -> None:
    world = opened(cohort=hs.All(minimum=1))
    world.join(NEW)
    world.finish()
    assert not world.events("joined")
    assert roster(world) == ["a", "b", "c"]
    assert not any("among" in body for body in world.events("asked"))


def test_who_is_not_connected_or_does_not_fit_stays_out_until_it_does_and_the_operator_hears_why_once() -> None:
    world = opened(rounds=9, evaluation=hs.Evaluate(every=0, holdout=0))
    world.join(NEW, link=False)
    world.join(NEWER, link=False)
    wide = Offered("lines", 9, hs.Table.of({"x": [1.0], "z": [1.0], "y": [1.0]}).schema(), (KIND,))
    world.feed(Connected(NEWER, (wide,), (), KEYS[NEWER].public))
    for _ in range(2):
        work(world, "a", "b", "c")
    [refused] = world.events("refused")
    assert refused == {
        "party": NEWER,
        "round": 2,
        "work": "train",
        "reason": "it cannot join: its feature columns differ in z",
    }
    assert roster(world) == ["a", "b", "c"]
    world.link(NEWER)
    work(world, "a", "b", "c")
    assert roster(world) == ["a", "b", "c", NEWER]
    world.link(NEW)
    world.feed(Disconnected(NEW))
    work(world, "a", "b", "c", NEWER)
    assert roster(world) == ["a", "b", "c", NEWER]
    world.link(NEW)
    work(world, "a", "b", "c", NEWER)
    assert roster(world) == ["a", "b", "c", NEWER, NEW]
    assert len(world.events("refused")) == 1


def test_who_was_removed_and_is_invited_anew_keeps_its_place() -> None:
    world = opened()
    world.join(NEW)
    work(world, "a", "b", "c")
    world.feed(Removed(NEW, "moved away"))
    work(world, "a", "b", "c")
    world.feed(Joined(NEW, "2", "later"))
    world.link(NEW)
    world.finish()
    assert len(world.events("joined")) == 1
    assert world.events("arrived")[-1]["counted"] == roster(world) == ["a", "b", "c", NEW]


def test_an_agent_that_knows_the_longer_roster_works_on_what_was_asked_before() -> None:
    world = opened("goal-late")
    world.hear("c")
    world.join(NEW)
    for _ in range(2):
        work(world, "a", "b")
    live = world.machine.runs[RUN]
    assert (live.begun["c"], live.asks[0].among, len(roster(world))) == ((0, 1), 3, 4)
    world.perish("c")
    world.desks["c"] = Desk("c", [Offer("lines", TABLES["c"], (KIND,))])
    world.link("c")
    world.hear("c")
    assert world.guilds["c"].work[0].ask.version == 0
    world.toil("c")  # which describes the run as it is now, and refuses what is not as drawn
    world.finish()
    replayed(world)


@pytest.mark.parametrize(
    ("guest", "found"),
    [
        (Guest("active", "1", "later", (Offered("lines", 9, TABLES["a"].schema(), (KIND,)),), True), {NEW: ""}),
        (Guest("active", "1", "later", (Offered("lines", 9, TABLES["a"].schema(), (KIND,)),), False), {}),
        (Guest("removed", "1", "later", (Offered("lines", 9, TABLES["a"].schema(), (KIND,)),), True), {}),
        (Guest("active", "1", "later", (Offered("lines", 9, TABLES["a"].schema(), ("other",)),), True), {}),
        (Guest("active", "1", "later", (Offered("others", 9, TABLES["a"].schema(), (KIND,)),), True), {}),
        (Guest("active", "1", "later", (Offered("lines", 9, (), (KIND,)),), True), {NEW: "the target column 'y'"}),
    ],
    ids=["fits", "away", "removed", "not allowed", "other data", "no columns"],
)
def test_who_may_join_is_who_might_begin(guest: Guest, found: dict[str, str]) -> None:
    setup = Setup(("a", "b"), ("x",))
    said = joining(study(cohort=hs.All(minimum=2, open=True)), setup, {NEW: guest, "a": guest})
    assert said.keys() == found.keys()
    assert all(said[name].startswith(why) and bool(said[name]) == bool(why) for name, why in found.items())
