"""Sums of preprocessing and evaluation with noise: what they still say, and what they cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.errors import PipelineError, StudyError
from hansa.privacy import accountant
from hansa.privacy.events import Gaussian

WIDTH, SIZES = 4, [900, 1100, 1000]
RULE = hs.ColumnRule(type="number", low=-10, high=20)
CONTRACT = hs.Contract(columns={f"x{i}": RULE for i in range(WIDTH)})
CHAINS = {
    "central": agg.gaussian(noise_multiplier=5.0),
    "local": agg.local_gaussian(noise_multiplier=5.0),
    "shares": agg.grid(bits=12, examples=1500) >> agg.discrete_gaussian(noise_multiplier=5.0) >> agg.secure_sum(),
}


@pytest.fixture(scope="module")
def population() -> hs.Population:
    random = np.random.default_rng(8)
    x = random.normal(5.0, [3.0, 4.0, 4.0, 5.0], (sum(SIZES), WIDTH))
    x = np.clip(x, -10, 20)  # the contract holds
    y = (x.sum(axis=1) > 20).astype(float)
    x[::7, 1] = np.nan
    return hs.Population.of_sizes({f"x{i}": x[:, i] for i in range(WIDTH)} | {"y": y}, SIZES)


def study(chain: agg.Aggregation, **more: Any) -> hs.Federation:
    private = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=2.0, rate=0.05, steps=10, batch_size=50)
    known: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y"),
        "method": hs.FedAvg(local=private, weights="equal"),
        "rounds": 6,
        "cohort": hs.All(minimum=3),
        "evaluation": hs.Evaluate(every=3),
        "contract": CONTRACT,
        "statistics": chain,
        "privacy": hs.Privacy(unit="example"),
    }
    return hs.Federation(**{**known, **more})


@pytest.mark.parametrize("name", CHAINS)
def test_noised_moments_and_metrics_are_near_the_exact_ones(name: str, population: hs.Population) -> None:
    noised = study(CHAINS[name]).run(hs.Local(population))
    exact = study(agg.Aggregation()).run(hs.Local(population))
    near, at = noised.model.encoding, exact.model.encoding
    np.testing.assert_allclose(near.mean, at.mean, atol=0.8)
    np.testing.assert_allclose(near.scale, at.scale, rtol=0.3)
    assert not np.array_equal(near.mean, at.mean)
    accuracy = [run.metrics()[-1]["accuracy"] for run in (noised, exact)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.1)
    again = study(CHAINS[name]).run(hs.Local(population, workers=1))
    assert again.metrics() == noised.metrics()


def test_without_noise_the_bounded_moments_are_the_exact_ones(population: hs.Population) -> None:
    chain = agg.grid(bits=20, examples=1500)
    summed, exact = (study(c).run(hs.Local(population)) for c in (chain, agg.Aggregation()))
    for of in ("mean", "scale"):
        found, at = (getattr(run.model.encoding, of) for run in (summed, exact))
        np.testing.assert_allclose(found, at, rtol=1e-3)


def test_everything_together_is_the_dearer_of_what_is_learnt_from_and_what_is_held_out() -> None:
    found = study(CHAINS["local"]).guarantee["coordinator"]
    assert found.exact == ()
    training = study(CHAINS["local"]).guarantee["public"].events or ()
    assert {e.times for e in training} == {1, 60}  # the columns once, and six rounds of ten steps
    evaluation = Gaussian(adjacency="add-remove", noise_multiplier=5.0, times=2)
    assert found.epsilon > accountant.epsilon([evaluation], 1e-5)
    loud = study(agg.local_gaussian(noise_multiplier=0.5)).guarantee["coordinator"]
    evaluation = Gaussian(adjacency="add-remove", noise_multiplier=0.5, times=2)
    assert loud.epsilon == pytest.approx(accountant.epsilon([evaluation], 1e-5), rel=1e-3)


def test_what_has_no_noise_is_named() -> None:
    found = study(agg.Aggregation()).guarantee["coordinator"]
    assert found.epsilon == math.inf
    assert any("columns' sums" in what for what in found.exact)
    assert any("2 evaluations" in what for what in found.exact)
    central = study(CHAINS["central"]).guarantee
    assert central["coordinator"].epsilon == math.inf
    assert central["public"].epsilon < 3


def test_more_than_the_study_may_cost_is_refused(population: hs.Population) -> None:
    dear = study(CHAINS["local"], privacy=hs.Privacy(unit="example", epsilon=0.5))
    with pytest.raises(hs.errors.PrivacyError, match=r"privacy.epsilon is 0.5"):
        dear.run(hs.Local(population))
    bare = study(agg.Aggregation(), privacy=hs.Privacy(unit="example", epsilon=3))
    with pytest.raises(hs.errors.PrivacyError, match=r"inf \(there is no noise in the columns' sums; ") as refused:
        bare.run(hs.Local(population))
    assert "[statistics]" in refused.value.remedy


def test_a_column_without_a_range_is_refused(population: hs.Population) -> None:
    with pytest.raises(StudyError, match=r"Declare low and high of contract.columns.x0"):
        study(CHAINS["central"], contract=hs.Contract()).run(hs.Local(population))


@pytest.mark.parametrize(
    ("chain", "more", "says"),
    [
        (CHAINS["central"], {"privacy": hs.Privacy()}, "needs a bound on what one party adds"),
        (CHAINS["central"], {"evaluation": hs.Evaluate(spread=True)}, "needs a sum"),
        (CHAINS["central"], {"task": hs.LinearRegression(target="y")}, "one example adds"),
        (agg.grid(bits=10) >> agg.secure_sum(), {}, r"Say grid\(examples=...\)"),
        (agg.clip(1.0), {}, "nothing to work on"),
    ],
)
def test_statistics_that_could_not_hold_are_refused(chain: agg.Aggregation, more: dict[str, Any], says: str) -> None:
    with pytest.raises(PipelineError, match=says):
        study(chain, **more)


def test_one_row_more_moves_no_other_between_learning_and_holding_out(population: hs.Population) -> None:
    from hansa.party import Party

    federation = study(CHAINS["local"])
    table = population["party-1"]
    setup = federation.resolve({"party-1": table.schema()}, ("party-1", "party-2", "party-3"))
    course = federation.course(setup)
    fewer = table.take(np.arange(table.rows - 1))
    learnt, before = (Party("party-1", t, course).split[1].column("x0") for t in (table, fewer))
    assert list(learnt[: len(before)]) == list(before)
    assert 0 <= len(learnt) - len(before) <= 1
