"""Clipping: a bound on what one party can move."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.signal import Signal, joint_norms
from hansa.aggregation.stage import Aggregation, Context, Stage
from hansa.contribution import Contributions, Values
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
        if signal.domain != "real" or (signal.vectors and not signal.carriers):
            raise PipelineError(
                "clip works on real numbers, and these are packed already",
                remedy="Put clip before the stage that rounds or packs",
            )
        if not signal.vectors:
            raise PipelineError(
                "clip has nothing to bound: the method sends no parameter-like field",
                remedy="Leave clip out",
            )
        return replace(signal, norm=min(self.norm, signal.norm))

    def encode(
        self, stack: Contributions, announced: Values, memory: Values, context: Context
    ) -> tuple[Contributions, Values]:
        """Scale each party's parameter-like fields by one factor."""
        names = context.signal.carriers
        norms = joint_norms([stack.values[name] for name in names])
        if not (norms > self.norm).any():
            return stack, memory
        values = dict(stack.values)
        with np.errstate(divide="ignore", invalid="ignore"):  # of what the check refuses
            factors = np.minimum(1, self.norm / norms)  # by 1 nothing changes, to the bit
            for name in names:
                x = values[name]
                values[name] = x * factors.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        return stack.holding(values), memory


def clip(norm: float) -> Aggregation:
    """A chain of one stage: `Clip`."""
    return Aggregation(stages=(Clip(norm=norm),))
