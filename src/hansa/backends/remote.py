"""A deployed federation: the coordinator drives the run, this side submits it and follows."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from hansa.errors import RunError
from hansa.federation import Federation
from hansa.methods.base import Setup
from hansa.methods.course import Progress
from hansa.run import Event, Run
from hansa.wire import chunks
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client
from hansa.wire.operator import OperatorKeys
from hansa.wire.rpcs import DESCRIBE, EVENTS, FETCH, RESULT, RESUME, SUBMIT

T = TypeVar("T")


class Remote:
    """A coordinator, as its operator reaches it.

    Args:
        home: the coordinator's folder, which holds its address and the operator's key.
        folder: under which runs are kept; nowhere if None.
        follow: called with each event as it happens.
    """

    def __init__(
        self,
        home: str | Path,
        *,
        folder: str | Path | None = None,
        follow: Callable[[Event], None] | None = None,
    ) -> None:
        self._home, self._follow = Path(home), follow
        self._folder = None if folder is None else Path(folder)

    def run(self, federation: Federation) -> Run:
        """Submit the federation, follow the run to its end, and fetch what it came to.

        Works inside a running event loop (a notebook), too.

        Args:
            federation: what to run; each party's agent must admit it.

        Raises:
            ConsentError: if it brings code, or a party does not allow it.
            UnreachableError: if the coordinator is not there.
            RunError: if the run fails.
        """
        return complete(self._run(federation))

    def resume(self, run: str) -> Run:
        """Let a run that failed go on, and follow it; errors as in `run`."""
        return complete(self._resume(run))

    def watch(self, run: str) -> Run:
        """Follow a run to its end, and fetch what it came to; errors as in `run`."""
        return complete(self._watch(run))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Calls to the coordinator."""
        keys = OperatorKeys.read(self._home)
        async with client_channel(*keys) as channel:
            yield Client(channel)

    async def _run(self, federation: Federation) -> Run:
        federation.require_no_code()
        async with self.client() as client:
            reply = await client.unary(SUBMIT, m.SubmitRequest(federation=federation.to_json()))
            return await self._to_the_end(client, reply.run)

    async def _resume(self, run: str) -> Run:
        async with self.client() as client:
            await client.unary(RESUME, m.ResumeRequest(run=run))
            return await self._to_the_end(client, run)

    async def _watch(self, run: str) -> Run:
        async with self.client() as client:
            return await self._to_the_end(client, run)

    async def _to_the_end(self, client: Client, name: str) -> Run:
        said = await client.unary(DESCRIBE, m.Describe(run=name))
        federation = Federation.from_json(said.federation)
        run = Run(name, federation, Setup.from_json(json.loads(said.setup)))
        async for told in client.stream(EVENTS, m.EventsRequest(run=name)):
            for line in told.lines:
                event = Event(line.seq, line.at, line.kind, json.loads(line.body))
                run.events.append(event)
                run.note(event)
                if self._follow is not None:
                    self._follow(event)
        run.progress = await _checkpoint(client, name)
        if self._folder is not None:
            run.save(self._folder / name)
        if run.status != "finished":
            raise RunError(
                f"the run {name} {run.status}: {run.reason}",
                remedy=f"Mend the cause, then `hansa resume {name}`",
            )
        return run


async def _checkpoint(client: Client, run: str) -> Progress:
    kept = await client.unary(RESULT, m.ResultRequest(run=run))
    receiver = chunks.Receiver(kept.size, kept.checkpoint)
    async for chunk in client.stream(FETCH, m.FetchRequest(digest=kept.checkpoint)):
        receiver.accept(chunk)
    body = receiver.finish()
    assert isinstance(body, bytes)
    return Progress.unpack(body)[0]


def complete(doing: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, whether or not an event loop runs in this thread.

    It runs in a thread of its own: a notebook has a loop already, and a Ctrl-C that falls into gRPC's
    own code can be lost there, or abort the interpreter. Here it falls into a wait, and ends the coroutine.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    under_way: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []
    ended = threading.Event()

    async def noted() -> T:
        task = asyncio.ensure_future(doing)
        under_way.append((asyncio.get_running_loop(), task))
        return await task

    def elsewhere() -> None:
        try:
            outcome.append(asyncio.run(noted()))
        except BaseException as error:
            failure.append(error)
        finally:
            ended.set()

    threading.Thread(target=elsewhere, name="hansa").start()
    # Not by join(): one that Ctrl-C cuts short in Python 3.11 takes the thread for ended.
    try:
        while not ended.wait(0.2):  # without a timeout Windows would not let a Ctrl-C in
            pass
    except BaseException:
        for loop, task in under_way:
            with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                loop.call_soon_threadsafe(task.cancel)
        ended.wait()
        raise
    if failure:
        raise failure[0]
    return outcome[0]
