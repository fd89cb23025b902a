"""Simulation on a Ray cluster: long-lived actors, a shard of the cohort each, one reduction a round.

An actor holds the parties (one object in the cluster's store, mapped and not copied) and the course. It sums
whole blocks of the cohort, and the driver adds the blocks in roster order, as `hansa.Local` does: the bits are
the same whatever the number of actors, and whichever of them are lost on the way."""

import inspect
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from hansa import study
from hansa.aggregation.reduce import BLOCK
from hansa.backends.book import Book
from hansa.backends.local import Local, Parties
from hansa.backends.room import Room, Summed
from hansa.contribution import Algebra, Ask, Values
from hansa.errors import HansaError, RunError, StudyError, UnreachableError, UsageError
from hansa.federation import Federation
from hansa.party import Crowd, Outcome, together
from hansa.run import Run
from hansa.task import Task

_AHEAD = 2  # shards that an actor has before it, so that it need not wait for the driver
_GRACE = 5.0  # seconds that the first actor waits for the others
_LARGEST = 1 << 26  # bytes that come back at once, unless a block alone is larger
_PATIENCE = 60.0  # seconds in which an actor must have begun
_TRIES = 3  # of a shard, before its work is taken for what kills the actors


class Ray(Local):
    """Parties simulated by the actors of a Ray cluster; the same bits as `Local`.

    Args:
        address: ``"auto"`` for the cluster that this process or this machine is connected to, or a new one on
            this machine if there is none; ``"local"`` for a new one; or a cluster's ``"HOST:PORT"``. What was
            started here is ended with the run.
        parties: as in `Local`.
        actors: processes, of one core each; if None as many as the cluster has cores, and the roster blocks.
        options: those of `Local`, but for ``workers``.

    Raises UsageError if an option is not what it must be."""

    kind: ClassVar[str] = "ray"

    def __init__(self, address: str, parties: Parties, *, actors: int | None = None, **options: Any) -> None:
        if not isinstance(address, str):
            raise UsageError("Ray wants an address first", remedy='Say hs.Ray("auto", parties)')
        if options.get("device", "cpu") != "cpu":
            raise UsageError("actors work on cores, and on no other device", remedy="Say hs.Local")
        if "workers" in options or (actors is not None and actors < 1):
            raise UsageError("actors are 1 or more, and work on one core each", remedy="Say actors=N, or nothing")
        super().__init__(parties, **options)
        self._address, self._count = address, actors

    def run(self, federation: Federation) -> Run:
        """As `Local.run`. Raises HansaError if Ray is not installed; StudyError if no other process could import a part
        of the federation; UnreachableError if no cluster is at the address; RunError: also, if actors are lost again
        and again."""
        self._files = _files(federation)
        with _connected(self._address, self._count) as self._ray:
            return super().run(federation)

    def _room(self, here: Room, book: Book) -> Room:
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        count = self._count or max(1, min(cores, -(-len(self._tables) // BLOCK)))
        course = here.crowd.course  # each actor makes its own model
        said = self._ray.put((replace(course, task=_portable(course.task)), here.engine))
        told = (self._files, [said, self._ray.put(self._tables)])
        return Actors(self._ray, count, told, here, book)


class Worker:
    """What an actor is: a room with the parties, for the whole run."""

    _room: Room

    def do(self, verb: str, *said: Any) -> Any:
        """One of the verbs below; an error of the tree is an answer, and comes back whole."""
        try:
            return getattr(self, verb)(*said)
        except HansaError as error:
            return error

    def begin(self, files: Sequence[str], told: Sequence[Any]) -> bool:
        """Take the course and the parties from the store; true when that is done; raises StudyError if the study's code
        is not on this node."""
        try:
            for file in files:
                study.run_module(Path(file))
            (course, engine), tables = import_module("ray").get(list(told))
            _portable(course.task)
        except Exception as error:  # whatever the author's modules raise when they are imported
            what = f"an actor cannot import the study: {str(error).splitlines()[0]}"
            raise StudyError(what, remedy="Move the code to a file that every node of the cluster can import") from None
        self._room = Room(Crowd(tables, course), engine, 1)
        return True

    def outcomes(self, *said: Any) -> Summed:
        """The sums of a shard, and what else there is to say of its parties."""
        blocks, outcomes = zip(*self._room.outcomes(*said), strict=True)
        return [block for some in blocks for block in some if block.parties], together(outcomes)

    def answers(self, *said: Any) -> list[Outcome]:
        """As in `Room`."""
        return list(self._room.answers(*said))


class Actors(Room):
    """Where parties work: the actors of a cluster. One that is lost is replaced, and its shards are repeated; until the
    new one is there, if it ever is, the others do its work. There are ``count`` of them, each begins with what it is
    ``told``, and the book says when a shard was repeated. A HansaError if an actor cannot begin."""

    def __init__(self, ray: Any, count: int, told: Any, here: Room, book: Book) -> None:
        super().__init__(here.crowd, here.engine, count)
        self._ray, self._told, self._book = ray, told, book
        self._names: dict[Any, str] = {}  # of all actors
        self._ready: list[Any] = []
        self._coming: dict[Any, Any] = {}
        self._turn, self._why = 0, f"the cluster had no free core for {_PATIENCE:g} s"
        try:
            for _ in range(count):
                self._start()
            self._someone()
            if coming := list(self._coming):
                for ref in ray.wait(coming, num_returns=len(coming), timeout=_GRACE)[0]:
                    self._join(ref)
        except BaseException:
            self.close()
            raise
        book.event("actors", count=len(self._ready), asked=count)

    def outcomes(self, ask: Ask, blocks: Sequence[Sequence[str]], memories: Mapping[str, Values]) -> Iterator[Summed]:
        fields = self.crowd.course.signals(ask)[-1].fields
        gathered = memories or any(field.algebra is Algebra.GATHER for field in fields)
        size = 8 * sum(f.size for f in fields) * (BLOCK if gathered else 1)
        for summed, outcome in self._all("outcomes", ask, blocks, memories, _LARGEST // (size + 1)):
            for block in summed:  # what lies in the store is read-only
                block.sums = {name: total.copy() for name, total in block.sums.items()}
            yield summed, outcome

    def answers(self, ask: Ask, parties: Sequence[str], memories: Mapping[str, Values]) -> Iterator[Outcome]:
        for answers in self._all("answers", ask, parties, memories, BLOCK):
            yield from answers

    def close(self) -> None:
        for actor in self._names:
            self._ray.kill(actor)

    def _all(
        self, verb: str, ask: Ask, items: Sequence[Any], memories: Mapping[str, Values], most: int
    ) -> Iterator[Any]:
        """The answers to shards of at most so many items, in order; under way are as many as actors, which bounds
        memory."""
        told = self._ray.put(ask)
        # What nobody would look at does not travel.
        looked = ask.work != "evaluate" or self.crowd.course.scores_own
        size = max(1, min(most, -(-len(items) // len(self._ready))))
        shards = [items[at : at + size] for at in range(0, len(items), size)]
        # By what is waited for: which shard, and who has it.
        flights: dict[Any, tuple[int, Any]] = {}
        answers, tries, begun = dict[int, Any](), Counter[int](), 0

        def send(number: int) -> None:
            self._someone()
            tries[number] += 1
            actor = self._ready[self._turn % len(self._ready)]
            self._turn += 1
            shard = shards[number]
            each = shard if verb == "answers" else chain.from_iterable(shard)
            mine = {name: memories[name] for name in each if looked and name in memories}
            flights[actor.do.remote(verb, told, shard, mine)] = number, actor

        for number in range(len(shards)):
            while begun < len(shards) and begun - number < _AHEAD * max(1, len(self._ready)):
                send(begun)
                begun += 1
            while number not in answers:
                [ref] = self._ray.wait([*flights, *self._coming], num_returns=1)[0]
                if ref in self._coming:
                    self._join(ref)
                    continue
                done, actor = flights.pop(ref)
                if (answer := self._had(ref)) is not None:
                    answers[done] = answer
                    continue
                self._replace(actor, ask)
                lost = [ref for ref, (_, other) in flights.items() if other is actor]
                for again in sorted([done, *(flights.pop(ref)[0] for ref in lost)]):
                    if tries[again] == _TRIES:
                        what = f"{_TRIES} actors were lost over the same parties: {self._why}"
                        remedy = "If memory ran out, say fewer actors; then resume the run"
                        raise RunError(what, round=ask.round, remedy=remedy)
                    send(again)
            yield answers.pop(number)

    def _had(self, ref: Any) -> Any:
        """What an actor answered; None if it was lost. An error that it met is raised here."""
        try:
            answer = self._ray.get(ref)
        except self._ray.exceptions.RayTaskError:
            raise  # a defect
        except self._ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            self._why = " ".join(dict.fromkeys((lines[0], lines[-1])))[:300]
            return None
        if isinstance(answer, HansaError):
            raise answer
        return answer

    def _replace(self, lost: Any, ask: Ask) -> None:
        """Start another actor; write down that the shards of the lost one are repeated."""
        self._ready.remove(lost)
        self._ray.kill(lost)  # it may only be out of reach
        self._start()
        self._book.event("repeated", **ask.place, actor=self._names.pop(lost), reason=self._why)

    def _start(self) -> None:
        name = f"hansa-{secrets.token_hex(4)}"
        actor = self._ray.remote(Worker).options(name=name, num_cpus=1).remote()
        self._names[actor] = name
        self._coming[actor.do.remote("begin", *self._told)] = actor

    def _join(self, ref: Any) -> None:
        actor = self._coming.pop(ref)
        if self._had(ref) is not None:
            self._ready.append(actor)

    def _someone(self) -> None:
        """Wait until there is an actor; a RunError if there will be none."""
        while not self._ready:
            ready = self._coming and self._ray.wait(list(self._coming), timeout=_PATIENCE)[0]
            if not ready:
                remedy = "See `ray status` for free cores; every node needs this version of hansa"
                raise RunError(f"no actor could be had: {self._why}", remedy=remedy)
            self._join(ready[0])


def _portable(task: Task) -> Task:
    """The task without a model in it; its code is imported here; a UsageError if that lives in its maker's process."""
    load = getattr(task, "load", None)
    return task if load is None else type(task)(**load().model_dump())


def _files(federation: Federation) -> list[str]:
    """The study files that parts of the federation were loaded from: actors run them, too. Raises StudyError if a part,
    UsageError if a module was typed into a session, where no other process finds it."""
    _portable(federation.task)
    parts = (federation.task, federation.method, federation.cohort, *federation.aggregation.stages)
    inside = [held for part in parts for held in (vars(part), part.__pydantic_private__ or {})]
    homes: dict[str, Any] = {}
    for value in chain(parts, *(held.values() for held in inside)):
        made = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
        homes[made.__module__ or ""] = made
    if "__main__" in homes:
        what = f"{homes['__main__'].__qualname__} lives in this session, and actors are other processes"
        raise StudyError(what, remedy="Move it to a file, and import it from there")
    files = [sys.modules[home].__file__ for home in homes if home.startswith(study.PREFIX)]
    return [str(Path(str(file)).resolve()) for file in files]


@contextmanager
def _connected(address: str, actors: int | None) -> Iterator[Any]:
    """Ray, connected to the cluster; what is begun here is ended here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to Ray's makers
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise HansaError("Ray is not installed", remedy="pip install 'hansa[ray]'") from None
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in ("auto", "local", there):
            what = f"this process is connected to the cluster at {there}, not to {address}"
            raise UsageError(what, remedy='Say "auto", or ray.shutdown() first')
        yield ray
        return
    quietly = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address == "auto":
            with suppress(ConnectionError):
                ray.init(address="auto", **quietly)
        elif address != "local":
            host, _, port = address.removeprefix("ray://").rpartition(":")
            there = host.strip("[]"), int(port)
            socket.create_connection(there, timeout=5).close()  # Ray tries for minutes
            ray.init(address=address, **quietly)
        if not ray.is_initialized():
            cores = max(os.cpu_count() or 1, actors or 1)
            ray.init(address="local", num_cpus=cores, include_dashboard=False, **quietly)
    except (OSError, ValueError, RuntimeError) as error:
        what = f"there is no Ray cluster at {address!r}: {' '.join(str(error).split())[:300]}"
        remedy = 'Say HOST:PORT as `ray start --head` told it, or "local" for one on this machine'
        raise UnreachableError(what, remedy=remedy) from None
    try:
        yield ray
    finally:
        ray.shutdown()
