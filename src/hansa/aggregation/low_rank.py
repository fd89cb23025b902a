"""Structured updates of low rank."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa import keyed
from hansa.aggregation.codec import Codec, Draw, carrier
from hansa.aggregation.signal import Signal
from hansa.contribution import Array, Field


class LowRank(Codec):
    """An update of low rank, ``A B`` with a random ``A`` (Konecny et al. 2016, arXiv 1610.05492).

    ``A``, ``rows`` times ``rank``, is drawn for each party and exchange and made orthonormal; only ``B = A^T H``
    travels. The stages see a model as one vector, so ``H`` is the whole vector, row by row, as a nearly square matrix
    with zeros at its end, and not the paper's matrix for each layer. ``A B`` is the projection of the finished update:
    its mean shrinks to ``rank / rows`` of itself in expectation, which the server's learning rate may make good.

    Args:
        rank: of the update, at least 1."""

    kind: ClassVar[str] = "low-rank"
    rank: Annotated[int, Limits(ge=1)] = 8

    def bind(self, signal: Signal) -> Signal:
        """A projection, which makes no norm larger."""
        return replace(super().bind(signal), mixed=self.kind)

    def parts(self, field: Field) -> tuple[Field, ...]:
        """``B``, row by row: it has the norm of ``A B``."""
        rows, columns = _shape(field.size)
        return (carrier(field, (min(self.rank, rows) * columns,)),)

    def pack(self, x: Array, field: Field, draw: Draw) -> dict[str, Array]:
        rows, columns = _shape(x.shape[1])
        h = np.zeros((len(x), rows * columns), dtype=x.dtype)
        h[:, : x.shape[1]] = x
        b = np.matmul(self._a(rows, x.dtype, draw).swapaxes(1, 2), h.reshape(-1, rows, columns))
        return {"values": b.reshape(len(x), -1)}

    def unpack(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        rows, columns = _shape(field.size)
        sent = parts["values"]
        h = np.matmul(self._a(rows, sent.dtype, draw), sent.reshape(len(sent), -1, columns))
        return np.asarray(h.reshape(len(sent), -1)[:, : field.size])

    def _a(self, rows: int, dtype: np.dtype[np.floating], draw: Draw) -> Array:
        shape = (rows, min(self.rank, rows))
        normal = [keyed.generator(draw.seed, *draw.purpose, party).standard_normal(shape) for party in draw.parties]
        return np.linalg.qr(np.stack(normal))[0].astype(dtype)


def _shape(count: int) -> tuple[int, int]:
    """The rows and columns that so many entries are laid out in."""
    rows = math.isqrt(count - 1) + 1 if count else 1
    return rows, -(-count // rows)
