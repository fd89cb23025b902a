"""What stands between a party and its coordinator, and a party that is played by hand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import hansa as hs
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client
from hansa.wire.rpcs import ATTEND, PROTOCOL, UPLOAD


@dataclass
class Relay:
    """A TCP relay to the coordinator that counts what comes from the party, and can cut.

    Args:
        target: the coordinator's port.
        cut: after so many bytes from the party a connection is broken off; 0 for never.
    """

    target: int
    cut: int = 0
    port: int = 0
    connections: int = 0
    counted: int = 0

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def end(self) -> None:
        """Close both sides of every connection: a socket left open would be found in another test."""
        for writer in self.writers:
            writer.close()
        await asyncio.gather(*self.serving)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        self.serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            inner, outer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.close()
            return
        self.writers.append(outer)
        budget = [self.cut or 1 << 60]

        def count(data: bytes) -> bool:
            self.counted += len(data)
            budget[0] -= len(data)
            return budget[0] > 0

        await asyncio.gather(_pump(inner, writer, lambda _: True), _pump(reader, outer, count))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: Callable[[bytes], bool]) -> None:
    with contextlib.suppress(OSError):
        while (data := await reader.read(1 << 16)) and count(data):
            writer.write(data)
            await writer.drain()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@pytest.fixture
def relay() -> Callable[..., Any]:
    """Begins a relay: ``async with relay(port) as relay``."""

    @asynccontextmanager
    async def begin(target: int, cut: int = 0) -> AsyncIterator[Relay]:
        made = Relay(target, cut)
        server = await made.start()
        yield made
        server.close()
        await made.end()

    return begin


@dataclass
class Puppet:
    """A party with a real certificate that is played by hand."""

    client: Client
    works: asyncio.Queue[m.Work] = field(default_factory=asyncio.Queue)

    async def listen(self, table: hs.Table) -> None:
        offer = m.Offer(
            dataset="tumours",
            rows=table.rows,
            columns=[m.Column(name=c.name, type=c.type) for c in table.schema()],
            allow=["logistic-regression"],
        )
        hello = m.Hello(protocol=PROTOCOL, offers=[offer])
        async for notice in self.client.stream(ATTEND, hello):
            for work in notice.work:
                self.works.put_nowait(work)

    async def work(self) -> m.Work:
        return await asyncio.wait_for(self.works.get(), 20)

    async def upload(self, *parts: m.UploadPart | bytes) -> m.UploadReply | None:
        """Send everything, and hear the last reply."""
        last = None
        async with self.client.bidi(UPLOAD) as call:
            for part in parts:
                if not await call.send(part):
                    break
            if not call._call.done():
                await call._call.done_writing()
            while (reply := await call.receive()) is not None:
                last = reply
                if reply.WhichOneof("body") == "receipt":
                    break
        return last


@pytest.fixture
def dial() -> Callable[..., Any]:
    """Calls with a party's own certificate: ``async with dial(home) as client``."""

    @asynccontextmanager
    async def begin(home: Any) -> AsyncIterator[Client]:
        channel = client_channel(
            home.address, key_pem=home.key_pem, certificate_pem=home.certificate_pem, root_pem=home.root_pem
        )
        async with channel:
            yield Client(channel)

    return begin


@pytest.fixture
def puppet(dial: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a party join that is played by hand: ``async with puppet(town, name, table) as party``."""

    @asynccontextmanager
    async def begin(town: Any, name: str, table: hs.Table) -> AsyncIterator[Puppet]:
        async with dial(await town.join(name, table)) as client:
            made = Puppet(client)
            listening = asyncio.create_task(made.listen(table))
            await town.until(lambda: name in town.listening())
            yield made
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    return begin
