"""Coordinate median and trimmed mean (Yin et al. 2018, arXiv 1803.01498)."""

import math
from abc import abstractmethod
from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.aggregation.robust import need, trimmed
from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Context, Reducer, chain
from hansa.contribution import Array, Values
from hansa.errors import PipelineError


class Coordinatewise(Reducer):
    """Each entry by itself: what honest parties sent there bounds what comes out."""

    def bind(self, signal: Signal) -> Signal:
        """Single contributions in whose entries mean the same at every party."""
        if signal.mixed:
            raise PipelineError(
                f"{self.kind} compares parties entry by entry, and after {signal.mixed} an entry is not "
                "the same parameter of every party",
                remedy=f"Put {self.kind} before rotate, or use geometric-median with {signal.mixed}",
            )
        return super().bind(signal)

    @abstractmethod
    def cut(self, parties: int, context: Context) -> int:
        """How many are cut off at either end; a RunError if there are too few parties."""

    def reduce(
        self, arrays: dict[str, Array], state: Values, context: Context
    ) -> tuple[dict[str, Array], Values]:
        """The middle of each entry."""
        return {name: trimmed(x, self.cut(len(x), context)) for name, x in arrays.items()}, state


class Median(Coordinatewise):
    """The median of each entry. It withstands any minority: ``floor((n - 1) / 2)`` of ``n`` parties."""

    kind: ClassVar[str] = "median"

    def cut(self, parties: int, context: Context) -> int:
        """All but the middle one or two."""
        need(self, parties, 3, context)
        return (parties - 1) // 2


class TrimmedMean(Coordinatewise):
    """The mean of each entry without its ``floor(fraction n)`` smallest and largest values.

    It withstands that many of ``n`` parties.

    Args:
        fraction: that is cut off at either end, above 0 and below one half.
    """

    kind: ClassVar[str] = "trimmed-mean"
    fraction: Annotated[float, Limits(gt=0, lt=0.5)] = 0.2

    def cut(self, parties: int, context: Context) -> int:
        """At least one."""
        need(self, parties, math.ceil(1 / self.fraction - 1e-9), context)
        return math.floor(self.fraction * parties + 1e-9)


median = chain(Median)
trimmed_mean = chain(TrimmedMean)
