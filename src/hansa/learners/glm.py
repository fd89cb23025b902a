"""Generalised linear models in NumPy: linear, logistic and softmax regression with an L2 penalty.

All three have the same shape: ``eta = x w + b``, a mean function ``mu(eta)`` and a loss whose gradient in
``eta`` is ``mu(eta) - y`` (McCullagh and Nelder 1989, canonical links). The intercept is not penalised."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from hansa.contribution import Array, Dtype
from hansa.errors import StudyError
from hansa.learners.base import Layout, Learner, factors


@dataclass(frozen=True)
class Glm(Learner):
    """What the models share. ``eta`` is ``[..., outputs, n]``: the rows lie last, where NumPy is fastest."""

    width: int  # number of features ``p``
    outputs: int = 1  # number of rows of ``eta``: 1, or the number of classes
    l2: float = 0.0  # strength of the penalty ``l2 / 2 * |w|^2``
    dtype: Dtype = "float64"  # of parameters and gradients

    @property
    def layout(self) -> Layout:
        """``coef [outputs, p]`` and ``intercept [outputs]``; one output drops its axis."""
        if self.outputs == 1:
            return Layout((("coef", (self.width,)), ("intercept", ())))
        return Layout((("coef", (self.outputs, self.width)), ("intercept", (self.outputs,))))

    def init(self, random: np.random.Generator) -> Array:
        """Zeros: the losses are convex, so chance has nothing to add."""
        return np.zeros(self.layout.size)

    def loss(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        coef, eta = self._eta(parameters, x)
        losses = self.losses(eta, y)
        mean = losses.mean(axis=-1) if weights is None else (losses * weights).sum(axis=-1)
        total: Array = mean + 0.5 * self.l2 * np.square(coef).sum(axis=(-2, -1))
        return total

    def gradient(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        coef, eta = self._eta(parameters, x)
        residual = self.residual(eta, y)
        residual *= 1 / eta.dtype.type(x.shape[-2]) if weights is None else weights[..., None, :]
        cut = self.width * self.outputs
        gradient = np.empty((*residual.shape[:-2], cut + self.outputs), residual.dtype)
        slope = gradient[..., :cut].reshape(*residual.shape[:-1], self.width)
        np.matmul(residual, x, out=slope)  # a view, as the entries of one output lie end to end
        if self.l2:
            slope += eta.dtype.type(self.l2) * coef
        np.add.reduce(residual, axis=-1, out=gradient[..., cut:])
        return gradient

    def scaled(self, parameters: Array, x: Array, y: Array, weights: Array, lr: float) -> Array:
        """Without a penalty the step size goes into the row weights, which are few."""
        if self.l2:
            return super().scaled(parameters, x, y, weights, lr)
        return self.gradient(parameters, x, y, weights * weights.dtype.type(lr))

    def clipped(self, parameters: Array, x: Array, y: Array, norm: float) -> Array:
        """The same without a gradient for each row: its norm is that of the residual times that of ``(x, 1)``."""
        cut, total = self.width * self.outputs, np.zeros(self.layout.size)
        coef = parameters[:cut].reshape(self.outputs, 1, self.width).astype(np.float64)
        for at in range(0, len(y), rows := max(1, (1 << 16) // (self.width + 1))):
            few, labels = x[at : at + rows].astype(np.float64), y[at : at + rows]
            with np.errstate(over="ignore", invalid="ignore"):  # no product of matrices: it rounds by their sizes
                residual = self.residual(np.vecdot(coef, few) + parameters[cut:, None], labels)
                lengths = np.sqrt(np.vecdot(few, few) + 1) * np.linalg.norm(residual, axis=-2)
            fine = np.isfinite(lengths)  # a row that has no gradient adds nothing
            few, residual = few[fine], residual[:, fine] * factors(lengths[fine], norm)
            total += np.concatenate([(residual @ few).reshape(-1), residual.sum(axis=-1)])
        return total

    def penalty(self, parameters: Array) -> Array | float:
        if not self.l2:
            return 0.0
        return np.asarray(self.l2 * parameters * (np.arange(parameters.shape[-1]) < self.width * self.outputs))

    def predict(self, parameters: Array, x: Array) -> Array:
        """The mean of each row: ``[..., n]`` for one output, else ``[..., n, outputs]``."""
        mean = self.mean(self._eta(parameters, x, apart=True)[1])  # no row's rounding depends on others
        return mean[..., 0, :] if self.outputs == 1 else np.swapaxes(mean, -1, -2)

    @abstractmethod
    def losses(self, eta: Array, y: Array) -> Array:
        """The loss of each row, ``[..., n]``."""

    @abstractmethod
    def mean(self, eta: Array) -> Array:
        """The mean function, ``[..., outputs, n]``."""

    def residual(self, eta: Array, y: Array) -> Array:
        """The gradient of the losses in ``eta``: mean minus label, ``[..., outputs, n]``."""
        return np.asarray(self.mean(eta) - y[..., None, :], dtype=eta.dtype)

    def _eta(self, parameters: Array, x: Array, apart: bool = False) -> tuple[Array, Array]:
        cut = self.width * self.outputs
        coef = parameters[..., :cut].reshape(*parameters.shape[:-1], self.outputs, self.width)
        eta = np.vecdot(coef[..., None, :], x[..., None, :, :]) if apart else np.matmul(coef, x.swapaxes(-1, -2))
        eta += parameters[..., cut:, None]
        return coef, eta


class Linear(Glm):
    """Least squares: ``(eta - y)^2 / 2``."""

    def losses(self, eta: Array, y: Array) -> Array:
        return np.asarray(0.5 * np.square(eta[..., 0, :] - y))

    def mean(self, eta: Array) -> Array:
        return eta


class Logistic(Glm):
    """Log loss with ``y`` in {0, 1}."""

    def losses(self, eta: Array, y: Array) -> Array:
        """``log(1 + exp(eta)) - y eta``, without overflow."""
        score = eta[..., 0, :]
        return np.asarray(np.logaddexp(0.0, score) - y * score)

    def mean(self, eta: Array) -> Array:
        """``1 / (1 + exp(-eta))``, without overflow: the exponent is never positive."""
        small = np.exp(-np.abs(eta))
        return np.asarray(np.where(eta >= 0, 1.0, small) / (1.0 + small))


class Poisson(Glm):
    """Counts: minus the log likelihood, but for what does not depend on ``eta``."""

    def losses(self, eta: Array, y: Array) -> Array:
        """``exp(eta) - y eta``."""
        score = eta[..., 0, :]
        return np.asarray(np.exp(score) - y * score)

    def mean(self, eta: Array) -> Array:
        """``exp(eta)``."""
        return np.asarray(np.exp(eta))


class Softmax(Glm):
    """Cross entropy with ``y`` the index of the class."""

    def losses(self, eta: Array, y: Array) -> Array:
        """``log sum exp(eta) - eta[y]``, shifted by the maximum."""
        top = eta.max(axis=-2)
        spread = top + np.log(np.exp(eta - top[..., None, :]).sum(axis=-2))
        return np.asarray(spread - np.take_along_axis(eta, y[..., None, :].astype(np.intp), axis=-2)[..., 0, :])

    def mean(self, eta: Array) -> Array:
        probabilities: Array = eta - eta.max(axis=-2, keepdims=True)
        np.exp(probabilities, out=probabilities)
        probabilities /= probabilities.sum(axis=-2, keepdims=True)
        return probabilities

    def residual(self, eta: Array, y: Array) -> Array:
        residual = self.mean(eta)
        residual -= y[..., None, :] == np.arange(self.outputs)[:, None]
        return residual


class Hazard(Glm):
    """Proportional hazards: the hazard of a row is a common baseline times ``exp(x w)`` (Cox 1972).

    It is relative to a row whose features are all 0; the intercept is the baseline's. Its likelihood compares rows with
    each other, so none has a loss or a gradient of its own: only a method that adds up the rows at risk can fit it."""

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
        return np.asarray(np.exp(eta))

    def _eta(self, parameters: Array, x: Array, apart: bool = False) -> tuple[Array, Array]:
        coef = parameters[..., None, :]
        return coef, np.matmul(coef, np.swapaxes(x, -1, -2))
