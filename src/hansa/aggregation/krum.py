"""Krum and Multi-Krum."""

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.robust import Mixture, need, squared_distances
from hansa.aggregation.stage import Context, chain
from hansa.contribution import Array


class Krum(Mixture):
    """The contribution that is closest to its ``n - f - 2`` nearest ones (Blanchard et al. 2017, arXiv
    1703.02757). It withstands ``f`` of ``n >= 2 f + 3`` parties.

    Args:
        byzantine: how many parties may lie, ``f``.
    """

    kind: ClassVar[str] = "krum"
    byzantine: Annotated[int, Limits(ge=0)]

    def enough(self, parties: int, context: Context) -> None:
        """``2 f + 3``."""
        need(self, parties, 2 * self.byzantine + 3, context)

    def chosen(self, parties: int) -> int:
        """How many contributions are averaged."""
        return 1

    def shares(self, gram: Array) -> Array:
        """Equal ones for those with the smallest scores; of equals, the first in the roster."""
        near = len(gram) - self.byzantine - 2
        others = np.sort(squared_distances(gram) + np.diag(np.full(len(gram), np.inf)), axis=1)
        scores = others[:, :near].sum(axis=1)
        best = np.argsort(scores, kind="stable")[: self.chosen(len(gram))]
        shares = np.zeros(len(gram))
        shares[best] = 1 / len(best)
        return shares


class MultiKrum(Krum):
    """The mean of the ``n - f - 2`` contributions with the best scores of `Krum`: less noise, and the same
    ``f`` of ``n >= 2 f + 3`` (Blanchard et al. 2017; El-Mhamdi et al. 2019, arXiv 1905.04374).
    """

    kind: ClassVar[str] = "multi-krum"

    def chosen(self, parties: int) -> int:
        """``n - f - 2``."""
        return parties - self.byzantine - 2


krum = chain(Krum)
multi_krum = chain(MultiKrum)
