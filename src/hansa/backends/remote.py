"""A deployed federation: the coordinator drives the run, this side submits it and follows."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor, wait
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
    """A coordinator, as its operator reaches it: by its folder, ``home``, which holds its address and the operator's
    key. Runs are kept under ``folder``, nowhere if None; ``follow`` is called with each event as it happens."""

    def __init__(
        self, home: str | Path, *, folder: str | Path | None = None, follow: Callable[[Event], None] | None = None
    ) -> None:
        self._home, self._follow = Path(home), follow
        self._folder = None if folder is None else Path(folder)

    def run(self, federation: Federation) -> Run:
        """Submit the federation, which each party's agent must admit, follow the run to its end, and fetch what it came
        to; under an event loop, too. Raises ConsentError if it brings code, or a party does not allow it;
        UnreachableError if the coordinator is not there; RunError if the run fails."""
        federation.require_no_code()
        return complete(self._to_the_end("", SUBMIT, m.SubmitRequest(federation=federation.to_json())))

    def resume(self, run: str) -> Run:
        """Let a run that failed go on, and follow it; errors as in `run`."""
        return complete(self._to_the_end(run, RESUME, m.ResumeRequest(run=run)))

    def watch(self, run: str) -> Run:
        """Follow a run to its end, and fetch what it came to; errors as in `run`."""
        return complete(self._to_the_end(run))

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Calls to the coordinator."""
        async with client_channel(*OperatorKeys.read(self._home)) as channel:
            yield Client(channel)

    async def _to_the_end(self, name: str, *begin: Any) -> Run:
        async with self.client() as client:
            if begin:
                reply = await client.unary(*begin)
                name = name or reply.run
            said = await client.unary(DESCRIBE, m.Describe(run=name))
            run = Run(name, Federation.from_json(said.federation), Setup.from_json(json.loads(said.setup)))
            async for told in client.stream(EVENTS, m.EventsRequest(run=name)):
                for line in told.lines:
                    run.hear(Event(line.seq, line.at, line.kind, json.loads(line.body)), self._follow)
            kept = await client.unary(RESULT, m.ResultRequest(run=name))
            receiver = chunks.Receiver(kept.size, kept.checkpoint)
            async for chunk in client.stream(FETCH, m.FetchRequest(digest=kept.checkpoint)):
                receiver.accept(chunk)
            body = receiver.finish()
            assert isinstance(body, memoryview)
            run.progress = Progress.unpack(body)[0]
        if self._folder is not None:
            run.save(self._folder / name)
        if run.status != "finished":
            what = f"the run {name} {run.status}: {run.reason}"
            remedy = f"Mend the cause, then `hansa resume {name}`"
            if run.status == "stopped":  # it came back from a backup, and the reason ends with its new name
                remedy = f"It goes on under another name: `hansa watch {run.reason.rpartition(' ')[2]}`"
            raise RunError(what, remedy=remedy)
        return run


def complete(doing: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end, whether or not an event loop runs in this thread. It runs in a thread of its own: a
    notebook has a loop already, and a Ctrl-C that falls into gRPC's own code can be lost there, or abort the
    interpreter. Here it falls into a wait, and ends the coroutine."""
    under_way: list[asyncio.Task[T]] = []

    async def noted() -> T:
        under_way.append(asyncio.ensure_future(doing))
        return await under_way[0]

    with ThreadPoolExecutor(1, "hansa") as elsewhere:
        future = elsewhere.submit(asyncio.run, noted())
        try:
            while wait([future], 0.2).not_done:  # without a timeout Windows lets no Ctrl-C in
                pass
        except BaseException:
            for task in under_way:
                with contextlib.suppress(RuntimeError):  # it has ended in the meantime
                    task.get_loop().call_soon_threadsafe(task.cancel)
            wait([future])
            raise
        return future.result()
