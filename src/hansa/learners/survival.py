"""Proportional hazards: the hazard of a row is a common baseline times ``exp(x w)`` (Cox 1972)."""

from typing import NoReturn

import numpy as np

from hansa.contribution import Array
from hansa.errors import StudyError
from hansa.learners.base import Layout
from hansa.learners.glm import Glm


class Hazard(Glm):
    """The hazard relative to a row whose features are all 0. The intercept is the baseline's.

    Its likelihood compares rows with each other, so no row has a loss or a gradient of its own: only a method
    that adds up the rows at risk at each time can fit it.
    """

    @property
    def layout(self) -> Layout:
        """``coef [p]``."""
        return Layout((("coef", (self.width,)),))

    def losses(self, eta: Array, y: Array) -> NoReturn:
        """There are none: always a StudyError."""
        raise StudyError("a partial likelihood is no mean over rows", remedy='Write [method] kind = "cox"')

    residual = losses

    def mean(self, eta: Array) -> Array:
        """``exp(eta)``."""
        mean: Array = np.exp(eta)
        return mean

    def _eta(self, parameters: Array, x: Array) -> tuple[Array, Array]:
        coef = parameters[..., None, :]
        return coef, np.matmul(coef, np.swapaxes(x, -1, -2))
