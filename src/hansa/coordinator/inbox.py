"""Answers as they arrive: gathered if they are large, and checked before the machine hears of them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from hansa import tensors
from hansa.aggregation.ring import masked, sitting
from hansa.aggregation.signal import Signal
from hansa.contribution import Contribution, Values
from hansa.coordinator.live import Live
from hansa.coordinator.store import CoordinatorStore, Spooled
from hansa.crypto import masks
from hansa.errors import ContributionError, UnreachableError
from hansa.files import mapped
from hansa.tensors import Buffer
from hansa.wire import chunks
from hansa.wire import messages as m

STALE = "stale"  # why an answer is not taken that nobody waits for; the machine says more

_BROKEN_OFF = "the upload was broken off; it may be resumed"

STALL = 30.0  # seconds without a chunk after which an upload makes no progress

_LOOK = ThreadPoolExecutor(1, "look")  # at one large answer at a time: meanwhile its file is in memory

TURNS, TURN = 16, 0.5
"""Large bodies that move at once, asks and answers; and seconds without a chunk after which another one moves, too."""

MOST, SILENT = 256, 60.0
"""Large bodies that are under way at once, those that stand still included; and seconds without a chunk after which one
no longer keeps another from coming: a link may be silent for ever."""

OWN = 4
"""Asks that one party fetches at once: it may have left some behind with an earlier link."""

RESERVE = 1 << 28  # bytes of the disk that large answers leave free

SLACK = 1 << 16  # bytes that an answer may take beside its arrays: names, shapes, offsets


class Inbox:
    """Where the chunks of large answers gather: in the folder of a store."""

    def __init__(self, store: CoordinatorStore) -> None:
        self._store = store
        self.open: dict[Path, Gathering] = {}
        self._turns, self._places = asyncio.Semaphore(TURNS), asyncio.Semaphore(MOST)
        self.fetching = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(OWN))

    @contextlib.asynccontextmanager
    async def turn(self) -> AsyncIterator[Callable[..., None]]:
        """A turn to move a large body: however many want to, memory holds pieces of few. To be told of each chunk,
        and whether it is the party that is waited for now: a disk of ours that is slow lets nobody else begin."""
        later, timers = asyncio.get_running_loop().call_later, list[asyncio.TimerHandle]()
        with contextlib.ExitStack() as under_way, contextlib.ExitStack() as held:
            for slots, stack in ((self._places, under_way), (self._turns, held)):
                await slots.acquire()
                stack.callback(slots.release)
            held.callback(later(60 * TURN, held.close).cancel)  # nor may a trickle keep it

            def again() -> None:  # it may be our loop that was late
                timers[0] = later(TURN / 2, held.close)

            def moved(waits: bool = True) -> None:
                for timer in timers:
                    timer.cancel()
                timers[:] = [later(TURN / 2, again), later(SILENT, under_way.close)] if waits else []

            moved()
            try:
                yield moved
            finally:
                moved(False)

    async def alone(self, head: m.Head, party: str) -> None:
        """Wait until the party sends no other large answer: of each, one at a time gathers on the disk."""
        here = head.run, head.version
        while others := [one.closed for one in self._of(party) if one.exchange != here]:
            await asyncio.wait(others)

    def left(self, party: str) -> None:
        """The party came back, so that what it was sending over an earlier link comes no more."""
        for gathering in self._of(party):
            gathering.close(_BROKEN_OFF)

    def _of(self, party: str) -> list[Gathering]:
        return [one for one in self.open.values() if one.party == party and not one.closed.done()]

    @contextlib.contextmanager
    def gathering(self, head: m.Head, party: str) -> Iterator[Gathering]:
        """Where the chunks of an answer gather; an earlier call that still sends it is cut off.

        Raises UnreachableError if they cannot be kept."""
        path = self._store.spool(head.run, head.version, f"{head.attempt} {party}")
        if path in self.open:
            self.open.pop(path).close(_BROKEN_OFF)
        with _kept():
            if not path.exists():
                self._store.spares.take(head.size, path)
            gathering = Gathering(head, path, party, self._store)
            coming = sum(one.receiver.lacking for one in (gathering, *self.open.values()))
            if coming + RESERVE > shutil.disk_usage(path.parent).free:
                gathering.close(_BROKEN_OFF)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.open[path] = gathering
        try:
            yield gathering
        finally:
            if self.open.get(path) is gathering:
                del self.open[path]
            gathering.close(_BROKEN_OFF)

    def moving(self, run: str, version: int) -> list[str]:
        """Whose answers to an exchange are on their way and do not stall."""
        since = time.monotonic() - STALL
        return [one.party for one in self.open.values() if one.exchange == (run, version) and one.moved > since]

    def settle(self, settled: Collection[tuple[str, int]], ended: Collection[str], removed: str = "") -> None:
        """Nobody waits any more for answers to these exchanges, nor to those of these runs, nor a removed party's."""
        for path, gathering in list(self.open.items()):
            if gathering.exchange in settled or gathering.exchange[0] in ended or gathering.party == removed:
                del self.open[path]
                gathering.close(STALE)
                with contextlib.suppress(OSError):
                    gathering.receiver.discard()


class Gathering:
    """The chunks of one large answer, in a file, as long as somebody waits for it."""

    def __init__(self, head: m.Head, path: Path, party: str, store: CoordinatorStore) -> None:
        self._head, self._store, self._path = head, store, path
        self.party, self.moved = party, math.inf  # until it is its turn, it is not the party that stalls
        self._key = store.vault.passing(str(path), head.digest.hex())
        self.receiver = chunks.Receiver(head.size, head.digest, path, self._key)
        self.exchange = head.run, head.version
        self.closed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def close(self, why: str) -> None:
        """Take no more, and let go of the file."""
        if not self.closed.done():
            self.closed.set_result(why)
        with contextlib.suppress(OSError):
            self.receiver.close()

    async def receive(
        self, requests: AsyncIterator[bytes], signal: Signal | None, moved: Callable[..., None]
    ) -> tuple[bytes | Spooled, str]:
        """The body, or why it is not what was declared.

        Raises UnreachableError if the link breaks before it is whole, or it cannot be kept; it may be resumed."""
        receiver, away = self.receiver, asyncio.to_thread
        try:
            while receiver.offset < receiver.size:
                self.moved = time.monotonic()
                chunk = await self._next(requests)
                self.moved = math.inf  # while we write, hash and look at it, it is not the party that stalls
                if self.closed.done():
                    break
                if chunk is None:
                    raise UnreachableError(_BROKEN_OFF)
                moved(False)
                with _kept(self.closed):
                    await away(receiver.accept, chunk)
                moved()
            if not self.closed.done():
                with _kept(self.closed):
                    await away(receiver.finish)
            if not self.closed.done():
                with _kept():
                    whole = self._store.spooled(self._path, receiver.size, self._head.digest.hex())
                    found = await self._looked_at(whole, signal)
                if not self.closed.done():
                    return found
        except ContributionError as error:
            return b"", error.said
        if self.closed.result() == STALE:
            return b"", STALE
        raise UnreachableError(self.closed.result())

    async def _looked_at(self, whole: Spooled, signal: Signal | None) -> tuple[bytes | Spooled, str]:
        """What arrived, if it is what was declared; its file is its own by now, so that no other call cuts it short."""
        body = masks.opened(self._key).update(mapped(whole.path)) if self._key else mapped(whole.path)
        look = partial(refusal, body, self._head, signal, whole=True)
        looking, taken = asyncio.get_running_loop().run_in_executor(_LOOK, look), False
        try:
            waits: set[asyncio.Future[Any]] = {looking, self.closed}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            refused = STALE if self.closed.done() else looking.result()
            taken = not refused and not self._key
            return whole if taken else b"" if refused else bytes(body), refused
        finally:
            looking.cancel()
            if not taken:
                whole.discard()

    async def _next(self, requests: AsyncIterator[bytes]) -> bytes | None:
        """The next chunk; None if there is none, or nobody waits for it any more."""
        coming = asyncio.ensure_future(anext(aiter(requests), None))
        waits: set[asyncio.Future[Any]] = {coming, self.closed}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else None
        finally:
            coming.cancel()
            await asyncio.wait({coming})


@contextlib.contextmanager
def _kept(closed: asyncio.Future[str] | None = None) -> Iterator[None]:
    """What the disk refuses is no fault of the party's, which may send it again; nor is it one that the file was
    closed."""
    try:
        yield
    except OSError as error:
        if closed is None or not closed.done():
            raise UnreachableError(f"the upload cannot be kept now: {error.strerror}") from error


def expected(live: Live | None, head: m.Head, party: str) -> Signal | None:
    """What the answer must hold; None if nobody waits for it, and the machine will say why."""
    ask = live.asked(party, head.version, head.attempt) if live else None
    if live is None or ask is None:
        return None
    signal = live.course.signals(ask)[-1]
    return masked(sitting(ask, signal)) if live.rules else signal


def too_large(signal: Signal | None, size: int) -> str:
    """Why an answer of so many bytes is not even received; empty if it may be."""
    if signal is None:
        return STALE
    limit = signal.nbytes + SLACK
    return f"{size} bytes where at most {limit} were declared" if size > limit else ""


def refusal(body: Buffer, head: m.Head, signal: Signal | None, *, whole: bool = False) -> str:
    """Why this answer is not what was declared; empty if it is. Whether it is ``whole`` may be known."""
    if signal is None:
        return STALE
    try:
        if not whole and tensors.digest(body) != head.digest:
            raise ContributionError("what arrived is not what was declared: its digest differs")
        signal.check(Contribution(Values(tensors.read(body, limit=head.size)), head.weight))
    except ContributionError as error:
        return error.said
    return ""
