"""Noise at the coordinator that rounds share, so that it adds up slowly in the model: DP-FTRL.

The sum of round ``t`` gets ``w_t = z_t - sum_{s<t} C_ts w_s``, with a lower triangular ``C`` of ones on the
diagonal and no negative entry. So ``C w = z``, all rounds together release ``C x + z`` and nothing else, which is
one Gaussian release (Denisov et al. 2022, arXiv 2202.08312), and a model that adds the sums up holds the noise
``B z``, ``B = A C^-1``, where ``A`` has ones on and below its diagonal.

What ``z_t`` is added to is rounded by itself, given the rounds before, so it may be of integers as other noise.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.noise import Gaussian
from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Context, chain
from hansa.contribution import Array, Values
from hansa.errors import RunError
from hansa.privacy import events, noise


class Matrix(Gaussian):
    """What factorisations share.

    The state holds noise of earlier rounds: whoever sees it can take the noise away again.

    Args:
        noise_multiplier: standard deviation of the entries of ``z`` over what one unit adds to one round at most.
    """

    whole_rounds: ClassVar[bool] = True

    @abstractmethod
    def sensitivity(self, rounds: int, period: int) -> float:
        """The largest L2 norm of what a unit adds to ``C x`` if it adds at most 1 to each of its rounds, which
        are some of those that are a period apart. It adds as much as it can to all, in one direction, as no
        entry of ``C`` is negative.
        """

    @abstractmethod
    def recalled(self, step: int) -> dict[int, float]:
        """Which kept noises count how much in ``sum_{s<t} C_ts w_s``; ``step`` is ``t - 1``."""

    @abstractmethod
    def kept(self, step: int) -> dict[int, int]:
        """Where those kept until now are kept from now on."""

    def node(self, step: int) -> tuple[int, float]:
        """Where the new noise is kept, and how much of what was recalled is in it."""
        return 0, 0.0

    def release(self, signal: Signal, failure: float) -> events.Event:
        """One event for all rounds."""
        rounds, period = signal.schedule.rounds, signal.schedule.period
        return events.MatrixMechanism(
            adjacency=signal.privacy.adjacency,
            noise_multiplier=self.noise_multiplier,
            sensitivity=self.sensitivity(rounds, period),
            failure=min(0.5, failure * rounds),
        )

    def multiplier(self, signal: Signal, size: int) -> float:
        """With which the rounding in all rounds is paid for, too."""
        rounds, period = signal.schedule.rounds, signal.schedule.period
        whole = self.sensitivity(rounds, period)
        return whole * noise.grown(self.noise_multiplier / whole, size * rounds)

    def added(
        self, sums: Mapping[str, Array], state: Values, context: Context
    ) -> tuple[dict[str, Array], Values]:
        """The sums with the noise of the round, and the noise for later ones; a RunError after the last round."""
        step, rounds = int(state.get("step", np.asarray(0))), context.signal.schedule.rounds
        if step >= rounds:
            raise RunError(
                f"{self.kind} shares its noise among {rounds} rounds, and they are over",
                round=context.round,
                remedy="Run a study with more rounds from its beginning",
            )
        past = {
            name: sum(
                (c * state[f"{s}.{name}"] for s, c in self.recalled(step).items()), np.zeros(())
            )
            for name in sums
        }
        less = {name: value - past[name] for name, value in sums.items()}
        noised, _ = super().added(less, state, context)
        place, more = self.node(step)
        after = {"step": np.asarray(step + 1)}
        for name, value in sums.items():
            after |= {f"{to}.{name}": state[f"{s}.{name}"] for s, to in self.kept(step).items()}
            after[f"{place}.{name}"] = noised[name] - value + more * past[name]
        return noised, Values(after)


class Banded(Matrix):
    """The square root of the matrix of prefix sums, cut to so many bands (Choquette-Choo et al. 2023, arXiv
    2306.08153; the closed form is that of Kalinin and Lampert 2024, arXiv 2405.13763).

    ``C`` is Toeplitz: ``c_0 = 1``, ``c_j = c_{j-1} (2 j - 1) / (2 j)``, and 0 from ``bands`` on.

    Args:
        bands: a band more is a vector more that the coordinator keeps; 1 is independent noise. Best is the
            cohort's period.
    """

    kind: ClassVar[str] = "banded"
    bands: Annotated[int, Limits(ge=1)] = 8

    def sensitivity(self, rounds: int, period: int) -> float:
        """Of a unit that begins in round 1: every column of a Toeplitz matrix is the first one, moved on."""
        taking = np.arange(rounds) % period == 0
        return float(np.linalg.norm(np.convolve(taking, root(self.bands))[:rounds]))

    def recalled(self, step: int) -> dict[int, float]:
        """The last ones; the newest is kept in place 0."""
        return dict(enumerate(root(self.bands)[1 : step + 1].tolist()))

    def kept(self, step: int) -> dict[int, int]:
        """One place further."""
        return {place: place + 1 for place in range(min(step, self.bands - 2))}


class Tree(Matrix):
    """Binary trees of partial sums (Kairouz et al. 2021, arXiv 2103.00039).

    Only nodes that begin a prefix are released: that of round ``t`` holds as many rounds, up to ``t``, as the
    largest power of two that divides ``t``. Row ``t`` of ``C`` has ones there.

    Args:
        restart: rounds after which a new tree begins; all rounds are in one by default.
    """

    kind: ClassVar[str] = "tree"
    restart: Annotated[int, Limits(ge=1)] | None = None

    def sensitivity(self, rounds: int, period: int) -> float:
        """Of the worst first round."""
        return _in_trees(rounds, period, self.restart or rounds)

    def recalled(self, step: int) -> dict[int, float]:
        """The nodes below the new one, which end where it ends but for one round."""
        return dict.fromkeys(range(self.node(step)[0]), 1.0)

    def kept(self, step: int) -> dict[int, int]:
        """Those that still begin a prefix."""
        open_ = self._step(step) - 1
        return {p: p for p in range(self.node(step)[0] + 1, open_.bit_length()) if open_ >> p & 1}

    def node(self, step: int) -> tuple[int, float]:
        """The node's level."""
        return (self._step(step) & -self._step(step)).bit_length() - 1, 1.0

    def _step(self, step: int) -> int:
        return step % (self.restart or step + 1) + 1


def root(bands: int) -> Array:
    """The first coefficients of ``1 / sqrt(1 - x)``, ``[bands]``."""
    j = np.arange(1, bands)
    return np.cumprod([1.0, *((2 * j - 1) / (2 * j))])


@lru_cache
def _in_trees(rounds: int, period: int, restart: int) -> float:
    t = np.arange(rounds) % restart + 1
    ends = np.arange(1, rounds + 1)
    begins, worst = ends - (t & -t), 0
    for first in range(min(period, rounds)):
        before = np.concatenate([[0], np.cumsum(np.arange(rounds) % period == first)])
        worst = max(worst, int(np.square(before[ends] - before[begins]).sum()))
    return math.sqrt(worst)


banded = chain(Banded)
tree = chain(Tree)
