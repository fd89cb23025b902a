"""From many contributions to one total, in float64, in roster order."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import accumulate
from typing import Any

import numpy as np

from hansa.contribution import Algebra, Array, Contribution, Contributions, Field, Total, Values, check

BLOCK = 16
"""Parties in one block: a block is summed party by party, and then the blocks, both in roster order. The
tree fixes the bits, whoever sums which block."""

_CHUNK = 1 << 17  # numbers that are added at once: they stay in the cache


class Block:
    """The sums of up to `BLOCK` parties that stand next to each other in the roster, of the given fields."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.parties: list[str] = []
        self.weight = 0.0
        self.gathered: dict[str, list[Array]] = {}
        self.sums: dict[str, Array] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._means = {f.name for f in fields if f.algebra is Algebra.MEAN}
        for field in fields:
            if field.algebra is Algebra.GATHER:
                self.gathered[field.name] = []
            else:
                self._shapes[field.name] = field.shape or ()

    def add(self, stack: Contributions, order: Sequence[int]) -> None:
        """Count those at these places of the stack, which were checked, one after the other."""
        if not order:
            return
        for name, shape in self._shapes.items():
            if name not in self.sums:  # not sooner: a block of nobody takes no memory
                self.sums[name] = np.zeros(shape)
            values = stack.values[name].reshape(len(stack.parties), -1)
            times = stack.weights[list(order)] if name in self._means else np.ones(len(order))
            _add(self.sums[name].reshape(-1), values, order, times)
        for name, gathered in self.gathered.items():
            gathered.extend(stack.values[name][place] for place in order)
        self.parties.extend(stack.parties[place] for place in order)
        for place in order:
            self.weight += float(stack.weights[place])


def _add(total: Array, values: Array, order: Sequence[int], times: Array) -> None:
    """Add rows of ``values [k, d]`` to ``total [d]``, in place, in float64 and one after the other: NumPy reduces the
    first axis row by row, so the bits are the same whether rows are added by themselves or at once."""
    step = max(1, _CHUNK // max(4, len(order)))
    for at in range(0, total.size, step):
        part = total[at : at + step]
        if len(order) == 1:
            one = values[order[0], at : at + step]
            part += one if times[0] == 1 else times[0] * one
            continue
        rows = np.empty((len(order) + 1, part.size))
        rows[0] = part
        rows[1:] = values[order, at : at + step]
        rows[1:] *= times[:, None]
        np.add.reduce(rows, axis=0, out=part)


class Reduction:
    """A running sum over contributions that are added in roster order.

    The order and `BLOCK` fix the bits; the memory is two float64 copies of all fields that are not gathered.

    Args:
        fields: what every contribution holds.
        asked: who was asked, in roster order; it says which block a party belongs to."""

    def __init__(self, fields: Sequence[Field], asked: Sequence[str]) -> None:
        self._fields = tuple(fields)
        self._places = {party: place for place, party in enumerate(asked)}
        self._sum = Block(fields)
        self._open, self._number = Block(fields), 0

    def add(self, party: str, contribution: Contribution, checked: bool = False) -> None:
        """Count one party; a ContributionError if it is not what was declared; the sums are then as before."""
        if not checked:
            check(contribution, self._fields)
        number = self._places[party] // BLOCK
        if number != self._number:
            self._close()
            self._number = number
        self._open.add(Contributions.of(party, contribution), (0,))

    def merge(self, block: Block) -> None:
        """Count a whole block, checked and summed elsewhere."""
        mine = self._sum
        if not block.parties:
            return
        for name, total in block.sums.items():
            mine.sums[name] = mine.sums[name] + total if mine.parties else total
        for name, gathered in block.gathered.items():
            mine.gathered[name].extend(gathered)
        mine.parties.extend(block.parties)
        mine.weight += block.weight

    def _close(self) -> None:
        self.merge(self._open)
        self._open = Block(self._fields)

    def total(self, population: int) -> Total:
        """The aggregate of those added, of so many parties in the run; without a value if there is none."""
        self._close()
        summed = self._sum
        if not summed.parties:
            return Total(Values(), (), population, 0.0)
        values = {name: np.stack(arrays) for name, arrays in summed.gathered.items()} | summed.sums
        for field in self._fields:
            if field.algebra is Algebra.MEAN:
                values[field.name] /= summed.weight  # in place: they are counted once
        return Total(Values(values), tuple(summed.parties), population, summed.weight)


def discounted(stack: Contributions, fields: Sequence[Field], factor: float) -> Contributions:
    """Late contributions: what is like parameters counts ``factor`` times; sums stay whole, as controls must."""
    means = {f.name for f in fields if f.like == "parameters" and f.algebra is not Algebra.SUM}
    if factor == 1.0 or not stack.parties:
        return stack
    return stack.holding({n: v * v.dtype.type(factor) if n in means else v for n, v in stack.values.items()})


THREADS, PIECE = min(4, os.cpu_count() or 1), 1 << 18
"""Pieces that are summed at the same time, and numbers of a field in each: it stays in the cache."""


def piecewise(
    fields: Sequence[Field],
    asked: Sequence[str],
    given: Mapping[str, Contribution],
    population: int,
    keep: Callable[[Iterable[Any]], Any] = b"".join,
    after: Callable[[], object] = tuple,
) -> Total:
    """What a `Reduction` makes of contributions that were checked, to the bit, a piece of all of them at a time: where
    they are in files, and the total goes to one, little is in memory. No field is gathered.

    Args:
        fields: what every contribution holds.
        asked: who was asked, in roster order.
        given: those who are counted, in that order.
        population: how many parties take part in the run.
        keep: makes one buffer of the pieces of the total, as they come.
        after: called after every piece, by several threads."""

    def summed(*some: Field, part: slice = slice(None)) -> Total:
        reduction = Reduction([replace(f, shape=(len(range(f.size)[part]),)) for f in some], asked)
        for party, one in given.items():
            piece = Values({f.name: one.values[f.name].reshape(-1)[part] for f in some})
            reduction.add(party, Contribution(piece, one.weight), checked=True)
        after()
        return reduction.total(population)

    parts = [(field, slice(at, at + PIECE)) for field in fields for at in range(0, field.size, PIECE)]

    def total(field: Field, part: slice) -> memoryview:
        return summed(field, part=part).values[field.name].data.cast("B")

    with ThreadPoolExecutor(THREADS) as threads:
        some = (zip(*parts[at : at + THREADS], strict=True) for at in range(0, len(parts), THREADS))
        whole = keep(piece for few in some for piece in threads.map(total, *few))
    flat = np.split(np.frombuffer(whole), [*accumulate(field.size for field in fields)][:-1])
    values = {field.name: one.reshape(field.shape or ()) for field, one in zip(fields, flat, strict=True)}
    return replace(summed(), values=Values(values))
