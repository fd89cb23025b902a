"""The relative hazard."""

from __future__ import annotations

import numpy as np
import pytest

import hansa as hs
from hansa.learners.glm import Hazard


def test_a_prediction_is_the_hazard_relative_to_a_row_of_zeros() -> None:
    x, theta = np.array([[0.0, 0.0], [1.0, 0.0], [2.0, -1.0]]), np.array([0.5, 0.25])
    expected = np.exp([0.0, 0.5, 0.75])
    np.testing.assert_allclose(Hazard(2).predict(theta, x), expected, rtol=1e-15)
    stacked = Hazard(2).predict(np.stack([theta, -theta]), np.stack([x, x]))
    np.testing.assert_allclose(stacked, [expected, 1 / expected], rtol=1e-15)
    assert Hazard(2).layout.size == 2


def test_no_row_has_a_loss_or_a_gradient_of_its_own() -> None:
    x, y, theta = np.zeros((3, 2)), np.ones(3), np.zeros(2)
    for of in (Hazard(2).loss, Hazard(2).gradient):
        with pytest.raises(hs.errors.StudyError, match=r'no mean over rows.*kind = "cox"'):
            of(theta, x, y)
