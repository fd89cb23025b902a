"""Simulation on one machine."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from hansa.aggregation.reduce import BLOCK, Block, Reduction
from hansa.contribution import Array, Arrival, Ask, Contributions, Json, Total, Values
from hansa.data.contract import check
from hansa.data.population import Population
from hansa.data.source import read
from hansa.data.table import Table
from hansa.errors import ContractError, HansaError, StudyError, UsageError
from hansa.federation import Federation
from hansa.learners.base import Engine
from hansa.methods.base import Setup
from hansa.methods.course import Course, Progress
from hansa.party import Crowd, Outcome, Party
from hansa.run import Event, Run, drive, new_id, now

_STACKED = 1 << 19  # parameters of all parties of a stack together
A = TypeVar("A")
B = TypeVar("B")


class Local:
    """Parties in this process, each with its table; the same work and the same bits as deployed.

    Args:
        parties: party names with tables, or with files to read; or a `Population`.
        seed: instead of the federation's.
        folder: where the run is kept; nowhere if None.
        every: checkpoint into the folder after every so many exchanges.
        resume: a run of the same federation, to go on from where it stopped.
        follow: called with each event as it happens.
        engine: ``"stacked"`` trains many parties at once, ``"resident"`` one after the other with one model;
            the learner picks if None. What was picked is an event of the run.
        workers: threads; as many as there are cores if None. They change no bit.
        test: the table on which a central evaluation scores the model.
    """

    def __init__(
        self,
        parties: Mapping[str, Table | str | Path] | Population,
        *,
        seed: int | None = None,
        folder: str | Path | None = None,
        every: int = 10,
        resume: Run | None = None,
        follow: Callable[[Event], None] | None = None,
        engine: Engine | None = None,
        workers: int | None = None,
        test: Table | Mapping[str, Array] | None = None,
    ) -> None:
        if every < 1:
            raise UsageError(f"a checkpoint after every {every} exchanges", remedy="Say 1 or more")
        self._resume = resume
        self._tables: Mapping[str, Table] = (
            parties
            if isinstance(parties, Population)
            else {
                name: table if isinstance(table, Table) else read(table)
                for name, table in sorted(parties.items())
            }
        )
        self._engine, self._workers = engine, workers or os.cpu_count() or 1
        self._test = test if test is None or isinstance(test, Table) else Table(test)
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
            engine = self._pick(course, run, book)
            crowd = Crowd(self._tables, course)
            exchange = LocalExchange(course, crowd, run.memories, engine, self._workers, self._test)
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

    def _pick(self, course: Course, run: Run, book: Book) -> Engine:
        """The engine: as it was picked before, as it was told, or as the learner prefers.

        Raises:
            UsageError: if the parties cannot be stacked, and were to be.
        """
        for event in run.events:
            if event.kind == "engine":
                picked: Engine = event.body["engine"]
                return picked
        engine, reason = course.learner.prefers
        if not course.method.stacks:
            engine, reason = "resident", f"{course.method.kind} works party by party"
        if self._engine == "stacked" and (course.learner.unstackable or not course.method.stacks):
            raise UsageError(
                f"parties cannot be stacked: {course.learner.unstackable or reason}",
                remedy='Leave engine="stacked" out',
            )
        engine, reason = (self._engine, "as told") if self._engine else (engine, reason)
        book.event("engine", engine=engine, reason=reason)
        return engine

    def _resolve(self, federation: Federation) -> Setup:
        if isinstance(self._tables, Population):
            table = self._tables.table
            check(table, federation.contract)
            return federation.resolve({self._tables.names[0]: table.schema()}, self._tables.names)
        setup = federation.resolve({n: table.schema() for n, table in self._tables.items()})
        for name, table in self._tables.items():
            try:
                check(table, federation.contract)
            except ContractError as error:
                error.party = name
                raise
        return setup


class LocalExchange:
    """Asks in, arrivals out: stacks of parties, or one after the other, on the cores of this machine.

    Args:
        course: the run's.
        crowd: its parties.
        memories: what each remembers.
        engine: ``"stacked"`` trains a block of parties at once, ``"resident"`` one party after the other.
        workers: threads.
        test: the table of a central evaluation.
    """

    def __init__(
        self,
        course: Course,
        crowd: Crowd,
        memories: Mapping[str, Values] | None = None,
        engine: Engine = "resident",
        workers: int = 1,
        test: Table | None = None,
    ) -> None:
        self._course, self._crowd, self._engine = course, crowd, engine
        self._workers, self._test = workers, test
        self.memories = dict(memories or {})

    def exchange(self, asks: Sequence[Ask]) -> Iterator[Arrival]:
        """One arrival per ask, in order; an arrival without any party counted has no values."""
        for ask in asks:
            yield self._one(ask)

    def _one(self, ask: Ask) -> Arrival:
        started = time.perf_counter()
        if ask.work == "evaluate" and self._course.evaluate.central:
            return Arrival(ask, self._tested(ask), {}, {"seconds": time.perf_counter() - started})
        self._crowd.prepare(ask)
        reduction = Reduction(self._course.signals(ask)[-1].fields, ask.parties)
        excluded: dict[str, str] = {}
        proposed: dict[str, Values] = {}
        leaving = 0
        for block, outcome in self.outcomes(ask):
            reduction.merge(block)
            excluded |= outcome.excluded
            proposed |= outcome.memory
            leaving += outcome.leaving
        for name, memory in proposed.items():
            self.memories[name] = Values({**self.memories.get(name, Values()), **memory})
        metrics = {
            "seconds": time.perf_counter() - started,
            "bytes_out": float(ask.send.nbytes * len(ask.parties)),
            "bytes_in": float(leaving),
        }
        total = reduction.total(len(self._course.setup.parties))
        return Arrival(ask, total, dict(sorted(excluded.items())), metrics)

    def outcomes(self, ask: Ask) -> Iterator[tuple[Block, Outcome]]:
        """Blocks in roster order, summed where they were worked on."""
        yield from outcomes(
            self._crowd, ask, ask.parties, self.memories, self._engine, self._workers
        )

    def _tested(self, ask: Ask) -> Total:
        """The tallies of the global model on the test table."""
        if self._test is None:
            raise UsageError(
                "the evaluation is central, and there is no test table",
                remedy="Say Local(..., test=TABLE), or leave evaluation.central out",
            )
        answer = Party("test", self._test, self._course).tested(ask)
        return Total(answer.values, (), len(self._course.setup.parties), 0.0)


def outcomes(
    crowd: Crowd,
    ask: Ask,
    parties: Sequence[str],
    memories: Mapping[str, Values],
    engine: Engine,
    workers: int,
) -> Iterator[tuple[Block, Outcome]]:
    """The answers of some whole blocks of a cohort, summed block by block, in roster order.

    What is under way at once is bounded by the workers, so that memory is, too.
    """
    course = crowd.course
    fields = course.signals(ask)[-1].fields
    stacks = engine == "stacked" and ask.work == "train" and course.method.stacks
    blocks = [parties[at : at + BLOCK] for at in range(0, len(parties), BLOCK)]

    def stacked(group: Sequence[Sequence[str]]) -> tuple[list[Block], Outcome]:
        names = [name for block in group for name in block]
        outcome = crowd.stack(ask, names, memories)
        counted, at, summed = outcome.counted, 0, []
        for block in group:
            here = set(block)
            end = at + sum(name in here for name in counted.parties[at : at + BLOCK])
            summed.append(Block(fields))
            summed[-1].add_stack(counted.part(at, end))
            at = end
        return summed, replace(outcome, counted=Contributions.none())

    def single(name: str) -> Outcome:
        return crowd.one(ask, name, memories.get(name, Values()))

    threads = workers if course.learner.threads and ask.work == "train" else 1
    if stacks:
        # A stack is as large as the cores share the blocks, but for its parameters: they must fit the cache.
        most = max(1, _STACKED // max(1, course.learner.layout.size * BLOCK))
        size = min(most, -(-len(blocks) // threads))
        groups = [blocks[at : at + size] for at in range(0, len(blocks), size)]
        for summed, outcome in _ahead(stacked, groups, threads):
            yield summed[0], outcome
            yield from ((block, Outcome()) for block in summed[1:])
        return
    answers = _ahead(single, parties, threads)
    for names in blocks:
        block = Block(fields)
        for outcome in islice(answers, len(names)):
            for i, name in enumerate(outcome.counted.parties):
                block.add(name, outcome.counted.one(i))
            yield Block(fields), replace(outcome, counted=Contributions.none())
        yield block, Outcome()


def _ahead(work: Callable[[A], B], items: Sequence[A], workers: int) -> Iterator[B]:
    """The results in order, at most one more than there are workers ahead of who takes them."""
    if workers < 2 or len(items) < 2:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[B]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


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
