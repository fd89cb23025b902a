"""Simulation on one machine."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from hansa.aggregation.reduce import BLOCK, Block, Reduction
from hansa.aggregation.ring import SecureSum
from hansa.backends.clock import Clock
from hansa.backends.memories import Latest, Memories
from hansa.contribution import Array, Arrival, Ask, Contributions, Json, Total, Values
from hansa.data.contract import check
from hansa.data.population import Population
from hansa.data.source import read
from hansa.data.table import Table
from hansa.errors import ContractError, HansaError, RunError, StudyError, UsageError
from hansa.federation import Federation
from hansa.learners.base import Engine
from hansa.methods.base import Method, Setup, State
from hansa.methods.course import Course, Progress
from hansa.methods.fedbuff import FedBuff
from hansa.party import Crowd, Outcome, Party
from hansa.run import UNDER_WAY, Decision, Event, Run, decided, draw, drive, new_id, now
from hansa.secure import rehearsal
from hansa.secure.terms import Rules

_LARGE = 1 << 23  # parameters of a model of which one at a time is under way, for the sake of memory
_STACKED = 1 << 19  # parameters of all parties of a stack together
A = TypeVar("A")
B = TypeVar("B")


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
            without, the same sums are computed directly.
    """

    kind: ClassVar[str] = "local"

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
        device: str = "cpu",
        workers: int | None = None,
        test: Table | Mapping[str, Array] | None = None,
        clock: Clock | None = None,
        keep: bool = False,
        fork: Run | None = None,
        replay: Run | None = None,
        masks: bool = False,
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
        self._device = device
        self._test = test if test is None or isinstance(test, Table) else Table(test)
        self._seed, self._every, self._follow = seed, every, follow
        self._clock, self._keep, self._fork = clock, keep, fork
        self._masks = masks
        self._decisions = {} if replay is None else decided(replay)
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
        if self._clock is not None:
            self._clock.knows(setup.parties)
        course = federation.course(setup)
        run = resume or Run(new_id(federation.name), federation)
        if run.federation.hash != federation.hash:
            forms = (json.loads(other.to_json()) for other in (run.federation, federation))
            raise StudyError(
                f"the run to resume is of another federation: {'; '.join(_differing(*forms))}",
                remedy="Resume with the study and the seed that it was started with",
            )
        if run.setup not in (None, setup):
            raise StudyError(
                "the run to resume is among other parties, or other columns",
                remedy="Resume with the tables that it was started with",
            )
        book = Book(run, self._folder, self._every, self._follow, self._keep)
        run.progress = run.progress or self._begin(course, run)
        try:
            if not run.events:
                book.event(
                    "created",
                    run=run.id,
                    backend=self.kind,
                    name=federation.name,
                    federation=federation.hash,
                    **self._origin(),
                )
            if run.setup is None:
                book.event("resolved", setup=setup.to_json())
            if resume is not None:
                book.event("resumed", version=run.progress.version)
            engine = self._pick(course, run, book)
            with self._exchange(federation, course, run, engine, book) as exchange:
                run.progress = drive(federation, course, exchange, book, run.progress, self._decisions)
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

    @contextmanager
    def _exchange(
        self, federation: Federation, course: Course, run: Run, engine: Engine, book: Book
    ) -> Iterator[LocalExchange]:
        """The exchange of a run, and what must be put away after it."""
        made = self._decisions
        if made and isinstance(course.method, FedBuff):
            raise UsageError(
                "a buffered run is repeated by its clock, not by its record",
                remedy="Leave replay out, and give the clock and the seed of that run",
            )
        asked = {name for decision in made.values() for name in decision.parties}
        if unknown := sorted(asked - set(course.setup.parties)):
            raise StudyError(
                f"the run to replay asked {unknown[0]!r}, who is not among the parties",
                remedy="Replay with the parties of that run",
            )
        options = Options(
            engine,
            self._workers,
            self._test,
            self._clock,
            federation.cohort.deadline,
            masks=_rules(federation, course) if self._masks else None,
        )
        crowd = Crowd(self._tables, course)
        if isinstance(course.method, FedBuff):
            from hansa.backends.buffered import BufferedExchange  # which is a local one

            exchange: LocalExchange = BufferedExchange(course, crowd, run, options, course.method)
        else:
            exchange = LocalExchange(course, crowd, run, replace(options, decisions=made))
        with self._room(exchange.room, book) as exchange.room:
            yield exchange

    def _room(self, here: Room, book: Book) -> AbstractContextManager[Room]:
        """Where the parties work: here."""
        return nullcontext(here)

    def _begin(self, course: Course, run: Run) -> Progress:
        """The progress to begin with: nothing yet, or that of the run that is forked.

        Raises:
            StudyError: if its model is another one.
        """
        begun = course.begin()
        if self._fork is None:
            return begun
        kept = self._fork.progress
        if kept is None or kept.parameters.shape != begun.parameters.shape:
            raise StudyError(
                "the run to fork has no model of this shape",
                remedy="Fork with the task and the features that it was started with",
            )
        there = self._fork.federation
        states = {**begun.states, "moments": kept.states["moments"]}
        theirs, ours = kept.states["train"], begun.states["train"]
        alike = _alike(there.method, course.method)
        if alike:  # it goes on as it would have; what other methods know means nothing to this one
            run.memories, states["train"] = self._fork.memories, theirs
            if UNDER_WAY in kept.states:
                states[UNDER_WAY] = kept.states[UNDER_WAY]
        else:
            values = {**ours.values, "parameters": theirs.values["parameters"]}
            states["train"] = replace(ours, round=theirs.round, values=Values(values))
        if alike and there.aggregation == course.aggregation:
            states["stages"] = kept.states["stages"]
        elif alike:
            run.memories = {
                party: Values({n: v for n, v in memory.items() if not n.startswith("stages.")})
                for party, memory in run.memories.items()
            }
        return course.again(replace(kept, states=states, best=None, since=0, reason=""))

    def _origin(self) -> dict[str, Json]:
        """What the record says of where the run came from."""
        if self._fork is None or self._fork.progress is None:
            return {}
        return {"forked": self._fork.id, "forked_round": self._fork.progress.round}

    def _pick(self, course: Course, run: Run, book: Book) -> Engine:
        """The engine: as it was picked before, as it was told, or as the learner prefers.

        Raises:
            UsageError: if the parties cannot be stacked, and were to be.
        """
        if self._device != "cpu":
            course.learner.on(self._device)
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
        device = {} if self._device == "cpu" else {"device": self._device}
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


@dataclass(frozen=True)
class Options:
    """How a simulated exchange is carried out.

    Args:
        engine: ``"stacked"`` trains a block of parties at once, ``"resident"`` one party after the other.
        workers: threads.
        test: the table of a central evaluation.
        clock: the virtual one, if there is any.
        deadline: virtual seconds after which a party is left out of its round.
        decisions: of another run, to be repeated, by the number of the exchange.
        masks: the rules of secure sums that are carried out as between machines.
    """

    engine: Engine = "resident"
    workers: int = 1
    test: Table | None = None
    clock: Clock | None = None
    deadline: float = math.inf
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    masks: Rules | None = None


class LocalExchange:
    """Asks in, arrivals out: stacks of parties, or one after the other, on the cores of this machine.

    Args:
        course: the run's.
        crowd: its parties.
        run: what happened before: what parties remember, and how late it is.
        options: how.
    """

    def __init__(
        self, course: Course, crowd: Crowd, run: Run | None = None, options: Options = Options()
    ) -> None:
        self._course, self._crowd, self._options = course, crowd, options
        self.room = Room(crowd, options.engine, options.workers)
        self._settled = Memories(run.memories if run else None)
        self.memories: Mapping[str, Values] = self._settled
        self._counted: Sequence[Mapping[str, Values]] = ()
        begun = run.progress.version if run and run.progress else 0
        arrived = [e.body for e in (run.events if run else ()) if e.kind == "arrived"]
        clocks = [b["clock"] for b in arrived if "clock" in b and b["version"] < begun]
        self._now = float(clocks[-1]) if clocks else 0.0

    def exchange(self, asks: Sequence[Ask]) -> Iterator[Arrival]:
        """One arrival per ask, in order; an arrival without any party counted has no values."""
        for ask in asks:
            started = time.perf_counter()
            try:
                arrival = self._one(ask)
            except MemoryError:
                raise RunError(
                    "the machine's memory does not hold the round",
                    round=ask.round,
                    remedy="Lower cohort.size, method.local.batch_size or the number of workers, or "
                    'say task.precision = "float32"',
                ) from None
            clock = {"clock": self._now} if self._options.clock else {}
            seconds = time.perf_counter() - started
            yield replace(arrival, metrics={**arrival.metrics, "seconds": seconds, **clock})

    def draw(self, federation: Federation, ask: Ask) -> Ask:
        """The cohort of the federation."""
        return draw(federation, self._course, ask)

    def under_way(self) -> State | None:
        """Nothing: who does not answer in time is left out."""
        return None

    def _one(self, ask: Ask) -> Arrival:
        if ask.work == "evaluate" and self._course.evaluate.central:
            return Arrival(ask, self._tested(ask))
        excluded = self._absent(ask)
        if self._options.masks and self._course.signals(ask)[-1].hidden:
            return self._under_masks(ask, excluded, self._options.masks)
        reduction = Reduction(self._course.signals(ask)[-1].fields, ask.parties)
        leaving, proposed = 0, list[Mapping[str, Values]]()
        for block, outcome in self.outcomes(ask, [n for n in ask.parties if n not in excluded]):
            reduction.merge(block)
            excluded |= outcome.excluded
            proposed.append(outcome.memory)
            leaving += outcome.leaving
        self.remember(proposed)
        metrics = {"bytes_out": float(ask.send.nbytes * len(ask.parties)), "bytes_in": float(leaving)}
        total = reduction.total(len(self._course.setup.parties))
        return Arrival(ask, total, dict(sorted(excluded.items())), metrics)

    def _under_masks(self, ask: Ask, excluded: dict[str, str], rules: Rules) -> Arrival:
        """An arrival of which nobody saw a part; its sums are those without masks, to the bit."""
        fields = self._course.signals(ask)[-1].fields
        vectors, proposed = dict[str, Array](), list[Mapping[str, Values]]()
        present = [name for name in ask.parties if name not in excluded]
        for outcome in self.room.answers(ask, present, self.memories):
            excluded |= outcome.excluded
            proposed.append(outcome.memory)
            for i, name in enumerate(outcome.counted.parties):
                mine = [outcome.counted.values[f.name][i].reshape(-1) for f in fields]
                vectors[name] = np.concatenate(mine)
        names = [name for name in ask.parties if name in vectors]
        model = bytes.fromhex(ask.digest)[:32]
        run = f"{self._course.setup.seed}"
        summed = rehearsal.summed(ask.parties, vectors, rules, run, ask.version + 1, model)
        sizes = np.cumsum([math.prod(f.shape or ()) for f in fields])[:-1]
        parts = zip(fields, np.split(summed.astype(np.float64), sizes), strict=True)
        values = Values({f.name: part.reshape(f.shape or ()) for f, part in parts})
        self.remember(proposed)
        metrics = {
            "bytes_out": float(ask.send.nbytes * len(ask.parties)),
            "bytes_in": float(sum(vector.nbytes for vector in vectors.values())),
        }
        total = Total(values, tuple(names), len(self._course.setup.parties), float(len(names)))
        return Arrival(ask, total, dict(sorted(excluded.items())), metrics)

    def remember(self, proposed: Sequence[Mapping[str, Values]]) -> None:
        """Settle what the counted propose to remember.

        What the latest checkpoint refers to stays readable until the next: an exchange that is broken off
        changes nothing.
        """
        for memories in self._counted:
            self._settled.settle(memories)
        self._counted, self.memories = proposed, Latest(proposed, self._settled)

    def outcomes(self, ask: Ask, present: Sequence[str]) -> Iterator[tuple[Block, Outcome]]:
        """Blocks in roster order, of those who are present, summed where they were worked on."""
        yield from self.room.outcomes(ask, whole_blocks(ask.parties, present), self.memories)

    def _absent(self, ask: Ask) -> dict[str, str]:
        """Who is not counted, as recorded or by the clock, which goes on until the last one has answered."""
        if ask.version in self._options.decisions:
            return dict(self._options.decisions[ask.version].excluded)
        clock, setup = self._options.clock, self._course.setup
        if clock is None or ask.work != "train":
            return {}
        taken = self.durations(ask, ask.parties, ask.version)
        there = clock.there(ask.parties, setup.seed, ask.version, self._now)
        fails = clock.fails(ask.parties, setup.seed, ask.version)
        deadline, absent, end = self._options.deadline, dict[str, str](), 0.0
        for i, name in enumerate(ask.parties):
            late = bool(taken[i] > deadline)
            if not there[i]:
                absent[name] = "it was not available"
            elif fails[i]:
                absent[name] = "it failed in the middle of the round"
            elif late:
                absent[name] = f"it would have taken {taken[i]:.4g} s, and the deadline is {deadline:g} s"
            waited = deadline if there[i] and (fails[i] or late) else float(taken[i]) * there[i]
            end = max(end, waited)
        self._now += end
        return absent

    def durations(self, ask: Ask, parties: Sequence[str], turn: int) -> Array:
        """Virtual seconds that each party's work on the ask takes, ``[k]``."""
        clock = self._options.clock or Clock()
        wire = self._course.signals(ask)[-1].wire
        up = sum(math.prod(f.shape or ()) * np.dtype(f.dtype).itemsize for f in wire)
        local = getattr(self._course.method, "local", None)
        epochs = (local.epochs or 1) if local is not None else 1
        work = epochs * np.asarray([float(self._crowd.size(name)) for name in parties])
        return clock.durations(parties, self._course.setup.seed, turn, work, ask.send.nbytes, up)

    def _tested(self, ask: Ask) -> Total:
        """The tallies of the global model on the test table."""
        if self._options.test is None:
            raise UsageError(
                "the evaluation is central, and there is no test table",
                remedy="Say Local(..., test=TABLE) or --test FILE, or leave evaluation.central out",
            )
        answer = Party("test", self._options.test, self._course).tested(ask)
        return Total(answer.values, (), len(self._course.setup.parties), 0.0)


def _rules(federation: Federation, course: Course) -> Rules:
    """What parties hold a secure sum to: the study's adversary, the largest of its thresholds, and the minimum
    on whose shares of noise its guarantee counts.
    """
    chains = (*federation.aggregation.stages, *federation.statistics.stages)
    thresholds = [stage.threshold for stage in chains if isinstance(stage, SecureSum)]
    if not thresholds:
        raise UsageError(
            "there are no secure sums to put masks on", remedy="Leave masks out, or end a chain in secure_sum()"
        )
    cohort, adversary = federation.cohort, federation.adversary
    least = max(*thresholds, 0.0, cohort.minimum / max(1, cohort.most(len(course.setup.parties))))
    return Rules(
        corrupt=adversary.colluding,
        dropout=max(0.0, 1 - least),
        adversary="malicious" if adversary.coordinator == "malicious" else "curious",
        honest=max(1, min(3, cohort.minimum - adversary.colluding - 1)),
    )


def _alike(there: Method, here: Method) -> bool:
    """Whether what one method knows means the same to the other: but for rates, batches and rounds."""
    if type(there) is not type(here):
        return False
    free = ("lr", "epochs", "batch_size", "shuffle")
    for part in ("local", "server"):
        theirs, ours = getattr(there, part, None), getattr(here, part, None)
        if theirs is not None and ours is not None:
            mine = {key: getattr(theirs, key) for key in free}
            if type(theirs) is not type(ours) or ours.model_copy(update=mine) != theirs:
                return False
            here = here.model_copy(update={part: theirs})
    return here == there


def whole_blocks(asked: Sequence[str], present: Sequence[str]) -> list[Sequence[str]]:
    """Who is present of each block of those who were asked; who is not leaves a gap, and moves nobody."""
    if len(present) == len(asked):
        return [asked[at : at + BLOCK] for at in range(0, len(asked), BLOCK)]
    here = set(present)
    blocks = [asked[at : at + BLOCK] for at in range(0, len(asked), BLOCK)]
    kept = [[name for name in block if name in here] for block in blocks]
    return [block for block in kept if block]


class Room:
    """Where parties work: the threads of this process.

    Args:
        crowd: the parties.
        engine: ``"stacked"`` trains blocks of parties at once, ``"resident"`` one party after the other.
        workers: threads.
    """

    def __init__(self, crowd: Crowd, engine: Engine, workers: int) -> None:
        self.crowd, self.engine, self._workers = crowd, engine, workers
        self._pool = ThreadPoolExecutor(workers)  # its threads begin with the first work, and end with it

    def outcomes(
        self, ask: Ask, blocks: Sequence[Sequence[str]], memories: Mapping[str, Values]
    ) -> Iterator[tuple[Block, Outcome]]:
        """The answers of some blocks of a cohort, summed block by block, in roster order.

        What is under way at once is bounded by the workers, so that memory is, too.
        """
        crowd, course = self.crowd, self.crowd.course
        crowd.prepare(ask)
        fields = course.signals(ask)[-1].fields
        stacks = self._stacks(ask)

        def stacked(group: Sequence[Sequence[str]]) -> tuple[list[Block], Outcome]:
            names = [name for block in group for name in block]
            outcome = crowd.stack(ask, names, memories)
            places = {name: place for place, name in enumerate(outcome.counted.parties)}
            summed = [Block(fields) for _ in group]
            for total, block in zip(summed, group, strict=True):
                total.add_stack(outcome.counted, [places[n] for n in block if n in places])
            return summed, replace(outcome, counted=Contributions.none())

        def single(name: str) -> Outcome:
            return crowd.one(ask, name, memories.get(name, Values()))

        size = course.learner.layout.size
        several = course.learner.threads and ask.work == "train" and (stacks or size < _LARGE)
        threads = self._workers if several else 1
        if not blocks:
            return
        if stacks:
            # A stack is as large as the cores share the blocks, but its parameters must fit the cache.
            most = max(1, _STACKED // max(1, course.learner.layout.size * BLOCK))
            turns = -(-len(blocks) // (most * threads)) * threads
            cuts = [len(blocks) * turn // turns for turn in range(turns + 1)]
            groups = [blocks[a:b] for a, b in pairwise(cuts) if a < b]
            for summed, outcome in self._ahead(stacked, groups, threads):
                yield summed[0], outcome
                yield from ((block, Outcome()) for block in summed[1:])
            return
        everyone = [name for block in blocks for name in block]
        answers = self._ahead(single, everyone, threads, crowd.size)
        for names in blocks:
            block = Block(fields)
            for _ in names:
                outcome = next(answers)
                for i, name in enumerate(outcome.counted.parties):
                    block.add(name, outcome.counted.one(i))
                outcome = replace(outcome, counted=Contributions.none())  # may be large: let go
                yield Block(fields), outcome
            yield block, Outcome()

    def _ahead(
        self, work: Callable[[A], B], items: Sequence[A], threads: int, cost: Callable[[A], int] = lambda _: 0
    ) -> Iterator[B]:
        """The results in order, at most a window of them ahead of who takes them; of a window what costs
        most is begun first, so that no thread is left with it at the end.
        """
        if threads < 2 or len(items) < 2:
            yield from map(work, items)
            return
        for at in range(0, len(items), BLOCK):
            window = items[at : at + BLOCK]
            begun: dict[int, Future[B]] = {}
            try:
                for place in sorted(range(len(window)), key=lambda place: -cost(window[place])):
                    begun[place] = self._pool.submit(work, window[place])
                for place in range(len(window)):
                    yield begun.pop(place).result()
            finally:  # nobody wants the rest of a round that is broken off
                wait([future for future in begun.values() if not future.cancel()])

    def _stacks(self, ask: Ask) -> bool:
        """Whether parties work on this ask many at once."""
        trains = ask.work == "train" and self.crowd.course.method.stacks
        return self.engine == "stacked" and trains

    def answers(self, ask: Ask, parties: Sequence[str], memories: Mapping[str, Values]) -> Iterator[Outcome]:
        """The answers of some parties, not summed, in their order."""
        self.crowd.prepare(ask)
        if self._stacks(ask):
            for at in range(0, len(parties), BLOCK):
                yield self.crowd.stack(ask, parties[at : at + BLOCK], memories)
        else:
            for party in parties:
                yield self.crowd.one(ask, party, memories.get(party, Values()))


def _differing(there: Json, here: Json, at: str = "") -> Iterator[str]:
    """The dotted keys in which two canonical forms differ, with what either says."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted({*there, *here}):
            yield from _differing(there.get(key), here.get(key), f"{at}.{key}" if at else key)
    elif there != here:
        long = isinstance(there, dict | list) or isinstance(here, dict | list)
        yield f"{at} differs" if long else f"{at} was {there!r} and is {here!r}"


class Book:
    """The record of a simulated run, in memory and, if there is a folder, on disk."""

    def __init__(
        self,
        run: Run,
        folder: Path | None,
        every: int,
        follow: Callable[[Event], None] | None,
        keep: bool = False,
    ) -> None:
        self._run, self._folder, self._every, self._follow = run, folder, every, follow
        self._keep = keep

    def event(self, kind: str, **body: Json) -> None:
        """Append an event and tell whoever follows."""
        event = Event(len(self._run.events) + 1, now(), kind, body)
        self._run.events.append(event)
        self._run.note(event)
        if self._follow is not None:
            self._follow(event)

    def checkpoint(self, progress: Progress, memories: Mapping[str, Values]) -> None:
        """Keep it; write it every so many exchanges."""
        self._run.progress, self._run.memories = progress, memories
        over = progress.phase in ("train", "done")  # the round, with its evaluation
        number = progress.round if self._keep else progress.version
        if number % self._every == 0 and (over or not self._keep):
            self.save()

    def save(self) -> None:
        """Write the run's folder."""
        if self._folder is not None:
            self._run.save(self._folder / self._run.id, keep=self._keep)
