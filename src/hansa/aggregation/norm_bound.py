"""A bound that the coordinator sets on what one party can move."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.aggregation.clip import Clip
from hansa.aggregation.codec import needs_vectors
from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Context, Stage, chain
from hansa.contribution import Contributions, Values
from hansa.errors import PipelineError


class NormBound(Stage):
    """Scale down, at the coordinator, what a party sent too long (Sun et al. 2019, arXiv 1911.07963).

    ``x <- x min(1, norm / |x|)``, all parameter-like fields of a party jointly, before the mean. Unlike
    after a clip, which the party does itself, nobody is refused, and nothing is promised about what the
    coordinator sees. A party moves the mean by its share of the weights times the norm at most, in whatever
    direction it likes: no fraction of liars is withstood for ever.

    Args:
        norm: the bound, positive.
    """

    kind: ClassVar[str] = "norm-bound"
    norm: Annotated[float, Limits(gt=0)]

    def bind(self, signal: Signal) -> Signal:
        """Single contributions in, the same out: the party's own bound is as before."""
        needs_vectors(self, signal)
        if signal.travel is not None:
            raise PipelineError(
                "norm-bound works on whole vectors, and these are packed already",
                remedy="Put norm-bound before the stage that packs; it is done after unpacking",
            )
        return signal

    def open(self, stack: Contributions, announced: Values, context: Context) -> Contributions:
        """Scaled down where they are too long."""
        return Clip(norm=self.norm).encode(stack, announced, Values(), context)[0]


norm_bound = chain(NormBound)
