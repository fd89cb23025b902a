"""The randomised Hadamard rotation, which makes all entries of about the same size."""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hansa.aggregation.codec import Draw, blocks
from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Context, Decoded, Encoded, Stage
from hansa.contribution import Array, Contributions, Total, Values


class Rotate(Stage):
    """Random signs and a Hadamard transform (Konecny et al. 2016, arXiv 1610.05492; Suresh et al. 2017).

    All parties turn their vectors the same way, so the coordinator turns back only the total. The largest
    entry of what comes out is about ``|x| sqrt(2 ln d / d)`` whatever ``x`` was, which is what a quantiser
    after it needs. One rotation is drawn for a whole run: updates of several rounds may be in one total."""

    kind: ClassVar[str] = "rotate"

    def bind(self, signal: Signal) -> Signal:
        """Vectors in, vectors out; an entry is no longer a parameter."""
        self.needs(signal, "whole")
        single = any(f.dtype == "float32" for f in signal.fields if f.like == "parameters")
        return replace(signal, norm=signal.norm * (1 + (1e-6 if single else 1e-12)), mixed=self.kind)

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        with np.errstate(invalid="ignore", over="ignore"):  # the check says it
            turned = self._turned(stack.values, context, back=False)
        return stack.holding({**stack.values, **turned}), memory

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """Turn back, the total or what was gathered for a reducer."""
        turned = self._turned(total.values, context, back=True) if total.values else {}
        return replace(total, values=Values({**total.values, **turned})), state

    def _turned(self, values: Mapping[str, Array], context: Context, back: bool) -> dict[str, Array]:
        turn = turned_back if back else turned
        vectors = {}
        for name in context.signal.vectors:
            x = values[name]
            minus = signs(Draw(context.seed, (self.kind, name), ()), x.shape[-1])
            vectors[name] = turn(x.reshape(-1, x.shape[-1]), minus).reshape(x.shape)
        return vectors


def signs(draw: Draw, count: int) -> Array:
    """True for minus, ``[count]``."""
    bits = draw.shared(-(-count // 64)).astype("<u8", copy=False)
    return np.asarray(np.unpackbits(bits.view(np.uint8), count=count).view(np.bool_))


def turned(x: Array, minus: Array) -> Array:
    """``x [k, d]`` with some signs changed and then rotated, in its dtype. A Hadamard transform needs a power of two.
    One of the largest, ``p``, that fits into ``d`` is done on the first ``p`` entries and then on the last ``p``:
    orthogonal, and no entry more than before."""
    y = np.empty_like(x)
    change = np.where(minus, x.dtype.type(-1), x.dtype.type(1))
    for rows in blocks(x):
        np.multiply(x[rows], change, out=y[rows])
        for window in _windows(y.shape[1]):
            hadamard(y[rows, window])
    return y


def turned_back(y: Array, minus: Array) -> Array:
    """The inverse of `turned`, which is its transpose."""
    x = y.copy()
    for rows in blocks(x):
        for window in reversed(_windows(x.shape[1])):
            hadamard(x[rows, window])
    x *= np.where(minus, x.dtype.type(-1), x.dtype.type(1))
    return x


def hadamard(x: Array) -> None:
    """The orthonormal Walsh-Hadamard transform of ``x [k, p]``, in place; it is its own inverse. ``H_p`` is the
    Kronecker product of small ones: each product of matrices transforms one digit of the index and moves it to the end,
    and after all every digit is where it was. That is faster here than ``log2 p`` passes of butterflies."""
    p = x.shape[-1]
    whole, rest = divmod(p.bit_length() - 1, 4)
    y, digits = x, [16] * whole + ([1 << rest] if rest else [])  # factors of p; 16 is the fastest
    for number, base in enumerate(digits, start=1):
        # A view, also of a window of each row.
        columns = y.reshape(-1, base, p // base).swapaxes(1, 2)
        end = x.reshape(-1, p // base, base) if number == len(digits) else None
        y = np.matmul(columns, _small(base, x.dtype.str), out=end)


def _windows(d: int) -> list[slice]:
    p = 1 << (d.bit_length() - 1) if d else 0
    return [slice(0, p)] if p == d else [slice(0, p), slice(d - p, d)]


@lru_cache
def _small(base: int, dtype: str) -> Array:
    h = np.ones((1, 1))
    while len(h) < base:
        h = np.block([[h, h], [h, -h]])
    return (h / math.sqrt(base)).astype(dtype)
