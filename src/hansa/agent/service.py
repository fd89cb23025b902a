"""The agent as a program: it dials out, listens, works, sends, and begins again when a link breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import structlog

from hansa import __version__
from hansa.agent.desk import Desk
from hansa.agent.home import AgentHome
from hansa.agent.left import Left, about
from hansa.agent.machine import (
    AgentEvent,
    Asked,
    CouldNot,
    Effects,
    Held,
    Machine,
    Refused,
    Settled,
)
from hansa.agent.policy import Offer
from hansa.agent.store import AgentStore
from hansa.contribution import Ask, Values
from hansa.crypto import keys, pki
from hansa.errors import (
    ConsentError,
    ContributionError,
    HansaError,
    TrustError,
    UnreachableError,
)
from hansa.wire import chunks, tensors
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client
from hansa.wire.rpcs import ATTEND, DESCRIBE, FETCH, PROTOCOL, RENEW, UPLOAD

LOG = structlog.get_logger("hansa.agent")

LONGEST_PAUSE = 5.0
"""Seconds between two attempts to reach a coordinator that is down, at most."""


class Agent:
    """A party's agent in its folder.

    Args:
        home: its folder, opened.
        offers: tables, with what their owner allows.
        say: told what a person should know: connected, waiting, removed.
    """

    def __init__(
        self, home: AgentHome, offers: Sequence[Offer], say: Callable[[str], None] = LOG.info
    ) -> None:
        self.home, self._offers, self._say = home, tuple(offers), say
        self._store = AgentStore(home.folder)
        self._machine = Machine(self._store.rows("answer"), self._store.rows("memory"))
        self._desk = Desk(home.party, offers)
        self._left = Left(home.folder / "left.jsonl")
        self._worker = ThreadPoolExecutor(1, "work")
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: Client | None = None
        self._broken: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Serve until cancelled.

        Raises:
            TrustError: if the coordinator removed this party or does not know it any more.
        """
        pause, waiting = 0.1, False
        try:
            while True:
                try:
                    await self._session()
                    pause, waiting = 0.1, False
                except UnreachableError as error:
                    if not waiting:
                        self._say(f"waiting for the coordinator at {self.home.address}: {error}")
                        waiting = True
                # Agents that lost the same coordinator must not all come back in the same instant.
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # not a secret
                pause = min(pause * 2, LONGEST_PAUSE)
        finally:
            self._worker.shutdown(wait=False, cancel_futures=True)
            self._left.close()
            self._store.close()

    async def _session(self) -> None:
        """One connection, from its handshake to its end."""
        await self._renew_if_due()
        channel = self._channel()
        async with channel:
            self._client = Client(channel, record=self._left)
            self._broken = asyncio.get_running_loop().create_future()
            listening = asyncio.create_task(self._listen(self._client))
            renewal = asyncio.create_task(self._until_renewal())
            waits = {listening, renewal, self._broken}
            try:
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for finished in done:
                    finished.result()
            finally:
                tasks = [listening, renewal, *self._tasks]
                for task in tasks:
                    task.cancel()
                self._broken.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, client: Client) -> None:
        hello = m.Hello(
            protocol=PROTOCOL,
            version=__version__,
            offers=[_described(offer) for offer in self._offers],
            pending=[m.Pending(run=run, version=v) for run, v in self._machine.pending],
        )
        with about(fields=[f"names of columns of {offer.dataset}" for offer in self._offers]):
            notices = client.stream(ATTEND, hello)
        async with contextlib.aclosing(notices) as stream:  # type: ignore[type-var]  # a generator
            async for notice in stream:
                await self._noticed(notice)

    async def _noticed(self, notice: m.Notice) -> None:
        match notice.WhichOneof("body"):
            case "welcome":
                self._say(f"connected to {notice.welcome.coordinator} at {self.home.address}")
            case "work":
                self._begin(self._take(notice.work))
            case "settled":
                said = notice.settled
                await self._handle(Settled(said.run, said.version, said.counted))
            case "removed":
                raise TrustError(
                    f"the coordinator removed this party: {notice.removed.reason}",
                    party=self.home.party,
                    remedy="Ask its operator; a new token lets the party join again",
                )

    # --- work

    async def _take(self, work: m.Work) -> None:
        """Fetch what the notice does not carry, and hand the ask to the machine."""
        if not self._desk.knows(work.run):
            said = await self._calls.unary(DESCRIBE, m.Describe(run=work.run))
            self._desk.describe(work.run, said.federation, json.loads(said.setup))
        body = work.tensors or await self._fetch(work.digest, work.size)
        ask = Ask.from_header(json.loads(work.ask), Values(tensors.read(body)))
        await self._handle(Asked(work.run, ask, work.attempt, work.federation.hex()))

    async def _fetch(self, digest: bytes, size: int) -> bytes:
        receiver = chunks.Receiver(size, digest)
        async for chunk in self._calls.stream(FETCH, m.FetchRequest(digest=digest)):
            receiver.accept(chunk)
        body = receiver.finish()
        assert isinstance(body, bytes)
        return body

    async def _handle(self, event: AgentEvent) -> None:
        """One step of the machine: commit, then do."""
        effects: Effects = self._machine.handle(event)
        if effects.changes:
            self._store.apply(effects.changes)
        for asked in effects.work:
            self._begin(self._work(asked))
        for held in effects.send:
            self._begin(self._send(held))
        for could_not in effects.excuse:
            self._begin(self._excuse(could_not))

    async def _work(self, asked: Asked) -> None:
        memory = self._machine.memories.get(asked.run, b"")
        loop = asyncio.get_running_loop()
        try:
            worked: AgentEvent = await loop.run_in_executor(
                self._worker, self._desk.work, asked, memory
            )
        except HansaError as error:
            LOG.warning("work refused", run=asked.run, work=asked.ask.work, reason=str(error))
            worked = CouldNot(asked, excuse(error))
        except Exception as error:
            # A defect of ours at one party is that party's excuse; the run goes on without it.
            LOG.exception("work failed", run=asked.run, work=asked.ask.work)
            worked = CouldNot(asked, f"{type(error).__name__}: {error}")
        await self._handle(worked)

    async def _send(self, held: Held) -> None:
        head = m.Head(
            run=held.run,
            version=held.version,
            attempt=held.attempt,
            weight=held.weight,
            size=len(held.body),
            digest=chunks.digest(held.body),
        )
        small = len(held.body) <= chunks.CHUNK
        if small:
            head.data = held.body
        shapes = {name: list(value.shape) for name, value in tensors.read(held.body).items()}
        with about(run=held.run, version=held.version, round=held.round, fields=shapes):
            async with self._calls.bidi(UPLOAD) as upload:
                await upload.send(m.UploadPart(head=head))
                reply = await upload.receive()
                if reply is not None and reply.WhichOneof("body") == "resume":
                    for chunk in chunks.split(held.body, reply.resume.offset):
                        if not await upload.send(m.UploadPart(chunk=chunk)):
                            break
                    reply = await upload.receive()
        if reply is not None and not reply.receipt.accepted:
            LOG.warning("answer refused", run=held.run, reason=reply.receipt.reason)
            await self._handle(Refused(held.run, held.version))

    async def _excuse(self, could_not: CouldNot) -> None:
        asked = could_not.asked
        failure = m.Failure(
            run=asked.run, version=asked.ask.version, attempt=asked.attempt, reason=could_not.reason
        )
        with about(
            run=asked.run, version=asked.ask.version, round=asked.ask.round, fields="reason"
        ):
            async with self._calls.bidi(UPLOAD) as upload:
                await upload.send(m.UploadPart(failure=failure))
                await upload.receive()

    def _begin(self, doing: Any) -> None:
        """Do something beside listening; if the link breaks, the session ends and begins again."""
        task = asyncio.create_task(doing)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._broken is not None and not self._broken.done():
            self._broken.set_exception(error)

    @property
    def _calls(self) -> Client:
        if self._client is None:
            raise UnreachableError("the agent is not connected")
        return self._client

    # --- certificates

    def _channel(self) -> Any:
        home = self.home
        return client_channel(
            home.address,
            key_pem=home.key_pem,
            certificate_pem=home.certificate_pem,
            root_pem=home.root_pem,
        )

    async def _until_renewal(self) -> None:
        """End the session when the certificate is due, so that the next begins with a new one."""
        while not pki.renewal_due(self.home.certificate_pem):
            await asyncio.sleep(60)

    async def _renew_if_due(self) -> None:
        if not pki.renewal_due(self.home.certificate_pem):
            return
        pki.require_valid(self.home.certificate_pem)
        key = keys.new_key()
        async with self._channel() as channel:
            client = Client(channel, record=self._left)
            reply = await client.unary(RENEW, m.RenewRequest(csr=keys.request(key)))
        self.home = replace(
            self.home, key_pem=keys.key_to_pem(key), certificate_pem=reply.certificate
        )
        self.home.save()
        LOG.info("certificate renewed", party=self.home.party)


def excuse(error: HansaError) -> str:
    """What the coordinator is told when work could not be done: never a word of the data.

    An error about a table quotes cells, and one about a contribution its values; they are for the
    owner's own log.
    """
    if isinstance(error, ConsentError):
        return error.message
    if isinstance(error, ContributionError):
        return f"its {error.field!r} is not what was declared" if error.field else error.message
    return "its table cannot be used; the log of the agent there says why"


def _described(offer: Offer) -> m.Offer:
    return m.Offer(
        dataset=offer.dataset,
        rows=offer.table.rows,
        columns=[m.Column(name=c.name, type=c.type) for c in offer.table.schema()],
        allow=offer.allow,
    )
