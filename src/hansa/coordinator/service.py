"""The coordinator's server: calls in, events to the machine, notices out."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import json
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from hansa import __version__
from hansa.aggregation.signal import Signal
from hansa.contribution import Ask, Contribution, Values, canonical, check
from hansa.coordinator.driver import Driver
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.machine import (
    Connected,
    Delivered,
    Disconnected,
    Failed,
    Joined,
    Live,
    Notice,
    Offer,
    Removed,
    RemovedNotice,
    Renewed,
    Resumed,
    SettledNotice,
    Submitted,
    Unsettled,
    WorkNotice,
)
from hansa.coordinator.store import CoordinatorStore
from hansa.crypto import pki
from hansa.crypto.token import secret_hash
from hansa.data.table import ColumnSchema
from hansa.database import Put
from hansa.errors import (
    ContributionError,
    HansaError,
    RunError,
    StudyError,
    TrustError,
    UnreachableError,
)
from hansa.federation import Federation
from hansa.run import new_id
from hansa.wire import chunks, tensors
from hansa.wire import messages as m
from hansa.wire.channel import serve
from hansa.wire.rpcs import PROTOCOL
from hansa.wire.service import handlers

LOG = structlog.get_logger("hansa.coordinator")

SLACK = 1 << 16
"""Bytes that an answer may take beside its arrays: names, shapes, offsets."""


class Coordinator:
    """A coordinator in its folder.

    Args:
        home: its folder, opened.
        host: the name or address under which parties reach it; it goes into certificate and tokens.
    """

    def __init__(self, home: CoordinatorHome, host: str) -> None:
        self.home, self.host, self.address = home, host, ""
        self.driver = Driver(CoordinatorStore(home.folder), self._tell)
        self._listeners: dict[str, asyncio.Queue[Notice | None]] = {}
        self._identities: dict[bytes, pki.Identity] = {}
        self._lobby_key = home.lobby.public_key
        self._joining: set[str] = set()
        self._latest: tuple[tuple[str, int, int], m.Work] | None = None
        self._gathering: dict[chunks.Receiver, Path] = {}
        self._started = _now()
        self._server: Any = None

    async def start(self, listen: str, port: int) -> int:
        """Restore, listen, and return the port.

        Args:
            listen: the address of this machine to listen on, such as ``0.0.0.0``.
            port: 0 for a free one.

        Raises:
            UnreachableError: if the port is in use.
            StoreError: if what was kept cannot be read.
        """
        await self.driver.start()
        pair = self.home.authority.server_certificate(self.home.name, host=self.host)
        self._certificate = pair[1]
        self._server, bound = await serve(
            handlers(self, self.authorise),
            host=listen,
            port=port,
            key_pem=pair[0],
            certificate_pem=pair[1],
            roots_pem=self.home.roots_pem,
            renewed=self._renewed,
        )
        self.address = f"[{self.host}]:{bound}" if ":" in self.host else f"{self.host}:{bound}"
        near = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(listen, listen)  # noqa: S104
        self.home.write_operator()
        self.home.write_address(self.address, f"{near}:{bound}")
        return bound

    async def stop(self) -> None:
        """Close every stream and stop."""
        for queue in self._listeners.values():
            queue.put_nowait(None)
        if self._server is not None:
            await self._server.stop(0.2)
        await self.driver.stop()

    # --- who may call

    def authorise(self, certificate_pem: bytes) -> pki.Identity:
        """The peer behind a certificate, at every call: a removal takes effect at once.

        Raises:
            TrustError: unless the authority or the lobby signed it, it is valid, and its party is
                a member with this certificate.
        """
        peer = self._identities.get(certificate_pem)
        if peer is None or peer.expires <= dt.datetime.now(dt.UTC):
            peer = pki.recognise(certificate_pem, self.home.authority.public_key, self._lobby_key)
            if len(self._identities) > 10_000:
                self._identities.clear()
            self._identities[certificate_pem] = peer
        if peer.role == pki.PARTY:
            self._require_member(peer)
        return peer

    def _require_member(self, peer: pki.Identity) -> None:
        guest = self.driver.machine.guests.get(peer.name)
        if guest is None or guest.state != "active" or peer.serial not in guest.serial.split():
            raise TrustError(
                "this party was removed, or has joined anew with another key",
                party=peer.name,
                remedy="Ask the operator for a new token: hansa party invite NAME",
            )

    def _renewed(self) -> tuple[bytes, bytes] | None:
        """Asked before each handshake; the operator's certificate is seen to on the way."""
        self.home.renew_operator()
        if not pki.renewal_due(self._certificate):
            return None
        pair = self.home.authority.server_certificate(self.home.name, host=self.host)
        self._certificate = pair[1]
        return pair

    # --- joining

    async def join(self, request: m.JoinRequest, peer: pki.Identity) -> m.JoinReply:
        """Exchange a token's secret for a certificate, once."""
        _speaks(request.protocol)
        hashed = secret_hash(request.secret).hex()
        row = await self.driver.read(lambda: self.driver.store.row("token", hash=hashed))
        remedy = "Ask the operator for a new token: hansa party invite NAME"
        if row is None:
            raise TrustError("this coordinator does not know the token", remedy=remedy)
        if row["used"] or hashed in self._joining:
            raise TrustError("the token was used already", party=row["party"], remedy=remedy)
        if row["expires"] < time.time():
            raise TrustError("the token has expired", party=row["party"], remedy=remedy)
        self._joining.add(hashed)
        try:
            certificate = self.home.authority.issue(request.csr, role=pki.PARTY, name=row["party"])
            identity = pki.identify(certificate, self.home.authority.public_key)
            joined = Joined(row["party"], identity.serial, identity.expires.isoformat())
            await self.driver.put(joined, Put("token", {**row, "used": True}))
        finally:
            self._joining.discard(hashed)
        LOG.info("joined", party=row["party"], serial=identity.serial)
        return m.JoinReply(
            certificate=certificate,
            authority=self.home.authority.certificate_pem,
            party=row["party"],
            federation=self.home.name,
        )

    async def renew(self, request: m.RenewRequest, peer: pki.Identity) -> m.RenewReply:
        """A new certificate for whoever has a valid one; the old one stays valid until the next."""
        certificate = self.home.authority.issue(request.csr, role=peer.role, name=peer.name)
        if peer.role == pki.PARTY:
            identity = pki.identify(certificate, self.home.authority.public_key)
            expires = identity.expires.isoformat()
            await self.driver.put(Renewed(peer.name, peer.serial, identity.serial, expires))
        return m.RenewReply(certificate=certificate)

    # --- parties at work

    async def attend(self, request: m.Hello, peer: pki.Identity) -> AsyncIterator[m.Notice]:
        """A party listens; it hears what is to be done until it goes or is removed."""
        _speaks(request.protocol)
        queue: asyncio.Queue[Notice | None] = asyncio.Queue()
        earlier = self._listeners.get(peer.name)
        if earlier is not None:
            earlier.put_nowait(None)
        self._listeners[peer.name] = queue
        offers = tuple(_offer(offer) for offer in request.offers)
        event = Connected(peer.name, offers, tuple(_unsettled(request)))
        try:
            yield m.Notice(welcome=m.Welcome(coordinator=self.home.name))
            await self.driver.put(event)
            LOG.info("listening", party=peer.name, offers=[offer.dataset for offer in offers])
            while (notice := await queue.get()) is not None:
                message = m.Notice()
                while notice is not None:
                    await self._add(message, notice)
                    full = message.ByteSize() > chunks.CHUNK  # a message has its limit
                    notice = None if full or queue.empty() else queue.get_nowait()
                yield message
                if message.HasField("removed"):
                    return
        finally:
            if self._listeners.get(peer.name) is queue:
                del self._listeners[peer.name]
                if not self.driver.failed.done():
                    with contextlib.suppress(HansaError):
                        await self.driver.put(Disconnected(peer.name))

    async def describe(self, request: m.Describe, peer: pki.Identity) -> m.Description:
        """The federation of a run, and among whom it runs."""
        row = await self._row(request.run)
        if peer.role == pki.PARTY and peer.name not in row["setup"]["parties"]:
            raise TrustError("this party does not take part in the run", party=peer.name)
        return m.Description(federation=row["federation"], setup=canonical(row["setup"]))

    async def fetch(self, request: m.FetchRequest, peer: pki.Identity) -> AsyncIterator[m.Chunk]:
        """A large body in chunks, from an offset: asks for parties, results for operators."""
        store, digest = self.driver.store, request.digest.hex()
        rows = await self.driver.read(lambda: store.rows("blob", digest=digest))
        for row in rows:
            if peer.role == pki.PARTY:
                live = self.driver.machine.runs.get(row["run"])
                if row["name"] != "ask" or not live or peer.name not in live.course.setup.parties:
                    continue
            body = await self.driver.read(store.read_blob, row["run"], row["version"], row["name"])
            for chunk in chunks.split(body, request.offset):
                yield chunk
            return
        raise RunError("nothing that this peer may fetch has that digest")

    async def upload(
        self, requests: AsyncIterator[m.UploadPart], peer: pki.Identity
    ) -> AsyncIterator[m.UploadReply]:
        """A party's answer: small in one message, large in chunks that resume where they broke off."""
        async for first in requests:
            self._require_member(peer)
            ticket: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
            match first.WhichOneof("body"):
                case "failure":
                    said = first.failure
                    run, version, attempt = said.run, said.version, said.attempt
                    event: Failed | Delivered = Failed(
                        ticket, peer.name, run, version, attempt, said.reason
                    )
                case "head":
                    head = first.head
                    signal = _expected(self.driver.machine.runs.get(head.run), head, peer.name)
                    refusal = _too_large(signal, head.size)
                    body = bytes(head.data)
                    if not refusal and len(body) < head.size:
                        receiver = self._receiver(head, peer.name)
                        yield m.UploadReply(resume=m.Resume(offset=receiver.offset))
                        body, refusal = await self._receive(receiver, requests)
                    refusal = refusal or _refusal(body, head, signal)
                    event = _delivered(ticket, peer.name, head, body, refusal)
                case _:
                    raise ContributionError("an upload begins with a head or a failure")
            await self.driver.put(event)
            taken, reason = await ticket
            yield m.UploadReply(receipt=m.Receipt(accepted=taken, reason=reason))

    def _receiver(self, head: m.Head, party: str) -> chunks.Receiver:
        """Where the chunks of an answer gather; an earlier call that still sends it is cut off."""
        path = self.driver.store.spool(head.run, head.version, f"{head.attempt} {party}")
        for earlier, gathering in list(self._gathering.items()):
            if gathering == path:
                del self._gathering[earlier]
                earlier.close()
        receiver = chunks.Receiver(head.size, head.digest, path)
        self._gathering[receiver] = path
        return receiver

    async def _receive(
        self, receiver: chunks.Receiver, requests: AsyncIterator[m.UploadPart]
    ) -> tuple[bytes, str]:
        """The body, or why it is not what was declared.

        Raises:
            UnreachableError: if the link breaks before it is whole; it may be resumed.
        """
        try:
            while receiver.offset < receiver.size:
                part = await anext(aiter(requests), None)
                if part is None or receiver not in self._gathering:
                    raise UnreachableError("the upload was broken off; it may be resumed")
                receiver.accept(part.chunk)
            path = receiver.finish()
            assert isinstance(path, Path)
            body = path.read_bytes()
            path.unlink()
            return body, ""
        except ContributionError as error:
            return b"", str(error)
        finally:
            self._gathering.pop(receiver, None)
            receiver.close()

    def _tell(self, party: str, notice: Notice) -> None:
        if party in self._listeners:
            self._listeners[party].put_nowait(notice)

    async def _add(self, message: m.Notice, notice: Notice) -> None:
        """Add a notice to the message that brings all there is to say at once."""
        match notice:
            case RemovedNotice(reason):
                message.removed.reason = reason
            case SettledNotice(run, version, counted, reason):
                message.settled.add(run=run, version=version, counted=counted, reason=reason)
            case WorkNotice():
                message.work.append(await self._work(notice))

    async def _work(self, notice: WorkNotice) -> m.Work:
        """An ask as it travels; the same for every party, so the last one is kept."""
        ask = notice.ask
        key = (notice.run, ask.version, notice.attempt)
        if self._latest is not None and self._latest[0] == key:
            return self._latest[1]
        try:
            body = await self.driver.tensors_of(notice.run, ask.version)
        except HansaError:  # settled in the meantime: the party will find it stale
            body = tensors.write(ask.send)
        work = m.Work(
            run=notice.run,
            work=ask.work,
            version=ask.version,
            round=ask.round,
            attempt=notice.attempt,
            federation=bytes.fromhex(notice.federation),
            ask=canonical(ask.header()),
            digest=chunks.digest(body),
            size=len(body),
            tensors=body if len(body) <= chunks.CHUNK else b"",
        )
        self._latest = key, work
        return work

    # --- operators

    async def submit(self, request: m.SubmitRequest, peer: pki.Identity) -> m.SubmitReply:
        """Begin a run."""
        federation = Federation.from_json(request.federation)
        run = new_id(federation.name)
        await self.driver.put(Submitted(run, federation))
        LOG.info("run begins", run=run, federation=federation.hash)
        return m.SubmitReply(run=run)

    async def resume(self, request: m.ResumeRequest, peer: pki.Identity) -> m.ResumeReply:
        """Let a run that failed go on from its last checkpoint."""
        run = request.run
        if run in self.driver.machine.runs:
            raise RunError(f"the run {run} is under way", remedy=f"`hansa watch {run}` follows it")
        await self.driver.put(Resumed(await self.driver.read(self.driver.load, run)))
        return m.ResumeReply(run=run)

    async def runs(self, request: m.RunsRequest, peer: pki.Identity) -> m.RunsReply:
        """All runs, the oldest first."""
        rows = await self.driver.read(lambda: self.driver.store.rows("run", order="created"))
        lines = []
        for row in rows:
            body = json.loads(row["federation"])
            lines.append(
                m.RunLine(
                    run=row["id"],
                    name=body["name"],
                    status=row["status"],
                    round=row["round"],
                    rounds=body["rounds"],
                    created=row["created"],
                    reason=row["reason"],
                )
            )
        return m.RunsReply(runs=lines)

    async def events(
        self, request: m.EventsRequest, peer: pki.Identity
    ) -> AsyncIterator[m.EventLines]:
        """A run's events, those that happened and those to come, until it ends."""
        seen = request.after
        await self._row(request.run)
        while True:
            commits, under_way = self.driver.commits, request.run in self.driver.under_way
            rows = await self.driver.events(request.run, seen)
            for message in _event_lines(rows):
                yield message
            if rows:
                seen = rows[-1]["seq"]
            elif not under_way:
                return
            else:
                await self.driver.news(commits)

    async def result(self, request: m.ResultRequest, peer: pki.Identity) -> m.ResultReply:
        """Where a run's latest checkpoint is to be fetched."""
        store = self.driver.store
        row = await self._row(request.run)
        kept = await self.driver.read(
            lambda: store.rows("blob", order="version", run=request.run, name="checkpoint")
        )
        size = len(
            await self.driver.read(store.read_blob, request.run, kept[-1]["version"], "checkpoint")
        )
        facts = {"status": row["status"], "reason": row["reason"]}
        return m.ResultReply(
            checkpoint=bytes.fromhex(kept[-1]["digest"]), size=size, facts=canonical(facts)
        )

    async def invite(self, request: m.InviteRequest, peer: pki.Identity) -> m.InviteReply:
        """A one-time token for a party of that name."""
        name = pki.canonical_name(request.party)
        guest = self.driver.machine.guests.get(name)
        if guest is not None and guest.state == "active":
            raise StudyError(
                f"a party named {name!r} has joined already",
                remedy=f"Choose another name, or `hansa party remove {name}` first",
            )
        token = self.home.token(self.address)
        expires = time.time() + request.lifetime_seconds
        row = {"hash": secret_hash(token.secret).hex(), "party": name, "expires": expires}
        await self.driver.read(self.driver.store.apply, [Put("token", {**row, "used": False})])
        moment = dt.datetime.fromtimestamp(expires, dt.UTC).isoformat(timespec="seconds")
        return m.InviteReply(token=token.encode(), expires=moment)

    async def parties(self, request: m.PartiesRequest, peer: pki.Identity) -> m.PartiesReply:
        """All parties, removed ones included."""
        return m.PartiesReply(
            parties=[
                m.PartyLine(
                    name=name,
                    state=guest.state,
                    connected=guest.listening,
                    certificate_expires=guest.expires,
                    offers=[_offered(offer) for offer in guest.offers],
                )
                for name, guest in sorted(self.driver.machine.guests.items())
            ]
        )

    async def remove(self, request: m.RemoveRequest, peer: pki.Identity) -> m.RemoveReply:
        """Remove a party: its streams are closed and its certificates refused from now on."""
        reason = request.reason or "removed by the operator"
        await self.driver.put(Removed(pki.canonical_name(request.party), reason))
        return m.RemoveReply()

    async def status(self, request: m.StatusRequest, peer: pki.Identity) -> m.StatusReply:
        """How this coordinator is."""
        guests = self.driver.machine.guests.values()
        return m.StatusReply(
            name=self.home.name,
            version=__version__,
            address=self.address,
            parties=sum(guest.state == "active" for guest in guests),
            connected=sum(guest.listening for guest in guests),
            runs=len(self.driver.machine.runs),
            started=self._started,
        )

    async def _row(self, run: str) -> dict[str, Any]:
        row: dict[str, Any] | None = await self.driver.read(
            lambda: self.driver.store.row("run", id=run)
        )
        if row is None:
            raise StudyError(f"there is no run {run!r}", remedy="`hansa runs` lists them")
        return row


def _speaks(protocol: int) -> None:
    if protocol != PROTOCOL:
        raise TrustError(
            f"the other side speaks protocol {protocol}, this coordinator {PROTOCOL}",
            remedy="Use the same version of Hansa on both sides",
        )


def _offer(offer: m.Offer) -> Offer:
    columns = tuple(
        ColumnSchema(c.name, "text" if c.type == "text" else "number") for c in offer.columns
    )
    return Offer(offer.dataset, offer.rows, columns, tuple(offer.allow))


def _offered(offer: Offer) -> m.Offer:
    return m.Offer(
        dataset=offer.dataset,
        rows=offer.rows,
        columns=[m.Column(name=c.name, type=c.type) for c in offer.columns],
        allow=offer.allow,
    )


def _event_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[m.EventLines]:
    """Events in as few messages as their size allows."""
    message = m.EventLines()
    for row in rows:
        body = canonical(row["body"])
        message.lines.add(seq=row["seq"], at=row["at"], kind=row["kind"], body=body)
        if message.ByteSize() > chunks.CHUNK:
            yield message
            message = m.EventLines()
    if message.lines:
        yield message


def _unsettled(hello: m.Hello) -> Iterator[Unsettled]:
    """The answers that a party asks about; a database has limits that the wire has not."""
    for said in hello.pending[:1000]:
        if said.version < 1 << 31 and said.run.isprintable():
            yield Unsettled(said.run, said.version)


def _expected(live: Live | None, head: m.Head, party: str) -> Signal | None:
    """What the answer must hold; None if nobody waits for it, and the machine will say why."""
    ask: Ask | None = live.ask if live else None
    if live is None or ask is None or party not in ask.parties:
        return None
    if (head.version, head.attempt) != (ask.version, live.attempt):
        return None
    return live.course.signals(ask)[-1]


def _delivered(ticket: object, party: str, head: m.Head, body: bytes, refusal: str) -> Delivered:
    return Delivered(
        ticket,
        party,
        head.run,
        head.version,
        head.attempt,
        head.weight,
        head.digest.hex(),
        b"" if refusal else body,
        refusal,
    )


def _too_large(signal: Signal | None, size: int) -> str:
    if signal is None:
        return "stale"
    arrays = sum(math.prod(f.shape or ()) * np.dtype(f.dtype).itemsize for f in signal.fields)
    limit = arrays + SLACK
    return f"{size} bytes where at most {limit} were declared" if size > limit else ""


def _refusal(body: bytes, head: m.Head, signal: Signal | None) -> str:
    """Why this answer is not what was declared; empty if it is."""
    if signal is None:
        return "stale"
    try:
        if chunks.digest(body) != head.digest:
            raise ContributionError("what arrived is not what was declared: its digest differs")
        values = Values(tensors.read(body, limit=head.size))
        check(Contribution(values, head.weight), signal.fields)
        if signal.weights == "equal" and head.weight != 1:
            raise ContributionError(f"the weight is {head.weight:g} where all count the same")
    except ContributionError as error:
        return str(error)
    return ""


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
