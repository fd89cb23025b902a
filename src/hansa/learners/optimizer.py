"""First-order optimisers, at a party and at the server."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field as Limits
from pydantic import PlainSerializer, PlainValidator

from hansa.contribution import Array, Values
from hansa.part import Catalogue, Part

BATCH_SIZE = 32
"""Rows in one local step, if a study does not say."""

Positive = Annotated[float, Limits(gt=0)]


class SGD(Part):
    """Gradient descent with heavy-ball momentum (Polyak 1964).

    ``v <- momentum * v + u``, then ``theta <- theta + lr * v``, where ``u`` is the direction of descent
    (at a party minus the gradient, at the server the aggregated update).

    Args:
        lr: step size, positive; it has no default, since no single one serves parties and server.
        momentum: from 0 (none) to below 1.
        epochs: passes over a party's rows in one round, 1 unless said; at a party only.
        batch_size: rows in one step, 32 unless said, or ``"all"``; at a party only.
    """

    kind: ClassVar[str] = "sgd"
    lr: Positive
    momentum: Annotated[float, Limits(ge=0, lt=1)] = 0.0
    epochs: Annotated[int, Limits(ge=1, le=10_000)] | None = None
    batch_size: Annotated[int, Limits(ge=1)] | Literal["all"] | None = None

    def step(self, parameters: Array, update: Array, slots: Values) -> tuple[Array, Values]:
        """One step; elementwise, so that ``parameters`` and ``update`` may be a stack.

        Returns:
            the new parameters and the optimiser's new state (``velocity``, if there is momentum).
        """
        if not self.momentum:
            return parameters + self.lr * update, slots
        velocity = self.momentum * slots.get("velocity", np.zeros_like(update)) + update
        return parameters + self.lr * velocity, Values({"velocity": velocity})


OPTIMIZERS: Catalogue[SGD] = Catalogue(
    "optimizer",
    SGD,
    {"sgd": "hansa.learners.optimizer:SGD"},
    tag="optimizer",
    default="sgd",
)
Optimizer = Annotated[
    SGD,
    PlainValidator(OPTIMIZERS.build),
    PlainSerializer(OPTIMIZERS.spec, return_type=dict[str, Any]),
]
