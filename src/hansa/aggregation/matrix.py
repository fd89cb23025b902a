"""Noise at the coordinator that rounds share, so that it adds up slowly in the model: DP-FTRL.

The sum of round ``t`` gets ``w_t = z_t - sum_{s<t} C_ts w_s``, with a lower triangular ``C`` of ones on the
diagonal and no negative entry. So ``C w = z``, all rounds together release ``C x + z`` and nothing else, which is
one Gaussian release (Denisov et al. 2022, arXiv 2202.08312), and a model that adds the sums up holds the noise
``B z``, ``B = A C^-1``, where ``A`` has ones on and below its diagonal. What ``z_t`` is added to is rounded by
itself, given the rounds before, so it may be of integers as other noise."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.noise import Gaussian
from hansa.aggregation.signal import Schedule, Signal
from hansa.aggregation.stage import Context, Reduced
from hansa.contribution import Array, Values
from hansa.errors import RunError
from hansa.privacy import events, noise

Step = tuple[Mapping[int, float], Mapping[int, int], int, bool]


class Matrix(Gaussian):
    """What factorisations share. The state holds noise: whoever sees it can take that away again.

    Args:
        noise_multiplier: standard deviation of the entries of ``z`` over what one unit adds to one round at most."""

    whole_rounds: ClassVar[bool] = True

    @abstractmethod
    def sensitivity(self, schedule: Schedule) -> float:
        """The largest L2 norm of what a unit adds to ``C x``: 1, in one direction, in each of its rounds."""

    @abstractmethod
    def step(self, step: int) -> Step:
        """Of round ``step + 1``: what each kept noise counts for in the sum, where those that stay are kept from
        now on, where the new one is, and whether with what was recalled."""

    def release(self, signal: Signal, failure: float) -> events.Event:
        z, c, failure = self.noise_multiplier, self.sensitivity(signal.schedule), failure * signal.schedule.rounds
        near, failure = signal.privacy.adjacency, min(0.5, failure)
        return events.MatrixMechanism(adjacency=near, noise_multiplier=z, sensitivity=c, failure=failure)

    def multiplier(self, signal: Signal, size: int) -> float:
        """With which the rounding in all rounds is paid for, too."""
        whole = self.sensitivity(signal.schedule)
        return whole * noise.grown(self.noise_multiplier / whole, size * signal.schedule.rounds)

    def added(self, sums: Mapping[str, Array], state: Values, context: Context) -> Reduced:
        """The sums with the noise of the round, and the noise for later ones; a RunError after the last round."""
        number, rounds = int(state.get("step", np.asarray(0))), context.signal.schedule.rounds
        if number >= rounds:
            said = f"{self.kind} shares its noise among {rounds} rounds, and they are over"
            raise RunError(said, round=context.round, remedy="Run a study with more rounds from its beginning")
        recalled, stay, new, together = self.step(number)
        less, after = dict(sums), {"step": np.asarray(number + 1)}
        for place, c in recalled.items():
            less = {name: value - c * state[f"{place}.{name}"] for name, value in less.items()}
        noised, _ = super().added(less, state, context)
        for name in sums:
            after |= {f"{to}.{name}": state[f"{at}.{name}"] for at, to in stay.items()}
            after[f"{new}.{name}"] = noised[name] - (less if together else sums)[name]
        return noised, Values(after)


class Banded(Matrix):
    """The square root of the matrix of prefix sums, cut to so many bands (Choquette-Choo et al. 2023, arXiv
    2306.08153): ``c_0 = 1``, ``c_j = c_{j-1} (2 j - 1) / (2 j)`` and 0 from ``bands`` on, ``C_ts = c_{t-s}``.

    Args:
        bands: a band more is a vector more that the coordinator keeps; 1 is independent noise. Best is the
            number of groups of a cyclic cohort."""

    kind: ClassVar[str] = "banded"
    bands: Annotated[int, Limits(ge=1, le=10_000)] = 8

    def sensitivity(self, schedule: Schedule) -> float:
        taking = np.arange(schedule.rounds) % schedule.period == 0
        return float(np.linalg.norm(np.convolve(taking, self._root())[: schedule.rounds]))

    def step(self, step: int) -> Step:
        """The newest is in place 0, and then moves on."""
        stay = {place: place + 1 for place in range(min(step, self.bands - 2))}
        return dict(enumerate(self._root()[1 : step + 1].tolist())), stay, 0, False

    def _root(self) -> Array:
        j = np.arange(1, self.bands)
        return np.cumprod([1.0, *((2 * j - 1) / (2 * j))])


class Tree(Matrix):
    """Binary trees of partial sums (Kairouz et al. 2021, arXiv 2103.00039), of which only the nodes that begin a
    prefix are released: row ``t`` has ones for as many rounds as the largest power of two that divides ``t``.

    Args:
        restart: rounds after which a new tree begins; all rounds are in one by default."""

    kind: ClassVar[str] = "tree"
    restart: Annotated[int, Limits(ge=1)] | None = None

    def sensitivity(self, schedule: Schedule) -> float:
        return _in_trees(schedule, self.restart or schedule.rounds)

    def step(self, step: int) -> Step:
        """A node takes the place of those below it; its place is its level."""
        t = step % (self.restart or step + 1) + 1
        level = (t & -t).bit_length() - 1
        stay = {p: p for p in range(level + 1, t.bit_length()) if t >> p & 1}
        return dict.fromkeys(range(level), 1.0), stay, level, True


@lru_cache
def _in_trees(schedule: Schedule, restart: int) -> float:
    rounds = np.arange(schedule.rounds)
    t, worst = rounds % restart + 1, 0
    for first in range(min(schedule.period, schedule.rounds)):
        before = np.append(0, np.cumsum(rounds % schedule.period == first))
        worst = max(worst, int(np.square(before[1:] - before[rounds + 1 - (t & -t)]).sum()))
    return math.sqrt(worst)
