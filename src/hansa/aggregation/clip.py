"""Clipping: a bound on what one party can move."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.aggregation.signal import Signal, joint_norm
from hansa.aggregation.stage import Aggregation, Context, Stage
from hansa.contribution import Contribution, Values
from hansa.errors import PipelineError


class Clip(Stage):
    """Scale a contribution down to an L2 norm, all parameter-like fields jointly.

    ``x <- x * min(1, norm / |x|)`` (Abadi et al. 2016, arXiv 1607.00133, per party).

    Args:
        norm: the bound, positive.
    """

    kind: ClassVar[str] = "clip"
    norm: Annotated[float, Limits(gt=0)]

    def bind(self, signal: Signal) -> Signal:
        """Real, single contributions in; a finite norm out."""
        if signal.view != "party":
            raise PipelineError(
                "clip works on single contributions, and only their sum exists here",
                remedy="Put clip before the stage that sums",
            )
        if signal.domain != "real":
            raise PipelineError(
                "clip works on real numbers, and these are integers already",
                remedy="Put clip before the stage that rounds",
            )
        if not signal.vectors:
            raise PipelineError(
                "clip has nothing to bound: the method sends no parameter-like field",
                remedy="Leave clip out",
            )
        return replace(signal, norm=min(self.norm, signal.norm))

    def encode(
        self, contribution: Contribution, announced: Values, memory: Values, context: Context
    ) -> tuple[Contribution, Values]:
        """Scale the parameter-like fields by one factor."""
        values = contribution.values
        names = context.signal.vectors
        size = joint_norm([values[name] for name in names])
        if size <= self.norm:
            return contribution, memory
        scaled = {name: values[name] * (self.norm / size) for name in names}
        return replace(contribution, values=Values({**values, **scaled})), memory


def clip(norm: float) -> Aggregation:
    """A chain of one stage: `Clip`."""
    return Aggregation(stages=(Clip(norm=norm),))
