"""Many parties at once, or one after the other: who is picked, who is left out, and what is the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Values
from hansa.data.population import Numbered, Population
from hansa.errors import HansaError, PipelineError, RunError, StudyError, UsageError
from hansa.methods import Answer, At
from hansa.methods.base import METHODS
from hansa.party import Crowd
from hansa.run import Event, draw

Engines = pytest.mark.parametrize("engine", ["stacked", "resident"])
SIZES = (12, 0, 30, 7, 5, 41, 9, 3)
"""The second has no row, the fourth one class, the sixth rows so large that its training diverges."""

EMPTY, ONE_CLASS, DIVERGING = "party-2", "party-4", "party-6"
STUDY = hs.Federation(
    task=hs.LinearRegression(target="y"),
    method=hs.FedAvg(local=hs.SGD(lr=0.1, epochs=3, batch_size=8)),
    preprocessing=hs.Moments(standardise=False),
    evaluation=hs.Evaluate(every=0, holdout=0),
    rounds=3,
)


def columns() -> dict[str, Any]:
    random = np.random.default_rng(3)
    x = random.normal(size=(sum(SIZES), 2))
    y = (x @ np.array([1.0, -1.0]) > 0).astype(float)
    bounds = np.cumsum(SIZES)
    x[bounds[4] : bounds[5]] *= 1e150
    y[bounds[2] : bounds[3]] = 1.0
    return {"a": x[:, 0], "b": x[:, 1], "y": y}


@pytest.fixture
def troubled() -> Population:
    return Population.of_sizes(columns(), SIZES)


def bits(run: hs.Run) -> bytes:
    assert run.progress is not None
    return run.progress.pack(run.memories)


@Engines
@pytest.mark.parametrize("workers", [1, 3])
def test_a_party_that_cannot_train_is_left_out_with_the_reason_and_the_others_count(
    engine: Any, workers: int, troubled: Population
) -> None:
    run = STUDY.run(hs.Local(troubled, engine=engine, workers=workers))
    refused = [e.body for e in run.events if e.kind == "refused"]
    assert {(b["party"], b["reason"]) for b in refused} == {
        (EMPTY, "the party has no row to learn from"),
        (DIVERGING, "training diverged: the parameters are no longer finite"),
    }
    arrived = [e.body for e in run.events if e.kind == "arrived"]
    expected = [name for name in troubled if name not in (EMPTY, DIVERGING)]
    assert [body["counted"] for body in arrived] == [expected] * 3
    assert ONE_CLASS in expected
    assert np.isfinite(run.parameters).all()


def test_those_who_cannot_train_move_nobody_else(troubled: Population) -> None:
    setup = STUDY.resolve({"": troubled.table.schema()}, troubled.names)
    course = STUDY.course(setup)
    ask = course.ask(course.begin())
    assert ask is not None
    ask, crowd = draw(STUDY, course, ask), Crowd(troubled, course)
    crowd.prepare(ask)
    with_them = crowd.stack(ask, ask.parties, {})
    others = [name for name in ask.parties if name not in (EMPTY, DIVERGING)]
    without = crowd.stack(ask, others, {})
    assert sorted(with_them.counted.parties) == sorted(without.counted.parties) == others
    for name in others:
        these, those = (stack.counted.one(stack.counted.parties.index(name)) for stack in (with_them, without))
        assert these.values.update.tobytes() == those.values.update.tobytes()
        assert these.weight == those.weight
    assert with_them.leaving == without.leaving == len(others) * 3 * 8


@Engines
def test_a_round_without_anybody_is_said_with_all_reasons(engine: Any) -> None:
    nobody = Population.of_sizes({"x": np.full(4, 1e200), "y": np.ones(4)}, [4, 0])
    with pytest.raises(RunError, match=r"0 of 2.*diverged.*party-2: the party has no row"):
        STUDY.run(hs.Local(nobody, engine=engine))


@Engines
def test_a_population_is_the_same_parties_as_a_table_each(engine: Any) -> None:
    """Encoded once or party by party, with rows held out, and standardised."""
    sizes = [size or 1 for size in SIZES]
    whole = {name: np.resize(values, sum(sizes)) for name, values in columns().items()}
    whole["a"], whole["b"] = np.sin(whole["a"]), np.cos(whole["b"])
    population = Population.of_sizes(whole, sizes)
    study = STUDY.model_copy(update={"evaluation": hs.Evaluate(), "preprocessing": hs.Moments(), "rounds": 2})
    one = study.run(hs.Local(population, engine=engine))
    other = study.run(hs.Local(dict(population), engine=engine))
    assert bits(one) == bits(other)
    assert one.metrics() == other.metrics()
    assert [e.body["reason"] for e in one.events if e.kind == "refused"] == [
        e.body["reason"] for e in other.events if e.kind == "refused"
    ]


@Engines
def test_a_column_says_what_is_held_out_of_a_population_too(engine: Any) -> None:
    table = hs.Table.of(
        {"x": np.linspace(-1, 1, 40), "y": np.linspace(-2, 2, 40), "part": ["train", "test", "train", "train"] * 10}
    )
    population = Population.of_sizes(table, [12, 12, 16])
    study = STUDY.model_copy(update={"evaluation": hs.Evaluate(split="part")})
    one, other = (study.run(hs.Local(p, engine=engine)) for p in (population, dict(population)))
    assert bits(one) == bits(other)
    assert one.metrics() == other.metrics()
    assert one.setup is not None
    course = study.course(one.setup)
    ask = course.ask(course.begin())
    assert ask is not None
    exchange = LocalExchange(course, Crowd(population, course))
    [arrival] = exchange.exchange([draw(study, course, ask)])
    assert arrival.total.weight == 30.0


def test_images_and_integer_labels_need_no_column_each() -> None:
    random = np.random.default_rng(1)
    images = random.normal(size=(60, 4, 2)).astype(np.float32)
    labels = (images[:, 0, 0] > 0).astype(np.int64) + (images[:, 1, 1] > 0.5)
    study = STUDY.model_copy(update={"task": hs.SoftmaxRegression(target="y", classes=(0, 1, 2), precision="float32")})
    population = Population.of_sizes({"image": images, "y": labels}, [20, 15, 25])
    flat = {f"p{i}": column.astype(float) for i, column in enumerate(images.reshape(60, 8).T)}
    wide = Population.of_sizes({**flat, "y": labels.astype(float)}, [20, 15, 25])
    one, other = (study.run(hs.Local(p)) for p in (population, wide))
    assert one.parameters.shape == (27,)
    np.testing.assert_allclose(one.parameters, other.parameters, rtol=1e-5, atol=1e-7)


class Alone(hs.FedSGD):
    """Works on one party only, and says nothing else."""

    kind: ClassVar[str] = "alone"
    stacks: ClassVar[bool] = False

    def work(self, at: At) -> Answer:
        assert isinstance(at.party, str)
        return super().work(at)


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> hs.Federation:
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))
    METHODS.register(Alone)
    return STUDY.model_copy(update={"method": Alone()})


def picked(run: hs.Run) -> list[Mapping[str, Any]]:
    return [event.body for event in run.events if event.kind == "engine"]


def test_a_method_that_works_party_by_party_is_never_stacked(alone: hs.Federation, troubled: Population) -> None:
    run = alone.run(hs.Local(troubled))
    assert picked(run) == [{"engine": "resident", "reason": "alone works party by party"}]
    with pytest.raises(UsageError) as caught:
        alone.run(hs.Local(troubled, engine="stacked"))
    assert str(caught.value) == ('parties cannot be stacked: alone works party by party. Leave engine="stacked" out')


def test_a_model_that_cannot_be_stacked_is_refused_with_its_reason(
    troubled: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = type(STUDY.task.learner(2))
    monkeypatch.setattr(learner, "unstackable", "it normalises over the batch")
    run = STUDY.run(hs.Local(troubled))
    assert picked(run) == [{"engine": "resident", "reason": "it normalises over the batch"}]
    with pytest.raises(UsageError, match="cannot be stacked: it normalises over the batch"):
        STUDY.run(hs.Local(troubled, engine="stacked"))


def test_the_engine_that_was_picked_is_recorded_and_kept_when_a_run_goes_on(
    troubled: Population, tmp_path: Path
) -> None:
    def follow(event: Event) -> None:
        if event.kind == "asked" and event.body["round"] == 2:
            raise KeyboardInterrupt

    undisturbed = STUDY.run(hs.Local(troubled))
    assert picked(undisturbed) == [{"engine": "stacked", "reason": "many small models at once"}]
    with pytest.raises(KeyboardInterrupt):
        STUDY.run(hs.Local(troubled, folder=tmp_path, follow=follow, engine="resident"))
    [folder] = tmp_path.iterdir()
    stopped = hs.Run.load(folder)
    assert stopped.setup is not None
    assert isinstance(stopped.setup.parties, Numbered)
    assert stopped.setup.parties == troubled.names
    resumed = STUDY.run(hs.Local(troubled, folder=tmp_path, resume=stopped))
    assert picked(resumed) == [{"engine": "resident", "reason": "as told"}]
    assert bits(resumed) == bits(undisturbed)
    loaded = hs.Run.load(folder)
    assert loaded.setup == resumed.setup
    assert (folder / "events.jsonl").read_text().count("party-1") < 20  # of 8 names it says two facts
    assert loaded.model.facts["rounds"] == 3


def test_a_roster_of_many_is_kept_as_two_facts(tmp_path: Path) -> None:
    many = 40_000
    population = Population({"x": np.ones(4), "y": np.ones(4)}, np.zeros(many, int), np.full(many, 4))
    study = STUDY.model_copy(update={"cohort": hs.Fixed(size=3), "rounds": 1})
    run = study.run(hs.Local(population, folder=tmp_path))
    assert sum(path.stat().st_size for path in (tmp_path / run.id).iterdir()) < 20_000
    assert hs.Run.load(tmp_path / run.id).setup == run.setup
    with pytest.raises(hs.errors.StudyError, match="among other parties"):
        study.run(hs.Local(Population.of_sizes(population.table, [2, 1, 1]), resume=run))


def test_memories_of_those_who_were_not_counted_stay_as_they_were(troubled: Population) -> None:
    local = hs.SGD(lr=0.1, momentum=0.5, moments="keep", batch_size=8)
    study = STUDY.model_copy(update={"method": hs.FedAvg(local=local)})
    one, other = (study.run(hs.Local(troubled, engine=e)) for e in ("stacked", "resident"))
    assert set(one.memories) == set(other.memories) == set(troubled) - {EMPTY, DIVERGING}
    assert bits(one) == bits(other)
    assert isinstance(one.memories[ONE_CLASS], Values)


def test_a_device_that_a_learner_cannot_use_is_refused(troubled: Population) -> None:
    with pytest.raises(HansaError, match="cuda"):
        STUDY.run(hs.Local(troubled, device="cuda"))


def test_a_round_that_memory_does_not_hold_ends_the_run_with_what_to_lower(
    troubled: Population, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*of: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(Crowd, "stack", none_left)
    with pytest.raises(RunError, match=r"round 1: the machine's memory.*cohort\.size"):
        STUDY.run(hs.Local(troubled))


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8, 20, "all"])
def test_rows_of_a_population_are_gathered_at_once_with_the_same_bits(shuffle: bool, batch_size: Any) -> None:
    columns = {"x": np.random.default_rng(1).normal(size=(310, 3)).astype(np.float32)}
    columns["y"] = (columns["x"][:, 0] > 0).astype(np.float64)
    sizes = [1, 19, 20, 21, 40, 70, 3, 66, 70]
    study = hs.Federation(
        task=hs.LogisticRegression(target="y", precision="float32"),
        method=hs.FedAvg(local=hs.SGD(lr=0.3, epochs=3, batch_size=batch_size, shuffle=shuffle)),
        evaluation=hs.Evaluate(every=0, holdout=0),
        rounds=2,
    )
    population = Population.of_sizes(columns, sizes)
    apart = {name: hs.Table(dict(population[name].columns)) for name in population}
    together, one_by_one = (study.run(hs.Local(p)).parameters for p in (population, apart))
    assert together.dtype == np.float32
    np.testing.assert_array_equal(together, one_by_one)


def small(**values: Any) -> hs.Federation:
    given = {"method": hs.FedAvg(local=hs.SGD(lr=0.1, batch_size=8)), "rounds": 4, **values}
    return hs.Federation(task=hs.LinearRegression(target="y"), evaluation=hs.Evaluate(every=0, holdout=0), **given)


@pytest.fixture
def sound() -> Population:
    random = np.random.default_rng(5)
    x = random.normal(size=(120, 2))
    columns = {"a": x[:, 0].copy(), "b": x[:, 1].copy(), "y": x @ np.array([1.0, -2.0])}
    return Population.of_sizes(columns, [20, 30, 40, 10, 20])


def test_a_bound_at_the_coordinator_bounds_without_a_codec_too(sound: Population) -> None:
    bounded = small(aggregation=aggregation.norm_bound(norm=1e-3)).run(hs.Local(sound))
    assert 0 < np.linalg.norm(bounded.parameters) <= 4 * 1e-3 * (1 + 1e-6)


@Engines
def test_a_round_to_which_nobody_comes_is_an_error_and_no_defect(engine: Any, sound: Population) -> None:
    with pytest.raises(RunError, match="0 of 5 contributions"):
        small().run(hs.Local(sound, clock=hs.Clock(available=0.0), engine=engine))


@pytest.mark.parametrize("kind", ["scaffold", "ditto", "fedavg"])
def test_a_fork_of_the_same_study_is_the_run_itself(kind: str, sound: Population, tmp_path: Path) -> None:
    method = METHODS.build({"kind": kind, "local": {"lr": 0.1, "batch_size": 8}})
    chain = aggregation.top_k(fraction=0.5) if kind == "fedavg" else aggregation.Aggregation()
    study = small(method=method, aggregation=chain, cohort=hs.Fixed(size=3), rounds=6)
    whole = study.run(hs.Local(sound, folder=tmp_path, every=1, keep=True))
    middle = hs.Run.load(tmp_path / whole.id, round=3)
    forked = study.run(hs.Local(sound, fork=middle))
    np.testing.assert_array_equal(forked.parameters, whole.parameters)
    assert middle.federation.method == method


def test_a_fork_into_another_method_takes_the_model_alone(sound: Population, tmp_path: Path) -> None:
    scaffold = METHODS.build({"kind": "scaffold", "local": {"lr": 0.1}})
    first = small(method=scaffold).run(hs.Local(sound, folder=tmp_path, every=1, keep=True))
    middle = hs.Run.load(tmp_path / first.id, round=2)
    forked = small(rounds=2).run(hs.Local(sound, fork=middle))
    np.testing.assert_array_equal(forked.parameters, middle.parameters)
    assert not small(rounds=3).run(hs.Local(sound, fork=middle)).memories


@pytest.mark.parametrize("kind", ["fednova", "ifca"])
def test_a_reducer_that_would_bound_nothing_is_refused(kind: str) -> None:
    method = METHODS.build({"kind": kind, "local": {"lr": 0.1}})
    with pytest.raises(PipelineError, match="would not bound"):
        small(method=method, aggregation=aggregation.median())


def test_a_replay_among_other_parties_is_refused(sound: Population) -> None:
    run = small().run(hs.Local(sound))
    others = {f"other-{i}": sound[name] for i, name in enumerate(sound)}
    with pytest.raises(StudyError, match="not among the parties"):
        small().run(hs.Local(others, replay=run))
