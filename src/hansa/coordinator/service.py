"""The coordinator's server: calls in, events to the machine, notices out."""

import asyncio
import contextlib
import datetime as dt
import platform
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from blake3 import blake3

from hansa.contribution import canonical
from hansa.coordinator import events as ev
from hansa.coordinator import inbox
from hansa.coordinator.driver import Driver
from hansa.coordinator.hello import connected, speaks
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.listener import Listener
from hansa.coordinator.operators import Operators
from hansa.coordinator.restored import come_back
from hansa.coordinator.store import CoordinatorStore, Spooled
from hansa.crypto import pki
from hansa.crypto.token import secret_hash
from hansa.crypto.vault import kept_key
from hansa.database import Put
from hansa.errors import ContributionError, HansaError, RunError, TrustError, UnreachableError
from hansa.run import now
from hansa.secure.terms import Step
from hansa.telemetry import note
from hansa.text import legible
from hansa.wire import chunks
from hansa.wire import messages as m
from hansa.wire.channel import serve
from hansa.wire.rpcs import STATUS, UPLOAD
from hansa.wire.service import decoded, handlers

LOG = structlog.get_logger("hansa.coordinator")

# gRPC takes in one new call after the other: an operator's would stand behind those of a thousand parties.
FEW, AT_ONCE = 3, 0.1  # parties that were told of a large ask and have not come for it; seconds in which one comes

REPLACED = 8  # programs of a party that are remembered: each left its place to another, and does not come back for it


class Coordinator(Operators):
    """A coordinator in its folder.

    ``host`` is the name or address under which parties reach it; it goes into certificate and tokens."""

    def __init__(self, home: CoordinatorHome, host: str, database: str = "", blobs: str = "") -> None:
        self.home, self.host, self.address, self.active = home, host, "", False
        store = CoordinatorStore(home.folder, database, blobs)
        self.inbox = inbox.Inbox(store)
        secret = kept_key(home.folder / "noise.key")
        self.driver = Driver(store, self._tell, self.inbox.settle, secret)
        self.driver.moving = self.inbox.moving
        self._keys = blake3(home.authority.certificate_pem + home.lobby_seed + secret).hexdigest()
        self._listeners: dict[str, Listener] = {}
        self._identities: dict[bytes, pki.Identity] = {}
        self._lobby_key = home.lobby.public_key
        self._joining: set[str] = set()
        self._replaced: dict[str, tuple[bytes, ...]] = {}
        self._latest: tuple[tuple[str, int, int], m.Work] | None = None
        self._few, self._called = asyncio.Semaphore(FEW), dict[str, asyncio.TimerHandle]()
        self.started = now()
        self._server: Any = None

    async def start(self, listen: str, port: int, say: Callable[[str], object] = LOG.warning) -> int:
        """Listen on an address of this machine, such as ``0.0.0.0``, stand by while another one coordinates, which
        ``say`` is told, restore, and return the port; 0 takes a free one.

        Raises UnreachableError if the port is in use; TrustError if the database belongs to a coordinator with other
        keys; StoreError if what was kept cannot be read."""
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
        who = f"{platform.node()}:{self.home.folder}", self.address, self._keys
        while not await self.driver.read(self.driver.store.take, *who):
            say(f"Standing by at {self.address}: another coordinator is at work.")
            say = LOG.debug
            await asyncio.sleep(0.25)
        await self.driver.read(come_back, self.driver.store, self.home.folder)
        await self.driver.start()
        self.active = True
        return bound

    async def stop(self) -> None:
        """Close every stream and stop."""
        listeners, self._listeners = self._listeners, {}  # it is this side that leaves, not they
        for listener in listeners.values():
            listener.end()
        if self._server is not None:
            await self._server.stop(0.2)
        await self.driver.stop()

    # --- who may call

    def authorise(self, certificate_pem: bytes, call: str) -> pki.Identity:
        """The peer behind a certificate, at every call: a removal takes effect at once.

        Raises TrustError unless the authority or the lobby signed it, it is valid, and its party is a member with this
        certificate; UnreachableError if this coordinator stands by; it only says how it is."""
        peer = self._identities.get(certificate_pem)
        if peer is None or peer.expires <= dt.datetime.now(dt.UTC):
            peer = pki.identify(certificate_pem, self.home.authority.public_key, self._lobby_key)
            if len(self._identities) > 10_000:
                self._identities.clear()
            self._identities[certificate_pem] = peer
        if not self.active and call != STATUS.name:
            remedy = "Ask the one at work; this one takes over when that one is gone"
            raise UnreachableError(f"the coordinator at {self.address} stands by", remedy=remedy)
        if peer.role == pki.PARTY:
            self._require_member(peer)
        return peer

    def _require_member(self, peer: pki.Identity) -> None:
        guest = self.driver.machine.guests.get(peer.name)
        if guest is None or not guest.has(peer.serial):
            what = "this party was removed, or has joined anew with another key"
            raise TrustError(what, party=peer.name, remedy="Ask the operator for a new token: hansa party invite NAME")

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
        speaks(request.protocol)
        hashed = secret_hash(request.secret).hex()
        row = await self.driver.read(lambda: self.driver.store.row("token", hash=hashed))
        remedy = "Ask the operator for a new token: hansa party invite NAME"
        if row is None:
            raise TrustError("this coordinator does not know the token", remedy=remedy)
        if (used := row["used"] or hashed in self._joining) or row["expires"] < time.time():
            what = "the token was used already" if used else "the token has expired"
            raise TrustError(what, party=row["party"], remedy=remedy)
        self._joining.add(hashed)
        authority = self.home.authority
        try:
            certificate = authority.issue(request.csr, role=pki.PARTY, name=row["party"])
            identity = pki.identify(certificate, authority.public_key)
            joined = ev.Joined(row["party"], identity.serial, identity.expires.isoformat())
            await self.driver.put(joined, Put("token", {**row, "used": True}))
        finally:
            self._joining.discard(hashed)
        LOG.info("joined", party=row["party"], serial=identity.serial)
        known = {"authority": authority.certificate_pem, "certificate": certificate}
        return m.JoinReply(**known, party=row["party"], federation=self.home.name)

    async def renew(self, request: m.RenewRequest, peer: pki.Identity) -> m.RenewReply:
        """A new certificate for whoever has a valid one; the old one stays valid until the next."""
        certificate = self.home.authority.issue(request.csr, role=peer.role, name=peer.name)
        if peer.role == pki.PARTY:
            identity = pki.identify(certificate, self.home.authority.public_key)
            await self.driver.put(ev.Renewed(peer.name, peer.serial, identity.serial, identity.expires.isoformat()))
        return m.RenewReply(certificate=certificate)

    # --- parties at work

    async def attend(self, request: m.Hello, peer: pki.Identity) -> AsyncIterator[m.Notice]:
        """A party listens; it hears what is to be done until it goes or is removed."""
        event = connected(peer.name, request)
        listener, earlier = Listener(), self._listeners.get(peer.name)
        replaced = self._replaced.get(peer.name, ())
        if request.instance and request.instance in replaced:
            LOG.error("its key was copied: two programs take turns", party=peer.name)
            remedy = "Stop one of them; if you do not know the other, have the party removed, and join anew"
            raise TrustError("another program with this party's key took its place", party=peer.name, remedy=remedy)
        if earlier is not None:
            if earlier.instance != request.instance:
                self._replaced[peer.name] = (*replaced, earlier.instance)[-REPLACED:]
            earlier.end()
            self.inbox.left(peer.name)
        self._listeners[peer.name], listener.instance = listener, request.instance
        try:
            yield m.Notice(welcome=m.Welcome(coordinator=self.home.name, addresses=self.driver.peers))
            await self.driver.put(event)
            about = {"version": legible(request.version[:40]), "party": peer.name}
            LOG.info("listening", **about, offers=[offer.dataset for offer in event.offers])
            while (notice := await listener.next()) is not None:
                message, size = m.Notice(), 0
                while notice is not None:
                    size += await self._add(message, notice)
                    notice = listener.more() if size < chunks.CHUNK else None  # a message has its limit
                gone = message.HasField("removed")
                if any(not work.tensors for work in message.work):
                    await self._few.acquire()
                    self._came(peer.name)
                    self._called[peer.name] = asyncio.get_running_loop().call_later(AT_ONCE, self._came, peer.name)
                yield message
                if gone:
                    return
                del message  # an ask is large, and many parties are silent
        finally:
            if self._listeners.get(peer.name) is listener:
                del self._listeners[peer.name]
                if not self.driver.failed.done():
                    with contextlib.suppress(HansaError):
                        await self.driver.put(ev.Disconnected(peer.name))

    def _came(self, party: str) -> None:
        """It has come for what it was told of, or does not come at once."""
        if timer := self._called.pop(party, None):
            timer.cancel()
            self._few.release()

    async def describe(self, request: m.Describe, peer: pki.Identity) -> m.Description:
        """The federation of a run, and among whom it runs."""
        row = await self.driver.read(self.driver.store.run, request.run)
        if peer.role == pki.PARTY and peer.name not in row["setup"]["parties"]:
            raise TrustError("this party does not take part in the run", party=peer.name)
        return m.Description(federation=row["federation"], setup=canonical(row["setup"]))

    async def fetch(self, request: m.FetchRequest, peer: pki.Identity) -> AsyncIterator[bytes]:
        """A large body in chunks, from an offset: asks for parties, results for operators."""
        self._came(peer.name)
        store, read, body = self.driver.store, self.driver.read, None
        if peer.role == pki.PARTY:
            runs = [live for live in self.driver.machine.runs.values() if peer.name in live.course.setup.parties]
            asks = [(live.id, ask) for live in runs for ask in (live.ask, *live.asks.values())]
            for told in [(run, ask) for run, ask in asks if ask and ask.sent == request.digest][:1]:
                body = self.driver.tensors_of(*told)
        elif rows := await read(lambda: store.rows("blob", digest=request.digest.hex())):
            body = await read(store.read_blob, rows[0]["run"], rows[0]["version"], rows[0]["name"])
        if body is None:
            raise RunError("nothing that this peer may fetch has that digest")
        async with self.inbox.fetching[peer.name], self.inbox.turn() as moved:
            for chunk in chunks.split(body, request.offset):
                if peer.role == pki.PARTY:  # it may be removed meanwhile
                    self._require_member(peer)
                yield chunk
                moved()

    async def upload(self, requests: AsyncIterator[bytes], peer: pki.Identity) -> AsyncIterator[m.UploadReply]:
        """A party's answers: small ones in a message each; or a large one, the last, in chunks that resume where they
        broke off."""
        large = False
        while not large and (raw := await anext(requests, None)) is not None:
            first = decoded(UPLOAD, raw)
            self._require_member(peer)
            ticket: asyncio.Future[tuple[bool, str]] = asyncio.get_running_loop().create_future()
            kind, head = first.WhichOneof("body"), first.head
            body: bytes | Spooled = bytes(head.data)
            if kind == "head" and len(body) < head.size:
                if body or len(raw) > inbox.SLACK:  # many may wait
                    raise ContributionError("a head brings all of an answer, or nothing of it")
                await self.inbox.alone(head, peer.name)
            signal = inbox.expected(self.driver.machine.runs.get(head.run), head, peer.name)
            refusal = inbox.too_large(signal, head.size) if kind == "head" else ""
            if large := not refusal and len(body) < head.size:
                with self.inbox.gathering(head, peer.name) as gathering:
                    async with self.inbox.turn() as moved:
                        yield m.UploadReply(resume=m.Resume(offset=gathering.receiver.offset))
                        body, refusal = await gathering.receive(requests, signal, moved)
                if isinstance(body, Spooled):
                    ticket.add_done_callback(body.discard)
            elif kind == "head":
                refusal = refusal or inbox.refusal(head.data, head, signal)
            event: ev.Failed | ev.Delivered | ev.Said
            match kind:
                case "failure":
                    of = first.failure
                    event = ev.Failed(ticket, peer.name, of.run, of.version, of.attempt, of.reason, tuple(of.about))
                case "step":
                    event = ev.Said(ticket, peer.name, Step.read(first.step))
                case "head":
                    which = ticket, peer.name, head.run, head.version, head.attempt
                    event = ev.Delivered(*which, head.weight, head.digest.hex(), b"" if refusal else body, refusal)
                case _:
                    raise ContributionError("an upload begins with a head or a failure, or is a step")
            del raw, first, head, body  # a party that is silent now holds no memory
            await self.driver.put(event)
            del event
            taken, reason = await asyncio.shield(ticket)
            note("hansa_answers", answer=kind if taken else reason.partition(":")[0])
            yield m.UploadReply(receipt=m.Receipt(accepted=taken, reason=reason))

    def _tell(self, party: str, notice: ev.Notice) -> None:
        if isinstance(notice, ev.RemovedNotice):
            self.inbox.settle((), (), party)
        listener = self._listeners.get(party)
        if listener is not None and not listener.tell(notice, len(self.driver.machine.runs)):
            LOG.warning("it does not read what it is told", party=party)
            del self._listeners[party]
            self.driver.post(ev.Disconnected(party))

    async def _add(self, message: m.Notice, notice: ev.Notice) -> int:
        """Add a notice to the message that brings all there is to say at once; of how many bytes."""
        added: Any
        match notice:
            case tuple():
                added = message.welcome
                added.CopyFrom(m.Welcome(coordinator=self.home.name, addresses=notice))
            case ev.RemovedNotice(reason):
                added = message.removed
                added.reason = reason
            case ev.SettledNotice(run, version, counted, reason):
                told: tuple[Any, ...] = (message.work, message.steps)  # before this: who reads it now need not begin
                for late in told:
                    for one in [one for one in late if (one.run, one.version) == (run, version)]:
                        late.remove(one)
                added = message.settled.add(run=run, version=version, counted=counted, reason=reason)
            case Step():
                added = message.steps.add(**vars(notice))
            case ev.WorkNotice():
                message.work.append(added := await self._work(notice))
        return int(added.ByteSize())

    async def _work(self, notice: ev.WorkNotice) -> m.Work:
        """An ask as it travels; the same for every party, so the last one is kept."""
        ask = notice.ask
        key = (notice.run, ask.version, notice.attempt)
        if self._latest is not None and self._latest[0] == key:
            return self._latest[1]
        body = self.driver.tensors_of(notice.run, ask)
        where: dict[str, Any] = {"run": notice.run, "attempt": notice.attempt, "version": ask.version}
        what: dict[str, Any] = {"work": ask.work, "round": ask.round, "ask": canonical(ask.header())}
        work = m.Work(**where, **what, federation=bytes.fromhex(notice.federation))
        work.digest, work.size = ask.sent, len(body)
        work.tensors = bytes(body) if len(body) <= chunks.INLINE else b""
        self._latest = key, work
        return work
