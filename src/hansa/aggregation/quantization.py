"""Codes of a few bits in place of numbers: uniform quantisation, and QSGD."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.codec import Codec, Draw, pack_bits, part, unpack_bits
from hansa.aggregation.signal import Signal
from hansa.contribution import Array, Field

_RUN = 256  # neighbouring entries that share a party's own dither


class Grid(Codec):
    """Codes for multiples of a step: what both kinds share."""

    bits: int

    def bind(self, signal: Signal) -> Signal:
        """The norm grows by what rounding may add: at most a step for each entry."""
        bound = super().bind(signal)
        most = max(self._run(f.size) for f in signal.wire if f.like == "parameters")
        return replace(bound, norm=signal.norm * (1 + math.sqrt(most) / _top(self.bits)))

    def parts(self, field: Field) -> tuple[Field, ...]:
        """Codes and step."""
        wide = self.bits == 16
        count = field.size if wide else -(-field.size * self.bits // 8)
        high = 2.0 ** (16 if wide else 8) - 1
        steps = -(-field.size // max(1, self._run(field.size)))
        codes = part(field, "codes", (count,), "uint16" if wide else "uint8", high)
        return codes, part(field, "step", (steps,), field.dtype, math.inf)

    def pack(self, x: Array, field: Field, draw: Draw) -> dict[str, Array]:
        """Codes at the resolution that the party's own vector allows."""
        step = self._reach(x) * x.dtype.type((1 + 4 * np.finfo(x.dtype).eps) / _top(self.bits))
        step = np.where(step < np.finfo(x.dtype).tiny, x.dtype.type(0), step)  # a NaN stays
        inverse = np.divide(1, step, out=np.zeros_like(step), where=step != 0)
        dither = self._dither(draw, x)
        y = np.multiply(x, self._spread(inverse, x), dtype=dither.dtype)
        y += dither  # shifted so that the middle code is 0
        if self.bits == 1:
            y -= 0.5
        return {"codes": pack_bits(y.astype(np.uint8 if self.bits <= 8 else np.uint16), self.bits), "step": step}

    def unpack(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        """``(code - middle) step``."""
        x = unpack_bits(parts["codes"], self.bits, field.size).astype(parts["step"].dtype)
        x -= x.dtype.type(2.0 ** (self.bits - 1) if self.bits > 1 else 0.5)  # the code of zero, or between two
        x *= self._spread(parts["step"], x)
        return x

    def _dither(self, draw: Draw, x: Array) -> Array:
        zero = 2.0 ** (self.bits - 1)
        single = x.dtype == np.float32 and self.bits <= 8  # else the sum needs the longer mantissa
        dtype: type[np.floating] = np.float32 if single else np.float64
        if getattr(self, "rounding", "random") == "nearest":
            return np.asarray(zero + 0.5, dtype=dtype)
        return dithered(draw, x.shape[1], zero, dtype)

    def _spread(self, step: Array, x: Array) -> Array:
        """One step for each entry, to multiply ``[k, d]`` with."""
        if step.shape[1] == 1:
            return step
        return np.repeat(step, self._run(x.shape[1]), axis=1)[:, : x.shape[1]]

    @abstractmethod
    def _run(self, count: int) -> int:
        """How many entries share a step, of so many."""

    @abstractmethod
    def _reach(self, x: Array) -> Array:
        """The value of the highest level, ``[k, steps]``."""


class Quantize(Grid):
    """Uniform quantisation with one step size for each party and field.

    Codes stand for ``0, +-step, +-2 step ...`` up to the largest entry of the vector (for one bit: plus or minus the
    largest entry). Random rounding goes up with the probability that makes the expectation the value itself (Konecny et
    al. 2016, arXiv 1610.05492; Suresh et al. 2017, arXiv 1611.00429). It is unbiased to ``2**-16`` of a step or the
    rounding of one multiplication in the input's dtype, and the roundings of any two entries of any two parties are
    independent. What travels: the codes, packed without gaps, and the step.

    Args:
        bits: of one code, 1 to 16.
        rounding: ``"random"`` is unbiased; ``"nearest"`` is not, and errs by half as much at most."""

    kind: ClassVar[str] = "quantize"
    bits: Annotated[int, Limits(ge=1, le=16)] = 8
    rounding: Literal["random", "nearest"] = "random"

    def _run(self, count: int) -> int:
        return count

    def _reach(self, x: Array) -> Array:
        return np.asarray(np.maximum(x.max(axis=1, keepdims=True), -x.min(axis=1, keepdims=True)))


class QSGD(Grid):
    """Stochastic quantisation against the L2 norm of each bucket (Alistarh et al. 2017, arXiv 1610.02132).

    ``|v| sign(x) l / s`` with ``s = 2**(bits - 1) - 1`` levels, where ``l`` is ``s |x| / |v|`` rounded up or
    down at random, without bias. The variance is at most ``min(b / s**2, sqrt(b) / s) |v|**2`` for buckets
    of ``b`` entries. Codes travel at a fixed width, without the paper's Elias coding.

    Args:
        bits: of one code, 2 to 16.
        bucket: entries that share a norm."""

    kind: ClassVar[str] = "qsgd"
    bits: Annotated[int, Limits(ge=2, le=16)] = 4
    bucket: Annotated[int, Limits(ge=1)] = 512

    def _run(self, count: int) -> int:
        return min(self.bucket, count)

    def _reach(self, x: Array) -> Array:
        edges = np.arange(0, x.shape[1], self.bucket)
        largest = np.maximum.reduceat(np.abs(x), edges, axis=1)
        scale = np.where(largest > 0, largest, x.dtype.type(1))
        return largest * np.sqrt(np.add.reduceat(np.square(x / self._spread(scale, x)), edges, axis=1))


def dithered(draw: Draw, count: int, zero: float, dtype: type[np.floating]) -> Array:
    """Numbers ``[k, count]``, uniform from ``zero`` (a power of two) to ``zero + 1``. Their mantissas are bits that all
    share, flipped by bits that each party has for every run of entries: so few draws make any two independent."""
    width = np.dtype(dtype).itemsize
    whole, half = np.dtype(f"u{width}"), f"u{width // 2}"
    shift = whole.type(np.finfo(dtype).nmant - round(math.log2(zero)) - 4 * width)
    runs, each = -(-count // _RUN), 16 // width
    shared = draw.shared(runs * _RUN // each).view(half).astype(whole) << shift
    shared |= np.asarray(zero, dtype=dtype).view(whole)
    own = draw.own(-(-runs // each)).view(half)[:, :runs].astype(whole) << shift
    return np.asarray((shared.reshape(runs, _RUN) ^ own[:, :, None]).reshape(len(own), -1).view(dtype)[:, :count])


def _top(bits: int) -> float:
    """Steps from zero to the highest level."""
    return 2.0 ** (bits - 1) - 1 if bits > 1 else 0.5
