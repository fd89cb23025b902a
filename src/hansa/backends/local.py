"""Simulation on one machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from hansa.aggregation.reduce import Reduction
from hansa.contribution import Arrival, Ask, Json, Values
from hansa.data.contract import check
from hansa.data.source import read
from hansa.data.table import Table
from hansa.errors import ContractError, HansaError, StudyError, UsageError
from hansa.federation import Federation
from hansa.methods.base import Setup
from hansa.methods.course import Course, Progress
from hansa.party import Party
from hansa.run import Event, Run, drive, new_id, now


class Local:
    """Parties in this process, each with its table; the same work and the same bits as deployed.

    Args:
        parties: party names with tables, or with files to read.
        seed: instead of the federation's.
        folder: where the run is kept; nowhere if None.
        every: checkpoint into the folder after every so many exchanges.
        resume: a run of the same federation, to go on from where it stopped.
        follow: called with each event as it happens.
    """

    def __init__(
        self,
        parties: Mapping[str, Table | str | Path],
        *,
        seed: int | None = None,
        folder: str | Path | None = None,
        every: int = 10,
        resume: Run | None = None,
        follow: Callable[[Event], None] | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"a checkpoint after every {every} exchanges", remedy="Say 1 or more")
        self._resume = resume
        self._tables = {
            name: table if isinstance(table, Table) else read(table)
            for name, table in sorted(parties.items())
        }
        self._seed, self._every, self._follow = seed, every, follow
        self._folder = None if folder is None else Path(folder)

    def run(self, federation: Federation) -> Run:
        """Run it to its end, or go on from where another run of the same federation stopped.

        Raises:
            StudyError: if the run to resume is of another federation.
            DataError: naming the party whose table does not fit.
            RunError: if the run cannot go on; what happened so far is kept.
        """
        if self._seed is not None:
            federation = federation.model_copy(update={"seed": self._seed})
        resume, setup = self._resume, self._resolve(federation)
        course = federation.course(setup)
        run = resume or Run(new_id(federation.name), federation)
        if run.federation.hash != federation.hash:
            raise StudyError(
                "the run to resume is of another federation",
                remedy="Resume with the study and the seed that it was started with",
            )
        if run.setup not in (None, setup):
            raise StudyError(
                "the run to resume is among other parties, or other columns",
                remedy="Resume with the tables that it was started with",
            )
        book = Book(run, self._folder, self._every, self._follow)
        progress = run.progress or course.begin()
        exchange = LocalExchange(course, self._tables, run.memories)
        try:
            if not run.events:
                book.event(
                    "created",
                    run=run.id,
                    backend="local",
                    name=federation.name,
                    federation=federation.hash,
                )
            if run.setup is None:
                book.event("resolved", setup=setup.to_json())
            if resume is not None:
                book.event("resumed", version=progress.version)
            run.progress = drive(federation, course, exchange, book, progress)
        except KeyboardInterrupt:
            book.event("stopped", reason="interrupted")
            book.save()
            raise
        except HansaError as error:
            book.event("failed", reason=str(error))
            book.save()
            raise
        book.event("finished", reason=run.progress.reason, round=run.progress.round)
        book.save()
        return run

    def _resolve(self, federation: Federation) -> Setup:
        setup = federation.resolve({n: table.schema() for n, table in self._tables.items()})
        for name, table in self._tables.items():
            try:
                check(table, federation.contract)
            except ContractError as error:
                error.party = name
                raise
        return setup


class LocalExchange:
    """Asks in, arrivals out, one party after the other in roster order."""

    def __init__(
        self,
        course: Course,
        tables: Mapping[str, Table],
        memories: Mapping[str, Values] | None = None,
    ) -> None:
        self._course = course
        self._parties = {name: Party(name, table, course) for name, table in tables.items()}
        self.memories = dict(memories or {})

    def exchange(self, asks: Sequence[Ask]) -> Iterator[Arrival]:
        """One arrival per ask, in order; an arrival without any party counted has no values."""
        for ask in asks:
            yield self._one(ask)

    def _one(self, ask: Ask) -> Arrival:
        started = time.perf_counter()
        reduction = Reduction(self._course.signals(ask)[-1].fields)
        excluded: dict[str, str] = {}
        proposed: dict[str, Values] = {}
        leaving = 0
        for name in ask.parties:
            try:
                answer = self._parties[name].answer(ask, self.memories.get(name, Values()))
                reduction.add(name, answer.contribution)
            except HansaError as error:
                excluded[name] = (
                    f"field {error.field!r}: {error.message}" if error.field else error.message
                )
                continue
            leaving += answer.contribution.values.nbytes
            if answer.memory:
                proposed[name] = answer.memory
        total = reduction.total(len(self._course.setup.parties))
        for name, memory in proposed.items():
            self.memories[name] = Values({**self.memories.get(name, Values()), **memory})
        metrics = {
            "seconds": time.perf_counter() - started,
            "bytes_out": float(ask.send.nbytes * len(ask.parties)),
            "bytes_in": float(leaving),
        }
        return Arrival(ask, total, excluded, metrics)


class Book:
    """The record of a simulated run, in memory and, if there is a folder, on disk."""

    def __init__(
        self,
        run: Run,
        folder: Path | None,
        every: int,
        follow: Callable[[Event], None] | None,
    ) -> None:
        self._run, self._folder, self._every, self._follow = run, folder, every, follow

    def event(self, kind: str, **body: Json) -> None:
        """Append an event and tell whoever follows."""
        event = Event(len(self._run.events) + 1, now(), kind, body)
        self._run.events.append(event)
        self._run.note(event)
        if self._follow is not None:
            self._follow(event)

    def checkpoint(self, progress: Progress, memories: Mapping[str, Values]) -> None:
        """Keep it; write it every so many exchanges."""
        self._run.progress, self._run.memories = progress, dict(memories)
        if progress.version % self._every == 0:
            self.save()

    def save(self) -> None:
        """Write the run's folder."""
        if self._folder is not None:
            self._run.save(self._folder / self._run.id)
