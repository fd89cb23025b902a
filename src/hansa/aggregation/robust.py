"""Robust aggregation as a mixture: the reducers that only look at distances between parties."""

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np

from hansa.aggregation.stage import Context, Reducer
from hansa.contribution import Array, Values
from hansa.errors import RunError

_COLUMNS = 1 << 13  # entries of all parties that are worked on at once
_FAR = 1e100  # whoever sends more is as far away as this, and squares stay finite


class Mixture(Reducer):
    """A reducer whose value is ``centre + sum(shares_i (x_i - centre))``.

    All parameter-like fields of a party are one point. The shares follow from the inner products of the
    points, so the parties' values are read twice, however many iterations the shares take. Turning all
    points alike changes nothing: a rotation may come before.
    """

    @abstractmethod
    def shares(self, gram: Array) -> Array:
        """What each of ``k`` parties counts for, from the inner products ``[k, k]`` about the centre."""

    def centre(self, x: Array, name: str, state: Values) -> Array:
        """Where the differences begin, ``[d]``: the coordinate median, from which no honest point is far, so
        that no far one costs the others their digits.
        """
        return median(x)

    def enough(self, parties: int, context: Context) -> None:
        """Refuse (RunError) a round in which too few were counted for what this reducer promises."""
        need(self, parties, 3, context)

    def reduce(
        self, arrays: dict[str, Array], state: Values, context: Context
    ) -> tuple[dict[str, Array], Values]:
        """The mixture of each field; the state keeps it where a subclass says so."""
        points = {name: np.clip(x, -_FAR, _FAR) for name, x in arrays.items()}
        self.enough(len(next(iter(points.values()))), context)
        centres = {name: self.centre(x, name, state) for name, x in points.items()}
        shares = self.shares(np.sum([gram(x, centres[n]) for n, x in points.items()], axis=0))
        return {name: mixture(x, centres[name], shares) for name, x in points.items()}, state


def need(reducer: Reducer, parties: int, least: int, context: Context) -> None:
    """Refuse (RunError) to reduce fewer than ``least`` parties."""
    if parties < least:
        raise RunError(
            f"{reducer.kind} needs {least} parties to withstand what it promises, and {parties} can be counted",
            round=context.round,
            remedy=f"Set cohort.minimum to {least} or more, or leave {reducer.kind} out",
        )


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


def squared_distances(gram: Array) -> Array:
    """``|x_i - x_j|**2`` from inner products, ``[k, k]``; rounding never makes one negative."""
    squares = np.diagonal(gram)
    distances: Array = np.maximum(squares[:, None] + squares - 2 * gram, 0)
    return distances


def median(x: Array) -> Array:
    """The median of each column of ``x [k, d]``."""
    return trimmed(x, (len(x) - 1) // 2)


def trimmed(x: Array, cut: int) -> Array:
    """The mean of each column of ``x [k, d]`` without its ``cut`` smallest and largest, in float64."""
    kept = np.empty(x.shape[1])
    last = len(x) - 1 - cut
    for at in _blocks(x):
        parted = np.partition(x[:, at], sorted({cut, last}), axis=0)
        kept[at] = parted[cut : last + 1].mean(axis=0, dtype=np.float64)
    return kept


def _blocks(x: Array) -> Iterator[slice]:
    for at in range(0, x.shape[1], _COLUMNS):
        yield slice(at, at + _COLUMNS)
