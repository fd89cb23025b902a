"""A coordinator on loopback, and the people who dial it."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from hansa.crypto import certificates, pki
from hansa.crypto.keys import key_to_pem, new_key, request
from hansa.errors import ContributionError, TrustError
from hansa.wire import messages as m
from hansa.wire.channel import client_channel, serve
from hansa.wire.client import Client
from hansa.wire.rpcs import UPLOAD
from hansa.wire.service import decoded, handlers

SEED = bytes(range(16))


@dataclass
class Desk:
    """An implementation that notes who came, and fails on demand."""

    calls: list[tuple[str, str, str]] = field(default_factory=list)
    failure: BaseException | None = None
    streaming: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, method: str, peer: pki.Identity) -> None:
        self.calls.append((method, peer.role, peer.name))
        if self.failure:
            raise self.failure

    async def join(self, request: m.JoinRequest, peer: pki.Identity) -> m.JoinReply:
        self.note("join", peer)
        return m.JoinReply(party="北京", certificate=request.csr)

    async def describe(self, request: m.Describe, peer: pki.Identity) -> m.Description:
        self.note("describe", peer)
        return m.Description(federation=request.run.encode() * 3)

    async def runs(self, request: m.RunsRequest, peer: pki.Identity) -> m.RunsReply:
        self.note("runs", peer)
        return m.RunsReply(runs=[m.RunLine(run="r1", round=2)])

    async def attend(self, hello: m.Hello, peer: pki.Identity) -> AsyncIterator[m.Notice]:
        self.note("attend", peer)
        yield m.Notice(welcome=m.Welcome(coordinator=hello.version))
        self.streaming.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def fetch(self, request: m.FetchRequest, peer: pki.Identity) -> AsyncIterator[bytes]:
        for number in range(3):
            yield bytes([number])
        self.note("fetch", peer)

    async def upload(self, parts: AsyncIterator[bytes], peer: pki.Identity) -> AsyncIterator[m.UploadReply]:
        self.note("upload", peer)
        arrived = b""
        async for raw in parts:
            if len(raw) == 1:
                arrived += raw
                continue
            part = decoded(UPLOAD, raw)
            if part.WhichOneof("body") == "head":
                yield m.UploadReply(resume=m.Resume(offset=part.head.size))
            else:
                if part.failure.reason == "raise":
                    raise ContributionError("no", party=peer.name, round=3, field="w")
                break
        yield m.UploadReply(receipt=m.Receipt(accepted=True, reason=arrived.decode()))


@dataclass
class World:
    """One authority, its server, and how to dial it."""

    authority: pki.Authority
    desk: Desk = field(default_factory=Desk)
    removed: set[str] = field(default_factory=set)
    port: int = 0

    @property
    def lobby(self) -> pki.Authority:
        return pki.lobby_authority(SEED)

    @property
    def roots(self) -> bytes:
        return self.authority.certificate_pem + self.lobby.certificate_pem

    def authorise(self, certificate_pem: bytes, call: str) -> pki.Identity:
        found = pki.identify(certificate_pem, self.authority.public_key, self.lobby.public_key)
        if found.name in self.removed:
            raise TrustError(f"party {found.name!r} was removed")
        return found

    async def start(self, **changes: Any) -> grpc.aio.Server:
        key, certificate = self.authority.server_certificate("汉萨")
        arguments: dict[str, Any] = {
            "host": "127.0.0.1", "port": 0, "key_pem": key, "certificate_pem": certificate,
            "roots_pem": self.roots, **changes,
        }  # fmt: skip
        server, self.port = await serve(handlers(self.desk, self.authorise), **arguments)
        return server

    def pair(self, role: str = "party", name: str = "诊所", **how: Any) -> tuple[bytes, bytes]:
        """A key and a certificate for it."""
        key = new_key()
        if role == "lobby":
            return key_to_pem(key), pki.lobby_leaf(SEED, key)
        signer = how.pop("signer", self.authority)
        return key_to_pem(key), signer.issue(request(key), role=role, name=name, **how)

    @asynccontextmanager
    async def dial(
        self,
        role: str = "party",
        *,
        pair: tuple[bytes, bytes] | None = None,
        root: bytes | None = None,
        host: str = "127.0.0.1",
        record: Callable[[str, bytes], None] | None = None,
    ) -> AsyncIterator[Client]:
        key, certificate = pair or self.pair(role)
        root = root or pki.trust_anchor(self.authority.public_key)
        channel = client_channel(f"{host}:{self.port}", key_pem=key, certificate_pem=certificate, root_pem=root)
        async with channel:
            yield Client(channel, record=record)


@pytest.fixture(scope="session")
def authority() -> pki.Authority:
    return pki.Authority.create("test")


@pytest.fixture
async def world(authority: pki.Authority) -> AsyncIterator[World]:
    made = World(authority)
    server = await made.start()
    yield made
    await server.stop(0)


@pytest.fixture
def expired(monkeypatch: pytest.MonkeyPatch) -> Callable[[World], tuple[bytes, bytes]]:
    """Makes a certificate that was good a week ago."""

    def make(world: World) -> tuple[bytes, bytes]:
        now = dt.datetime.now(dt.UTC)
        with monkeypatch.context() as past:
            past.setattr(certificates, "now", lambda: now - dt.timedelta(days=7))
            return world.pair()

    return make
