"""Bounds on what one party can move: its own, which is checked, and one that the coordinator sets."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.signal import Signal, joint_norms
from hansa.aggregation.stage import STAGES, Aggregation, Context, Encoded, Stage
from hansa.contribution import Contributions, Values


@STAGES.register
class Clip(Stage):
    """Scale a contribution down to an L2 norm, all parameter-like fields jointly: ``x <- x * min(1, norm / |x|)``
    (Abadi et al. 2016, arXiv 1607.00133, per party).

    Args:
        norm: the bound, positive."""

    kind: ClassVar[str] = "clip"
    norm: Annotated[float, Limits(gt=0)]

    def bind(self, signal: Signal) -> Signal:
        """Real, single contributions in; a finite norm out."""
        self.needs(signal)
        return replace(signal, norm=min(self.norm, signal.norm))

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        """Scale each party's parameter-like fields by one factor."""
        return _scaled(stack, context.signal.carriers, self.norm), memory


class NormBound(Stage):
    """Scale down, at the coordinator, what a party sent too long (Sun et al. 2019, arXiv 1911.07963).

    As `Clip`, before the mean. Unlike after a clip, which the party does itself, nobody is refused, and nothing
    is promised about what the coordinator sees. A party moves the mean by its share of the weights times the
    norm at most, in whatever direction it likes: no fraction of liars is withstood for ever.

    Args:
        norm: the bound, positive."""

    kind: ClassVar[str] = "norm-bound"
    norm: Annotated[float, Limits(gt=0)]

    def bind(self, signal: Signal) -> Signal:
        """Single contributions in, the same out: the party's own bound is as before."""
        self.needs(signal, "whole")
        return signal

    def open(self, stack: Contributions, announced: Values, context: Context) -> Contributions:
        return _scaled(stack, context.signal.carriers, self.norm)


def _scaled(stack: Contributions, names: Sequence[str], norm: float) -> Contributions:
    norms = joint_norms([stack.values[name] for name in names])
    if not (norms > norm).any():
        return stack
    values = dict(stack.values)
    with np.errstate(divide="ignore", invalid="ignore"):  # of what the check refuses
        factors = np.minimum(1, norm / norms)  # by 1 nothing changes, to the bit
        for name in names:
            x = values[name]
            values[name] = x * factors.astype(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return stack.holding(values)


def clip(norm: float) -> Aggregation:
    """A chain of one stage: `Clip`."""
    return Aggregation(stages=(Clip(norm=norm),))
