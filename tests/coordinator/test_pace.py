"""Rounds that do not wait: k of n, late updates, the schedule of FedBuff, on the two machines against each other."""

from __future__ import annotations

from random import Random
from typing import Any, ClassVar

import pytest
from tests.coordinator.test_machine import RUN, TABLES, Remembering, World, harm, study

import hansa as hs
from hansa import aggregation as agg
from hansa import tensors
from hansa.agent import desk
from hansa.coordinator.events import Failed, Removed, Resumed, SettledNotice
from hansa.methods.base import METHODS
from hansa.methods.course import Progress
from hansa.run import Event, Run


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))
    METHODS.register(Remembering)
    METHODS.register(Buffered)
    monkeypatch.setattr(desk, "FEWEST", 1)


class Buffered(hs.methods.FedBuff):
    """FedBuff whose parties remember, so that it goes wrong at once if a memory is lost or kept twice."""

    kind: ClassVar[str] = "buffered"
    memory: ClassVar[tuple[str, ...]] = ("past",)
    finish = Remembering.finish


PACES: dict[str, dict[str, Any]] = {
    "goal": {"cohort": hs.All(goal=2)},
    "late": {"cohort": hs.All(minimum=1, late=2)},
    "goal-late": {"cohort": hs.All(goal=2, late=2, staleness=1.0)},
    "sample-late": {"cohort": hs.Fixed(size=2, minimum=1, goal=1, late=3)},
    "fedbuff": {"method": Buffered(local=hs.SGD(lr=0.1, batch_size="all"), buffer=2, concurrency=2)},
    "fedasync": {
        "method": Buffered(local=hs.SGD(lr=0.1, batch_size="all"), buffer=1, concurrency=3),
        "cohort": hs.All(minimum=1),
    },
}


def paced(name: str) -> hs.Federation:
    return study(rounds=5, evaluation=hs.Evaluate(every=2, holdout=0.25), **PACES[name])


def record(world: World) -> Run:
    """The run as whoever watches it knows it."""
    [row] = world.rows.rows("run")
    run = Run(RUN, hs.Federation.from_json(row["federation"]))
    for event in sorted(world.rows.rows("event", run=RUN), key=lambda event: event["seq"]):
        run.hear(Event(event["seq"], event["at"], event["kind"], event["body"]))
    return run


def replayed(world: World) -> None:
    """The recorded decisions give the same bits, in simulation."""
    run = record(world)
    again = run.federation.run(hs.Local(TABLES, replay=run))
    ended, _ = Progress.unpack(world.checkpoint())
    assert again.parameters.tobytes() == ended.parameters.tobytes()
    for name, guild in world.guilds.items():
        mine = guild.machine.memories.get(RUN)
        remembered = dict(tensors.read(mine)) if mine else {}
        assert {n: a.tobytes() for n, a in remembered.items()} == {
            n: a.tobytes() for n, a in again.memories.get(name, {}).items()
        }


def fates(world: World) -> None:
    """Whatever was acknowledged was counted once, or is excluded with a reason."""
    counted = set[tuple[str, int]]()
    versions = {body["round"]: body["version"] for body in world.events("asked") if body["work"] == "train"}
    for body in world.events("arrived"):
        for name in body["counted"]:
            lag = body.get("lags", {}).get(name, 0)
            version = versions[body["round"] - lag] if body["work"] == "train" else body["version"]
            assert (name, version) not in counted, "an answer was counted twice"
            counted.add((name, version))
        late = world.machine._applied.get(RUN) is not None and body.get("lags", {})
        assert all(0 < lag <= world.federation.pace.late for lag in (late or {}).values())
    for name, version in world.acknowledged - counted:
        answer = world.rows.row("answer", run=RUN, version=version, party=name)
        assert answer is not None
        assert answer["reason"] or world.rows.rows("run")[0]["status"] != "running"
    assert all(len(said) == 1 for said in world.fates.values()), "one answer had two fates"
    for (name, version), (counts,) in world.fates.items():
        assert counts == ((name, version) in counted), (name, version)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("name", PACES)
def test_rounds_that_do_not_wait_give_every_answer_one_fate_and_the_bits_of_their_record(name: str, seed: int) -> None:
    random, world = Random(seed), World(paced(name))
    for _ in range(random.randrange(100)):
        choices = world.choices() + (harm(world) if seed % 3 == 2 else [])
        random.choice(choices)()
    world.finish()
    [row] = world.rows.rows("run")
    fates(world)
    if row["status"] == "failed":
        assert seed % 3 == 2
        return
    assert (row["status"], row["round"]) == ("finished", 5)
    assert not any(guild.machine.pending for guild in world.guilds.values())
    assert not world.rows.rows("blob", run=RUN, name="ask")
    replayed(world)


def work(world: World, *names: str) -> None:
    """These parties do what they are asked, and what that leads to."""
    for name in names:
        while world.guilds[name].inbox:
            world.hear(name)
        while world.guilds[name].work:
            world.toil(name)
    while world.flying:
        world.land(0)
    while world.inside:
        world.think()


LATE = {"cohort": hs.All(goal=2, late=2), "evaluation": hs.Evaluate(every=0, holdout=0), "rounds": 9}


@pytest.mark.parametrize("crash", [False, True])
def test_a_slow_party_holds_nobody_up_and_counts_when_it_comes_though_the_coordinator_dies(crash: bool) -> None:
    world = World(study(**LATE))
    world.hear("c")  # it begins, and takes long
    [slow] = world.guilds["c"].work
    for _ in range(2):
        work(world, "a", "b")
    live = world.machine.runs[RUN]
    assert live.progress.round == 2
    assert live.begun == {"a": (2, 1), "b": (2, 1), "c": (0, 1)}
    assert live.waiting == ["a", "b", "c"]
    assert not world.guilds["c"].inbox  # it is not asked again
    if crash:
        world.crash()
        for name in TABLES:
            world.link(name)
        assert world.machine.runs[RUN].begun["c"] == (0, 1)
        world.hear("c")
        assert world.guilds["c"].work == [slow]  # the same ask, on which it works already
    world.toil("c")
    world.land(0, crash="after" if crash else "")
    if crash:
        assert list(world.machine.runs[RUN].late) == ["c"]
        world.link("c")
        assert world.guilds["c"].inbox == []  # it has heard nothing of its fate, and has one to wait for
        assert world.guilds["c"].machine.pending == [(RUN, 0)]
        for name in "ab":
            world.link(name)
    work(world, "a")
    [*_, arrived] = world.events("arrived")
    assert (arrived["counted"], arrived["lags"]) == (["a", "c"], {"c": 2})
    work(world, "c")
    assert world.guilds["c"].machine.memories[RUN]
    world.finish()
    fates(world)
    replayed(world)


def test_an_answer_that_comes_too_late_is_not_counted_and_its_party_is_asked_anew() -> None:
    world = World(study(**LATE))
    world.hear("c")
    for _ in range(3):
        work(world, "a", "b")
    [refused] = world.events("refused")
    assert (refused["party"], refused["round"]) == ("c", 1)
    assert refused["reason"] == "it is more than 2 rounds late"
    assert world.machine.runs[RUN].begun["c"] == (3, 1)
    world.toil("c")
    world.land(0)  # of which nothing is taken
    assert world.acknowledged == {(name, version) for name in "ab" for version in range(3)}
    work(world, "c")
    assert not world.guilds["c"].machine.held.keys() & {(RUN, 0)}
    world.finish()
    fates(world)
    replayed(world)


def test_who_is_not_among_the_first_hears_it_and_does_not_count() -> None:
    world = World(study(**{**LATE, "cohort": hs.All(goal=2)}))
    world.hear("c")
    work(world, "a", "b")
    assert world.events("arrived")[0]["counted"] == ["a", "b"]
    world.toil("c")
    world.land(0)
    assert not {name for name, _ in world.acknowledged} & {"c"}
    work(world, "c", "a")
    assert world.events("arrived")[1]["counted"] == ["a", "c"]
    world.finish()
    fates(world)
    replayed(world)


def test_a_deadline_closes_a_round_of_enough_and_fails_one_of_fewer() -> None:
    late = {**LATE, "cohort": hs.All(minimum=2, late=2, deadline=5.0)}
    world = World(study(**late))
    work(world, "a", "b")
    assert not world.events("arrived")
    [alarm] = world.alarms
    world.feed(alarm)
    work(world)
    assert world.events("arrived")[0]["counted"] == ["a", "b"]
    work(world, "a")
    world.feed(world.alarms[-1])
    [row] = world.rows.rows("run")
    assert row["status"] == "failed"
    assert "1 of 3 contributions could be counted" in row["reason"]
    assert "c: no answer within 5 s" in row["reason"]
    world.feed(Resumed(world.revive(row)))
    world.finish()
    assert world.rows.rows("run")[0]["status"] == "finished"
    replayed(world)


def test_behind_noise_a_party_that_cannot_work_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hs.Federation, "noised", False)  # here, where nobody has a key for it
    private = {
        "method": hs.FedAvg(local=hs.SGD(lr=0.1, batch_size="all"), weights="equal"),
        "aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0),
        "cohort": hs.All(minimum=1, goal=2, late=2),
    }
    for late in (False, True):
        world = World(study(**{**LATE, **private}))
        if late:
            work(world, "b", "c")
        world.quietly(Failed(None, "a", RUN, 0, 1, "no light"))
        work(world, "b")
        arrived = world.events("arrived")[-1]
        assert (arrived["counted"], arrived["excluded"]) == (["b"], {"a": "no light"})
        assert world.fates["a", 0] == {False}


def test_fedbuff_lets_so_many_train_at_a_time_and_another_begin_when_one_is_done() -> None:
    world = World(paced("fedbuff"))

    def at_work() -> set[str]:
        live = world.machine.runs[RUN]
        return set(live.begun).difference(live.answers, live.late)

    first = at_work()
    assert len(first) == 2
    (done, slow) = sorted(first)
    [third] = set(TABLES) - first
    work(world, done)
    assert at_work() == {slow, third}
    world.unlink(slow)  # whoever is gone takes no place
    assert at_work() == {slow, third}
    work(world, third)
    assert world.events("arrived")[0]["counted"] == sorted({done, third})
    world.link(slow)
    work(world, slow, done, third)
    assert world.events("arrived")[1].get("lags", {slow: 1}) == {slow: 1}
    world.finish()
    fates(world)
    replayed(world)


def test_who_is_late_and_done_scores_the_model_meanwhile_and_hears_of_each_answer_by_itself() -> None:
    world = World(study(**{**LATE, "evaluation": hs.Evaluate(every=1, holdout=0.25)}))
    world.hear("c")
    for name in "ab":
        world.hear(name)
        world.toil(name)
        world.land(0)
    world.think()
    assert world.machine.runs[RUN].due == ["a", "b"]  # to score it; the third is still at work
    world.toil("c")
    world.land(0)
    assert world.machine.runs[RUN].due == ["a", "b", "c"]
    world.hear("c")
    world.toil("c")
    world.land(0)
    world.unlink("c")  # it does not hear what became of that
    work(world, "a")
    assert world.events("arrived")[-1]["counted"] == ["a", "c"]
    world.link("c")
    assert world.guilds["c"].inbox == [SettledNotice(RUN, 1, True)] * 2  # and nothing of its update, which waits
    work(world, "a")
    assert world.events("arrived")[-1]["lags"] == {"c": 1}
    world.finish()
    fates(world)
    replayed(world)


def test_a_party_that_is_removed_is_waited_for_no_more_and_what_it_gave_counts() -> None:
    world = World(study(**LATE))
    world.hear("c")
    for _ in range(2):
        work(world, "a", "b")
    world.feed(Removed("c", "moved away"))
    assert "c" not in world.machine.runs[RUN].begun
    work(world, "a", "b")
    assert world.events("refused")[0]["reason"] == "removed: moved away"
    assert len(world.events("arrived")) == 3


def test_a_late_answer_that_never_counts_is_refused_with_the_reason() -> None:
    world = World(study(**LATE))
    world.hear("c")
    work(world, "a", "b")
    world.toil("c")
    world.land(0)
    live = world.machine.runs[RUN]
    assert list(live.late) == ["c"]
    for name in ("a", "b"):
        world.quietly(Failed(None, name, RUN, live.progress.version, live.attempt, "no light"))
    assert world.rows.rows("run")[0]["status"] == "failed"
    why = "it came late, and the run ended before it counted"
    assert [(body["round"], body["reason"]) for body in world.events("refused") if body["party"] == "c"] == [(1, why)]
    answer = world.rows.row("answer", run=RUN, version=0, party="c")
    assert answer is not None
    assert (answer["taken"], answer["reason"]) == (False, why)
