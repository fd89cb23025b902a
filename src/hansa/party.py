"""A party at work: the one way in which an ask becomes an answer, in simulation and beside real data."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from hansa import keyed
from hansa.contribution import Array, Ask, Values
from hansa.data.preprocessing import Encoding
from hansa.data.table import Table
from hansa.errors import HansaError
from hansa.methods.base import Answer, At
from hansa.methods.course import Course


class Party:
    """A data holder in one run: its name and its table.

    Args:
        name: as in the roster.
        table: its rows, target included.
        course: the run's.
    """

    def __init__(self, name: str, table: Table, course: Course) -> None:
        self.name, self.table, self.course = name, table, course
        self._matrices: dict[bytes, tuple[Array, Array]] = {}

    def answer(self, ask: Ask, memory: Values) -> Answer:
        """Do the work and return what leaves, already checked against what was declared.

        Args:
            ask: what is asked.
            memory: what this party remembers of the run; unchanged by this call.

        Raises:
            HansaError: naming this party and the round, if the work cannot be done.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # `check` says it, once
                answer = self.course.work(ask, self._at(ask, memory))
            self.course.signals(ask)[-1].check(answer.contribution)
        except HansaError as error:
            error.party = error.party or self.name
            error.round = ask.round if error.round is None else error.round
            raise
        return answer

    @cached_property
    def split(self) -> tuple[Table, Table]:
        """The rows to learn from, and those held out."""
        evaluate, table = self.course.evaluate, self.table
        if evaluate.split is not None:
            held = np.asarray([value == "test" for value in table.column(evaluate.split)])
            return table.take(np.flatnonzero(~held)), table.take(np.flatnonzero(held))
        random = keyed.generator(self.course.setup.seed, "holdout", self.name)
        order = random.permutation(table.rows)
        held_out = round(evaluate.holdout * table.rows)
        return table.take(np.sort(order[held_out:])), table.take(np.sort(order[:held_out]))

    def _at(self, ask: Ask, memory: Values) -> At:
        setup = self.course.setup
        encoding = setup.encoding
        if "encoding.mean" in ask.send:
            mean, scale = ask.send["encoding.mean"], ask.send["encoding.scale"]
            encoding = Encoding(setup.numbers, mean, scale, setup.categories)
        train, test = self.split
        return At(
            party=self.name,
            round=ask.round,
            seed=setup.seed,
            task=self.course.task,
            setup=setup,
            learner=self.course.learner,
            received=ask.send,
            memory=memory,
            train_rows=train,
            test_rows=test,
            encode=lambda rows: self._encode(rows, rows is test, encoding),
        )

    def _encode(self, rows: Table, held_out: bool, encoding: Encoding) -> tuple[Array, Array]:
        """Features and labels; kept, since the encoding stays the same for many rounds."""
        key = bytes([held_out]) + encoding.mean.tobytes() + encoding.scale.tobytes()
        if key not in self._matrices:
            if len(self._matrices) > 2:
                self._matrices.clear()
            self._matrices[key] = encoding.matrix(rows), self.course.task.labels(rows)
        return self._matrices[key]
