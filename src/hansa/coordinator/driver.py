"""The machine at work: one queue of events, one transaction for all that are waiting, then the effects."""

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import structlog

from hansa.aggregation.reduce import Reduction
from hansa.aggregation.ring import parted
from hansa.contribution import Array, Contribution, Contributions, Total, Values
from hansa.coordinator import events as ev
from hansa.coordinator.live import Guest, Live, revived
from hansa.coordinator.machine import Machine
from hansa.coordinator.store import INLINE, CoordinatorStore
from hansa.database import Put
from hansa.errors import HansaError, UnreachableError, reason_of
from hansa.run import now
from hansa.secure.coordinator import total
from hansa.wire import tensors

PAGE = 256
"""Events that are handed out at once, and that are kept at hand of each run under way."""

Key = tuple[str, int, str]
"""A blob: run, version, name."""

Over = Callable[[Collection[tuple[str, int]], Collection[str]], None]

LOG = structlog.get_logger("hansa.coordinator")


@dataclass(frozen=True)
class Resume:
    """An operator asks a run that ended without its result to go on; the store knows it."""

    run: str


Waiting = tuple[ev.MachineEvent | Resume, tuple[Put, ...], asyncio.Future[None]]


class Driver:
    """Feeds the machine, commits what it changes, and only then tells anybody.

    Whatever waits when a commit begins goes into it (group commit). All access to the database is
    in one thread. If the database refuses, nothing more is acknowledged and `failed` is set: a
    coordinator that cannot remember stops, and its restart stands where the last commit stood.

    Args:
        store: the coordinator's.
        tell: hands a notice to a party, if it listens.
        over: hears of the exchanges that settled and the runs that ended, before their files go.
        secret: the key that the noise of all runs is derived from.
    """

    def __init__(
        self,
        store: CoordinatorStore,
        tell: Callable[[str, ev.Notice], None],
        over: Over = lambda settled, ended: None,
        secret: bytes = b"",
    ) -> None:
        self.store = store
        self._tell = tell
        self._over = over
        self._queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "store")
        self._bodies: dict[Key, bytes] = {}
        self._tails: dict[str, deque[dict[str, Any]]] = {}
        self._news = asyncio.Condition()
        self.under_way: set[str] = set()
        self.commits = 0
        self._task: asyncio.Task[None] | None = None
        self._alarms: dict[ev.DeadlinePassed, asyncio.TimerHandle] = {}
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._secret = secret
        self.machine = Machine(secret=secret)

    async def start(self) -> None:
        """Restore the machine, do what a restart left undone, and begin."""
        self.machine = await self.read(self._restore)
        self.under_way = set(self.machine.runs)
        await self._carry_out(self.machine.restart(), [])
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop feeding; what was not committed is lost, as in a crash."""
        self.failed.cancel()
        for alarm in self._alarms.values():
            alarm.cancel()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._thread.shutdown()
        self.store.close()

    async def put(self, event: ev.MachineEvent | Resume, *also: Put) -> None:
        """Hand over an event, with further rows for its transaction; returns when all is durable.

        Raises:
            HansaError: what the machine raised.
            UnreachableError: if the coordinator has stopped.
        """
        if self.failed.done():
            raise UnreachableError("the coordinator has stopped")
        await self.post(event, *also)

    async def read(self, query: Callable[..., Any], *args: Any) -> Any:
        """Run a query in the database's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, query, *args)

    async def news(self, seen: int) -> None:
        """Wait until `commits` is no longer what was seen."""
        async with self._news:
            await self._news.wait_for(lambda: self.commits != seen)

    async def events(self, run: str, after: int) -> list[dict[str, Any]]:
        """Rows of a run's events after a number; at most `PAGE` of them."""
        tail = self._tails.get(run)
        if tail and tail[0]["seq"] <= after + 1:
            return [row for row in tail if row["seq"] > after]
        rows: list[dict[str, Any]] = await self.read(
            lambda: self.store.rows("event", "seq", ("seq", after), PAGE, run=run)
        )
        return rows

    async def tensors_of(self, run: str, version: int) -> bytes:
        """What the open ask of a run sends."""
        key = (run, version, "ask")
        if key not in self._bodies:
            self._bodies[key] = await self.read(self.store.read_blob, *key)
        return self._bodies[key]

    async def _loop(self) -> None:
        batch: list[Waiting] = []
        try:
            while True:
                batch = [await self._queue.get()]
                while not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                await self._step(batch)
        except Exception as error:
            LOG.error("the coordinator cannot go on", error=str(error))
            if not self.failed.done():
                self.failed.set_exception(error)
        finally:
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            for _, _, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(UnreachableError("the coordinator has stopped"))

    async def _step(self, batch: Iterable[Waiting]) -> None:
        merged = ev.Effects()
        done: list[asyncio.Future[None]] = []
        for event, also, waiting in batch:
            try:
                if isinstance(event, Resume) or (isinstance(event, ev.Connected) and event.pending):
                    # The store is asked, and must know what the machine knows.
                    await self._carry_out(merged, done)
                    merged, done = ev.Effects(), []
                    completed = await self.read(self._answered, event)
                else:
                    completed = event
                effects = self.machine.handle(completed)
            except HansaError as error:
                if not waiting.done():  # its caller may have left
                    waiting.set_exception(error)
                continue
            effects.changes.extend(also)
            merged.extend(effects)
            done.append(waiting)
        await self._carry_out(merged, done)

    def _answered(self, event: ev.Connected | Resume) -> ev.MachineEvent:
        """The event with what the store says: of the run, or of each unsettled answer."""
        if isinstance(event, Resume):
            return ev.Resumed(self._revive(self.store.run(event.run)))
        pending = []
        for said in event.pending:
            answer = self.store.row("answer", party=event.party, run=said.run, version=said.version)
            applied = self._checkpoint_version(said.run)
            pending.append(replace(said, taken=bool(answer and answer["taken"]), applied=applied))
        return replace(event, pending=tuple(pending))

    def _sum_at_once(self, effects: ev.Effects) -> None:
        """Make the sums whose answers are all at hand, so that the last answer and the end of its round
        are one transaction; whatever is acknowledged is durable all the same.
        """
        later = []
        while effects.reduce:
            run, version, parties = effects.reduce.pop(0)
            fresh = {(b.run, b.version, b.name): b.body for b in effects.blobs}
            at_hand = {**self._bodies, **fresh}
            bodies = [at_hand.get((run, version, f"answer {party}")) for party in parties]
            if sum(INLINE + 1 if body is None else len(body) for body in bodies) > INLINE:
                later.append((run, version, parties))
                continue
            effects.extend(self.machine.handle(self._reduce(run, version, parties, at_hand)))
        effects.reduce = later
        over = set(effects.settled)
        effects.blobs = [blob for blob in effects.blobs if (blob.run, blob.version) not in over]

    async def _carry_out(self, effects: ev.Effects, done: Iterable[asyncio.Future[None]]) -> None:
        """Commit, and then everything else."""
        self._sum_at_once(effects)
        self._over(effects.settled, effects.ended)
        if effects.changes or effects.blobs:
            await self.read(self._commit, effects)
        self._remember(effects)
        for future in done:
            if not future.done():
                future.set_result(None)
        for ticket, taken, reason in effects.receipts:
            if isinstance(ticket, asyncio.Future) and not ticket.done():
                ticket.set_result((taken, reason))
        for party, notice in effects.notices:
            self._tell(party, notice)
        self._set_alarms(effects)
        for run, version, parties in effects.reduce:
            self.post(await self.read(self._reduce, run, version, parties, self._bodies))
        if effects.changes:
            async with self._news:
                self.commits += 1
                self._news.notify_all()

    def _remember(self, effects: ev.Effects) -> None:
        """Which runs are under way as far as it is committed (the machine is a commit ahead), and what the
        open exchanges and those who follow will need, as far as it is small.
        """
        for run in effects.ended:
            self._tails.pop(run, None)
        for change in effects.changes:
            row = dict(change.values)
            if change.table == "run" and "status" in row:
                under_way = row["status"] == "running"
                (self.under_way.add if under_way else self.under_way.discard)(row["id"])
            if change.table == "event" and row["run"] in self.machine.runs:
                self._tails.setdefault(row["run"], deque(maxlen=PAGE)).append(row)
        for key in [k for k in self._bodies if k[:2] in effects.settled or k[0] in effects.ended]:
            del self._bodies[key]
        for blob in effects.blobs:
            if blob.name == "ask" or (blob.name.startswith("answer") and len(blob.body) <= INLINE):
                self._bodies[blob.run, blob.version, blob.name] = blob.body

    def _commit(self, effects: ev.Effects) -> None:
        blobs = [self.store.blob(b.run, b.version, b.name, b.body) for b in effects.blobs]
        self.store.apply([*effects.changes, *blobs])
        for run, version in effects.settled:
            self.store.sweep(run, version)

    def _set_alarms(self, effects: ev.Effects) -> None:
        settled, ended = effects.settled, effects.ended
        over = [key for key in self._alarms if (key.run, key.version) in settled or key.run in ended]
        for key in over:
            self._alarms.pop(key).cancel()
        loop = asyncio.get_running_loop()
        for event, seconds in effects.alarms:
            self._alarms[event] = loop.call_later(seconds, self.post, event)

    def post(self, event: ev.MachineEvent | Resume, *also: Put) -> asyncio.Future[None]:
        """Hand over an event, as `put` does, where nobody need wait for its outcome."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._queue.put_nowait((event, also, done))
        return done

    def _reduce(self, run: str, version: int, parties: tuple[str, ...], at_hand: Mapping[Key, bytes]) -> ev.Reduced:
        """Sum the answers in roster order; those that are not at hand are read one at a time."""
        live = self.machine.runs[run]
        assert live.ask is not None
        course, ask = live.course, live.ask
        fields, population = course.signals(ask)[-1].fields, len(course.setup.parties)
        reduction, excluded, failure = Reduction(fields, ask.parties), dict[str, str](), ""

        def read(party: str) -> dict[str, Array]:
            key = (run, version, f"answer {party}")
            return tensors.read(at_hand.get(key) or self.store.read_blob(*key))

        try:
            if live.desk is not None:
                values = parted(total(live.desk, lambda party: read(party)["masked"].data), fields)
                return ev.Reduced(run, version, Total(values, parties, population, float(len(parties))))
            for party in parties:
                arrived = Contribution(Values(read(party)), live.answers[party].weight)
                stack, refused = course.open(ask, Contributions.of(party, arrived))
                excluded |= refused
                for opened in stack.parties:
                    reduction.add(opened, stack.one(0))
        except HansaError as error:
            failure = error.said
        return ev.Reduced(run, version, reduction.total(population), excluded, failure)

    def _checkpoint_version(self, run: str) -> int:
        """How many exchanges of a run were applied; 0 if there is no such run."""
        kept = self.store.rows("blob", order="version", columns=("version",), run=run, name="checkpoint")
        return int(kept[-1]["version"]) if kept else 0

    def _restore(self) -> Machine:
        guests = {row["name"]: Guest.from_row(row) for row in self.store.rows("party")}
        for party, run, version in self.store.counted():
            guests[party].counted[run] = version
        runs: dict[str, Live] = {}
        for row in self.store.rows("run", status="running"):
            try:
                runs[row["id"]] = self._revive(row)
            except Exception as error:  # whatever is damaged in one run, the others go on
                self._give_up(row["id"], reason_of(error))
        return Machine(guests, runs, self._secret)

    def _give_up(self, run: str, why: str) -> None:
        """Let a run that cannot be restored end, so that its operator learns why."""
        reason = f"it cannot be restored: {why}"
        LOG.error("run failed", run=run, reason=reason)
        seq = len(self.store.rows("event", columns=("seq",), run=run)) + 1
        row = self.store.run(run)
        body = {"reason": reason, "round": row["round"]}
        event = {"run": run, "seq": seq, "at": now(), "kind": "failed", "body": body}
        failed = {"id": run, "status": "failed", "reason": reason}
        self.store.apply([Put("event", event), Put("run", failed)])

    def _revive(self, row: dict[str, Any]) -> Live:
        run = row["id"]
        version = self._checkpoint_version(run)
        packed = self.store.read_blob(run, version, "checkpoint")
        seq = len(self.store.rows("event", columns=("seq",), run=run))
        ask = self.store.row("ask", run=run, version=version)
        kept = {name: self.store.row("blob", run=run, version=version, name=name) for name in ("desk", "past")}
        desk, past = (self.store.read_blob(run, version, name) if there else b"" for name, there in kept.items())
        if row["status"] != "running":
            live = revived(row, packed, seq, secret=self._secret, past=past)
            live.attempt = ask["attempt"] if ask else 1
            return live
        answers = self.store.rows("answer", run=run, version=version)
        return revived(row, packed, seq, ask, answers, self._secret, desk, past)
