"""First-order optimisers, at a party and at the server.

A step is elementwise and made of plain operators only, so that ``parameters`` and ``update`` may be one party's
``[d]`` or a stack ``[k, d]``, in NumPy or in PyTorch."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Array
from hansa.errors import StudyError
from hansa.part import Catalogue, Part

BATCH_SIZE = 32  # rows in one local step, if a study does not say

Positive = Annotated[float, Limits(gt=0)]
Decay = Annotated[float, Limits(ge=0, lt=1)]
Slots = Mapping[str, Array]
"""An optimiser's state; each is like the parameters, or ``[..., 1]``, and absent before the first step."""
Stepped: TypeAlias = tuple[Array, dict[str, Array]]  # the new parameters, and the new state


class FirstOrder(Part):
    """Moves parameters along a direction of descent ``u``: minus the gradient, or at the server the aggregated update.

    Args:
        lr: step size, positive; it has no default, since no single one serves parties and server.
        epochs: passes over a party's rows in one round, 1 unless said; at a party only.
        batch_size: rows in one step, 32 unless said, or ``"all"``; at a party only.
        moments: what a party does with the optimiser's state when a round ends: it begins the next one
            afresh (``"reset"``, unless said), or remembers it (``"keep"``); at a party only.
        shuffle: whether rows are shuffled in each epoch, unless said, or taken in the party's own order;
            at a party only."""

    lr: Positive
    epochs: Annotated[int, Limits(ge=1, le=10_000)] | None = None
    batch_size: Annotated[int, Limits(ge=1)] | Literal["all"] | None = None
    moments: Literal["reset", "keep"] | None = None
    shuffle: bool | None = None

    @abstractmethod
    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step at a party: the new parameters and the new state."""

    def serve(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step at the server, ``[d]``; the same, unless the paper of the server's form says otherwise."""
        return self.step(parameters, update, slots)


class SGD(FirstOrder):
    """Gradient descent with heavy-ball momentum (Polyak 1964): ``v <- momentum * v + u``, ``theta <- theta + lr * v``.

    Args:
        momentum: from 0 (none) to below 1."""

    kind: ClassVar[str] = "sgd"
    momentum: Decay = 0.0

    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step; the state is ``velocity``, if there is momentum."""
        if not self.momentum:
            return parameters + self.lr * update, dict(slots)
        velocity = update
        if "velocity" in slots:
            velocity = self.momentum * slots["velocity"] + update
        return parameters + self.lr * velocity, {"velocity": velocity}


class Adagrad(FirstOrder):
    """Steps divided by the root of all squares so far (Duchi et al. 2011).

    At a party: ``v <- v + u^2`` from 0, ``theta <- theta + lr * u / (sqrt(v) + epsilon)``. At the server FedAdagrad
    (Reddi et al. 2021, arXiv 2003.00295, algorithm 2, ``beta1 = 0``): from ``epsilon^2``, the paper's ``tau^2``.

    Args:
        epsilon: keeps the divisor from 0; 1e-8 at a party and 1e-3 at the server, unless said."""

    kind: ClassVar[str] = "adagrad"
    epsilon: Positive | None = None

    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step at a party; the state is ``second``."""
        second = update * update
        if "second" in slots:
            second = slots["second"] + second
        return parameters + self.lr * update / (second**0.5 + (self.epsilon or 1e-8)), {"second": second}

    def serve(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step at the server; the state is ``second``."""
        tau = self.epsilon or 1e-3
        second = slots.get("second", np.full_like(update, tau**2)) + update * update
        return parameters + self.lr * update / (np.sqrt(second) + tau), {"second": second}


class Adam(FirstOrder):
    """Steps along a moving mean, divided by the root of a moving mean of squares.

    At a party (Kingma and Ba 2015, arXiv 1412.6980): ``m <- beta1 * m + (1 - beta1) * u`` and ``v <- beta2 * v + (1 -
    beta2) * u^2`` from 0, divided by the mass that they have collected after ``t`` steps (bias correction): ``theta <-
    theta + lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + epsilon)``. At the server it is FedAdam (Reddi et al.
    2021, arXiv 2003.00295, algorithm 2): ``v`` starts from ``epsilon^2`` (the paper's ``tau^2``), and there is no bias
    correction: ``theta <- theta + lr * m / (sqrt(v) + epsilon)``.

    Args:
        beta1: decay of the mean.
        beta2: decay of the mean of squares; 0.999 at a party and 0.99 at the server, unless said.
        epsilon: keeps the divisor from 0; 1e-8 at a party and 1e-3 at the server, unless said."""

    kind: ClassVar[str] = "adam"
    beta1: Decay = 0.9
    beta2: Decay | None = None
    epsilon: Positive | None = None

    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step at a party; the state is ``first``, ``second`` and, ``[..., 1]``, their masses. The mass is the
        moving mean of ones: it is a party's own, so that parties of a stack may be at different steps, and as exact in
        float32 as in float64, which ``1 - beta^t`` is not."""
        beta2 = 0.999 if self.beta2 is None else self.beta2
        ones = update[..., :1] * 0.0 + 1.0
        kept = {
            "first": _mean(slots.get("first"), self.beta1, update),
            "second": self._second(slots.get("second"), beta2, update * update),
            "first_mass": _mean(slots.get("first_mass"), self.beta1, ones),
            "second_mass": _mean(slots.get("second_mass"), beta2, ones),
        }
        root = (kept["second"] / kept["second_mass"]) ** 0.5 + (self.epsilon or 1e-8)
        return parameters + self.lr * (kept["first"] / kept["first_mass"]) / root, kept

    def serve(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        """One step at the server; the state is ``first`` and ``second``."""
        tau, beta2 = self.epsilon or 1e-3, 0.99 if self.beta2 is None else self.beta2
        first = _mean(slots.get("first"), self.beta1, update)
        second = self._second(slots.get("second", np.full_like(update, tau**2)), beta2, update * update)
        return parameters + self.lr * first / (np.sqrt(second) + tau), {"first": first, "second": second}

    def _second(self, before: Array | None, decay: float, square: Array) -> Array:
        return _mean(before, decay, square)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv 1711.05101): ``theta <- (1 - lr *
    weight_decay) * theta`` before every step of Adam.

    Args:
        weight_decay: strength of the decay, 0 or more."""

    kind: ClassVar[str] = "adamw"
    weight_decay: Annotated[float, Limits(ge=0)] = 0.01

    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        return super().step(parameters * (1 - self.lr * self.weight_decay), update, slots)

    def serve(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        return super().serve(parameters * (1 - self.lr * self.weight_decay), update, slots)


class Yogi(Adam):
    """Adam whose mean of squares moves by no more than the new square (Zaheer et al. 2018).

    ``v <- v - (1 - beta2) * sign(v - u^2) * u^2``; all else is Adam's, at a party and at the server, where it
    is FedYogi (Reddi et al. 2021, arXiv 2003.00295, algorithm 2)."""

    kind: ClassVar[str] = "yogi"

    def _second(self, before: Array | None, decay: float, square: Array) -> Array:
        step = (1 - decay) * square
        if before is None:
            return step
        next_: Array = before - (before > square) * step + (before < square) * step
        return next_


class Private(FirstOrder):
    """Steps along noisy sums of clipped gradients: one example is hidden from whoever sees the model.

    In each step every row joins by itself with the same chance, its gradient is scaled down to a norm, and the
    sum gets normal noise before it is divided by a public number (Abadi et al. 2016, arXiv 1607.00133).

    Args:
        clip: the largest L2 norm of one row's gradient.
        noise_multiplier: standard deviation of the noise over ``clip``.
        rate: the chance of a row to join a step.
        steps: in one round.
        batch_size: what the sum is divided by: about ``rate`` times the rows of a party, and public, as
            the exact number is a secret, too."""

    clip: Positive
    noise_multiplier: Positive
    rate: Annotated[float, Limits(gt=0, le=1)]
    steps: Annotated[int, Limits(ge=1)]
    batch_size: Annotated[int, Limits(ge=1)]

    def model_post_init(self, context: Any) -> None:
        """Refuse what means nothing for rows that are drawn anew in each step."""
        super().model_post_init(context)
        for name in ("epochs", "shuffle"):
            if getattr(self, name) is not None:
                remedy = "Leave it out; `rate` and `steps` say how many rows are seen"
                raise StudyError(f"method.local.{name}: rows are drawn anew in each step", remedy=remedy)

    @property
    def spread(self) -> float:
        """Standard deviation of the noise on each entry of the gradient."""
        return self.noise_multiplier * self.clip / self.batch_size


class DPSGD(Private):
    """DP-SGD: plain gradient descent along noisy sums of clipped gradients (see `Private`)."""

    kind: ClassVar[str] = "dp-sgd"

    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        return parameters + self.lr * update, {}


class DPAdam(Private, Adam):
    """Adam on such sums, less the noise's variance in the squares (DP-AdamBC: Tang et al. 2024, arXiv 2312.14334).

    Args:
        beta1: decay of the mean.
        beta2: decay of the mean of squares, 0.999 unless said.
        epsilon: of what is left of the mean of squares, the root is at least this; unless said, a tenth of the
            noise's standard deviation."""

    kind: ClassVar[str] = "dp-adam"

    def step(self, parameters: Array, update: Array, slots: Slots) -> Stepped:
        _, kept = super().step(parameters, update, slots)
        second = kept["second"] / kept["second_mass"] - self.spread**2
        root = np.sqrt(np.maximum(second, (self.epsilon or self.spread / 10) ** 2))
        return parameters + self.lr * (kept["first"] / kept["first_mass"]) / root, kept


def _mean(before: Array | None, decay: float, value: Array) -> Array:
    """A moving mean that starts from 0."""
    fresh = (1 - decay) * value
    return fresh if before is None else decay * before + fresh


OPTIMIZERS: Catalogue[FirstOrder] = Catalogue(
    "optimizer",
    FirstOrder,  # type: ignore[type-abstract]  # only instances are asked for
    (Adagrad, Adam, AdamW, DPAdam, DPSGD, SGD, Yogi),
    tag="optimizer",
    default="sgd",
)
Optimizer = Annotated[FirstOrder, OPTIMIZERS]
