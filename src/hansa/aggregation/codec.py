"""What codecs have in common: packed at the party, opened at the coordinator before anything is summed."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

import numpy as np

from hansa import keyed
from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Context, Encoded, Stage
from hansa.contribution import Array, Contributions, Dtype, Field, Values
from hansa.errors import PipelineError

_SMALL = 1 << 16  # what is shared by the stacks of one exchange is remembered, unless it is large


@lru_cache(maxsize=8)
def _shared(count: int, seed: int, *purpose: str | int) -> Array:
    drawn = keyed.bits(keyed.keys(seed, *purpose, parties=("",))[0], count)
    drawn.flags.writeable = False
    return drawn


@dataclass(frozen=True)
class Draw:
    """Public randomness of one field in one exchange, for these parties; who opens it draws the same."""

    seed: int
    purpose: tuple[str | int, ...]
    parties: tuple[str, ...]

    def own(self, count: int) -> Array:
        """64 random bits ``[k, count]``, of each party its own."""
        return keyed.bits(keyed.keys(self.seed, *self.purpose, parties=self.parties), count)

    def shared(self, count: int) -> Array:
        """64 random bits ``[count]``, the same for all parties."""
        draw = _shared if count <= _SMALL else _shared.__wrapped__
        return draw(count, self.seed, *self.purpose)


class Codec(Stage):
    """A stage that changes how parameter-like fields travel, and not what they are. A part that is parameter-like
    itself (some of the entries, say, with the norm they have once opened) is what the next stage clips or packs."""

    remembers: ClassVar[bool] = False
    """Whether a party keeps what did not get through, and adds it the next time (error feedback)."""

    @abstractmethod
    def parts(self, field: Field) -> tuple[Field, ...]:
        """What travels in place of a field."""

    @abstractmethod
    def pack(self, x: Array, field: Field, draw: Draw) -> dict[str, Array]:
        """The parts by name, each ``[k, *shape]``, of values ``[k, d]``."""

    @abstractmethod
    def unpack(self, parts: Mapping[str, Array], field: Field, draw: Draw) -> Array:
        """The values ``[k, d]`` that the parts stand for."""

    def bind(self, signal: Signal) -> Signal:
        """Parts travel; how far one example moves what is unpacked is not known, as it may decide the step."""
        self.needs(signal)
        if self.remembers and math.isfinite(signal.norm):
            what = f"{self.kind} remembers what it did not send, and adds it to what was clipped already"
            raise PipelineError(what, remedy=f"Put {self.kind} before the clip")
        travel = [self.parts(f) if f.like == "parameters" else (f,) for f in signal.wire]
        fields = tuple(replace(f, example=math.inf) if f.like else f for f in signal.fields)
        return replace(signal, fields=fields, travel=tuple(part for parts in travel for part in parts))

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        values, kept = dict(stack.values), {}
        for field in context.signal.wire:
            if field.like != "parameters":
                continue
            x = values.pop(field.name)
            x = x + memory[field.name] if field.name in memory else x
            draw = self._draw(field, context)
            with np.errstate(invalid="ignore", over="ignore", under="ignore"):  # the check says it
                some = [self.pack(x[at], field, replace(draw, parties=draw.parties[at])) for at in blocks(x)]
                parts = some[0]
                if len(some) > 1:
                    parts = {n: np.concatenate([part[n] for part in some]) for n in parts}
                if self.remembers:
                    kept[field.name] = x - self.unpack(parts, field, draw)
            values |= {f"{field.name}.{name}": part for name, part in parts.items()}
        return stack.holding(values), Values(kept)

    def open(self, stack: Contributions, announced: Values, context: Context) -> Contributions:
        packed = tuple(f"{f.name}." for f in context.signal.wire if f.like == "parameters")
        values = {n: v for n, v in stack.values.items() if not n.startswith(packed)}
        for field in context.signal.wire:
            if field.like == "parameters":
                parts = stack.values.under(field.name)
                with np.errstate(invalid="ignore", over="ignore", under="ignore"):
                    values[field.name] = self.unpack(parts, field, self._draw(field, context))
        return stack.holding(values)

    def _draw(self, field: Field, context: Context) -> Draw:
        return Draw(context.seed, (self.kind, context.version, field.name), context.parties)


def blocks(x: Array) -> list[slice]:
    """Rows of ``x [k, d]`` that are worked on at once, to bound what is in between."""
    many = max(1, (1 << 18) // max(1, x.shape[1]))
    return [slice(at, at + many) for at in range(0, len(x), many)]


def part(field: Field, name: str, shape: tuple[int, ...], dtype: Dtype, high: float) -> Field:
    """A field that travels for another one: numbers from 0 to ``high``."""
    name = f"{field.name}.{name}"
    return replace(field, name=name, like="", shape=shape, dtype=dtype, low=0.0, high=high)


def carrier(field: Field, shape: tuple[int, ...]) -> Field:
    """A parameter-like field that travels for another one, with the same norm."""
    return replace(field, name=f"{field.name}.values", shape=shape)


def pack_bits(codes: Array, bits: int) -> Array:
    """Codes ``[k, d]`` below ``2**bits`` as they travel, without gaps.

    Returns:
        uint16 ``[k, d]`` for 16 bits, else uint8 ``[k, ceil(d bits / 8)]``: eight codes in so many bytes, the
        first one lowest. Above 8 bits the upper 8 of each code come first, and the lower ones after them."""
    if bits in (8, 16):
        return codes
    if bits > 8:
        lower = pack_bits(codes & codes.dtype.type((1 << bits - 8) - 1), bits - 8)
        return np.concatenate([(codes >> bits - 8).astype(np.uint8), lower], axis=1)
    words = np.zeros((len(codes), -(-codes.shape[1] // 8)), dtype="<u8")
    for i in range(8):
        some = codes[:, i::8].astype(np.uint64)
        words[:, : some.shape[1]] |= some << np.uint64(i * bits)
    packed = words.view(np.uint8).reshape(*words.shape, 8)[..., :bits].reshape(len(codes), -1)
    return packed[:, : -(-codes.shape[1] * bits // 8)]


def unpack_bits(packed: Array, bits: int, count: int) -> Array:
    """The inverse of `pack_bits`: ``[k, count]``, uint8 up to 8 bits, else uint16."""
    if bits in (8, 16):
        return packed
    if bits > 8:
        upper = packed[:, :count].astype(np.uint16) << np.uint16(bits - 8)
        return upper | unpack_bits(packed[:, count:], bits - 8, count)
    codes = np.zeros((len(packed), count, 8), dtype=np.uint8)
    entries = np.unpackbits(packed, axis=1, count=count * bits, bitorder="little")
    codes[..., :bits] = entries.reshape(len(packed), count, bits)
    return np.packbits(codes.reshape(len(packed), -1), axis=1, bitorder="little")
