"""Histograms and quantiles: counts over public edges, and what may be read off them under noise."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.errors import PipelineError, RunError, StudyError
from hansa.methods.histogram import quantiles
from hansa.party import Party
from hansa.privacy import accountant
from hansa.privacy.events import Gaussian

SIZES = [700, 900, 800]
CONTRACT = hs.Contract(
    columns={
        "age": hs.ColumnRule(type="number", low=0, high=120),
        "dose": hs.ColumnRule(type="number", low=-1, high=1),
        "sex": hs.ColumnRule(type="category", categories=("f", "m")),
    }
)
WHISPER = agg.gaussian(noise_multiplier=1e-3)


@pytest.fixture(scope="module")
def columns() -> dict[str, Any]:
    random = np.random.default_rng(4)
    count = sum(SIZES)
    dose = random.uniform(-1, 1, count)
    dose[::10] = np.nan
    sex = np.where(random.random(count) < 0.25, "f", "m").astype(object)
    sex[::100] = None
    return {"age": random.normal(60, 12, count).clip(1.5, 99), "dose": dose, "sex": sex, "y": np.zeros(count)}


@pytest.fixture(scope="module")
def tables(columns: dict[str, Any]) -> dict[str, hs.Table]:
    ends = np.cumsum([0, *SIZES])
    return {
        f"party-{i}": hs.Table.of({n: v[a:b] for n, v in columns.items()}) for i, (a, b) in enumerate(pairwise(ends))
    }


def study(chain: agg.Aggregation = WHISPER, **more: Any) -> hs.Federation:
    known: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y"),
        "method": hs.methods.Histogram(bins=24),
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(holdout=0),
        "contract": CONTRACT,
        "statistics": chain,
        "privacy": hs.Privacy(unit="example"),
    }
    return hs.Federation(**{**known, **more})


def found(run: hs.Run) -> Any:
    return json.loads(json.dumps(run.model.facts["columns"]))


def test_counts_are_those_of_the_pooled_rows_and_quantiles_are_within_a_bin(
    columns: dict[str, Any], tables: dict[str, hs.Table]
) -> None:
    run = study().run(hs.Local(tables))
    said = found(run)
    assert (run.status, run.progress and run.progress.reason) == ("finished", "every column was counted")
    assert [e.body["work"] for e in run.events if e.kind == "asked"] == ["train"]
    for name, low, high in (("age", 0, 120), ("dose", -1, 1)):
        x = columns[name][~np.isnan(columns[name])]
        counts, edges = np.histogram(x, 24, (low, high))
        np.testing.assert_allclose(said[name]["counts"], counts, atol=0.1)
        np.testing.assert_allclose(said[name]["edges"], edges)
        assert said[name]["missing"] == pytest.approx(np.isnan(columns[name]).sum(), abs=0.1)
        for level, value in said[name]["quantiles"].items():
            assert value == pytest.approx(np.quantile(x, float(level)), abs=(high - low) / 24)
    sex = [(columns["sex"] == value).sum() for value in ("f", "m")]
    assert said["sex"]["counts"] == pytest.approx({"f": sex[0], "m": sex[1], "other": 0}, abs=0.1)


@pytest.mark.parametrize(
    "chain",
    [
        agg.gaussian(noise_multiplier=3.0),
        agg.local_gaussian(noise_multiplier=3.0),
        agg.local_laplace(noise_multiplier=1.0),
        agg.grid(bits=10, examples=1000) >> agg.skellam(noise_multiplier=3.0) >> agg.secure_sum(),
    ],
    ids=["central", "local", "laplace", "shares"],
)
def test_under_noise_medians_stay_near_and_the_guarantee_says_what_it_costs(
    chain: agg.Aggregation, columns: dict[str, Any], tables: dict[str, hs.Table]
) -> None:
    run = study(chain, cohort=hs.All(minimum=3)).run(hs.Local(tables))
    median = found(run)["age"]["quantiles"]["0.5"]
    assert median == pytest.approx(np.median(columns["age"]), abs=5.0)
    public = run.guarantee["public"]
    assert public.exact == ()
    assert 0 < public.epsilon < 60
    assert "the columns' counts" in public.sees


def test_the_noise_of_a_histogram_is_over_one_row_in_one_bin_of_each_column() -> None:
    chain = agg.local_gaussian(noise_multiplier=2.0)
    event = Gaussian(adjacency="add-remove", noise_multiplier=2.0)
    for observer in ("coordinator", "party", "public"):
        assert study(chain).guarantee[observer].epsilon == pytest.approx(accountant.epsilon([event], 1e-5), rel=1e-6)


def test_one_row_moves_the_counts_by_the_root_of_the_columns_and_never_by_more(tables: dict[str, hs.Table]) -> None:
    federation = study(agg.local_gaussian(noise_multiplier=2.0))
    table = tables["party-0"]
    setup = federation.resolve({name: t.schema() for name, t in tables.items()})
    course = federation.course(setup)
    ask = course.ask(course.begin())
    assert ask is not None
    [field] = ask.fields
    assert field.example == pytest.approx(math.sqrt(3))
    counts = []
    for rows in (np.arange(table.rows), np.arange(1, table.rows), np.arange(2, table.rows)):
        at = Party("party-0", table.take(rows), course).at(ask, hs.contribution.Values())
        counts.append(course.method.work(at).contribution.values["counts"])
    moved = [float(np.linalg.norm(a - b)) for a, b in pairwise(counts)]
    assert max(moved) <= field.example + 1e-9
    assert moved[1] == pytest.approx(field.example)  # of a row without a gap in a category: it is attained


def test_no_quantile_is_a_value_of_the_table_and_the_least_of_all_is_an_edge(
    columns: dict[str, Any], tables: dict[str, hs.Table]
) -> None:
    method = hs.methods.Histogram(bins=24, levels=(0.0, 1.0))
    said = found(study(method=method).run(hs.Local(tables)))["age"]["quantiles"]
    edges = np.linspace(0, 120, 25)
    for value, extreme in ((said["0.0"], columns["age"].min()), (said["1.0"], columns["age"].max())):
        assert np.abs(edges - value).min() < 0.5
        assert abs(value - extreme) > 0.1


def test_quantiles_of_counts_that_are_known_by_hand() -> None:
    edges = [0.0, 1.0, 2.0, 3.0, 4.0]
    assert quantiles(np.array([1.0, 1, 1, 1]), edges, [0, 0.25, 0.5, 1]) == [0, 1, 2, 4]
    assert quantiles(np.array([0.0, 10, 0, 0]), edges, [0.5]) == [1.5]
    assert quantiles(np.array([2.0, -1, 1, 2]), edges, [0.5]) == [3.0]  # sums 2, 1, 2, 4: 1.5, 1.5, 2, 4
    assert quantiles(np.array([0.4, 0.4, -0.3, 0.0]), edges, [0.5]) == [None]
    assert quantiles(np.array([-3.0, 1, 0, 0]), edges, [0.1, 0.9]) == [None, None]


def test_noise_moves_no_sum_further_than_its_worst() -> None:
    random = np.random.default_rng(1)
    counts = random.poisson(40, 30).astype(float)
    edges = np.arange(31.0)
    for _ in range(50):
        noised = counts + random.normal(0, 8, 30)
        worst = np.abs(np.cumsum(noised - counts)).max()
        levels = np.linspace(0.05, 0.95, 19)
        got = np.asarray(quantiles(noised, edges, levels))
        reached = np.interp(got, edges, [0, *np.cumsum(counts)])  # of the true sums, at what was found
        assert np.abs(reached - levels * counts.sum()).max() <= 2 * worst + 1e-9


@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"statistics": agg.Aggregation()}, PipelineError, r"may hold one.*Put noise into \[statistics\]"),
        ({"statistics": agg.grid(bits=16, examples=1000) >> agg.secure_sum()}, PipelineError, "nothing hides them"),
        ({"privacy": hs.Privacy()}, PipelineError, "needs a bound on what one party adds"),
        ({"aggregation": agg.clip(1.0)}, PipelineError, "takes no aggregation stage"),
        ({"cohort": hs.Poisson(rate=0.5)}, PipelineError, "no cohort but all of them"),
    ],
)
def test_what_could_not_hold_is_refused(
    more: dict[str, Any], error: type[Exception], says: str, tables: dict[str, hs.Table]
) -> None:
    with pytest.raises(error, match=says):
        study(**more).run(hs.Local(tables))


def test_a_column_without_a_range_and_a_table_without_a_column_are_refused(tables: dict[str, hs.Table]) -> None:
    with pytest.raises(StudyError, match=r"Declare low and high of contract.columns.age"):
        study(contract=hs.Contract(columns={"sex": CONTRACT.columns["sex"]})).run(hs.Local(tables))


def test_an_agent_holds_the_ask_against_its_own() -> None:
    federation = study(agg.local_gaussian(noise_multiplier=2.0))
    columns = [hs.data.table.ColumnSchema(name, "number") for name in ("age", "dose", "y")]
    course = federation.course(federation.resolve({"a": columns, "b": columns}))
    ask = course.ask(course.begin())
    assert ask is not None
    assert course.permits(ask)
    assert not course.permits(replace(ask, through="plain"))  # without the noise
    with pytest.raises(RunError, match="nothing to ask"):  # an excuse, to the coordinator
        course.permits(replace(ask, version=1, round=2))


def test_between_machines_the_noise_is_the_parties_own(
    deployed: Any, columns: dict[str, Any], tables: dict[str, hs.Table]
) -> None:
    federation = study(agg.local_gaussian(noise_multiplier=2.0), name="tumours")
    backend = deployed(tables)
    one, other = backend.run(federation), backend.run(federation)
    counts = [found(run)["age"]["counts"] for run in (one, other)]
    exact = np.histogram(columns["age"], 24, (0, 120))[0]
    spread = 2.0 * math.sqrt(3 * 3)  # of three columns, and three parties
    for counted in counts:
        assert 0.3 < np.abs(np.subtract(counted, exact)).mean() / spread < 1.5  # 0.8 of a normal variable
    assert counts[0] != counts[1]
    assert [e.body["work"] for e in one.events if e.kind == "asked"] == ["train"]
