"""Some entries in place of all: top-k, random-k, random masks, subsampling."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.codec import Codec, Draw, carrier, part
from hansa.aggregation.signal import Signal
from hansa.contribution import Array, Dtype, Field
from hansa.errors import PipelineError


class Sparse(Codec):
    """A codec that sends ``ceil(fraction d)`` of ``d`` entries; the others arrive as 0.

    Args:
        fraction: of the entries, above 0 and at most 1."""

    fraction: Annotated[float, Limits(gt=0, le=1)] = 0.01

    def bind(self, signal: Signal) -> Signal:
        """Entries in; what other parties sent zero for is no longer comparable."""
        if not signal.linear:
            what = f"{self.kind} comes before a robust reducer, and not after it"
            raise PipelineError(what, remedy=f"Put {self.kind} first")
        return replace(super().bind(signal), mixed=self.kind)

    @abstractmethod
    def chosen(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        """Which entries were sent, int64 ``[k, kept]``."""

    def parts(self, field: Field) -> tuple[Field, ...]:
        return (carrier(field, (self._kept(field),)),)

    def pack(self, x: Array, field: Field, draw: Draw) -> dict[str, Array]:
        return {"values": np.take_along_axis(x, self.chosen({}, field, draw), axis=1)}

    def unpack(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        sent = parts["values"]
        x = np.zeros((len(sent), field.size), dtype=sent.dtype)
        np.put_along_axis(x, self.chosen(parts, field, draw), sent, axis=1)
        return x

    def _kept(self, field: Field) -> int:
        return max(1, math.ceil(self.fraction * field.size - 1e-9))


class TopK(Sparse):
    """The entries of largest magnitude, with error feedback (Stich et al. 2018, arXiv 1809.07599).

    A party remembers the entries that it did not send and adds them to its next contribution, so that what
    was sent and what is remembered always add up to what was to be sent. Indices travel too."""

    kind: ClassVar[str] = "top-k"
    remembers: ClassVar[bool] = True

    def parts(self, field: Field) -> tuple[Field, ...]:
        dtype: Dtype = "uint16" if field.size <= 1 << 16 else "uint32"
        shape = (self._kept(field),)
        return carrier(field, shape), part(field, "indices", shape, dtype, field.size - 1.0)

    def pack(self, x: Array, field: Field, draw: Draw) -> dict[str, Array]:
        kept = self._kept(field)
        chosen = np.sort(np.argpartition(np.abs(x), -kept, axis=1)[:, -kept:], axis=1)
        indices = chosen.astype(self.parts(field)[1].dtype)
        return {"values": np.take_along_axis(x, chosen, axis=1), "indices": indices}

    def chosen(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        return parts["indices"].astype(np.int64)


class RandomK(Sparse):
    """Entries at random, with error feedback (Stich et al. 2018, arXiv 1809.07599); only values travel.

    The vector, as a ring that begins at a random place, is cut into as many runs as entries are kept, and
    one entry of each run is drawn: every entry has the same chance, and drawing costs what is sent. The
    draw is keyed by the exchange and the party, so whoever opens it knows it."""

    kind: ClassVar[str] = "random-k"
    remembers: ClassVar[bool] = True

    def chosen(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        kept, d = self._kept(field), field.size
        edges = np.arange(kept + 1, dtype=np.int64) * d // kept
        bits = (draw.own(kept + 1) >> np.uint64(32)).astype(np.int64)
        within = (bits[:, 1:] >> 1) * np.diff(edges) >> 31  # so many bits that no place is favoured
        return (edges[:-1] + within + bits[:, :1] * d // (1 << 32)) % d


class RandomMask(RandomK):
    """A structured update: only entries under a random mask (Konecny et al. 2016, arXiv 1610.05492).

    The mask is applied to the finished update, which is the paper's training under the mask to first order in the step
    size. Nothing is scaled up: the mean shrinks to ``fraction`` of itself, which the server's rate may make good."""

    kind: ClassVar[str] = "random-mask"
    remembers: ClassVar[bool] = False
    fraction: Annotated[float, Limits(gt=0, le=1)] = 0.1


class Subsample(RandomK):
    """A sketched update: random entries, scaled up without bias (Konecny et al. 2016, arXiv 1610.05492): divided by
    their chance of being sent, so the expectation is the update and the norm may grow by ``d / kept``."""

    kind: ClassVar[str] = "subsample"
    remembers: ClassVar[bool] = False
    fraction: Annotated[float, Limits(gt=0, le=1)] = 0.1

    def bind(self, signal: Signal) -> Signal:
        """Scaling up scales the bound."""
        bound = super().bind(signal)
        return replace(bound, norm=signal.norm * max(self._scale(f) for f in signal.wire if f.like == "parameters"))

    def pack(self, x: Array, field: Field, draw: Draw) -> dict[str, Array]:
        return {"values": super().pack(x, field, draw)["values"] * x.dtype.type(self._scale(field))}

    def _scale(self, field: Field) -> float:
        return field.size / self._kept(field)
