"""What every learner keeps."""

from __future__ import annotations

import numpy as np
import pytest

from hansa.contribution import Array
from hansa.errors import StudyError
from hansa.learners import Learner

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
    np.testing.assert_allclose(
        learner.gradient(theta, twice, labels), learner.gradient(theta, x, y), rtol=1e-12
    )


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
