"""The geometric median."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.robust import Mixture
from hansa.aggregation.stage import chain
from hansa.contribution import Array


class GeometricMedian(Mixture):
    """The point with the least sum of distances to all contributions: RFA (Pillutla, Kakade and Harchaoui
    2022, arXiv 1912.13445), here with equal weights, since a weight is what a party says of itself.

    Smoothed Weiszfeld iterations from the coordinate median: ``v <- sum(b_i x_i) / sum(b_i)`` with
    ``b_i = 1 / max(nu, |v - x_i|)``. It withstands any minority: with a share ``a < 1/2`` of liars it stays
    within ``2 (1 - a) / (1 - 2 a)`` times the honest parties' largest distance from any point.

    Args:
        iterations: at most; it ends before when the shares stand still.
        smoothing: ``nu``, as a share of the median distance from the start.
    """

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
            away = np.maximum(squares - 2 * products + shares @ products, 0)
            pull = 1 / np.maximum(np.sqrt(away), floor)
            before, shares = shares, pull / pull.sum()
            if np.abs(shares - before).max() < 1e-12:
                break
        return shares


geometric_median = chain(GeometricMedian)
