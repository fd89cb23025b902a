"""The audit by one run: its formula by hand, its power without noise, and that it never refutes a true claim."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa import audit
from hansa.errors import StudyError, UsageError

SURE = 1 - 1e-6
PRIVATE = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=1.0, rate=0.05, steps=20, batch_size=20)
TASKS: dict[str, hs.Task] = {
    "linear": hs.LinearRegression(target="y"),
    "logistic": hs.LogisticRegression(target="y"),
    "poisson": hs.PoissonRegression(target="y"),
    "softmax": hs.SoftmaxRegression(target="y", classes=(0, 1, 2)),
}


def bare(task: str = "logistic", unit: str = "party", **keys: Any) -> audit.Bare:
    """Three parties of 40 rows with 5 features."""
    random = np.random.default_rng(1)
    known: dict[str, Any] = {
        "task": TASKS[task],
        "method": hs.FedAvg(local=hs.SGD(lr=0.1), weights="equal"),
        "rounds": 5,
        "preprocessing": hs.Moments(standardise=False),
        "privacy": hs.Privacy(unit=unit, delta=1e-5),
    }
    if unit == "example" and "method" not in keys:
        keys["method"] = hs.FedAvg(local=PRIVATE, weights="equal")
    tables = {}
    for name in "abc":
        y = random.integers(0, 3 if task == "softmax" else 2, 40)
        columns = {f"x{i}": random.normal(size=40) + y for i in range(5)}
        tables[name] = hs.Table.of({**columns, "y": y})
    return audit.Bare.of(hs.Federation(**{**known, **keys}), tables)


def claim(federation: Any) -> float:
    return federation["public"].epsilon


# --- the formula


@pytest.mark.parametrize("epsilon", [0.0, 0.7, 3.0])
def test_the_chance_of_right_guesses_is_as_by_hand(epsilon: float) -> None:
    q, delta = math.exp(epsilon) / (1 + math.exp(epsilon)), 1e-3
    for (correct, guesses, canaries), by_hand in {
        (0, 2, 5): 1.0,  # always so many or more
        (1, 1, 1): q + 2 * delta * (1 - q),
        (1, 2, 7): 1 - (1 - q) ** 2 + 14 * delta * (1 - q) ** 2,
        (2, 2, 2): q**2 + 4 * delta * max(2 * q * (1 - q), (1 - q**2) / 2),
        (3, 3, 9): q**3 + 18 * delta * max(3 * q**2 * (1 - q), (1 - q**3 - (1 - q) ** 3) / 2, (1 - q**3) / 3),
    }.items():
        found = audit.p_value(correct, guesses, canaries, epsilon, delta)
        assert found == pytest.approx(min(1.0, by_hand), rel=1e-12)


def test_the_bound_is_as_by_hand() -> None:
    """All of r guesses right: q^r = 5% at the bound, if delta is 0."""
    for guesses in (10, 100, 1000):
        q = 0.05 ** (1 / guesses)
        found = audit.least_epsilon(guesses, guesses, 1000, 0.0)
        assert found == pytest.approx(math.log(q / (1 - q)), rel=1e-6)
    assert audit.least_epsilon(4, 4, 4, 0.0) == 0.0  # 1/16 is more than 5%
    assert audit.least_epsilon(5, 5, 5, 0.0) > 0.0  # 1/32 is less
    assert audit.least_epsilon(500, 1000, 1000, 0.0) == 0.0
    assert audit.least_epsilon(900, 1000, 1000, 1e-4) < audit.least_epsilon(900, 1000, 1000, 0.0)


def test_the_bound_holds_for_randomised_response() -> None:
    """Each coin told rightly with chance e^2 / (1 + e^2) is exactly 2-private; a bound above it is rare."""
    random, above, bounds = np.random.default_rng(0), 0, []
    for _ in range(60):
        coins = random.random(300) < 0.5
        right = random.random(300) < math.exp(2) / (1 + math.exp(2))
        bounds.append(audit.lower_bound((coins == right) * 1.0, coins, 0.0).epsilon)
        above += bounds[-1] > 2
    assert above <= 3
    assert np.median(bounds) > 0.8


# --- against runs


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("unit", ["party", "example"])
def test_without_noise_a_thousand_canaries_prove_an_epsilon_of_three(task: str, unit: str) -> None:
    method = hs.FedAvg(local=hs.SGD(lr=0.1), weights="equal")
    bound, guarantee = audit.one_run(bare(task, unit, method=method))
    assert bound.epsilon >= 3
    assert bound.canaries == 1000
    assert claim(guarantee) == math.inf


NOISED: dict[str, dict[str, Any]] = {
    "example": {"unit": "example"},
    "example, adam": {
        "unit": "example",
        "method": hs.FedAvg(
            local=hs.DPAdam(lr=0.01, clip=1.0, noise_multiplier=1.0, rate=0.2, steps=5, batch_size=20), weights="equal"
        ),
    },
    "party": {"aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0)},
    "party, one round": {"aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=0.5), "rounds": 1},
    "party, poisson": {
        "aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0),
        "cohort": hs.Poisson(rate=0.3),
    },
    "local": {"aggregation": agg.clip(1.0) >> agg.local_gaussian(noise_multiplier=1.0)},
    "shares": {
        "aggregation": agg.clip(1.0) >> agg.grid(bits=12) >> agg.skellam(noise_multiplier=2.0) >> agg.secure_sum()
    },
}


@pytest.mark.parametrize("kind", NOISED)
def test_with_noise_the_bound_never_exceeds_the_claim(kind: str) -> None:
    for seed in range(2):
        bound, guarantee = audit.one_run(bare(**NOISED[kind], seed=seed), confidence=SURE)
        assert bound.epsilon <= claim(guarantee) < math.inf


LITTLE: dict[str, dict[str, Any]] = {
    "party": {"aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=3.0), "rounds": 1},
    "example": {
        "method": hs.FedAvg(
            local=PRIVATE.model_copy(update={"rate": 1.0, "steps": 1, "noise_multiplier": 3.0}), weights="equal"
        ),
        "rounds": 1,
    },
}


@pytest.mark.parametrize("unit", LITTLE)
def test_noise_that_is_left_out_is_found_out(unit: str) -> None:
    """What an audit is for: a run that claims an epsilon and adds no noise is refuted."""
    true = bare(unit=unit, **LITTLE[unit])
    claimed = claim(audit.one_run(true)[1])
    assert audit.one_run(true)[0].epsilon < claimed < 1.5
    false = audit.Bare(**{**vars(true), "federation": audit.unnoised(true.federation)})
    samples, canaries = true.federation, false.federation
    assert canaries.aggregation != samples.aggregation or canaries.method != samples.method
    bound, _ = audited_without_a_claim(false)
    assert bound.epsilon > 3 > claimed


def audited_without_a_claim(false: audit.Bare) -> tuple[audit.Bound, float]:
    with pytest.MonkeyPatch.context() as patch:  # nobody computes what next to no noise costs
        patch.setattr(hs.Run, "guarantee", math.inf)
        bound, claimed = audit.one_run(false)
    return bound, float(claimed)


def test_the_canaries_are_the_seeds() -> None:
    first, again, other = (audit.one_run(bare(**NOISED["party"], seed=s))[0] for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_what_cannot_be_audited_is_said() -> None:
    with pytest.raises(UsageError, match="19 canaries prove nothing"):
        audit.one_run(bare(), 19)
    with pytest.raises(StudyError, match="the method irls sends none"):
        bare(method=hs.methods.IRLS())
