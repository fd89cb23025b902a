"""Robust aggregation: what a minority of liars sends moves the value by no more than a bound."""

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Context, Reduced, Reducer
from hansa.contribution import Array, Values
from hansa.errors import PipelineError, RunError

_COLUMNS = 1 << 13  # entries of all parties that are worked on at once
_FAR = 1e100  # whoever sends more is as far away as this, and squares stay finite


class Robust(Reducer):
    """A reducer that promises something, among enough parties or buckets of them."""

    @property
    def least(self) -> int:
        """How many parties it needs for what it promises."""
        return 3

    def bind(self, signal: Signal) -> Signal:
        if (buckets := signal.buckets) is None:
            return super().bind(signal)
        if buckets.most < (least := max(self.least, buckets.least)):
            what = f"{self.kind} needs {least} buckets, and there are parties for {buckets.most:g} of {buckets.size}"
            raise PipelineError(what, remedy=f"Lower bucket.size, or have {least * buckets.size} parties")
        return replace(super().bind(signal), buckets=replace(buckets, least=least))

    def counted(self, arrays: dict[str, Array], context: Context) -> int:
        """How many parties or buckets there are; a RunError if they are too few."""
        there, kind, buckets = len(next(iter(arrays.values()))), self.kind, context.bound.buckets
        what, least = ("buckets", buckets.least) if buckets else ("parties", self.least)
        if there < least:
            said = f"{kind} needs {least} {what} to withstand what it promises, and {there} can be counted"
            way = "Lower bucket.size" if buckets else f"Set cohort.minimum to {least} or more"
            raise RunError(said, round=context.round, remedy=f"{way}, or leave {kind} out")
        return there


class Coordinatewise(Robust):
    """Each entry by itself: what honest parties sent bounds what comes out (Yin et al. 2018, arXiv 1803.01498)."""

    def bind(self, signal: Signal) -> Signal:
        """Single contributions in whose entries mean the same at every party."""
        if signal.mixed:
            what = f"compares parties entry by entry, and after {signal.mixed} these are not the same parameters"
            remedy = f"Put {self.kind} before rotate, or use geometric-median with {signal.mixed}"
            raise PipelineError(f"{self.kind} {what}", remedy=remedy)
        return super().bind(signal)

    @abstractmethod
    def cut(self, parties: int) -> int:
        """How many are cut off at either end."""

    def reduce(self, arrays: dict[str, Array], state: Values, context: Context) -> Reduced:
        cut = self.cut(self.counted(arrays, context))
        return {name: trimmed(x, cut) for name, x in arrays.items()}, state


class Median(Coordinatewise):
    """The median of each entry. It withstands any minority: ``floor((n - 1) / 2)`` of ``n`` parties."""

    kind: ClassVar[str] = "median"

    def cut(self, parties: int) -> int:
        return (parties - 1) // 2


class TrimmedMean(Coordinatewise):
    """The mean of each entry without its ``floor(fraction n)`` smallest and largest values; that many may lie.

    Args:
        fraction: that is cut off at either end, above 0 and below one half."""

    kind: ClassVar[str] = "trimmed-mean"
    fraction: Annotated[float, Limits(gt=0, lt=0.5)] = 0.2

    @property
    def least(self) -> int:
        return math.ceil(1 / self.fraction - 1e-9)

    def cut(self, parties: int) -> int:
        return math.floor(self.fraction * parties + 1e-9)


class Mixture(Robust):
    """A reducer whose value is ``centre + sum(shares_i (x_i - centre))``.

    All parameter-like fields of a party are one point. The shares follow from the points' inner products, so values are
    read twice, however many iterations shares take. Turning all points alike, by a rotation before, changes nothing."""

    @abstractmethod
    def shares(self, gram: Array) -> Array:
        """What each of ``k`` parties counts for, from the inner products ``[k, k]`` about the centre."""

    def centre(self, x: Array, name: str, state: Values) -> Array:
        """Where the differences begin, ``[d]``: the coordinate median, from which no honest point is far, so
        that no far one costs the others their digits."""
        return trimmed(x, (len(x) - 1) // 2)

    def reduce(self, arrays: dict[str, Array], state: Values, context: Context) -> Reduced:
        """The mixture of each field; the state keeps it where a subclass says so."""
        self.counted(arrays, context)
        points = {name: np.clip(x, -_FAR, _FAR) for name, x in arrays.items()}
        centres = {name: self.centre(x, name, state) for name, x in points.items()}
        shares = self.shares(np.sum([gram(x, centres[n]) for n, x in points.items()], axis=0))
        return {name: mixture(x, centres[name], shares) for name, x in points.items()}, state


class Krum(Mixture):
    """The contribution that is closest to its ``n - f - 2`` nearest ones (Blanchard et al. 2017, arXiv 1703.02757); it
    withstands ``f``, here ``byzantine``, liars among ``n >= 2 f + 3`` parties."""

    kind: ClassVar[str] = "krum"
    byzantine: Annotated[int, Limits(ge=0)]

    @property
    def least(self) -> int:
        return 2 * self.byzantine + 3

    def chosen(self, parties: int) -> int:
        """How many contributions are averaged."""
        return 1

    def shares(self, gram: Array) -> Array:
        """Equal ones for those with the smallest scores; of equals, the first in the roster."""
        near, squares = len(gram) - self.byzantine - 2, np.diagonal(gram)
        distances = np.maximum(squares[:, None] + squares - 2 * gram, 0)  # rounding makes none negative
        others = np.sort(distances + np.diag(np.full(len(gram), np.inf)), axis=1)
        best = np.argsort(others[:, :near].sum(axis=1), kind="stable")[: self.chosen(len(gram))]
        shares = np.zeros(len(gram))
        shares[best] = 1 / len(best)
        return shares


class MultiKrum(Krum):
    """The mean of the ``n - f - 2`` contributions with the best scores of `Krum`: less noise, and the same
    ``f`` of ``n >= 2 f + 3`` (Blanchard et al. 2017; El-Mhamdi et al. 2019, arXiv 1905.04374)."""

    kind: ClassVar[str] = "multi-krum"

    def chosen(self, parties: int) -> int:
        return parties - self.byzantine - 2


class GeometricMedian(Mixture):
    """The point with the least sum of distances to all contributions: RFA (Pillutla, Kakade and Harchaoui
    2022, arXiv 1912.13445), here with equal weights, since a weight is what a party says of itself.

    Smoothed Weiszfeld iterations from the coordinate median: ``v <- sum(b_i x_i) / sum(b_i)`` with
    ``b_i = 1 / max(nu, |v - x_i|)``. It withstands any minority: with a share ``a < 1/2`` of liars it stays
    within ``2 (1 - a) / (1 - 2 a)`` times the honest parties' largest distance from any point.

    Args:
        iterations: at most; it ends before when the shares stand still.
        smoothing: ``nu``, as a share of the median distance from the start."""

    kind: ClassVar[str] = "geometric-median"
    iterations: Annotated[int, Limits(ge=1)] = 100
    smoothing: Annotated[float, Limits(gt=0)] = 1e-6

    def shares(self, gram: Array) -> Array:
        """Weiszfeld's, in terms of the inner products alone."""
        squares = np.diagonal(gram)
        floor = max(self.smoothing * float(np.median(np.sqrt(squares))), 1e-100)
        shares = np.zeros(len(gram))
        for _ in range(self.iterations):
            products = gram @ shares
            pull = 1 / np.maximum(np.sqrt(np.maximum(squares - 2 * products + shares @ products, 0)), floor)
            before, shares = shares, pull / pull.sum()
            if np.abs(shares - before).max() < 1e-12:
                break
        return shares


class CenteredClip(Mixture):
    """The mean of what is clipped about a centre (Karimireddy, He and Jaggi 2021, arXiv 2012.10333).

    ``v <- v + mean((x_i - v) min(1, radius / |x_i - v|))``, from the previous round's value, which the coordinator
    keeps; 0 before the first. A party moves ``v`` by ``radius / n`` an iteration at most. Its theorem is for a tenth of
    the parties, and for a radius near the honest parties' distance from their mean.

    Args:
        radius: how far from the centre a contribution is believed.
        iterations: of the clipping, in each round."""

    kind: ClassVar[str] = "centered-clip"
    radius: Annotated[float, Limits(gt=0)]
    iterations: Annotated[int, Limits(ge=1)] = 3

    def bind(self, signal: Signal) -> Signal:
        """Real numbers, in whose unit the radius is."""
        if signal.domain != "real":
            what = f"{self.kind} has a radius in the unit of the update, and what comes is on a grid"
            raise PipelineError(what, remedy=f"Use geometric-median in place of {self.kind}")
        return super().bind(signal)

    def centre(self, x: Array, name: str, state: Values) -> Array:
        """The value of the round before."""
        return state.get(name, np.zeros(x.shape[1]))

    def shares(self, gram: Array) -> Array:
        """The iterations, in terms of the inner products alone."""
        squares, shares = np.diagonal(gram), np.zeros(len(gram))
        for _ in range(self.iterations):
            products = gram @ shares
            away = np.sqrt(np.maximum(squares - 2 * products + shares @ products, 0))
            taken = np.minimum(1, self.radius / np.maximum(away, self.radius)) / len(gram)
            shares = shares * (1 - taken.sum()) + taken
        return shares

    def reduce(self, arrays: dict[str, Array], state: Values, context: Context) -> Reduced:
        """The value, which is the next centre."""
        values, _ = super().reduce(arrays, state, context)
        return values, Values(values)


def gram(x: Array, centre: Array) -> Array:
    """Inner products ``[k, k]`` of the rows of ``x [k, d]`` about a centre ``[d]``, in float64."""
    products = np.zeros((len(x), len(x)))
    for at in _blocks(x):
        points = x[:, at] - centre[at]
        products += points @ points.T
    return products


def mixture(x: Array, centre: Array, shares: Array) -> Array:
    """``centre + sum(shares_i (x_i - centre))``, ``[d]``, in float64."""
    mixed = np.array(centre, dtype=np.float64)
    for at in _blocks(x):
        mixed[at] += shares @ (x[:, at] - centre[at])
    return mixed


def trimmed(x: Array, cut: int) -> Array:
    """The mean of each column of ``x [k, d]`` without its ``cut`` smallest and largest, in float64."""
    kept, last = np.empty(x.shape[1]), len(x) - 1 - cut
    for at in _blocks(x):
        kept[at] = np.partition(x[:, at], sorted({cut, last}), axis=0)[cut : last + 1].mean(axis=0, dtype=np.float64)
    return kept


def _blocks(x: Array) -> Iterator[slice]:
    for at in range(0, x.shape[1], _COLUMNS):
        yield slice(at, at + _COLUMNS)
