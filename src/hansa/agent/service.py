"""The agent as a program: it dials out, listens, works, sends, and begins again when a link breaks."""

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import structlog

from hansa import __version__, tensors
from hansa.agent.checkpoint import forget
from hansa.agent.desk import Desk, SpentError
from hansa.agent.home import AgentHome
from hansa.agent.left import Left, about
from hansa.agent.machine import AgentEvent, Asked, CouldNot, Heard, Held, Machine, Settled
from hansa.agent.policy import Offer
from hansa.agent.seats import ATTEMPTS, Seats
from hansa.agent.store import AgentStore
from hansa.contribution import Ask, Values
from hansa.crypto import keys, pki
from hansa.crypto.vault import kept_key
from hansa.database import Drop, Put
from hansa.errors import ConsentError, ContributionError, HansaError, PrivacyError, TrustError, UnreachableError
from hansa.run import now
from hansa.secure.terms import Phase, Step
from hansa.telemetry import span
from hansa.tensors import Buffer
from hansa.wire import chunks
from hansa.wire import messages as m
from hansa.wire.channel import client_channel
from hansa.wire.client import Client, Conversation
from hansa.wire.rpcs import ATTEND, DESCRIBE, FETCH, PENDING, PROTOCOL, RENEW, UPLOAD

LOG = structlog.get_logger("hansa.agent")

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between two attempts to reach a coordinator that is down, at most

LASTED = 10.0  # seconds that a session lasts if it does not fail at once, and again whenever it begins anew

COUNTABLE = 1 << 47  # numbers below this one are those that a database can keep, with that of an attempt behind them

ROOM = 64 << 20  # bytes that any ask may bring; a larger one is compared with what the study begins with

RENEWAL_CHECK = 60.0  # seconds between two looks at the clock: it may be set, or the machine may have slept


class Agent:
    """A party's agent in its folder, with what its owner offers.

    ``say`` is told what a person should know: connected, waiting, removed."""

    def __init__(self, home: AgentHome, offers: Sequence[Offer], say: Callable[[str], None] = LOG.info) -> None:
        self.home, self._offers, self._say = home, tuple(offers), say
        self._store = AgentStore(home.folder)
        seats = Seats(home.party, home.identity, self._store.rows("seat"))
        held, memories, latest = map(self._store.rows, ("answer", "memory", "latest"))
        self._ledger = self._store.ledger()
        last = {run: number for number, run in enumerate(self._ledger.latest)}
        memories.sort(key=lambda row: last.get(row["run"], -1))
        self._machine = Machine(held, memories, latest, seats)
        key = kept_key(home.folder / "noise.key")
        self._desk = Desk(home.party, offers, key, self._ledger, self._store.honest(), self._store.keep)
        self._left = Left(home.folder / "left.jsonl")
        self._worker, self._bench = ThreadPoolExecutor(1, "work"), asyncio.Lock()
        self._pause, self._waiting, self._tried = FIRST_PAUSE, False, 0
        self._welcomed: float | None = None
        self._calling: set[asyncio.Task[None]] = set()
        self._working: set[asyncio.Task[None]] = set()
        self._client: Client | None = None
        self._uploads: Conversation[m.UploadPart, m.UploadReply] | None = None
        self._kept: tuple[tuple[bytes, int], chunks.Receiver] | None = None
        self._turn, self._instance = asyncio.Lock(), secrets.token_bytes(8)
        self._idle = contextlib.ExitStack()  # its span, while it waits for an ask
        self._unsaved: list[Put | Drop] = []
        self._broken: asyncio.Future[None] | None = None
        self._failure: BaseException | None = None

    async def run(self) -> None:
        """Serve until cancelled.

        Raises TrustError if the coordinator removed this party or does not know it any more."""
        structlog.contextvars.bind_contextvars(party=self.home.party)
        try:
            while True:
                try:
                    await self._session()
                except UnreachableError as error:
                    if not self._waiting:
                        self._say(f"waiting for the coordinator at {self._address}: {error}")
                        self._waiting = True
                    self._tried += 1
                if self._welcomed is not None and time.monotonic() - self._welcomed >= LASTED:
                    self._pause = FIRST_PAUSE
                # Agents that lost the same coordinator must not all come back in the same instant.
                wait = self._pause * random.uniform(0.5, 1.0)  # noqa: S311  # not a secret
                self._pause = min(self._pause * 1.1, LONGEST_PAUSE)  # it is soon back, most often
                await asyncio.sleep(wait / (1 + len(self.home.others)))
        finally:
            await _cancelled(self._working)
            self._worker.shutdown(wait=False, cancel_futures=True)
            self._left.close()
            self._store.close()

    async def _session(self) -> None:
        """One connection, from its handshake to its end; work that is under way outlives it."""
        if self._failure is not None:
            raise self._failure
        self._welcomed = None
        await self._renew_if_due()
        async with self._channel() as channel:
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
                self._client, uploads, self._uploads = None, self._uploads, None
                if not self._broken.cancel():
                    self._broken.exception()
                await _cancelled([listening, renewal, *self._calling])
                if uploads is not None:  # now that nobody waits for a receipt any more
                    await uploads.__aexit__(None, None, None)

    async def _listen(self, client: Client) -> None:
        pending = [m.Pending(run=run, version=v) for run, v in self._machine.pending[:PENDING]]
        hello = m.Hello(protocol=PROTOCOL, version=__version__, pending=pending, instance=self._instance)
        hello.identity = self.home.identity.public
        offers: list[Any] = []
        for offer in self._offers:  # never a value of the table
            table, allow = offer.table, list(offer.allow)
            columns = [m.Column(name=c.name, type=c.type) for c in table.schema()]
            said: dict[str, Any] = {"dataset": offer.dataset, "rows": offer.rows, "allow": allow}
            hello.offers.add(**said, columns=columns)
            offers.append({**said, "columns": len(columns)})
        stream = client.stream(ATTEND, hello)
        async with contextlib.aclosing(stream):
            while True:
                with coordinators_own(), about(offers=offers):
                    notice = await anext(stream, None)
                if notice is None:
                    return
                await self._noticed(notice)

    async def _noticed(self, notice: m.Notice) -> None:
        if notice.HasField("welcome"):
            if self._welcomed is None:
                self._welcomed, self._waiting = time.monotonic(), False
                self._rests()
                self._say(f"connected to {notice.welcome.coordinator} at {self._address}")
            told = [one for one in notice.welcome.addresses if one != self.home.address and len(one) < 300][-8:]
            if tuple(told) != self.home.others:
                self.home = replace(self.home, others=tuple(told))
                self.home.save()
        for said in [said for said in notice.settled if said.version < COUNTABLE]:
            if not said.counted:
                reason = said.reason or "the run ended, or went on without it"
                LOG.warning("answer not counted", run=said.run, version=said.version, reason=reason)
            known = len(self._ledger.missing) < PENDING  # a coordinator may name any run
            if said.counted and known and (missing := self._ledger.counted(said.run, said.version, now())):
                self._store.apply([Put("charge", missing)])
                LOG.error("ledger older than its answers", run=said.run, version=said.version)
            await self._handle(Settled(said.run, said.version, said.counted))
        for step in notice.steps:
            pins = self._store.pins() if step.phase == Phase.ROSTER else {}  # they may be new
            await self._handle(Heard(Step.read(step), pins))
        for work in notice.work:
            self._begin(self._take(work), self._calling)
        if notice.HasField("removed"):
            what = f"the coordinator removed this party: {notice.removed.reason}"
            remedy = "Ask its operator; a new token lets the party join again"
            raise TrustError(what, party=self.home.party, remedy=remedy)

    # --- work

    async def _take(self, work: m.Work) -> None:
        """Hand an ask to the machine, or an excuse for one that cannot be understood."""
        over = self._machine.over.get(work.run, -1)
        self._idle.close()
        try:
            event: AgentEvent = await self._understood(work)
        except UnreachableError:
            raise
        except Exception as error:
            LOG.warning("ask not understood", run=work.run, round=work.round, work=work.work, reason=str(error))
            ask = Ask(work.work, work.version, work.round, Values(), ())
            asked = Asked(work.run, ask, work.attempt, work.federation.hex())
            said = error.message if isinstance(error, HansaError) else "it is malformed"
            event = CouldNot(asked, f"what the coordinator asks cannot be understood: {said}")
        if not over < work.version <= self._machine.over.get(work.run, -1):  # settled while it was fetched
            await self._handle(event)

    async def _understood(self, work: m.Work) -> Asked:
        """The ask of a notice, with what the notice does not carry."""
        if max(work.version, work.round) >= COUNTABLE or not 0 < work.attempt < ATTEMPTS:
            raise ContributionError("a number of the ask is too large, or none")
        if not self._desk.knows(work.run, (header := json.loads(work.ask)).get("among", 0)):
            with coordinators_own():
                said = await self._calls.unary(DESCRIBE, m.Describe(run=work.run))
            self._desk.describe(work.run, said.federation, json.loads(said.setup))
        if work.size > ROOM and work.size > ROOM + self._desk.begins(work.run):
            raise ContributionError(f"{work.size} bytes are more than the study has to send")
        with span("download", run=work.run, version=work.version, attempt=work.attempt, work=work.work):
            body = work.tensors or await self._fetch(work.digest, work.size)
        ask = Ask.from_header(header, Values(tensors.read(body)), b"" if work.tensors else work.digest)
        if (ask.work, ask.version, ask.round) != (work.work, work.version, work.round):
            raise ContributionError("the ask is another one than its notice says")
        return Asked(work.run, ask, work.attempt, work.federation.hex(), secrets.token_bytes(32))

    async def _fetch(self, digest: bytes, size: int) -> memoryview:
        """A large body, from where an earlier attempt broke off."""
        kept, self._kept = self._kept, None
        known = kept is not None and kept[0] == (digest, size)
        receiver = kept[1] if kept is not None and known else chunks.Receiver(size, digest)
        request = m.FetchRequest(digest=digest, offset=receiver.offset)
        try:
            async for chunk in self._calls.stream(FETCH, request):
                receiver.accept(chunk)
        except (UnreachableError, asyncio.CancelledError):
            self._kept = (digest, size), receiver
            raise
        body = receiver.finish()
        assert isinstance(body, memoryview)
        return body

    async def _handle(self, event: AgentEvent) -> None:
        """One step of the machine: commit, then do."""
        with span("mask") if getattr(event, "sitting", None) else contextlib.nullcontext():
            effects = self._machine.handle(event)
        self._unsaved.extend(effects.changes)
        # What became of an answer may be written with the next one: an agent that is killed before asks for it again.
        erase = isinstance(event, Settled) and any(change.table == "seat" for change in effects.changes)
        if effects.changes and (erase or not isinstance(event, Settled)):
            changes, self._unsaved = self._unsaved, []
            self._store.apply(changes, erase=erase)
        for asked in effects.work:
            self._begin(self._work(asked), self._working)
        if self._client is None:
            return  # the coordinator asks again as soon as there is a link
        for held in effects.send:
            self._begin(self._send(held), self._calling)
        for could_not in effects.excuse:
            self._begin(self._excuse(could_not), self._calling)
            if isinstance(event, Heard):
                of = could_not.asked
                LOG.warning("secure sum refused", run=of.run, round=of.ask.round, reason=could_not.reason)
        for step in effects.say:
            self._begin(self._say_step(step), self._calling)

    async def _work(self, asked: Asked) -> None:
        working = asyncio.get_running_loop().run_in_executor
        path = self.home.folder / "training" / tensors.digest(asked.run.encode()).hex()
        await self._bench.acquire()
        try:
            if self._machine.done(asked):  # while it waited for its turn
                return
            memory = self._machine.memory(asked)
            with span("train", run=asked.run, version=asked.ask.version, attempt=asked.attempt, work=asked.ask.work):
                worked: AgentEvent = await working(self._worker, self._desk.work, asked, memory, path)
        except SpentError as spent:
            worked = self._failed(asked, spent.error, spent.charge)
        except Exception as error:
            worked = self._failed(asked, error, {})
        finally:
            self._bench.release()
        await self._handle(worked)
        forget(path)

    def _failed(self, asked: Asked, error: Exception, charge: Mapping[str, Any]) -> CouldNot:
        """A defect of ours at one party is that party's excuse; the run goes on without it. What a stray
        exception says may quote the data, so the coordinator hears its kind only."""
        where = {"run": asked.run, "round": asked.ask.round, "work": asked.ask.work}
        if isinstance(error, HansaError):
            LOG.warning("work refused", **where, reason=str(error))
            return CouldNot(asked, excuse(error), charge)
        LOG.error("work failed", **where, exc_info=error)
        return CouldNot(asked, f"the work failed ({type(error).__name__}); its log says why", charge)

    async def _send(self, held: Held) -> None:
        where: dict[str, Any] = {"run": held.run, "version": held.version}
        size, digest = len(held.body), self._store.digest(held.body)
        head = m.Head(**where, attempt=held.attempt, weight=held.weight, size=size, digest=digest)
        small, part = len(held.body) <= chunks.INLINE, m.UploadPart(head=head)
        if small:
            part.head.data = bytes(held.body)
        values = tensors.read(held.body)
        shapes = {name: list(value.shape) for name, value in values.items()}
        first = {name: value.reshape(-1)[:4].tolist() for name, value in values.items()}
        of = where | {"round": held.round}
        with coordinators_own(), about(**of, fields=shapes, first=first), span("upload", **where):
            reply = await (self._upload(part) if small else self._upload_large(part, held.body, of))
        self._rests()
        if reply is not None and reply.receipt.accepted:
            self._pause = FIRST_PAUSE
        elif reply is not None:
            LOG.warning("answer refused", run=held.run, round=held.round, reason=reply.receipt.reason)

    async def _excuse(self, could_not: CouldNot) -> None:
        asked = could_not.asked
        where: dict[str, Any] = {"run": asked.run, "version": asked.ask.version}
        failure = m.Failure(**where, attempt=asked.attempt, reason=could_not.reason, about=could_not.about)
        with coordinators_own(), about(**where, round=asked.ask.round, fields="reason"):
            await self._upload(m.UploadPart(failure=failure))

    async def _say_step(self, step: Step) -> None:
        where: dict[str, Any] = {"run": step.run, "version": step.version}
        said = {Phase(step.phase).name.lower(): [len(step.payload)]}
        with coordinators_own(), about(**where, fields=said):
            await self._upload(m.UploadPart(step=m.Step(**vars(step))))

    async def _upload(self, part: m.UploadPart) -> m.UploadReply | None:
        """Send what fits into one message, over the one conversation of this session."""
        async with self._turn:
            if self._uploads is None:
                self._uploads = self._calls.bidi(UPLOAD)
            await self._uploads.send(part)
            reply = await self._uploads.receive()
        if reply is None:
            raise UnreachableError("the coordinator ended the conversation")
        return reply

    async def _upload_large(self, head: m.UploadPart, body: Buffer, of: Mapping[str, Any]) -> m.UploadReply | None:
        """Send the rest in chunks, from where an earlier attempt broke off."""
        async with self._calls.bidi(UPLOAD) as upload:
            await upload.send(head)
            reply = await upload.receive()
            if reply is not None and reply.WhichOneof("body") == "resume":
                at = reply.resume.offset
                for chunk in chunks.split(body, at):
                    with about(**of, offset=at):
                        if not await upload.send(chunk):
                            break
                    at += len(chunk)
                reply = await upload.receive()
        return reply

    def _rests(self) -> None:
        self._idle.close()
        self._idle.enter_context(span("wait"))

    def gauges(self, epsilon: bool) -> dict[str, Callable[[], float]]:
        """What Prometheus may look at, from a thread of its own; the ``epsilon`` spent only if its owner says so."""
        told: dict[str, Callable[[], float]] = {"hansa_epsilon_spent": self._ledger.spent} if epsilon else {}
        told["hansa_connected"] = lambda: self._client is not None and self._welcomed is not None
        return told | {"hansa_charges": lambda: self._ledger.answers}

    def _begin(self, doing: Any, among: set[asyncio.Task[None]]) -> None:
        """Do something beside listening; if it fails, the session ends."""
        task = asyncio.create_task(doing)
        among.add(task)
        task.add_done_callback(among.discard)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._client is not None:
            if self._broken is not None and not self._broken.done():
                self._broken.set_exception(error)
        elif not isinstance(error, TrustError | UnreachableError):
            # Between two sessions only work goes on, and only this machine's own disk fails it. What
            # the link says that has just ended is no news for the next one.
            self._failure = error

    @property
    def _calls(self) -> Client:
        if self._client is None:
            raise UnreachableError("the agent is not connected")
        return self._client

    # --- certificates

    @property
    def _address(self) -> str:
        """Where to look for the coordinator: at another of its addresses whenever it was not there."""
        known = (self.home.address, *self.home.others)
        return known[self._tried % len(known)]

    def _channel(self) -> Any:
        home = self.home
        with coordinators_own():  # who told this address
            return client_channel(self._address, home.key_pem, home.certificate_pem, home.root_pem)

    async def _until_renewal(self) -> None:
        """End the session when the certificate is due, so that the next begins with a new one."""
        while not pki.renewal_due(self.home.certificate_pem):
            await asyncio.sleep(RENEWAL_CHECK)

    async def _renew_if_due(self) -> None:
        if not pki.renewal_due(self.home.certificate_pem):
            return
        pki.require_valid(self.home.certificate_pem)
        key = keys.new_key()
        async with self._channel() as channel:
            client = Client(channel, record=self._left)
            with coordinators_own():
                reply = await client.unary(RENEW, m.RenewRequest(csr=keys.request(key)))
        self.home = replace(self.home, key_pem=keys.key_to_pem(key), certificate_pem=reply.certificate)
        self.home.save()
        LOG.info("certificate renewed", party=self.home.party)


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks, and wait until they have ended."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.contextmanager
def coordinators_own() -> Iterator[None]:
    """An error that the coordinator has with itself: a reason to come back later, not to end."""
    try:
        yield
    except (TrustError, UnreachableError):
        raise
    except HansaError as error:
        raise UnreachableError(f"the coordinator failed: {error.message}") from error


def excuse(error: HansaError) -> str:
    """What the coordinator is told when work could not be done: never a word of the data.

    An error about a table quotes cells, and one about a contribution its values; they are for the owner's own log."""
    if isinstance(error, ConsentError | PrivacyError):
        return error.message
    if isinstance(error, ContributionError):
        return f"its {error.field!r} is not what was declared" if error.field else error.message
    return "its table cannot be used; the log of the agent there says why"
