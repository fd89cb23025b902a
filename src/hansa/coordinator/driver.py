"""The engine at work: one queue, one thread for the database, one clock."""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from itertools import takewhile
from typing import Any

from hansa import tensors
from hansa.contribution import Ask
from hansa.coordinator import events as ev
from hansa.coordinator.engine import LOG, PAGE, Engine, Resume, Waiting
from hansa.database import Put
from hansa.errors import UnreachableError
from hansa.telemetry import note, span
from hansa.tensors import Buffer

PULSE = 2.0  # seconds between two looks at who coordinates
MOMENT = 0.005  # seconds that receipts wait for others, to be committed with them


class Driver(Engine):
    """An engine among asyncio's futures, with one thread for its store.

    Whatever waits when a commit begins goes into it, and what comes within `MOMENT` (group commit). All access to the
    database is in one thread. If the database refuses, nothing more is acknowledged and `failed` is set: a coordinator
    that cannot remember stops, and its restart stands where the last commit stood."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.queue: asyncio.Queue[Waiting] = asyncio.Queue()
        self._thread, self._news = ThreadPoolExecutor(1, "store"), asyncio.Condition()
        self.commits, self._due, self._until = 0, 0.0, 0.0
        self.peers: tuple[str, ...] = ()
        self._rounds: dict[str, AbstractContextManager[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._alarms: dict[ev.DeadlinePassed, asyncio.TimerHandle] = {}
        self.moving: Callable[[str, int], Collection[str]] = lambda run, version: ()
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Restore the machine, do what a restart left undone, and begin."""
        await self.restore()
        await self._pulse()
        self._task = asyncio.create_task(self._loop())

    async def stop(self) -> None:
        """Stop feeding; what was not committed is lost, as in a crash."""
        self.store.stopping.set()
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

        Raises HansaError: what the machine raised; UnreachableError if the coordinator has stopped."""
        if self.failed.done():
            raise UnreachableError("the coordinator has stopped")
        await self.post(event, *also)

    async def read(self, query: Callable[..., Any], *args: Any) -> Any:
        """Run a query in the database's thread; what takes long and asks it little or nothing, in another."""
        thread = None if query in (self._reduce, self.store.sweep) else self._thread
        return await asyncio.get_running_loop().run_in_executor(thread, query, *args)

    async def news(self, seen: int) -> None:
        """Wait until `commits` is no longer what was seen."""
        async with self._news:
            await self._news.wait_for(lambda: self.commits != seen)

    async def events(self, run: str, after: int) -> list[dict[str, Any]]:
        """Rows of a run's events after a number; at most `PAGE` of them."""
        tail = self._tails.get(run)
        if tail and tail[0]["seq"] <= after + 1:
            return [*takewhile(lambda row: row["seq"] > after, reversed(tail))][::-1]
        return [*await self.read(lambda: self.store.rows("event", "seq", ("seq", after), PAGE, run=run))]

    def tensors_of(self, run: str, ask: Ask) -> Buffer:
        """What an ask of a run sends."""
        key = (run, ask.version, "ask")
        if key in self._bodies:
            return self._bodies[key]
        body, live = self.store.laid(tensors.pieces(ask.send)), self.machine.runs.get(run)
        if live and ask in (live.ask, *live.asks.values()):  # after a restart
            self._bodies[key] = body
        return body

    async def _loop(self) -> None:
        batch: list[Waiting] = []
        try:
            while True:
                batch = []
                with suppress(TimeoutError):
                    async with asyncio.timeout(PULSE):
                        batch.append(await self.queue.get())
                while not self.queue.empty():
                    batch.append(self.queue.get_nowait())
                self._until = asyncio.get_running_loop().time() + MOMENT
                await self._step(batch)
                if time.monotonic() >= self._due:
                    await self._pulse()
        except Exception as error:
            LOG.error("the coordinator cannot go on", error=str(error))
            if not self.failed.done():
                self.failed.set_exception(error)
        finally:
            while not self.queue.empty():
                batch.append(self.queue.get_nowait())
            for _, _, waiting in batch:
                self._answer(waiting, UnreachableError("the coordinator has stopped"))

    async def _more(self, batch: list[Waiting], effects: ev.Effects) -> bool:
        """What comes within a moment shares a commit for which nothing but receipts waits: parties of a small model
        answer one after the other, and a commit costs the same for one as for all."""
        if effects.receipts and not (effects.notices or effects.reduce or effects.settled):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._until):
                    batch.append(await self.queue.get())
                    return True
        return False

    async def _pulse(self) -> None:
        """See, also while nothing is to be written, that nobody has taken over, and who may."""
        self._due, before = time.monotonic() + PULSE, self.peers
        self.peers = tuple(await self.read(self.store.peers))
        for party in [name for name, guest in self.machine.guests.items() if guest.listening]:
            if self.peers != before:
                self._tell(party, self.peers)

    async def _carry_out(self, effects: ev.Effects, done: Iterable[object]) -> None:
        await super()._carry_out(effects, done)
        for change in effects.changes:
            if isinstance(change, Put) and change.table == "event":
                self._happened(**change.values)
        if effects.changes:
            async with self._news:
                self.commits += 1
                self._news.notify_all()

    def _happened(self, run: str, kind: str, body: dict[str, Any], **_: Any) -> None:
        """An operator sees of every event of a run a line in the log, a count, and how long its round took."""
        known = "removed" if body.get("reason") == "removed" else kind  # in each round, what its operator did
        log = LOG.warning if known in ("refused", "waiting", "failed") else LOG.info
        said = {"round": live.progress.round} if (live := self.machine.runs.get(run)) else {}
        names = body.keys() & {"federation", "round", "party", "work", "version", "attempt", "reason"}
        log(kind, run=run, **said | {name: body[name] for name in names})
        note("hansa_events", event=known)
        if kind in ("asked", "arrived", "finished", "failed") and run in self._rounds:
            self._rounds.pop(run).__exit__(None, None, None)
        if kind == "asked":
            self._rounds[run] = span("round", run=run, work=body["work"], version=body["version"])
            self._rounds[run].__enter__()
            note("hansa_round", body["round"], run=run)
        elif run not in self.machine.runs:
            note("hansa_round", None, run=run)

    def _answer(self, ticket: object, said: object) -> None:
        if not isinstance(ticket, asyncio.Future) or ticket.done():  # its caller may have left
            return
        if isinstance(said, Exception):
            ticket.set_exception(said)
        else:
            ticket.set_result(said)

    def _set_alarms(self, effects: ev.Effects) -> None:
        loop = asyncio.get_running_loop()
        for event, seconds in effects.alarms:  # of what may be over in the same commit
            self._alarms[event] = loop.call_later(seconds, self._ring, event)
        settled, ended = effects.settled, effects.ended
        for key in [key for key in self._alarms if (key.run, key.version) in settled or key.run in ended]:
            self._alarms.pop(key).cancel()

    def _ring(self, event: ev.DeadlinePassed) -> None:
        self.post(replace(event, moving=frozenset(self.moving(event.run, event.version))))

    def post(self, event: ev.MachineEvent | Resume, *also: Put) -> asyncio.Future[None]:
        """Hand over an event, as `put` does, where nobody need wait for its outcome."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self.queue.put_nowait((event, also, done))
        return done
