"""Training that hides one example."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.errors import StudyError
from hansa.learners.base import Learner
from hansa.learners.glm import Linear, Logistic, Poisson, Softmax
from hansa.learners.private import train_privately
from hansa.party import Party
from hansa.privacy.noise import Chance, Stream

pytestmark = pytest.mark.untraced

CHANCES: tuple[Chance, ...] = (np.random.default_rng(3), Stream(bytes(32)))
MODELS: list[Learner] = [Linear(5), Logistic(5), Poisson(5), Softmax(5, 3), Logistic(5, l2=0.3)]


def rows(model: Learner, count: int = 40) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    x = random.normal(size=(count, 5)) * random.exponential(2.0, size=(count, 1))
    return x, random.integers(0, 3 if isinstance(model, Softmax) else 2, count)


def at(chance: Chance, position: int) -> Chance:
    return chance


def local(**keys: Any) -> hs.DPSGD:
    known = {"lr": 0.1, "clip": 1.0, "noise_multiplier": 1.0, "rate": 0.5, "steps": 3, "batch_size": 20}
    return hs.DPSGD(**{**known, **keys})


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__} {m.l2}")
def test_the_sum_of_clipped_gradients_is_that_of_each_row_by_itself(model: Learner) -> None:
    x, y = rows(model)
    theta = np.random.default_rng(1).normal(size=model.layout.size)
    expected = np.zeros(theta.size)
    for i in range(len(y)):
        gradient = model.gradient(theta, x[i : i + 1], y[i : i + 1]) - model.penalty(theta)
        expected += gradient * min(1.0, 0.7 / float(np.linalg.norm(gradient)))
    np.testing.assert_allclose(model.clipped(theta, x, y, 0.7), expected, rtol=1e-12, atol=1e-12)
    if not getattr(model, "l2", 0):
        general = Learner.clipped(model, theta, x, y, 0.7)
        np.testing.assert_allclose(general, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: f"{type(m).__name__} {m.l2}")
def test_one_row_moves_the_sum_by_the_clip_at_most_and_nearly_so(model: Learner) -> None:
    x, y = rows(model)
    theta = np.random.default_rng(1).normal(size=model.layout.size)
    moved = []
    for scale, label in itertools.product((1e-3, 1.0, -8.0, 1e6, 1e300, np.inf), (0, 1)):
        more = np.vstack([x, np.full((1, 5), scale)])
        whole = model.clipped(theta, more, np.append(y, label), 0.7)
        moved.append(float(np.linalg.norm(whole - model.clipped(theta, x, y, 0.7))))
    assert max(moved) <= 0.7 * (1 + 1e-9)
    assert max(moved) > 0.9 * 0.7


def test_without_noise_and_clip_it_is_gradient_descent() -> None:
    model, (x, y) = Logistic(5, l2=0.1), rows(Logistic(5))
    still = local(rate=1.0, clip=1e9, noise_multiplier=1e-18, batch_size=len(y), steps=5)
    chance = np.random.default_rng(0)
    [found], _ = train_privately(model, np.zeros(6), [(x, y)], still, None, {}, partial(at, chance))
    theta = np.zeros(6)
    for _ in range(5):
        theta -= 0.1 * model.gradient(theta, x, y)
    np.testing.assert_allclose(found, theta, rtol=1e-6)


def test_noise_has_its_spread_and_rows_join_with_their_chance() -> None:
    """Rows without a gradient leave the noise; the model of a constant counts who joins."""
    width = 3000
    model, zeros = Linear(width), (np.zeros((10, width)), np.zeros(10))
    for chance in CHANCES:
        one = local(steps=1, clip=2.0, noise_multiplier=3.0, batch_size=5, lr=1.0)
        [moved], _ = train_privately(model, np.zeros(width + 1), [zeros], one, None, {}, partial(at, chance))
        assert np.std(moved) == pytest.approx(3.0 * 2.0 / 5, rel=0.05)
    counting, ones = Linear(1), (np.zeros((4000, 1)), -np.ones(4000))
    for chance in CHANCES:
        one = local(steps=1, clip=1.0, noise_multiplier=1e-9, batch_size=1, lr=1.0, rate=0.25)
        [moved], _ = train_privately(counting, np.zeros(2), [ones], one, None, {}, partial(at, chance))
        assert abs(moved[1]) == pytest.approx(1000, abs=5 * math.sqrt(750))


def test_adam_takes_the_noise_off_its_mean_of_squares() -> None:
    """On noise alone, what is left of the mean of squares is the least root, not the noise."""
    keys: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.0, "rate": 1.0, "steps": 1, "batch_size": 10}
    adam = hs.DPAdam(lr=0.1, **keys, beta2=0.5)
    constant = np.full((1, 3), 0.3)
    moved, _ = adam.step(np.zeros((1, 3)), constant, {})
    np.testing.assert_allclose(moved, 0.1 * 0.3 / math.sqrt(0.3**2 - 0.1**2))
    small, _ = adam.step(np.zeros((1, 3)), np.full((1, 3), 0.05), {})
    np.testing.assert_allclose(small, 0.1 * 0.05 / 0.01)


def test_both_engines_and_any_number_of_workers_give_the_same_bits() -> None:
    x, y = rows(Logistic(5), 90)
    columns = {f"x{i}": x[:, i] for i in range(5)} | {"y": y.astype(float)}
    tables = hs.Population.of_sizes(columns, [20, 30, 40])
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.FedAvg(local=local(), weights="equal"),
        rounds=2,
        privacy=hs.Privacy(unit="example"),
    )
    ways: list[Any] = [("stacked", 1), ("stacked", 2), ("resident", 2)]
    runs = [federation.run(hs.Local(tables, engine=engine, workers=workers)).parameters for engine, workers in ways]
    assert all(np.array_equal(runs[0], other) for other in runs[1:])


@pytest.mark.parametrize("key", ["epochs", "shuffle"])
def test_passes_over_rows_are_refused(key: str) -> None:
    with pytest.raises(StudyError, match="rows are drawn anew in each step"):
        local(**{key: 1 if key == "epochs" else True})


def test_examples_are_hidden_from_everybody_and_weights_are_told_otherwise() -> None:
    def guarantee(weights: Any, adjacency: Any = "add-remove", method: Any = hs.FedAvg) -> Any:
        federation = hs.Federation(
            task=hs.LogisticRegression(target="y"),
            method=method(local=local(rate=0.05, steps=20), weights=weights),
            rounds=15,
            preprocessing=hs.Moments(standardise=False),
            evaluation=hs.Evaluate(every=0),
            privacy=hs.Privacy(unit="example", adjacency=adjacency),
        )
        return federation.guarantee

    assert guarantee("equal")["coordinator"].epsilon == pytest.approx(5.795, abs=0.01)
    assert guarantee("examples")["coordinator"].epsilon == math.inf
    assert "the weights" in str(guarantee("examples"))
    assert guarantee("examples", "replace")["public"].epsilon < 20
    assert guarantee("equal", method=hs.methods.IFCA)["coordinator"].epsilon == math.inf


HEADS = (hs.methods.FedPer, hs.methods.FedRep)


def test_what_trains_twice_is_charged_twice_and_own_scores_are_named() -> None:
    def federation(method: Any, **more: Any) -> hs.Federation:
        return hs.Federation(
            task=hs.LogisticRegression(target="y"),
            method=method(local=local(rate=0.05, steps=20), weights="equal"),
            rounds=5,
            preprocessing=hs.Moments(standardise=False),
            privacy=hs.Privacy(unit="example"),
            **more,
        )

    silent = {"evaluation": hs.Evaluate(every=0)}
    once, twice = (federation(partial(m, head=("intercept",)), **silent).guarantee["public"] for m in HEADS)
    assert once.events is not None
    assert twice.events is not None
    assert [e.times for e in twice.events] == [2 * e.times for e in once.events]
    own = federation(hs.methods.Ditto, evaluation=hs.Evaluate(own=True, every=5)).guarantee
    assert any("own models" in what for what in own["coordinator"].exact)


def test_a_cohort_that_is_drawn_once_does_not_amplify_every_step() -> None:
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.FedAvg(local=local(rate=1.0, steps=20, noise_multiplier=4.0), weights="equal"),
        rounds=100,
        cohort=hs.Poisson(rate=0.05),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0),
        privacy=hs.Privacy(unit="example"),
    )
    found = federation.guarantee
    assert found["public"].epsilon == found["coordinator"].epsilon


def test_a_fork_of_a_bare_run_claims_nothing_for_what_it_inherits() -> None:
    x, y = rows(Logistic(5), 90)
    columns = {f"x{i}": x[:, i] for i in range(5)} | {"y": y.astype(float)}
    tables = hs.Population.of_sizes(columns, [20, 30, 40])
    known: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y"),
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0),
        "privacy": hs.Privacy(unit="example"),
    }
    bare = hs.Federation(**known, method=hs.FedAvg(local=hs.SGD(lr=0.1)), rounds=1).run(hs.Local(tables))
    private = hs.Federation(**known, method=hs.FedAvg(local=local(), weights="equal"), rounds=2)
    assert private.run(hs.Local(tables)).guarantee["public"].epsilon < math.inf
    forked = private.run(hs.Local(tables, fork=bare)).guarantee["public"]
    assert forked.epsilon == math.inf
    assert any("forked" in what for what in forked.exact)


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.01, 50), (0.5, 1)])
def test_one_row_more_decides_for_no_other_whether_it_is_held_out(share: float, count: int) -> None:
    """Where the share of the rows rounds to none and one row more to one, each still has its own chance."""
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.FedAvg(local=local(), weights="equal"),
        cohort=hs.All(minimum=1),
        evaluation=hs.Evaluate(every=0, holdout=share),
        preprocessing=hs.Moments(standardise=False),
        privacy=hs.Privacy(unit="example"),
    )
    tables = [hs.Table({"x": np.arange(n), "y": np.arange(n) % 2}) for n in (count, count + 1)]
    setup = federation.resolve({"a": tables[0].schema()})
    drawn = 0
    for secret in (bytes([i]) * 32 for i in range(200)):
        few, more = (set(Party("a", t, federation.course(setup, secret)).split[1].column("x")) for t in tables)
        assert more - {count} == few
        drawn += len(few)
    assert drawn == pytest.approx(200 * share * count, abs=5 * math.sqrt(200 * share * count))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_many_rows_add_up_to_does_not_round_one_away(dtype: Any) -> None:
    """Sums far larger than the clip, scores that are what large numbers differ by, any number of rows."""
    random, count, clip = np.random.default_rng(0), 300_000, 0.1
    x, y = (np.abs(random.normal(size=(count, 3))) + 1).astype(dtype), np.zeros(count)
    model: Learner = Logistic(3, dtype=dtype)
    whole = model.clipped(np.full(4, 0.3, dtype), x, y, clip)
    for one in (0, 1, 7, count - 1):
        without = model.clipped(np.full(4, 0.3, dtype), np.delete(x, one, axis=0), y[1:], clip)
        alone = model.clipped(np.full(4, 0.3, dtype), x[one : one + 1], y[:1], clip)
        np.testing.assert_allclose(whole - without, alone, atol=1e-9 * clip)
        assert np.linalg.norm(whole - without) <= clip * (1 + 1e-9)
    for outputs in (1, 3):
        model = Softmax(40, outputs, dtype=dtype) if outputs > 1 else Linear(40, dtype=dtype)
        theta = (random.normal(size=model.layout.size) * 1e25).astype(dtype)
        cancels = random.normal(size=(100, 20)).astype(dtype)
        x, y = np.hstack([cancels, -cancels]), np.zeros(100)
        theta[: 40 * outputs] = np.repeat(theta[: 20 * outputs].reshape(outputs, 1, 20), 2, axis=1).reshape(-1)
        theta[40 * outputs :] = 0
        sums = [model.clipped(theta, x[:n], y[:n], clip) for n in range(101)]
        moved = [float(np.linalg.norm(more - few)) for few, more in itertools.pairwise(sums)]
        assert 0.9 * clip < max(moved) <= clip * (1 + 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_predicted_of_a_row_does_not_depend_on_how_many_others_there_are(dtype: Any) -> None:
    """Else one row more could turn others, under large weights that cancel, past the noise of a score."""
    random = np.random.default_rng(0)
    half = random.normal(size=20) * 1e25
    theta = np.concatenate([half, half, [0]]).astype(dtype)
    rows = random.normal(size=(2000, 20)).astype(dtype)
    x, learner = np.hstack([rows, -rows]), Logistic(40, dtype=dtype)
    whole = learner.predict(theta, x)
    for count in range(1950, 1960):
        np.testing.assert_array_equal(learner.predict(theta, x[:count]), whole[:count])
