"""Evaluations: on a test table, over the parties, of their own models, by a few of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.contribution import Values
from hansa.data.population import Population
from hansa.errors import RunError, StudyError, UsageError
from hansa.methods import Ditto
from hansa.party import Party

PARTIES, WHICH = 25, ("p10", "p50", "p90", "worst_decile")


@pytest.fixture(scope="module")
def crowd() -> Population:
    """Parties of 4 to 40 rows around minima of their own."""
    random = np.random.default_rng(6)
    sizes = random.integers(4, 40, PARTIES)
    x = random.normal(size=(sizes.sum(), 2))
    slope = np.repeat(random.normal([1.0, -1.0], size=(PARTIES, 2)), sizes, axis=0)
    score = (x * slope).sum(axis=1) + random.normal(0, 0.1, len(x))
    y, z = (score > 0).astype(float), score
    return Population.of_sizes({"u": x[:, 0], "v": x[:, 1], "y": y, "z": z}, sizes)


def study(evaluation: hs.Evaluate, **parts: Any) -> hs.Federation:
    fields: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y", features=("u", "v")),
        "method": hs.FedAvg(local=hs.SGD(lr=0.3, batch_size=8)),
        "rounds": 3,
        **parts,
    }
    return hs.Federation(evaluation=evaluation, **fields)


def asked(run: hs.Run, work: str) -> list[Any]:
    return [e.body for e in run.events if e.kind == "asked" and e.body["work"] == work]


def parties_of(run: hs.Run, tables: Mapping[str, hs.Table]) -> dict[str, Party]:
    assert run.setup is not None
    course = run.federation.course(run.setup)
    return {name: Party(name, table, course) for name, table in tables.items()}


def test_a_central_evaluation_scores_on_the_test_table_and_holds_nothing_out(crowd: Population) -> None:
    random = np.random.default_rng(8)
    test = {name: random.normal(size=500) for name in ("u", "v")}
    test["y"] = (test["u"] - test["v"] > 0).astype(float)
    run = study(hs.Evaluate(central=True, every=2)).run(hs.Local(crowd, test=test))
    rows = run.metrics()
    assert [row.pop("round") for row in rows] == [2, 3]
    assert rows[-1] == pytest.approx(run.model.score(hs.Table.of(test)), rel=1e-12)
    assert [body["parties"] for body in asked(run, "evaluate")] == [[], []]
    for party in parties_of(run, crowd).values():
        assert (party.split[0].rows, party.split[1].rows) == (party.table.rows, 0)


def test_a_central_evaluation_without_its_table_is_said(crowd: Population) -> None:
    with pytest.raises(UsageError, match=r"there is no test table\. Say Local\(.*test=TABLE"):
        study(hs.Evaluate(central=True)).run(hs.Local(crowd))


@pytest.mark.parametrize("other", [{"spread": True}, {"own": True}, {"sample": 3}, {"split": "part"}])
def test_what_only_parties_can_say_is_refused_of_a_central_evaluation(other: Any) -> None:
    [name] = other
    with pytest.raises(StudyError, match=rf"evaluation\.{name} is of the parties' rows"):
        hs.Evaluate(central=True, **other)


def test_parties_never_run_a_study_whose_evaluation_is_central(
    deployed: Callable[[Mapping[str, hs.Table]], Any], harvests: dict[str, hs.Table]
) -> None:
    central = study(hs.Evaluate(central=True), task=hs.LogisticRegression(target="y"))
    with pytest.raises(StudyError, match=r"which only a simulation has.*hansa simulate"):
        deployed(harvests).run(central)


TASKS = {
    "logistic": hs.LogisticRegression(target="y", features=("u", "v")),
    "linear": hs.LinearRegression(target="z", features=("u", "v")),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_spread_is_of_the_metrics_of_each_party_by_itself(task: str, crowd: Population) -> None:
    run = study(hs.Evaluate(spread=True, holdout=0.3), task=TASKS[task], rounds=2).run(hs.Local(crowd))
    plain = study(hs.Evaluate(holdout=0.3), task=TASKS[task], rounds=2).run(hs.Local(crowd))
    found, whole = run.metrics()[-1], plain.metrics()[-1]
    assert run.parameters.tobytes() == plain.parameters.tobytes()
    assert {name: found[name] for name in whole} == pytest.approx(whole, rel=1e-12)
    held_out = [party.split[1] for party in parties_of(run, crowd).values()]
    each = [run.model.score(table) for table in held_out if table.rows]
    assert len(each) >= 20
    for name in TASKS[task].metric_names:
        values = np.sort([one[name] for one in each])
        low, median, high = np.quantile(values, [0.1, 0.5, 0.9])
        two = values[-2:] if name in TASKS[task].lower_is_better else values[:2]
        expected = dict(zip(WHICH, (low, median, high, two.mean()), strict=True))
        assert {w: found[f"{name}.{w}"] for w in WHICH} == pytest.approx(expected, rel=1e-9)
        assert low < high
    assert set(found) == {"round", *whole, *(f"{n}.{w}" for n in whole if n != "round" for w in WHICH)}
    if task == "linear":
        assert found["r2.worst_decile"] < 0  # worse than the mean of its rows, and said so


def test_the_worst_tenth_of_a_few_is_the_worst_one() -> None:
    x = np.linspace(-1, 1, 40)
    tables = {
        name: hs.Table.of({"u": x, "v": -x, "z": slope * x}) for name, slope in (("a", 1.0), ("b", 1.0), ("c", -3.0))
    }
    run = study(hs.Evaluate(spread=True), task=TASKS["linear"]).run(hs.Local(tables))
    held_out = {name: party.split[1] for name, party in parties_of(run, tables).items()}
    scores = {name: run.model.score(table) for name, table in held_out.items()}
    found = run.metrics()[-1]
    assert found["rmse.worst_decile"] == pytest.approx(max(s["rmse"] for s in scores.values()))
    assert found["r2.worst_decile"] == pytest.approx(min(s["r2"] for s in scores.values()))


def test_own_models_are_scored_on_the_rows_that_their_party_holds_out(crowd: Population) -> None:
    method = Ditto(local=hs.SGD(lr=0.3, batch_size=8), lam=0.1)
    run = study(hs.Evaluate(own=True), method=method, rounds=8).run(hs.Local(crowd))
    found = run.metrics()[-1]
    sums: dict[str, Any] = {}
    for name, party in parties_of(run, crowd).items():
        own = run.memories.get(name, Values()).get("train.personal", run.parameters)
        model = hs.Model(run.federation.task, run.model.encoding, own)
        table = party.split[1]
        tallies = model.task.tally(model.predict(table), model.task.labels(table))
        sums = {n: sums.get(n, 0.0) + value for n, value in tallies.items()}
    expected = run.federation.task.metrics(sums)
    assert {n: found[f"own.{n}"] for n in expected} == pytest.approx(expected, rel=1e-9)
    assert found["own.loss"] < found["loss"]  # they differ, and each has its own minimum


def test_without_a_model_of_their_own_there_is_nothing_more_to_score(crowd: Population) -> None:
    one, other = (study(hs.Evaluate(own=own)).run(hs.Local(crowd)) for own in (True, False))
    assert one.metrics() == other.metrics()


def test_a_sample_of_the_parties_is_drawn_anew_for_each_evaluation(crowd: Population) -> None:
    run, again = (study(hs.Evaluate(sample=5), rounds=4).run(hs.Local(crowd)) for _ in range(2))
    cohorts = [tuple(body["parties"]) for body in asked(run, "evaluate")]
    assert [len(cohort) for cohort in cohorts] == [5] * 4
    assert len(set(cohorts)) == 4
    assert all(list(cohort) == sorted(set(cohort)) for cohort in cohorts)
    assert cohorts == [tuple(body["parties"]) for body in asked(again, "evaluate")]
    assert all(len(body["parties"]) == PARTIES for body in asked(run, "train"))
    everybody = study(hs.Evaluate(sample=999), rounds=1).run(hs.Local(crowd))
    assert len(asked(everybody, "evaluate")[0]["parties"]) == PARTIES


def test_a_run_may_stop_at_a_quantile_or_at_own_models(crowd: Population) -> None:
    for metric, target in (("loss.p90", 9.0), ("own.loss", 9.0), ("accuracy.p10", 0.01)):
        run = study(
            hs.Evaluate(spread=True, own=True),
            method=Ditto(local=hs.SGD(lr=0.3)),
            stop=hs.Stop(metric=metric, target=target),
        ).run(hs.Local(crowd))
        assert run.reason.startswith(f"{metric} reached")
        assert run.metrics()[-1]["round"] == 1
    worse = hs.Stop(metric="loss.worst_decile", patience=1)
    assert worse.better(0.1, 0.2, TASKS["linear"])
    assert not worse.better(0.2, 0.1, TASKS["linear"])
    with pytest.raises(StudyError, match=r"no metric 'loss\.p90'"):
        study(hs.Evaluate(), stop=hs.Stop(metric="loss.p90")).run(hs.Local(crowd))


def test_no_row_held_out_by_those_who_were_asked_is_said() -> None:
    tiny = Population.of_sizes({"u": np.ones(3), "v": np.ones(3), "y": np.ones(3)}, [1, 1, 1])
    for evaluation in (hs.Evaluate(spread=True), hs.Evaluate(sample=2)):
        with pytest.raises(RunError, match="no party holds out a row"):
            study(evaluation).run(hs.Local(tiny))
