"""Simulation on one machine."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeAlias

from hansa.backends.book import Book
from hansa.backends.clock import Clock
from hansa.backends.exchange import LocalExchange
from hansa.backends.fork import forked
from hansa.backends.room import Room
from hansa.contribution import Array, Json
from hansa.data.contract import check
from hansa.data.population import Population
from hansa.data.source import read
from hansa.data.table import Table
from hansa.errors import ContractError, HansaError, PrivacyError, StudyError, UsageError
from hansa.federation import Federation
from hansa.learners.base import Engine
from hansa.methods.base import Setup
from hansa.methods.course import Course
from hansa.methods.fedbuff import FedBuff
from hansa.party import Crowd
from hansa.run import Event, Run, decided, new_id

Parties: TypeAlias = Mapping[str, Table | str | Path] | Population


@dataclass(kw_only=True, eq=False, repr=False)
class Local:
    """Parties in this process, each with its table; the same work and the same bits as deployed.

    Args:
        parties: party names with tables, or with files to read; or a `Population`.
        seed: instead of the federation's.
        folder: where the run is kept; nowhere if None.
        every: checkpoint into the folder after every so many exchanges; rounds, if all are kept.
        resume: a run of the same federation, to go on from where it stopped.
        follow: called with each event as it happens.
        engine: ``"stacked"`` trains many parties at once, ``"resident"`` one after the other with one model;
            the learner picks if None. What was picked is an event of the run.
        device: ``"cuda"``, say, for a learner that can use it.
        workers: threads; as many as there are cores if None. They change no bit.
        test: the table on which a central evaluation scores the model.
        clock: how long parties take and when they fail, in virtual time; none is ever late without it.
        keep: keep every checkpoint that is written, so that runs can be forked from its round.
        fork: a run from whose state another one begins, of this federation; only the model must be alike.
        replay: a run whose decisions (who was asked, and who was not counted) are repeated.
        masks: carry secure sums out as parties and a coordinator would, masks, shares and signatures included;
            without, the same sums are computed directly."""

    kind: ClassVar[str] = "local"

    parties: Parties = field(kw_only=False)
    seed: int | None = None
    folder: str | Path | None = None
    every: int = 10
    resume: Run | None = None
    follow: Callable[[Event], None] | None = None
    engine: Engine | None = None
    device: str = "cpu"
    workers: int | None = None
    test: Table | Mapping[str, Array] | None = None
    clock: Clock | None = None
    keep: bool = False
    fork: Run | None = None
    replay: Run | None = None
    masks: bool = False

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"a checkpoint after every {self.every} exchanges", remedy="Say 1 or more")
        self._tables: Mapping[str, Table] = (
            self.parties
            if isinstance(self.parties, Population)
            else {n: t if isinstance(t, Table) else read(t) for n, t in sorted(self.parties.items())}
        )

    def run(self, federation: Federation) -> Run:
        """Run it to its end, or go on from where another run of the same federation stopped. Raises StudyError if the
        run to resume is of another federation; PrivacyError if noise of rounds that were run already would be used
        again; DataError naming the party whose table does not fit; RunError if the run cannot go on; what happened so
        far is kept."""
        if self.seed is not None:
            federation = federation.model_copy(update={"seed": self.seed})
        resume, setup = self.resume, self._resolve(federation)
        if self.clock is not None:
            self.clock.knows(setup.parties)
        course, run = federation.course(setup), resume or Run(new_id(federation.name), federation)
        if run.federation.hash != federation.hash:
            forms = (json.loads(other.to_json()) for other in (run.federation, federation))
            what = f"the run to resume is of another federation: {'; '.join(_differing(*forms))}"
            raise StudyError(what, remedy="Resume with the study and the seed that it was started with")
        if run.setup not in (None, setup):
            remedy = "Resume with the tables that it was started with"
            raise StudyError("the run to resume is among other parties, or other columns", remedy=remedy)
        begun = run.progress.version if run.progress else 0
        if federation.noised and any(e.kind == "asked" and e.body["version"] > begun for e in run.events):
            what = "the run went on beyond this state of it, and what hides the later rounds would be drawn again"
            raise PrivacyError(what, remedy="Resume its latest state, or fork it: its guarantee then speaks of both")
        book = Book(run, self.folder, self.every, self.follow, self.keep)
        run.progress = run.progress or (forked(course, run, self.fork) if self.fork else course.begin())
        try:
            if not run.events:
                whole: dict[str, Json] = {"run": run.id, "backend": self.kind, "name": federation.name}
                if self.fork is not None and self.fork.progress is not None:
                    whole |= {"forked": self.fork.id, "forked_round": self.fork.progress.round}
                book.event("created", **whole, federation=federation.hash)
            if run.setup is None:
                book.event("resolved", setup=setup.to_json())
            if resume is not None:
                book.event("resumed", version=run.progress.version)
            exchange = self._exchange(federation, course, run, self._pick(course, run, book))
            with closing(self._room(exchange.room, book)) as exchange.room:
                run.progress = exchange.drive(federation, book, run.progress)
        except KeyboardInterrupt:
            book.close("stopped", reason="interrupted")
            raise
        except HansaError as error:
            book.close("failed", reason=str(error))
            raise
        book.close("finished", reason=run.progress.reason, round=run.progress.round)
        return run

    def _exchange(self, federation: Federation, course: Course, run: Run, engine: Engine) -> LocalExchange:
        """The exchange of a run; raises StudyError if the decisions to repeat are about somebody who is no party."""
        parties, made_by, pace = course.setup.parties, LocalExchange, federation.pace
        made = decided(self.replay) if self.replay else {}
        asked = {name for decision in made.values() for name in (*decision.parties, *decision.counted)}
        if unknown := sorted(asked - set(parties)):
            what = f"the run to replay asked {unknown[0]!r}, who is not among the parties"
            raise StudyError(what, remedy="Replay with the parties of that run")
        if isinstance(course.method, FedBuff) or self.clock or (pace.late and made):
            from hansa.backends.buffered import BufferedExchange  # which is a local one

            made_by = BufferedExchange
        masks = federation.rules(len(parties)) if self.masks else None
        if self.masks and masks is None:
            remedy = "Leave masks out, or end a chain in secure_sum()"
            raise UsageError("there are no secure sums to put masks on", remedy=remedy)
        return made_by(
            course,
            Crowd(self._tables, course),
            run,
            engine=engine,
            workers=self.workers or os.cpu_count() or 1,
            test=self.test if self.test is None or isinstance(self.test, Table) else Table(self.test),
            clock=self.clock,
            deadline=federation.cohort.deadline,
            decisions=made,
            masks=masks,
            pace=pace,
        )

    def _room(self, here: Room, book: Book) -> Room:
        """Where the parties work: here."""
        return here

    def _pick(self, course: Course, run: Run, book: Book) -> Engine:
        """The engine: as it was picked before, as it was told, or as the learner prefers; raises UsageError if the
        parties cannot be stacked, and were to be."""
        if self.device != "cpu":
            course.learner.on(self.device)
        for event in run.events:
            if event.kind == "engine":
                picked: Engine = event.body["engine"]
                return picked
        engine, reason = course.learner.prefers
        if not course.method.stacks:
            engine, reason = "resident", f"{course.method.kind} works party by party"
        if self.engine == "stacked" and (course.learner.unstackable or not course.method.stacks):
            remedy = 'Leave engine="stacked" out'
            raise UsageError(f"parties cannot be stacked: {course.learner.unstackable or reason}", remedy=remedy)
        engine, reason = (self.engine, "as told") if self.engine else (engine, reason)
        device = {} if self.device == "cpu" else {"device": self.device}
        book.event("engine", engine=engine, reason=reason, **device)
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


def _differing(there: Json, here: Json, at: str = "") -> Iterator[str]:
    """The dotted keys in which two canonical forms differ, with what either says."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differing(there.get(key), here.get(key), f"{at}.{key}" if at else key)
    elif there != here:
        long = isinstance(there, dict | list) or isinstance(here, dict | list)
        yield f"{at} differs" if long else f"{at} was {there!r} and is {here!r}"
