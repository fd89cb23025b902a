"""The contract between a model's mathematics and everything else."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from hansa import keyed
from hansa.contribution import Array, Dtype
from hansa.errors import StudyError, UsageError
from hansa.learners.optimizer import SGD, FirstOrder


@dataclass(frozen=True)
class Layout:
    """Where each named array of a model lies in its flat parameter vector."""

    leaves: tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes, in the order in which they lie

    @property
    def size(self) -> int:
        """How many numbers the vector has."""
        return sum(math.prod(shape) for _, shape in self.leaves)

    def split(self, vector: Array) -> dict[str, Array]:
        """Views of the named arrays. ``vector`` is ``[..., size]``; a leaf is ``[..., *shape]``."""
        if vector.shape[-1:] != (self.size,):
            raise StudyError(f"a vector of shape {list(vector.shape)} for {self.size} parameters")
        parts, at = {}, 0
        for name, shape in self.leaves:
            width = math.prod(shape)
            parts[name] = vector[..., at : at + width].reshape((*vector.shape[:-1], *shape))
            at += width
        return parts

    def join(self, parts: Mapping[str, Array]) -> Array:
        """The flat vector ``[size]`` of the named arrays; a StudyError if a name or shape differs from the layout's."""
        if set(parts) != {name for name, _ in self.leaves}:
            raise StudyError(f"the arrays {sorted(parts)} where {[name for name, _ in self.leaves]} are needed")
        for name, shape in self.leaves:
            if parts[name].shape != shape:
                raise StudyError(f"{name!r} has shape {parts[name].shape}, not {shape}")
        return np.concatenate([np.ravel(parts[name]) for name, _ in self.leaves])


_EPOCHS = 64  # so many permutations are drawn at once
_LARGE = 1 << 16  # numbers in one party's rows


class Shared(Sequence[tuple[Array, Array]]):
    """Parties' rows as ranges of one pair of arrays, so that a step of all is gathered at once: ``x`` and ``y`` of all
    rows, each party's first row, ``starts [k]``, and the row after its last one, ``stops [k]``."""

    def __init__(self, x: Array, y: Array, starts: Array, stops: Array) -> None:
        self.x, self.y, self.starts, self.stops = x, y, starts, stops

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, at: Any) -> Any:
        own = slice(self.starts[at], self.stops[at])
        return self.x[own], self.y[own]


def sizes(rows: Sequence[tuple[Array, Array]]) -> Array:
    """How many rows each party has, ``[k]``."""
    if isinstance(rows, Shared):
        return rows.stops - rows.starts
    return np.asarray([len(y) for _, y in rows])


@dataclass(frozen=True, eq=False)
class Feed:
    """The rows of a stack's parties, in the order in which local training reads them.

    Batches have one of few canonical shapes, padded with rows of weight 0, so that a party's bits do not
    depend on whose rows lie beside its own."""

    # each party's features ``[n, ...]`` and labels ``[n, ...]``; those with more rows come first
    rows: Sequence[tuple[Array, Array]]
    keys: Array  # of each party's chance in this round, uint64 ``[k]``
    epochs: int = 1  # passes over the rows
    batch_size: int = 0  # rows in one step; 0 for all of them
    shuffle: bool = True  # whether rows are shuffled, anew in each epoch
    part: tuple[int, int | None] = (0, None)  # of one party by itself: its first step, and the one after its last

    @cached_property
    def sizes(self) -> Array:
        """Rows of each party, ``[k]``."""
        return sizes(self.rows)

    @cached_property
    def steps(self) -> Array:
        """Optimiser steps of each party, ``[k]``."""
        if not self.batch_size:
            return np.full(len(self.rows), self.epochs)
        return self.epochs * -(-self.sizes // self.batch_size)

    def order(self, party: int, epoch: int) -> Array | None:
        """The permutation of one party's rows in one epoch; None for their own order."""
        size = len(self.rows[party][1])
        if not (self.shuffle and 0 < self.batch_size < size):
            return None  # one batch holds them all
        return keyed.order(self.keys[party], size, epoch)

    def batches(self, party: int) -> Iterator[tuple[Array, Array]]:
        """One party's batches, as they are: features ``[b, ...]`` and labels ``[b, ...]``."""
        x, y = self.rows[party]
        size = self.batch_size or len(y)
        for step in range(self.epochs * (each := -(-len(y) // size)))[slice(*self.part)]:
            if not step % each or step == self.part[0]:
                order = self.order(party, step // each)
            start = step % each * size
            chosen = slice(start, start + size) if order is None else order[start : start + size]
            yield x[chosen], y[chosen]

    def stacked(self, takes: Callable[[Any], Any]) -> Iterator[tuple[slice, Array, Array, Array]]:
        """One step of many parties after the other, until all have taken theirs.

        Args:
            takes: from the dtype of the features to the one that the learner works in.

        Yields:
            which parties ``[m]``, features ``[m, b, ...]``, labels ``[m, b, ...]`` and row weights
            ``[m, b]``, valid until the next step."""
        width = math.prod(self.rows[0][0].shape[1:])
        canonical = {int(size): self._canonical(int(size), width) for size in np.unique(self.sizes)}
        shapes = [canonical[size] for size in self.sizes.tolist()]
        begin = 0
        while begin < len(shapes):
            end = begin
            while end < len(shapes) and shapes[end] == shapes[begin]:
                end += 1
            yield from self._run(begin, end, shapes[begin], takes)
            begin = end

    def _canonical(self, size: int, width: int) -> int:
        """Rows of a party's padded batch: the batch size; if it has fewer, up to 1.25 times its own, so that
        more parties share a shape, unless they are many and would have to be copied for it."""
        unit = 1 if size * width > _LARGE else 1 << max(0, size.bit_length() - 3)
        rounded = -(-size // unit) * unit
        return min(self.batch_size, rounded) if self.batch_size else rounded

    def _run(
        self, begin: int, end: int, length: int, takes: Callable[[Any], Any]
    ) -> Iterator[tuple[slice, Array, Array, Array]]:
        """The steps of parties whose batches have one shape."""
        first_x, first_y = self.rows[begin]
        if end - begin == 1 and length == len(first_y) and first_x.dtype == takes(first_x.dtype):
            weights = np.full((1, length), 1.0 / length, takes(np.dtype(np.float64)))
            for _ in range(self.epochs)[slice(*self.part)]:
                yield slice(begin, end), first_x[None], first_y[None], weights
            return
        x = np.empty((end - begin, length, *first_x.shape[1:]), takes(first_x.dtype))
        y = np.empty((end - begin, length, *first_y.shape[1:]), first_y.dtype)
        weights = np.empty((end - begin, length), takes(np.dtype(np.float64)))
        if isinstance(self.rows, Shared) and self.epochs <= _EPOCHS and x.dtype == first_x.dtype:
            yield from self._gathered(self.rows, slice(begin, end), x, weights)
            return
        x[:], y[:], weights[:] = 0, 0, 1.0 / length
        per_epoch = [-(-int(size) // length) for size in self.sizes[begin:end]]
        orders: list[Array | None] = [None] * (end - begin)
        for step in range(self.epochs * per_epoch[0])[slice(*self.part)]:
            active = sum(step < self.epochs * count for count in per_epoch)
            for i in range(active):
                epoch, batch = divmod(step, per_epoch[i])
                if not batch or step == self.part[0]:
                    orders[i] = self.order(begin + i, epoch)
                mine_x, mine_y = self.rows[begin + i]
                order, lo = orders[i], batch * length
                rows = min(length, len(mine_y) - lo)
                if order is None:
                    x[i, :rows], y[i, :rows] = mine_x[lo : lo + rows], mine_y[lo : lo + rows]
                else:
                    chosen = order[lo : lo + rows]
                    if x.dtype == mine_x.dtype and mine_x.flags.c_contiguous:
                        mine_x.take(chosen, axis=0, out=x[i, :rows], mode="clip")
                    else:
                        x[i, :rows] = mine_x[chosen]
                    y[i, :rows] = mine_y[chosen]
                if rows < length:
                    weights[i, :rows], weights[i, rows:] = 1.0 / rows, 0.0
                elif not batch:
                    weights[i] = 1.0 / length  # after the short last batch of the epoch before
            yield slice(begin, begin + active), x[:active], y[:active], weights[:active]

    def _gathered(
        self, rows: Shared, run: slice, x: Array, weights: Array
    ) -> Iterator[tuple[slice, Array, Array, Array]]:
        """The same steps, the same bits, with the rows of all parties taken by one index."""
        length, sizes, starts = x.shape[1], self.sizes[run], rows.starts[run]
        per_epoch, begins = -(-sizes // length), np.cumsum(sizes) - sizes
        absolute = np.arange(sizes.sum()) + np.repeat(starts - begins, sizes)
        taken = absolute[None]  # [epochs, rows]
        if self.shuffle and self.batch_size:
            drawn = [keyed.orders(self.keys[run], sizes, epoch) for epoch in range(self.epochs)]
            one_batch = np.repeat(sizes <= self.batch_size, sizes)
            taken = np.stack([np.where(one_batch, absolute, absolute[order]) for order in drawn])
        total, window = self.epochs * int(per_epoch[0]), max(1, _LARGE // weights.size)
        for first in range(0, total, window):  # many steps' indices at once: there are few of each
            steps = np.arange(first, min(first + window, total))
            active = (steps[:, None] < self.epochs * per_epoch).sum(axis=1).tolist()
            epoch, batch = np.divmod(steps[:, None], per_epoch)
            own = batch[..., None] * length + np.arange(length)  # [window, parties, length]
            there = own < sizes[:, None]
            masses = np.divide(there, there.sum(axis=2, keepdims=True), dtype=weights.dtype)
            own = np.where(there, own, 0) + begins[:, None]
            chosen = taken[np.minimum(epoch, len(taken) - 1)[..., None], own]
            labels = rows.y.take(chosen, axis=0)
            for i, count in enumerate(active):
                out = x[:count].reshape(count * length, *x.shape[2:])
                rows.x.take(chosen[i, :count].reshape(-1), axis=0, out=out, mode="clip")
                yield slice(run.start, run.start + count), x[:count], labels[i, :count], masses[i, :count]


@dataclass(frozen=True, eq=False)
class Affine:
    """A correction of gradients that costs what an addition costs: ``g + pull * parameters + shift``."""

    shift: Any  # ``[d]``, the same for all, or ``[k, d]``; NumPy's, or the learner's own
    pull: float = 0.0  # the factor of the parameters

    @classmethod
    def towards(cls, centre: Array, strength: float) -> Affine:
        """The gradient of ``strength / 2 * |parameters - centre|^2``."""
        return cls(centre * centre.dtype.type(-strength), strength)

    def __call__(self, gradient: Any, parameters: Any, parties: slice) -> Any:
        """The gradient that is used."""
        used = gradient + (self.shift if self.shift.ndim == 1 else self.shift[parties])
        return used + self.pull * parameters if self.pull else used


def factors(norms: Array, norm: float) -> Array:
    """What rows of these gradient norms are multiplied by, so that none is longer, ``[n]``."""
    with np.errstate(divide="ignore"):
        return np.asarray(np.minimum(1.0, norm / norms))


Correction = Callable[[Any, Any, slice], Any] | Affine
Slots = dict[str, Any]
Engine = Literal["stacked", "resident"]


class Learner(ABC):
    """A model as functions of a flat parameter vector; leading axes are a stack of parties.

    Shapes: ``parameters [..., d]``, ``x [..., n, p]``, ``y [..., n]``, ``weights [..., n]``. Row weights
    add up to 1; None counts every row the same."""

    dtype: Dtype = "float64"  # of parameters and gradients, and of what leaves a party in their likeness

    threads: ClassVar[bool] = True  # whether several threads may train at once, each its own parties

    @property
    @abstractmethod
    def layout(self) -> Layout:
        """Names and shapes of the parameters."""

    @abstractmethod
    def init(self, random: np.random.Generator) -> Array:
        """Parameters to start from, ``[d]``."""

    @abstractmethod
    def loss(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        """The weighted mean loss over the rows, penalties included, ``[...]``."""

    @abstractmethod
    def gradient(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        """The gradient of `loss`, ``[..., d]``."""

    @abstractmethod
    def predict(self, parameters: Array, x: Array) -> Array:
        """What the model says of each row: a value ``[..., n]`` or probabilities ``[..., n, k]``."""

    def scaled(self, parameters: Array, x: Array, y: Array, weights: Array, lr: float) -> Array:
        """The gradient times a step size, ``[..., d]``."""
        gradient = self.gradient(parameters, x, y, weights)
        gradient *= gradient.dtype.type(lr)
        return gradient

    def clipped(self, parameters: Array, x: Array, y: Array, norm: float) -> Array:
        """The sum over rows of their gradients, each scaled down to an L2 norm, ``[d]``, penalties left out.

        Args:
            parameters: one model's, ``[d]``.
            x: features of the rows, ``[n, ...]``.
            y: labels of the rows, ``[n, ...]``.
            norm: the bound, positive."""
        total = np.zeros(parameters.size)
        for i in range(len(y)):
            with np.errstate(over="ignore", invalid="ignore"):
                gradient = self.gradient(parameters, x[i : i + 1], y[i : i + 1]).astype(np.float64)
                length = np.linalg.norm(gradient)
            if np.isfinite(length):  # a row that has no gradient adds nothing
                total += factors(np.asarray(length), norm) * gradient
        return total

    def penalty(self, parameters: Array) -> Array | float:
        """The gradient of what the loss has beside the rows, ``[..., d]``; 0 if there is nothing."""
        return 0.0

    def takes(self, dtype: Any) -> Any:
        """The dtype in which features of this dtype are worked on."""
        return np.dtype(self.dtype)

    def expect(self, shape: tuple[int, ...]) -> None:  # noqa: B027  # few need it
        """The shape of a row's features, before any is seen."""

    def check(self, x: Array, y: Array) -> None:  # noqa: B027  # few need it
        """Refuse a party's rows that the model cannot take; raises HansaError naming what is wrong with them."""

    def on(self, device: str) -> None:
        """Run on this device from now on; no part of the federation; a UsageError if it cannot."""
        if device != "cpu":
            remedy = "Leave the device out, or learn a PyTorch module"
            raise UsageError(f"this model runs on the CPU alone, not on {device!r}", remedy=remedy)

    def native(self, array: Array) -> Any:
        """The array as `train` hands parameters to a correction: NumPy's own, or on a device."""
        return array

    @property
    def prefers(self) -> tuple[Engine, str]:
        """The engine that is faster here, and why."""
        if self.unstackable:
            return "resident", self.unstackable
        return "stacked", "many small models at once"

    @property
    def unstackable(self) -> str:
        """Why parties cannot be trained as a stack; empty if they can."""
        return ""

    def train(
        self,
        start: Array,
        feed: Feed,
        local: FirstOrder,
        correct: Correction | None = None,
        slots: Slots | None = None,
        stacked: bool = True,
    ) -> tuple[Array, Slots]:
        """Local training of a stack of parties.

        Args:
            start: where it starts, ``[d]`` or ``[k, d]``.
            feed: the parties' rows.
            local: the optimiser.
            correct: from gradients and parameters ``[m, d]``, and which parties they are of, to the
                gradients that are used.
            slots: state of the optimiser to start from, each ``[k, ...]``; fresh if None.
            stacked: whether they are trained at once; else the feed has one party. Without effect here.

        Returns:
            where it ended, ``[k, d]``, and the optimiser's state."""
        count = len(feed.rows)
        parameters = np.empty((count, start.shape[-1]), self.dtype)
        parameters[:] = start
        kept: Slots = {name: np.array(value) for name, value in (slots or {}).items()}
        plain = type(local) is SGD and not local.momentum
        affine = correct if isinstance(correct, Affine) else None
        if affine is not None and plain:
            shift = affine.shift * parameters.dtype.type(local.lr)
        begun = None if kept else -1  # whose slots are not fresh: zeros are not, to the sign of a zero
        for parties, x, y, weights in feed.stacked(self.takes):
            theta = parameters[parties]
            if plain and (correct is None or affine is not None):
                step = self.scaled(theta, x, y, weights, local.lr)
                if affine is not None:
                    if affine.pull:
                        theta *= theta.dtype.type(1.0 - local.lr * affine.pull)
                    theta -= shift if shift.ndim == 1 else shift[parties]
                theta -= step
                continue
            gradient = self.gradient(theta, x, y, weights)
            if correct is not None:
                gradient = correct(gradient, theta, parties)
            if plain:  # the same arithmetic, without its temporaries
                gradient *= gradient.dtype.type(local.lr)
                theta -= gradient
                continue
            fresh = begun is not None and begun != parties.start
            mine = {} if fresh else {name: value[parties] for name, value in kept.items()}
            begun = parties.start if fresh else begun
            parameters[parties], moved = local.step(theta, -gradient, mine)
            for name, value in moved.items():
                if name not in kept:
                    kept[name] = np.zeros((count, *value.shape[1:]), value.dtype)
                kept[name][parties] = value
        return parameters, kept
