"""Parties at work: what they know, and the verbs of a method."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from blake3 import blake3

from hansa import keyed
from hansa.contribution import Array, Values
from hansa.data.table import Table
from hansa.errors import ContributionError, HansaError
from hansa.learners.base import Affine, Correction, Feed, Learner, sizes
from hansa.learners.optimizer import BATCH_SIZE, FirstOrder, Private
from hansa.learners.private import train_privately
from hansa.privacy.noise import Chance, Stream, derived
from hansa.task import Task

if TYPE_CHECKING:
    from hansa.methods.base import Setup


@dataclass(frozen=True)
class Trained:
    """What local training ended with."""

    parameters: Array  # ``[d]``, or ``[k, d]`` of a stack
    steps: Any  # how many optimiser steps were taken: an int, or ``[k, 1]``, so that it divides parameters
    slots: Mapping[str, Array] = field(default_factory=dict)  # state of the optimiser


class Named(dict[str, Any]):
    """Arrays by name, or by attribute; the learner's own arrays, where `Values` are NumPy's."""

    __getattr__ = dict.__getitem__


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """Parties at work: what they received, what they remember, and the verbs of a method."""

    round: int  # number of the training round, from 1
    task: Task  # what is learnt
    setup: Setup  # among whom, on which columns
    learner: Learner  # the model's mathematics
    received: Values  # what the ask brought; the same for all
    memory: Values  # what this method remembers at the parties
    parties: tuple[str, ...]  # their names
    secret: bytes = b""  # a party's key for noise; empty in simulation, where it comes from the seed of the setup
    failed: dict[int, HansaError] = field(default_factory=dict)  # what went wrong, by position; filled by the verbs
    # numbers the trainings of one answer, each of which draws its own sample and noise
    calls: Iterator[int] = field(default_factory=count)

    alone: ClassVar[bool] = False  # whether it is one party by itself, whose arrays have no leading axis

    @property
    @abstractmethod
    def all_rows(self) -> Sequence[tuple[Array, Array]]:
        """Each party's training rows: features ``[n, ...]`` and labels ``[n]``."""

    @property
    def examples(self) -> Any:
        """How many rows a party learns from; of a stack, float64 ``[k]``."""
        return sizes(self.all_rows).astype(np.float64)

    def fail(self, position: int, error: HansaError) -> None:
        """The work of the party at this position cannot be done: raise it, or note it for the others' sake."""
        if self.alone:
            raise error
        self.failed.setdefault(position, error)

    def gradient(self, parameters: Array) -> Array:
        """The gradient over all training rows, ``[d]`` or ``[k, d]``."""
        return self._over_all(self.learner.gradient, parameters)

    def clipped(self, parameters: Array, norm: float) -> Array:
        """The sum of the gradients of all training rows, each scaled down to a norm, ``[d]`` or ``[k, d]``."""
        sums = [self.learner.clipped(parameters, x, y, norm) for x, y in self.all_rows]
        return sums[0] if self.alone else np.stack(sums)

    def loss(self, parameters: Array) -> Any:
        """The mean loss over all training rows; of a stack, ``[k]``."""
        return self._over_all(self.learner.loss, parameters)

    def feed(self, local: FirstOrder) -> Feed:
        """The rows in the order of local training, shuffled by (seed, round, party)."""
        size = BATCH_SIZE if local.batch_size is None else local.batch_size
        shuffle, keys = local.shuffle is not False and size != "all", np.zeros(len(self.parties), np.uint64)
        if shuffle:
            keys = keyed.keys(self.setup.seed, "batches", self.round, parties=self.parties)
        whole = 0 if size == "all" else size
        return Feed(self.all_rows, keys, local.epochs or 1, batch_size=whole, shuffle=shuffle)

    def train(
        self,
        parameters: Array,
        local: FirstOrder,
        correct: Callable[..., Any] | Affine | None = None,
        beside: Mapping[str, Array] | None = None,
        slots: Mapping[str, Array] | None = None,
    ) -> Trained:
        """Local training: one optimiser step per batch. A party fails whose parameters do not stay finite.

        Args:
            parameters: where it starts, ``[d]``; of a stack ``[k, d]`` or, the same for all, ``[d]``.
            local: the optimiser.
            correct: maps (gradient, parameters), and what is ``beside`` if that is given, to the gradient
                that is used; an `Affine` costs less.
            beside: arrays of each party that the correction needs, ``[d]`` or ``[k, d]``.
            slots: state of the optimiser to start from; fresh if not given."""
        lead: Any = None if self.alone else ...  # of what is one party's, or a stack's already
        own = np.asarray if isinstance(local, Private) else self.learner.native
        native = {name: own(v[lead]) for name, v in (beside or {}).items()}

        def corrected(gradient: Any, theta: Any, parties: slice) -> Any:
            assert correct is not None
            assert not isinstance(correct, Affine)
            if beside is None:
                return correct(gradient, theta)
            return correct(gradient, theta, Named({n: v[parties] for n, v in native.items()}))

        hook: Correction | None = corrected if correct is not None else None
        if isinstance(correct, Affine):
            hook = replace(correct, shift=own(correct.shift))
        start = np.asarray(parameters, self.learner.dtype)
        begin = {name: value[lead] for name, value in (slots or {}).items()}
        if isinstance(local, Private):
            steps = np.full(len(self.parties), local.steps)
            rows, whence = self.all_rows, partial(self._chance, next(self.calls))
            trained, kept = train_privately(self.learner, start, rows, local, hook, begin, whence)
        else:
            feed = self.feed(local)
            steps = feed.steps
            trained, kept = self.learner.train(start, feed, local, hook, begin, not self.alone)
        with np.errstate(over="ignore", invalid="ignore"):
            fine = np.isfinite(np.vecdot(trained, trained))
        for i in np.flatnonzero(~fine).tolist():
            if not np.isfinite(trained[i]).all():
                what, remedy = "training diverged: the parameters are no longer finite", "Lower the local learning rate"
                self.fail(i, ContributionError(what, party=self.parties[i], round=self.round, remedy=remedy))
        if self.alone:
            return Trained(trained[0], int(steps[0]), {n: v[0] for n, v in kept.items()})
        return Trained(trained, steps[:, None], kept)

    def _chance(self, call: int, position: int) -> Chance:
        """Where the sample and the noise of a party's training come from."""
        purpose = "private", self.round, self.parties[position], *range(call)  # each call another
        if not self.secret:
            return keyed.generator(self.setup.seed, *purpose)
        known = blake3()  # all that the answer depends on: asked otherwise, on other rows, it draws other noise
        x, y = self.all_rows[position]
        for named in (self.received, self.memory, {"x": x, "y": y}):
            for name in sorted(named):
                known.update(name.encode() + b"\0" + np.ascontiguousarray(named[name]).tobytes())
        return Stream(derived(self.secret, *purpose, known.hexdigest()))

    def _over_all(self, of: Callable[..., Array], parameters: Array) -> Array:
        """A function of parameters and rows over all training rows, ``[k, ...]``."""
        feed = Feed(self.all_rows, np.zeros(len(self.parties), np.uint64))
        parameters, parts = np.asarray(parameters, self.learner.dtype), []
        for parties, x, y, weights in feed.stacked(self.learner.takes):
            theta = parameters[parties] if parameters.ndim == 2 else parameters
            parts.append(of(np.broadcast_to(theta, (len(x), theta.shape[-1])), x, y, weights))
        whole: Array = np.concatenate(parts)
        return whole[0] if self.alone else whole


@dataclass(frozen=True, eq=False, kw_only=True)
class At(Work):
    """A party at work."""

    alone: ClassVar[bool] = True

    train_rows: Table  # the rows to learn from
    test_rows: Table  # those held out
    encode: Callable[[Table], tuple[Array, Array]]  # from one of the two to features ``[n, p]`` and labels ``[n]``

    @property
    def party(self) -> str:
        """Its name."""
        return self.parties[0]

    @property
    def examples(self) -> int:
        return self.train_rows.rows

    @property
    def all_rows(self) -> Sequence[tuple[Array, Array]]:
        return (self.rows(),)

    def rows(self) -> tuple[Array, Array]:
        """Features ``[n, p]`` and labels ``[n]`` of the training rows; a ContributionError if there are none."""
        if not self.train_rows.rows:
            raise no_row(self.party)
        return self.encode(self.train_rows)

    def held_out(self) -> tuple[Array, Array]:
        """Features and labels of the rows held out; there may be none."""
        return self.encode(self.test_rows)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stack(Work):
    """Several parties at work at once; those with more rows come first, and none has no row."""

    data: Sequence[tuple[Array, Array]]  # each one's features and labels

    @property
    def all_rows(self) -> Sequence[tuple[Array, Array]]:
        return self.data


def no_row(party: str) -> ContributionError:
    """The error of a party that has nothing to learn from."""
    return ContributionError("the party has no row to learn from", party=party)
