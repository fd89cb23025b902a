"""Generalised linear models in NumPy: linear, logistic and softmax regression with an L2 penalty.

All three have the same shape: ``eta = x w + b``, a mean function ``mu(eta)`` and a loss whose gradient in
``eta`` is ``mu(eta) - y`` (McCullagh and Nelder 1989, canonical links). The intercept is not penalised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from hansa.contribution import Array
from hansa.learners.base import Layout


@dataclass(frozen=True)
class Glm(ABC):
    """What the three models share.

    Args:
        width: number of features ``p``.
        outputs: number of columns of ``eta``: 1, or the number of classes.
        l2: strength of the penalty ``l2 / 2 * |w|^2``.
    """

    width: int
    outputs: int = 1
    l2: float = 0.0

    @property
    def layout(self) -> Layout:
        """``coef [p, outputs]`` and ``intercept [outputs]``; one output drops its axis."""
        if self.outputs == 1:
            return Layout((("coef", (self.width,)), ("intercept", ())))
        return Layout((("coef", (self.width, self.outputs)), ("intercept", (self.outputs,))))

    def init(self, random: np.random.Generator) -> Array:
        """Zeros: the losses are convex, so chance has nothing to add."""
        return np.zeros(self.layout.size)

    def loss(self, parameters: Array, x: Array, y: Array) -> Array:
        """The mean loss with the penalty, ``[...]``."""
        weights, eta = self._eta(parameters, x)
        penalty = 0.5 * self.l2 * np.square(weights).sum(axis=(-2, -1))
        total: Array = self.losses(eta, y).mean(axis=-1) + penalty
        return total

    def gradient(self, parameters: Array, x: Array, y: Array) -> Array:
        """The gradient of `loss`, ``[..., d]``."""
        weights, eta = self._eta(parameters, x)
        residual = (self.mean(eta) - self._targets(y)) / x.shape[-2]
        coef = np.matmul(np.swapaxes(x, -1, -2), residual) + self.l2 * weights
        lead = parameters.shape[:-1]
        return np.concatenate([coef.reshape(*lead, -1), residual.sum(axis=-2)], axis=-1)

    def predict(self, parameters: Array, x: Array) -> Array:
        """The mean of each row: ``[..., n]`` for one output, else ``[..., n, outputs]``."""
        mean = self.mean(self._eta(parameters, x)[1])
        return mean[..., 0] if self.outputs == 1 else mean

    @abstractmethod
    def losses(self, eta: Array, y: Array) -> Array:
        """The loss of each row, ``[..., n]``."""

    @abstractmethod
    def mean(self, eta: Array) -> Array:
        """The mean function, ``[..., n, outputs]``."""

    def _eta(self, parameters: Array, x: Array) -> tuple[Array, Array]:
        cut = self.width * self.outputs
        weights = parameters[..., :cut].reshape(*parameters.shape[:-1], self.width, self.outputs)
        return weights, np.matmul(x, weights) + parameters[..., None, cut:]

    def _targets(self, y: Array) -> Array:
        if self.outputs == 1:
            return y[..., None]
        return np.asarray(y[..., None] == np.arange(self.outputs), dtype=np.float64)


class Linear(Glm):
    """Least squares: ``(eta - y)^2 / 2``."""

    def losses(self, eta: Array, y: Array) -> Array:
        """Half the squared error of each row."""
        loss: Array = 0.5 * np.square(eta[..., 0] - y)
        return loss

    def mean(self, eta: Array) -> Array:
        """The identity."""
        return eta


class Logistic(Glm):
    """Log loss with ``y`` in {0, 1}."""

    def losses(self, eta: Array, y: Array) -> Array:
        """``log(1 + exp(eta)) - y eta``, without overflow."""
        score = eta[..., 0]
        loss: Array = np.logaddexp(0.0, score) - y * score
        return loss

    def mean(self, eta: Array) -> Array:
        """``1 / (1 + exp(-eta))``, without overflow: the exponent is never positive."""
        small = np.exp(-np.abs(eta))
        mean: Array = np.where(eta >= 0, 1.0, small) / (1.0 + small)
        return mean


class Softmax(Glm):
    """Cross entropy with ``y`` the index of the class."""

    def losses(self, eta: Array, y: Array) -> Array:
        """``log sum exp(eta) - eta[y]``, shifted by the maximum."""
        top = eta.max(axis=-1)
        spread = top + np.log(np.exp(eta - top[..., None]).sum(axis=-1))
        chosen = np.take_along_axis(eta, y[..., None].astype(np.intp), axis=-1)[..., 0]
        loss: Array = spread - chosen
        return loss

    def mean(self, eta: Array) -> Array:
        """The class probabilities."""
        shifted = np.exp(eta - eta.max(axis=-1, keepdims=True))
        probabilities: Array = shifted / shifted.sum(axis=-1, keepdims=True)
        return probabilities
