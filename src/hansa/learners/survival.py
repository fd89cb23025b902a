"""Proportional hazards: the hazard of a row is a common baseline times ``exp(x w)`` (Cox 1972)."""

from __future__ import annotations

from typing import NoReturn

import numpy as np

from hansa.contribution import Array
from hansa.errors import StudyError
from hansa.learners.base import Layout
from hansa.learners.glm import Glm


class Hazard(Glm):
    """The relative hazard; it has no intercept, as that is the baseline's.

    Its likelihood compares rows with each other, so it is no mean over rows: only a method that knows the rows
    at risk at each time can fit it.
    """

    @property
    def layout(self) -> Layout:
        """``coef [p]``."""
        return Layout((("coef", (self.width,)),))

    def predict(self, parameters: Array, x: Array) -> Array:
        """``exp(x w)``, ``[..., n]``: the hazard relative to a row whose features are all 0."""
        hazard: Array = np.exp(np.matmul(x, parameters[..., None])[..., 0])
        return hazard

    def loss(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> NoReturn:
        """There is none for single rows.

        Raises:
            StudyError: always.
        """
        raise _no_mean()

    def losses(self, eta: Array, y: Array) -> NoReturn:
        """As `loss`."""
        raise _no_mean()

    def gradient(
        self, parameters: Array, x: Array, y: Array, weights: Array | None = None
    ) -> NoReturn:
        """As `loss`."""
        raise _no_mean()

    def mean(self, eta: Array) -> Array:
        """``exp(eta)``."""
        mean: Array = np.exp(eta)
        return mean


def _no_mean() -> StudyError:
    return StudyError(
        "a partial likelihood is no mean over rows, so no gradient method can fit it",
        remedy='Write [method] kind = "cox"',
    )
