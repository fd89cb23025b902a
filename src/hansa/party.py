"""Parties at work: the one way in which an ask becomes answers, in simulation and beside real data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np

from hansa import keyed
from hansa.contribution import Array, Ask, Contribution, Contributions, Rows, Values
from hansa.data.population import Population
from hansa.data.preprocessing import Encoding
from hansa.data.table import Table
from hansa.errors import HansaError
from hansa.learners.base import Learner, Shared, sizes
from hansa.methods.base import Answer, GradientMethod
from hansa.methods.course import Course
from hansa.methods.work import At, Stack, no_row
from hansa.privacy.noise import Stream, derived, uniform

_NOTHING = Values()


@runtime_checkable
class Stackable(Protocol):
    """What simulated parties remember, if it can be had of many at once."""

    def stack(self, parties: Sequence[str], begins: Mapping[str, Array]) -> dict[str, Array] | None:
        """What these remember, or begin with, ``[k, ...]``; None if they do not remember alike."""


class Party:
    """A data holder in one run: its name and its table.

    Args:
        name: as in the roster.
        table: its rows, target included.
        course: the run's."""

    def __init__(self, name: str, table: Table, course: Course) -> None:
        self.name, self.table, self.course = name, table, course
        self.own: dict[str, Any] = {}  # what an `At` has here that is not the course's
        self._matrices: dict[bytes, tuple[Array, Array]] = {}

    def again(self, attempt: int) -> Party:
        """The same in another attempt, whose noise has nothing to do with that of the others."""
        if attempt == self.course.attempt:
            return self
        _, other = self.split, copy(self)
        other.course = replace(self.course, attempt=attempt)
        return other

    def answer(self, ask: Ask, memory: Values) -> Answer:
        """Do the work and return what leaves, already checked against what was declared.

        Args:
            ask: what is asked.
            memory: what this party remembers of the run; unchanged by this call.

        Raises HansaError naming this party and the round, if the work cannot be done."""
        try:
            answer = self.unchecked(ask, memory)
            self.course.signals(ask)[-1].check(answer.contribution)
        except HansaError as error:
            error.party = error.party or self.name
            error.round = ask.round if error.round is None else error.round
            raise
        return answer

    def unchecked(self, ask: Ask, memory: Values) -> Answer:
        """The same, for whoever opens and checks it at once."""
        with np.errstate(over="ignore", invalid="ignore"):  # `check` says it, once
            return self.course.work(ask, self.at(ask, memory))

    @cached_property
    def split(self) -> tuple[Table, Table]:
        """The rows to learn from, and those held out."""
        evaluate, table = self.course.evaluate, self.table
        if evaluate.split is not None:
            held = np.asarray([value == "test" for value in table.column(evaluate.split)])
            return table.take(np.flatnonzero(~held)), table.take(np.flatnonzero(held))
        kept, held = _held_out(self.course, self.name, table.rows)
        return (table if kept is None else table.take(kept)), table.take(held)

    def rows(self, encoding: Encoding) -> tuple[Array, Array]:
        """Features and labels to learn from; raises ContributionError if there are none."""
        if not self.split[0].rows:
            raise no_row(self.name)
        return self._encode(encoding, self.split[0])

    def tested(self, ask: Ask) -> Contribution:
        """The tallies of the global model on all rows of the table: the central evaluation."""
        return self.course.work(ask, replace(self.at(ask, Values()), test_rows=self.table)).contribution

    def at(self, ask: Ask, memory: Values) -> At:
        """The party with all that its work on an ask may use."""
        told, (train, test) = _told(self.course, ask) | self.own | {"parties": (self.name,)}, self.split
        encode = partial(self._encode, _encoding(self.course, ask))
        return At(**told, memory=memory, train_rows=train, test_rows=test, encode=encode)

    def _encode(self, encoding: Encoding, rows: Table) -> tuple[Array, Array]:
        """Features and labels; kept, since the encoding stays the same for many rounds."""
        key = bytes([rows is self.split[1]]) + encoding.mean.tobytes() + encoding.scale.tobytes()
        if key not in self._matrices:
            if len(self._matrices) > 2:
                self._matrices.clear()
            self._matrices[key] = _encoded(self.course, encoding, rows)
        return self._matrices[key]


class Crowd:
    """The simulated parties of a run, and what stacks of them need.

    Args:
        parties: each one's table; a `Population` encodes its shared table once.
        course: the run's."""

    def __init__(self, parties: Mapping[str, Table], course: Course) -> None:
        self._tables, self.course = parties, course
        split = course.evaluate.split is not None
        self._population = parties if isinstance(parties, Population) and not split else None
        self._parties: dict[str, Party] = {}
        self._encoding = course.setup.encoding
        self._shared: tuple[bytes, tuple[Array, Array]] = (b"", (np.empty(0), np.empty(0)))

    def party(self, name: str) -> Party:
        """One of them; of a population it is made anew each time."""
        if isinstance(self._tables, Population):
            return Party(name, self._tables[name], self.course)
        if name not in self._parties:
            self._parties[name] = Party(name, self._tables[name], self.course)
        return self._parties[name]

    def rows(self, name: str, encoding: Encoding) -> tuple[Array, Array]:
        """Features and labels that a party learns from; raises ContributionError if there are none."""
        if self._population is None:
            return self.party(name).rows(encoding)
        x, y = self._shared[1]
        own = self._population.range(name)
        x, y = x[own], y[own]
        kept, _ = _held_out(self.course, name, len(y))
        if kept is not None:
            x, y = x[kept], y[kept]
        if not len(y):
            raise no_row(name)
        return x, y

    def size(self, name: str) -> int:
        """How many rows a party learns from."""
        if self._population is None:
            return self.party(name).split[0].rows
        own = self._population.range(name)
        rows = own.stop - own.start
        return int(rows - round(_share(self.course) * rows))

    def prepare(self, ask: Ask) -> None:
        """Encode what is shared, before parties are stacked for this ask."""
        encoding = self._encoding = _encoding(self.course, ask)
        if self._population is not None:
            key = encoding.mean.tobytes() + encoding.scale.tobytes() + b"."
            if key != self._shared[0]:
                self._shared = (key, _encoded(self.course, encoding, self._population.table))

    def one(self, ask: Ask, name: str, memory: Values) -> Outcome:
        """One party's answer."""
        try:
            answer = self.party(name).unchecked(ask, memory)
        except HansaError as error:
            return Outcome(excluded={name: error.reason})
        stack = Contributions.of(name, answer.contribution)
        opened, excluded = self.course.open(ask, stack)
        kept = {name: answer.memory} if answer.memory and not excluded else {}
        return Outcome(opened, kept, excluded, stack.values.nbytes)

    def stack(self, ask: Ask, names: Sequence[str], memory: Mapping[str, Values]) -> Outcome:
        """The answers of parties whose work is done at once; those that remember alike make a stack."""
        method, alike = self.course.method, dict[frozenset[str], list[str]]()
        begins: Mapping[str, Array] = {}  # what those remember who do not yet
        if isinstance(method, GradientMethod):
            begins = Values(method.begins(ask.send)).named("train")
        longest_first, rows, excluded = self._longest_first(names)
        if not longest_first:
            return Outcome(excluded=excluded)
        remembered = memory.stack(longest_first, begins) if isinstance(memory, Stackable) else None
        if remembered is None:
            known = {name: memory.get(name, _NOTHING) for name in names}
            for name in names:
                alike.setdefault(frozenset(known[name]).difference(begins), []).append(name)
            if len(alike) > 1:
                return together([self.stack(ask, few, known) for few in alike.values()])
            remembered = _stacked([known[name] for name in longest_first], begins)
        at = Stack(**_told(self.course, ask), memory=Values(remembered), parties=longest_first, data=rows)
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                answer = self.course.work(ask, at)
        except HansaError as error:
            if len(longest_first) > 1:  # whose it is shows when each is by itself
                return together([self.stack(ask, [name], memory) for name in names])
            return Outcome(excluded={**excluded, **dict.fromkeys(longest_first, error.reason)})
        excluded |= {longest_first[i]: error.reason for i, error in at.failed.items()}
        contribution = answer.contribution
        stack = Contributions(longest_first, contribution.values, np.asarray(contribution.weight))
        if at.failed:
            stack = stack.take([i for i in range(len(longest_first)) if i not in at.failed])
        leaving = stack.values.nbytes
        opened, refused = self.course.open(ask, stack)
        kept: Mapping[str, Array] = answer.memory
        if len(opened.parties) < len(longest_first):
            counted = [i for i, name in enumerate(longest_first) if name in set(opened.parties)]
            kept = {name: value[counted] for name, value in kept.items()}
        return Outcome(opened, Rows(opened.parties if kept else (), kept), excluded | refused, leaving)

    def _longest_first(
        self, names: Sequence[str]
    ) -> tuple[tuple[str, ...], Sequence[tuple[Array, Array]], dict[str, str]]:
        """Who can work, those with more rows first; their rows; and who cannot, and why."""
        excluded: dict[str, str] = {}
        rows: Sequence[tuple[Array, Array]]
        if self._population is not None and not _share(self.course):
            rows = Shared(*self._shared[1], *self._population.ranges(names))
            for at in np.flatnonzero(rows.starts == rows.stops).tolist():
                excluded[names[at]] = no_row(names[at]).reason
        else:
            own: dict[str, tuple[Array, Array]] = {}
            for name in names:
                try:
                    own[name] = self.rows(name, self._encoding)
                except HansaError as error:
                    excluded[name] = error.reason
            names, rows = list(own), list(own.values())
        learner = self.course.learner
        for at, name in enumerate(names if type(learner).check is not Learner.check else ()):
            try:
                if name not in excluded:
                    learner.check(*rows[at])
            except HansaError as error:
                excluded[name] = error.reason
        order = np.argsort(-sizes(rows), kind="stable").tolist()
        fine = [at for at in order if names[at] not in excluded]
        ordered = tuple(names[at] for at in fine)
        if isinstance(rows, Shared):
            return ordered, Shared(rows.x, rows.y, rows.starts[fine], rows.stops[fine]), excluded
        return ordered, [rows[at] for at in fine], excluded


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of asking some parties."""

    counted: Contributions = field(default_factory=Contributions)  # their contributions, unpacked, in no order
    memory: Mapping[str, Values] = field(default_factory=dict)  # what each of them proposes to remember
    excluded: Mapping[str, str] = field(default_factory=dict)  # who is not counted, and why
    leaving: int = 0  # bytes that left the parties


def _told(course: Course, ask: Ask) -> dict[str, Any]:
    known = {"task": course.task, "setup": course.setup, "learner": course.learner, "secret": course.chance}
    return {**known, "round": ask.round, "received": ask.send}


def _encoding(course: Course, ask: Ask) -> Encoding:
    if "encoding.mean" in ask.send:
        return course.setup.scaled(ask.send["encoding.mean"], ask.send["encoding.scale"])
    return course.setup.encoding


def _encoded(course: Course, encoding: Encoding, rows: Table) -> tuple[Array, Array]:
    x, y = encoding.features(rows), course.task.labels(rows)
    if course.task.flat:
        x = x.reshape(len(x), encoding.width)
    wanted = course.learner.takes(x.dtype)
    return (x.astype(wanted) if x.dtype.kind == "f" and x.dtype != wanted else x), y


def _share(course: Course) -> float:
    """How much of its rows each party holds out; nothing that depends on how many it has."""
    return 0.0 if course.evaluate.central else course.evaluate.holdout


def _held_out(course: Course, name: str, rows: int) -> tuple[Array | None, Array]:
    """Numbers of a party's rows to learn from, None for all of them, and of those held out."""
    share, random = _share(course), keyed.generator(course.setup.seed, "holdout", name)
    if share and course.privacy.unit == "example":  # each row by itself: one more moves no other
        chance = Stream(derived(course.secret, "holdout", name)) if course.secret else random
        held = uniform(chance, (rows,)) < share
        return np.flatnonzero(~held), np.flatnonzero(held)
    if not (held_out := round(share * rows)):
        return None, np.empty(0, np.intp)
    order = random.permutation(rows)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _stacked(memories: Sequence[Values], begins: Mapping[str, Array]) -> dict[str, Array]:
    """What parties remember, ``[k, ...]``; of those who do not yet, what they begin with."""
    stacked = {}
    for name, like in {n: value for one in memories for n, value in one.items()}.items():
        stacked[name] = rows = np.empty((len(memories), *like.shape), like.dtype)
        for i, one in enumerate(memories):
            rows[i] = one[name] if name in one else begins[name]
    return stacked


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Several stacks' outcomes as one."""
    some = [one.counted for one in outcomes if one.counted.parties]
    memory, excluded = dict[str, Values](), dict[str, str]()
    for one in outcomes:
        memory |= one.memory
        excluded |= one.excluded
    counted = Contributions()
    if some:
        values = {n: np.concatenate([one.values[n] for one in some]) for n in some[0].values}
        parties = tuple(name for one in some for name in one.parties)
        weights = np.concatenate([one.weights for one in some])
        counted = Contributions(parties, Values(values), weights)
    return Outcome(counted, memory, excluded, sum(one.leaving for one in outcomes))
