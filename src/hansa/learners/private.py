"""Local training that hides one example: noisy sums of clipped gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hansa.aggregation.signal import Noised
from hansa.contribution import Array
from hansa.learners.base import Correction, Learner, Slots
from hansa.learners.optimizer import Private
from hansa.privacy import events
from hansa.privacy.claim import Privacy
from hansa.privacy.noise import Chance, grown, noised, uniform


def train_privately(
    learner: Learner,
    start: Array,
    rows: Sequence[tuple[Array, Array]],
    local: Private,
    correct: Correction | None,
    slots: Slots,
    chance_of: Callable[[int], Chance],
) -> tuple[Array, Slots]:
    """As `Learner.train`, one party after the other, with rows that are drawn anew in each step. What follows the noise
    (a correction, momentum, a penalty) costs nothing more.

    Args:
        learner: the model.
        start: where it starts, ``[d]`` or ``[k, d]``.
        rows: each party's features and labels.
        local: the optimiser.
        correct: of NumPy's arrays ``[1, d]``.
        slots: state of the optimiser to start from, each ``[k, ...]``.
        chance_of: where a party's sample and noise come from, by its position."""
    trained = np.empty((len(rows), start.shape[-1]), learner.dtype)
    trained[:] = start
    kept: Slots = {}
    spread = grown(local.noise_multiplier, start.shape[-1]) * local.clip
    for i, (x, y) in enumerate(rows):
        theta, chance = trained[i : i + 1].copy(), chance_of(i)
        mine = {name: np.array(value[i : i + 1]) for name, value in slots.items()}
        for _ in range(local.steps):
            chosen = np.flatnonzero(uniform(chance, (len(y),)) < local.rate)
            total = learner.clipped(theta[0], x[chosen], y[chosen], local.clip)
            gradient = noised(total, spread, chance)[None] / local.batch_size
            gradient = gradient.astype(theta.dtype) + learner.penalty(theta)
            if correct is not None:
                gradient = correct(gradient, theta, slice(i, i + 1))
            theta, mine = local.step(theta, -gradient, mine)
            theta = theta.astype(learner.dtype)
        trained[i] = theta[0]
        for name, value in mine.items():
            kept.setdefault(name, []).append(value)
    return trained, {name: np.concatenate(values) for name, values in kept.items()}


def by_example(privacy: Privacy, local: Any) -> tuple[Noised, ...]:
    """What a round of such training costs, if examples are to be hidden."""
    if privacy.unit != "example" or not isinstance(local, Private):
        return ()
    event = events.Gaussian(
        adjacency=privacy.adjacency,
        noise_multiplier=local.noise_multiplier,
        times=local.steps,
        sampling=events.Poisson(rate=local.rate) if local.rate < 1 else None,
        failure=2.0**-66,  # of up to 2^34 numbers, each at most 2^-100 off
    )
    return (Noised("party", event, local.kind),)
