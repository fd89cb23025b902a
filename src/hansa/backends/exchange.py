"""Asks in, arrivals out, among simulated parties."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hansa.aggregation.reduce import BLOCK, Reduction
from hansa.backends.book import Book
from hansa.backends.clock import Clock
from hansa.backends.masks import Hidden
from hansa.backends.memories import Latest, Memories
from hansa.backends.room import Room
from hansa.cohort import All
from hansa.contribution import Array, Arrival, Ask, Total, Values
from hansa.data.table import Table
from hansa.errors import RunError, UsageError
from hansa.federation import Federation
from hansa.learners.base import Engine
from hansa.methods.base import State
from hansa.methods.course import Course, Progress
from hansa.party import Crowd, Party
from hansa.run import UNDER_WAY, Decision, Run, arrived, asked, draw, too_few
from hansa.secure.terms import Rules


@dataclass(eq=False)
class LocalExchange:
    """Asks in, arrivals out: stacks of parties, or one after the other, on this machine's cores; arguments as
    `hansa.Local`'s."""

    course: Course  # the run's
    crowd: Crowd  # its parties
    run: Run | None = None  # what happened before: what parties remember, how late it is, and what was under way
    engine: Engine = "resident"
    workers: int = 1
    test: Table | None = None
    clock: Clock | None = None
    deadline: float = math.inf  # virtual seconds after which a party is left out of its round
    # of another run, to be repeated, by the number of the exchange
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    masks: Rules | None = None  # the rules of secure sums that are carried out as between machines
    pace: All = field(default_factory=All)  # the cohort that says when an exchange closes

    def __post_init__(self) -> None:
        run = self.run
        self.room = Room(self.crowd, self.engine, self.workers)
        self._settled = Memories(run.memories if run else None)
        self.memories: Mapping[str, Values] = self._settled
        self._counted: Sequence[Mapping[str, Values]] = ()
        begun = run.progress.version if run and run.progress else 0
        arrived = [e.body for e in (run.events if run else ()) if e.kind == "arrived"]
        clocks = [b["clock"] for b in arrived if "clock" in b and b["version"] < begun]
        self._now = float(clocks[-1]) if clocks else 0.0

    def drive(self, federation: Federation, book: Book, progress: Progress) -> Progress:
        """The schedule: one ask, one arrival, written down in the book, from this progress on until the course is done;
        the last progress. Raises RunError if too few parties could be counted, or the model is no longer finite."""
        while (ask := self.course.ask(progress)) is not None:
            made = self.decisions.get(ask.version)
            ask = replace(ask, parties=made.parties, among=made.among) if made else self.draw(federation, ask)
            book.event("asked", **asked(ask))
            arrival = next(self.exchange([ask]))
            for party, reason in arrival.excluded.items():
                book.event("refused", party=party, round=ask.round, work=ask.work, reason=reason)
            if few := too_few(federation, arrival.ask, len(arrival.total.parties), arrival.excluded):
                raise few
            progress = self.course.apply(progress, ask, arrival.total)
            book.event("arrived", **arrived(arrival))
            if ask.work == "evaluate":
                clock = {n: v for n, v in arrival.metrics.items() if n == "clock"}
                book.event("metrics", round=ask.round, **progress.metrics, **clock)
            if (begun := self.under_way()) is not None:
                progress = replace(progress, states={**progress.states, UNDER_WAY: begun})
            del arrival  # a large total is not kept through the next exchange
            book.checkpoint(progress, self.memories)
        return progress

    def exchange(self, asks: Sequence[Ask]) -> Iterator[Arrival]:
        """One arrival per ask, in order; an arrival without any party counted has no values."""
        for ask in asks:
            started = time.perf_counter()
            try:
                arrival = self._one(ask)
            except MemoryError:
                what, few = "the machine's memory does not hold the round", "cohort.size, method.local.batch_size"
                remedy = f'Lower {few} or the number of workers, or say task.precision = "float32"'
                raise RunError(what, round=ask.round, remedy=remedy) from None
            clock = {"clock": self._now} if self.clock else {}
            yield replace(arrival, metrics={**arrival.metrics, "seconds": time.perf_counter() - started, **clock})

    def draw(self, federation: Federation, ask: Ask) -> Ask:
        """The ask with its cohort, which may be empty if who works on it is decided on the way."""
        return draw(federation, self.course, ask)

    def under_way(self) -> State | None:
        """Work that was begun and has not arrived, to be kept with the progress: here, none."""
        return None

    def _one(self, ask: Ask) -> Arrival:
        if ask.work == "evaluate" and self.course.evaluate.central:
            return Arrival(ask, self._tested(ask))
        signal, excluded = self.course.signals(ask)[-1], self._absent(ask)
        # Who is absent leaves a gap in his block, and moves nobody.
        cuts = (ask.parties[at : at + BLOCK] for at in range(0, len(ask.parties), BLOCK))
        blocks = [[name for name in names if name not in excluded] for names in cuts]
        reduction, hidden = Reduction(signal.fields, ask.parties), None
        if signal.hidden and (self.masks or signal.buckets):
            made = self.decisions.get(ask.version)
            hidden = Hidden(ask, signal, self.masks, self.course.setup.seed, made.buckets if made else ())
            present = [name for block in blocks for name in block]
            outcomes = hidden.counted(self.room.answers(ask, present, self.memories))
        else:
            outcomes = self.room.outcomes(ask, [block for block in blocks if block], self.memories)
        leaving, proposed = 0, list[Mapping[str, Values]]()
        for summed, outcome in outcomes:
            for block in summed:
                reduction.merge(block)
            excluded |= outcome.excluded
            proposed.append(outcome.memory)
            leaving += outcome.leaving
        self.remember(proposed)
        metrics = {"bytes_out": float(ask.send.nbytes * len(ask.parties)), "bytes_in": float(leaving)}
        population = ask.among or len(self.course.setup.parties)
        total, lost = hidden.total(population) if hidden else (reduction.total(population), {})
        return Arrival(ask, total, dict(sorted({**excluded, **lost}.items())), metrics)

    def remember(self, proposed: Sequence[Mapping[str, Values]]) -> None:
        """Settle what the counted propose to remember. What the latest checkpoint refers to stays readable until the
        next: an exchange that is broken off changes nothing."""
        for memories in self._counted:
            self._settled.settle(memories)
        self._counted, self.memories = proposed, Latest(proposed, self._settled)

    def _absent(self, ask: Ask) -> dict[str, str]:
        """Who is not counted, as recorded."""
        if (made := self.decisions.get(ask.version)) is None:
            return {}
        return {p: made.excluded.get(p, "it was not counted") for p in ask.parties if p not in made.counted}

    def durations(self, ask: Ask, parties: Sequence[str], turn: int) -> Array:
        """Virtual seconds that each party's work on the ask takes, ``[k]``."""
        up, local = self.course.signals(ask)[-1].nbytes, getattr(self.course.method, "local", None)
        epochs = (local.epochs or 1) if local is not None else 1
        work = epochs * np.asarray([float(self.crowd.size(name)) for name in parties])
        return (self.clock or Clock()).durations(parties, self.course.setup.seed, turn, work, ask.send.nbytes, up)

    def _tested(self, ask: Ask) -> Total:
        """The tallies of the global model on the test table."""
        if self.test is None:
            remedy = "Say Local(..., test=TABLE) or --test FILE, or leave evaluation.central out"
            raise UsageError("the evaluation is central, and there is no test table", remedy=remedy)
        answer = Party("test", self.test, self.course).tested(ask)
        return Total(answer.values, (), len(self.course.setup.parties), 0.0)
