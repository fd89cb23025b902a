"""Light parties: many of them in one process, which speak the protocol by hand.

    python -m benchmarks.light FOLDER        (names and tokens on standard input, one party a line)

Each has its own key, certificate, channel and conversation, as a real agent has. All hold the same rows, so that an
answer is worked out once for all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import hansa as hs
from hansa import tensors
from hansa.agent.home import AgentHome
from hansa.contribution import Ask, Values
from hansa.crypto.token import Token
from hansa.federation import Federation
from hansa.methods.base import Setup
from hansa.party import Party
from hansa.wire import chunks
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client
from hansa.wire.rpcs import ATTEND, DESCRIBE, FETCH, PROTOCOL, UPLOAD

FEATURES, CLASSES, ROWS = 124, 1000, 20
"""A softmax regression of 125,000 numbers: 1 MB."""

AT_ONCE = 12
"""Parties of a process that join at the same time."""


def table() -> hs.Table:
    """The rows that every light party holds."""
    chance = np.random.default_rng(0)
    columns = {f"x{i}": chance.normal(size=ROWS) for i in range(FEATURES)}
    return hs.Table.of({**columns, "y": np.arange(float(ROWS))})


def study(rounds: int, cohort: int) -> hs.Federation:
    """A model of 1 MB, so many parties a round."""
    return hs.Federation(
        name="load",
        dataset="light",
        task=hs.SoftmaxRegression(target="y", classes=tuple(range(CLASSES))),
        method=hs.FedSGD(),
        rounds=rounds,
        cohort=hs.Fixed(size=cohort),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0.0),
    )


@dataclass
class Crowd:
    """The parties of this process, and what they share: what was worked out."""

    table: hs.Table
    course: dict[str, asyncio.Future[Any]] = field(default_factory=dict)
    bodies: dict[tuple[str, int], tuple[float, bytes]] = field(default_factory=dict)
    fetched: dict[bytes, asyncio.Task[bytes]] = field(default_factory=dict)
    acknowledged: list[float] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    async def answer(self, client: Client, work: m.Work, name: str) -> m.UploadPart:
        """What one of them answers."""
        if work.run not in self.course:
            self.course[work.run] = asyncio.get_running_loop().create_future()
            said = await client.unary(DESCRIBE, m.Describe(run=work.run))
            setup = Setup.from_json(json.loads(said.setup))
            self.course[work.run].set_result(Federation.from_json(said.federation).course(setup))
        course = await self.course[work.run]
        body = work.tensors or await self.fetch(client, work.digest, work.size)
        key = work.run, work.version
        if key not in self.bodies:
            ask = Ask.from_header(json.loads(work.ask), Values(tensors.read(body)))
            contribution = Party(name, self.table, course).answer(ask, Values()).contribution
            self.bodies = {key: (contribution.weight, tensors.write(contribution.values))}
        weight, data = self.bodies[key]
        where = {"run": work.run, "version": work.version, "attempt": work.attempt, "weight": weight}
        head = m.Head(**where, size=len(data), digest=tensors.digest(data))
        head.data = data if len(data) <= chunks.INLINE else b""
        return m.UploadPart(head=head)

    async def fetch(self, client: Client, digest: bytes, size: int) -> bytes:
        """A large ask, as each of them fetches it."""
        receiver = chunks.Receiver(size, digest)
        async for chunk in client.stream(FETCH, m.FetchRequest(digest=digest)):
            receiver.accept(chunk)
        body = receiver.finish()
        return bytes(body)

    async def upload(self, client: Client, conversation: Any, part: m.UploadPart) -> m.UploadReply | None:
        """Send an answer: in one message, or in chunks over a call of its own."""
        if part.head.data:
            await conversation.send(part)
            reply: m.UploadReply | None = await conversation.receive()
            return reply
        body = self.bodies[part.head.run, part.head.version][1]
        async with client.bidi(UPLOAD) as own:
            await own.send(part)
            reply = await own.receive()
            if reply is not None and reply.WhichOneof("body") == "resume":
                for chunk in chunks.split(body, reply.resume.offset):
                    if not await own.send(chunk):
                        break
                reply = await own.receive()
            return reply

    async def live(self, home: AgentHome, ready: asyncio.Semaphore) -> None:
        """One party, from its connection to the end."""
        keys = {"key_pem": home.key_pem, "certificate_pem": home.certificate_pem, "root_pem": home.root_pem}
        columns = [m.Column(name=c.name, type=c.type) for c in self.table.schema()]
        offer = m.Offer(dataset="light", rows=self.table.rows, columns=columns, allow=["softmax-regression"])
        async with client_channel(home.address, **keys) as channel:
            client, uploads = Client(channel), contextlib.AsyncExitStack()
            conversation: Any = None
            async with uploads:
                async for notice in client.stream(ATTEND, m.Hello(protocol=PROTOCOL, offers=[offer])):
                    if notice.HasField("welcome"):
                        ready.release()
                    for work in notice.work:
                        part = await self.answer(client, work, home.party)
                        if conversation is None:
                            conversation = await uploads.enter_async_context(client.bidi(UPLOAD))
                        began = time.monotonic()
                        reply = await self.upload(client, conversation, part)
                        self.acknowledged.append(time.monotonic() - began)
                        if reply is None or not reply.receipt.accepted:
                            self.refused.append(str(reply))


async def main(folder: Path, lines: list[str], crowd: Crowd) -> None:
    """Join, say so, and live until standard input closes; then say how long acknowledgements took."""
    at_once, ready = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(0)
    homes = dict[str, AgentHome]()

    async def join(name: str, token: str) -> None:
        async with at_once:
            homes[name] = await AgentHome.join(folder / name, Token.decode(token), lambda method, data: None)

    await asyncio.gather(*(join(*line.split()) for line in lines))
    living = []
    for home in homes.values():
        async with at_once:
            living.append(asyncio.create_task(crowd.live(home, ready)))
            await ready.acquire()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for task in living:
        task.cancel()
    ended = await asyncio.gather(*living, return_exceptions=True)
    lost = [repr(error) for error in ended if isinstance(error, Exception)]
    print(json.dumps({"acknowledged": crowd.acknowledged, "refused": crowd.refused, "lost": lost}), flush=True)


if __name__ == "__main__":
    given = iter(sys.stdin.readline, "\n")
    asyncio.run(main(Path(sys.argv[1]), [line for line in given if line], Crowd(table())))
