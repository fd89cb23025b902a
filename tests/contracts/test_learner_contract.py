"""What every learner keeps."""

from __future__ import annotations

from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import pytest

from hansa import keyed
from hansa.contribution import Array
from hansa.errors import StudyError
from hansa.learners import Learner
from hansa.learners.base import Feed
from hansa.learners.glm import Logistic
from hansa.learners.optimizer import SGD, Adam, FirstOrder, Yogi

ROWS, WIDTH, PARTIES = 8, 3, 5


def draw(learner: Learner, parties: int = PARTIES) -> tuple[Array, Array, Array]:
    """A stack of parameters ``[parties, d]``, features and labels that suit every learner."""
    random = np.random.default_rng(7)
    theta = random.normal(size=(parties, learner.layout.size))
    x = random.normal(size=(parties, ROWS, WIDTH))
    y = random.integers(0, 2, (parties, ROWS)).astype(float)
    for array in (theta, x, y):
        array.flags.writeable = False  # whatever is written into raises
    return theta, x, y


def test_it_starts_from_finite_parameters_that_its_generator_fixes(learner: Learner) -> None:
    start = learner.init(np.random.default_rng(1))
    assert start.shape == (learner.layout.size,)
    assert start.dtype == np.float64
    assert np.isfinite(start).all()
    np.testing.assert_array_equal(start, learner.init(np.random.default_rng(1)))


def test_its_gradient_is_that_of_its_loss(learner: Learner) -> None:
    theta, x, y = (array[0] for array in draw(learner))
    step = 1e-6
    numeric = [
        (learner.loss(theta + step * e, x, y) - learner.loss(theta - step * e, x, y)) / (2 * step)
        for e in np.eye(theta.size)
    ]
    np.testing.assert_allclose(learner.gradient(theta, x, y), numeric, rtol=1e-6, atol=1e-8)


def test_a_stack_of_parties_is_each_party_by_itself(learner: Learner) -> None:
    theta, x, y = draw(learner)
    for function in (learner.loss, learner.gradient):
        one_by_one = np.stack([function(*party) for party in zip(theta, x, y, strict=True)])
        stacked = function(theta, x, y)
        assert stacked.shape == one_by_one.shape
        np.testing.assert_allclose(stacked, one_by_one, rtol=1e-12, atol=1e-15)
    alone = np.stack([learner.predict(t, rows) for t, rows in zip(theta, x, strict=True)])
    np.testing.assert_allclose(learner.predict(theta, x), alone, rtol=1e-12, atol=1e-15)


def test_its_loss_is_a_mean_over_rows(learner: Learner) -> None:
    theta, x, y = (array[0] for array in draw(learner))
    twice, labels = np.concatenate([x, x]), np.concatenate([y, y])
    np.testing.assert_allclose(learner.loss(theta, twice, labels), learner.loss(theta, x, y))
    np.testing.assert_allclose(learner.gradient(theta, twice, labels), learner.gradient(theta, x, y), rtol=1e-12)


def weighed(parties: int = PARTIES) -> Array:
    """Row weights ``[parties, ROWS]`` that add up to 1, some of them 0."""
    weights = np.random.default_rng(9).uniform(size=(parties, ROWS))
    weights[:, 2] = 0.0
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def test_rows_that_all_weigh_the_same_are_rows_without_weights(learner: Learner) -> None:
    theta, x, y = draw(learner)
    same = np.full((PARTIES, ROWS), 1 / ROWS)
    for function in (learner.loss, learner.gradient):
        np.testing.assert_allclose(function(theta, x, y, same), function(theta, x, y), rtol=1e-12, atol=1e-15)


def test_a_row_that_weighs_twice_as_much_is_a_row_that_is_there_twice(learner: Learner) -> None:
    theta, x, y = (array[0] for array in draw(learner))
    times = np.array([2, 1, 0, 1, 3, 0, 1, 1])
    for function in (learner.loss, learner.gradient):
        np.testing.assert_allclose(
            function(theta, x, y, times / times.sum()),
            function(theta, x.repeat(times, axis=0), y.repeat(times, axis=0)),
            rtol=1e-12,
            atol=1e-15,
        )


def test_its_weighted_gradient_is_that_of_its_weighted_loss(learner: Learner) -> None:
    theta, x, y = (array[0] for array in draw(learner))
    step, weights = 1e-6, weighed()[0]
    numeric = [
        (learner.loss(theta + step * e, x, y, weights) - learner.loss(theta - step * e, x, y, weights)) / (2 * step)
        for e in np.eye(theta.size)
    ]
    gradient = learner.gradient(theta, x, y, weights)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-6, atol=1e-8)


def test_padding_of_weight_zero_changes_nothing(learner: Learner) -> None:
    theta, x, y = draw(learner)
    weights, more = weighed(), ((0, 0), (0, 5))
    padded = np.pad(x, (*more, (0, 0))), np.pad(y, more), np.pad(weights, more)
    for function in (learner.loss, learner.gradient):
        np.testing.assert_allclose(function(theta, *padded), function(theta, x, y, weights), rtol=1e-12, atol=1e-15)


@pytest.fixture
def single(learner: Learner) -> Learner:
    """The same in float32."""
    made: Any = learner
    if not is_dataclass(made):
        made = type(made)(made.build, made.named, precision="float32")
    small: Learner = replace(made, dtype="float32") if is_dataclass(made) else made
    return small


def test_float32_in_is_float32_out_and_close_to_float64(learner: Learner, single: Learner) -> None:
    theta, x, y = draw(learner)
    weights = weighed()
    small = [array.astype(np.float32) for array in (theta, x, weights)]
    assert single.takes(x.dtype) == np.float32
    for name in ("loss", "gradient"):
        for given, exact in (
            ((small[0], small[1], y), (theta, x, y)),
            ((small[0], small[1], y.astype(np.float32), small[2]), (theta, x, y, weights)),
        ):
            found = getattr(single, name)(*given)
            np.testing.assert_allclose(found, getattr(learner, name)(*exact), rtol=1e-4, atol=1e-5, err_msg=name)
    gradient = single.gradient(small[0], small[1], y.astype(np.float32), small[2])
    assert gradient.dtype == np.float32
    assert single.predict(small[0], small[1]).dtype == np.float32


def test_plain_descent_in_place_is_a_step_against_the_gradient(learner: Learner) -> None:
    theta, x, y = draw(learner)
    weights, moved = weighed(), theta.copy()
    moved -= learner.scaled(moved, x, y, weights, 0.2)
    np.testing.assert_allclose(moved, theta - 0.2 * learner.gradient(theta, x, y, weights), rtol=1e-12, atol=1e-15)


RAGGED = (70, 33, 21, 20, 20, 9, 8, 7, 3, 1)


def fed(batch_size: int, shuffle: bool = True, width: int = WIDTH) -> Feed:
    random = np.random.default_rng(12)
    rows = [(random.normal(size=(n, width)), random.integers(0, 2, n).astype(float)) for n in RAGGED]
    keys = np.arange(len(RAGGED), dtype=np.uint64)
    return Feed(rows, keys, epochs=2, batch_size=batch_size, shuffle=shuffle)


@pytest.mark.parametrize("shuffle", [True, False], ids=["shuffled", "in their own order"])
@pytest.mark.parametrize("batch_size", [1, 8, 20, 0])
@pytest.mark.parametrize(
    "local",
    [SGD(lr=0.1), SGD(lr=0.1, momentum=0.7), Adam(lr=0.1), Yogi(lr=0.1)],
    ids=["sgd", "momentum", "adam", "yogi"],
)
def test_training_is_one_step_after_every_batch(
    batch_size: int, shuffle: bool, local: FirstOrder, learner: Learner
) -> None:
    """Against a loop that knows neither padding nor stacks."""
    feed, start = fed(batch_size, shuffle), draw(learner, len(RAGGED))[0]
    found, slots = learner.train(start, feed, local)
    assert found.shape == start.shape
    for party, (x, y) in enumerate(feed.rows):
        theta, size = start[party], batch_size or len(y)
        mine: dict[str, Array] = {}
        for epoch in range(2):
            order = np.arange(len(y))
            if shuffle and 0 < batch_size < len(y):
                order = keyed.order(feed.keys[party], len(y), epoch)
                assert sorted(order) == list(range(len(y)))
            for at in range(0, len(y), size):
                rows = order[at : at + size]
                theta, mine = local.step(theta, -learner.gradient(theta, x[rows], y[rows]), mine)
        np.testing.assert_allclose(found[party], theta, rtol=1e-9, atol=1e-12)
        assert slots.keys() == mine.keys()
        for name, value in mine.items():
            np.testing.assert_allclose(slots[name][party], value, rtol=1e-9, atol=1e-12)
    assert feed.steps.tolist() == [2 * -(-n // (batch_size or n)) for n in RAGGED]


@pytest.mark.parametrize("width", [WIDTH, 9000])
def test_a_large_party_is_trained_as_a_small_one(width: int) -> None:
    """Beyond 65536 numbers its batches are not padded to a common shape."""
    feed, model = fed(0, width=width), Logistic(width)
    found, _ = model.train(np.zeros(width + 1), feed, SGD(lr=0.1 / width))
    for party, (x, y) in enumerate(feed.rows):
        theta = np.zeros(width + 1)
        for _ in range(2):
            theta = theta - 0.1 / width * model.gradient(theta, x, y)
        np.testing.assert_allclose(found[party], theta, rtol=1e-9, atol=1e-12)


def test_training_changes_neither_its_start_nor_what_it_remembered(learner: Learner) -> None:
    feed, local = fed(8), Adam(lr=0.1)
    start = draw(learner, len(RAGGED))[0]
    _, slots = learner.train(start, feed, local)
    kept = {name: value.copy() for name, value in slots.items()}
    _, after = learner.train(start[0], feed, local, slots=slots)  # one start for all
    for name, value in slots.items():
        np.testing.assert_array_equal(value, kept[name])
        assert (after[name] != value).any()


def test_a_small_step_against_the_gradient_lowers_the_loss(learner: Learner) -> None:
    theta, x, y = (array[0] for array in draw(learner))
    after = theta - 1e-3 * learner.gradient(theta, x, y)
    assert learner.loss(after, x, y) < learner.loss(theta, x, y)


def test_it_predicts_every_row_and_no_row(learner: Learner) -> None:
    theta, x, _ = (array[0] for array in draw(learner))
    predicted = learner.predict(theta, x)
    assert predicted.shape[0] == ROWS
    assert learner.predict(theta, x[:0]).shape == (0, *predicted.shape[1:])
    if predicted.ndim == 2:
        np.testing.assert_allclose(predicted.sum(axis=-1), 1.0)


def test_its_parameters_split_into_names_and_join_again(learner: Learner) -> None:
    theta = draw(learner)[0]
    parts = learner.layout.split(theta[0])
    assert {(name, part.shape) for name, part in parts.items()} == set(learner.layout.leaves)
    np.testing.assert_array_equal(learner.layout.join(parts), theta[0])
    for name, part in learner.layout.split(theta).items():
        np.testing.assert_array_equal(part[0], parts[name])


def test_parameters_of_another_shape_or_name_are_refused(learner: Learner) -> None:
    layout = learner.layout
    with pytest.raises(StudyError, match=rf"\[{layout.size + 1}\] for {layout.size} parameters"):
        layout.split(np.zeros(layout.size + 1))
    parts = layout.split(np.zeros(layout.size))
    name = next(iter(parts))
    with pytest.raises(StudyError, match="are needed"):
        layout.join({n: part for n, part in parts.items() if n != name})
    with pytest.raises(StudyError, match=f"'{name}' has shape"):
        layout.join({**parts, name: np.zeros((*parts[name].shape, 1))})
