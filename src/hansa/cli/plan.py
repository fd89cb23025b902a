"""What a run will take, said before it begins, and how long it will go on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

from rich.filesize import decimal

if TYPE_CHECKING:
    from hansa.federation import Federation
    from hansa.methods.base import Setup
    from hansa.run import Event

_NAMED = 10
_COPIES = 4  # of the parameters, while a party trains: themselves, the gradient, and what arithmetic holds


class Plan(NamedTuple):
    """What a run will take: registered parties, those of a round, the model's parameters; bytes to each party
    of a training round, bytes from each, and bytes of memory, a rough estimate."""

    parties: int
    cohort: int
    parameters: int
    down: int
    up: int
    memory: int

    @classmethod
    def of(cls, federation: Federation, setup: Setup, rows: int) -> Plan:
        """The plan of a federation among known parties that have so many rows together."""
        import numpy as np

        from hansa.aggregation.reduce import BLOCK

        course = federation.course(setup)
        ask = course.ask(replace(course.begin(), phase="train"))
        assert ask is not None
        size, width = course.learner.layout.size, np.dtype(course.learner.dtype).itemsize
        up, cohort = course.signals(ask)[-1].nbytes, len(federation.cohort.draw(setup, 1))
        at_once = min(cohort, BLOCK * (os.cpu_count() or 1))
        data = rows * setup.encoding.width * (8 + width)  # the table, and its features
        kept = len(setup.parties) * len(getattr(federation.method, "memory", ())) * size * width
        total = data + at_once * _COPIES * size * width + 16 * size + kept
        return cls(len(setup.parties), cohort, size, ask.send.nbytes, up, total)

    def __str__(self) -> str:
        each_way = f"{decimal(self.down)} to each and {decimal(self.up)} back"
        all_ = decimal(self.cohort * (self.down + self.up))
        what = f"{self.cohort} of {self.parties} parties in a round, {self.parameters:,} parameters"
        return f"Plan: {what}; {each_way}, {all_} a round; about {decimal(self.memory)} of memory"


class Pace:
    """How fast at most so many rounds go by, from the times in the events: a run may be watched long after."""

    def __init__(self, rounds: int) -> None:
        self._rounds, self._begun, self._seen = rounds, 0.0, 0.0
        self.at = self.done = 0  # the latest round, and how many were seen

    def begin(self, event: Event) -> None:
        """A round is asked for; only the first one seen is looked at."""
        if event.body["work"] == "train" and not self._begun:
            self._begun = _seconds(event)

    def round(self, event: Event) -> None:
        """A round is over."""
        self.at, self.done, self._seen = event.body.get("round", 0), self.done + 1, _seconds(event)

    @property
    def each(self) -> float:
        """Seconds that a round takes, with the evaluations between rounds."""
        return (self._seen - self._begun) / self.done if self.done and self._begun else 0.0

    @property
    def left(self) -> float:
        """Seconds until the last round, if none is saved by stopping early."""
        return self.each * max(0, self._rounds - self.at)


def in_time(seconds: float) -> str:
    """A duration for people, in its two largest units."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def few(names: Sequence[str]) -> str:
    """Names as a sentence has room for them."""
    shown = ", ".join(names[i] for i in range(min(_NAMED, len(names))))
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _seconds(event: Event) -> float:
    return datetime.fromisoformat(event.at).timestamp()
