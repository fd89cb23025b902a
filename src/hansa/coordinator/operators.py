"""What operators may call."""

import datetime as dt
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any

from hansa import __version__
from hansa.contribution import canonical
from hansa.coordinator.driver import Driver
from hansa.coordinator.engine import Resume
from hansa.coordinator.events import Removed, Submitted
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.inbox import Inbox
from hansa.crypto import pki
from hansa.crypto.token import secret_hash
from hansa.database import Put
from hansa.errors import StudyError
from hansa.federation import Federation
from hansa.run import new_id
from hansa.wire import chunks
from hansa.wire import messages as m


class Operators:
    """The operators' calls of a coordinator: its folder, its machine at work, the address under which parties
    reach it, and since when it is up."""

    home: CoordinatorHome
    driver: Driver
    inbox: Inbox
    address: str
    started: str

    async def submit(self, request: m.SubmitRequest, peer: pki.Identity) -> m.SubmitReply:
        """Begin a run."""
        federation = Federation.from_json(request.federation)
        run = new_id(federation.name)
        await self.driver.put(Submitted(run, federation))
        return m.SubmitReply(run=run)

    async def resume(self, request: m.ResumeRequest, peer: pki.Identity) -> m.ResumeReply:
        """Let a run that failed go on from its last checkpoint."""
        await self.driver.put(Resume(request.run))
        return m.ResumeReply()

    async def runs(self, request: m.RunsRequest, peer: pki.Identity) -> m.RunsReply:
        """All runs, the oldest first."""
        reply = m.RunsReply()
        for row in await self.driver.read(self.driver.store.rows, "run", "created"):
            body = json.loads(row["federation"])
            kept = {name: row[name] for name in ("status", "round", "created", "reason")}
            reply.runs.add(run=row["id"], name=body["name"], rounds=body["rounds"], **kept)
        return reply

    async def events(self, request: m.EventsRequest, peer: pki.Identity) -> AsyncIterator[m.EventLines]:
        """A run's events, those that happened and those to come, until it ends."""
        seen = request.after
        await self.driver.read(self.driver.store.run, request.run)
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
        store, read, run = self.driver.store, self.driver.read, request.run
        await read(store.run, run)
        kept = await read(lambda: store.rows("blob", "version", run=run, name="checkpoint"))
        body = await read(store.read_blob, run, kept[-1]["version"], "checkpoint")
        return m.ResultReply(checkpoint=bytes.fromhex(kept[-1]["digest"]), size=len(body))

    async def invite(self, request: m.InviteRequest, peer: pki.Identity) -> m.InviteReply:
        """A one-time token for a party of that name."""
        name = pki.canonical_name(request.party)
        guest = self.driver.machine.guests.get(name)
        if guest is not None and guest.state == "active":
            remedy = f"Choose another name, or `hansa party remove {name}` first"
            raise StudyError(f"a party named {name!r} has joined already", remedy=remedy)
        token, expires = self.home.token(self.address), time.time() + request.lifetime_seconds
        row = {"hash": secret_hash(token.secret).hex(), "party": name, "expires": expires}
        await self.driver.read(self.driver.store.apply, [Put("token", {**row, "used": False})])
        moment = dt.datetime.fromtimestamp(expires, dt.UTC).isoformat(timespec="seconds")
        return m.InviteReply(token=token.encode(), expires=moment)

    async def parties(self, request: m.PartiesRequest, peer: pki.Identity) -> m.PartiesReply:
        """All parties, removed ones included; what they offer as far as a message has room, without the columns."""
        reply, room = m.PartiesReply(), 3 << 20  # bytes, of the 4 MiB of a message
        for name, guest in sorted(self.driver.machine.guests.items()):
            offers = [m.Offer(dataset=o.dataset, rows=o.rows, allow=o.allow) for o in guest.offers]
            room -= sum(offer.ByteSize() + 8 for offer in offers)
            line = reply.parties.add(name=name, state=guest.state, connected=guest.listening)
            line.certificate_expires = guest.expires
            line.offers.extend(offers if room > 0 else [])
        return reply

    async def remove(self, request: m.RemoveRequest, peer: pki.Identity) -> m.RemoveReply:
        """Remove a party: its streams are closed and its certificates refused from now on."""
        reason = request.reason or "removed by the operator"
        await self.driver.put(Removed(pki.canonical_name(request.party), reason))
        return m.RemoveReply()

    async def status(self, request: m.StatusRequest, peer: pki.Identity) -> m.StatusReply:
        """How this coordinator is."""
        machine = self.driver.machine
        reply = m.StatusReply(name=self.home.name, version=__version__, address=self.address, started=self.started)
        reply.parties = sum(guest.state == "active" for guest in machine.guests.values())
        reply.connected = sum(guest.listening for guest in machine.guests.values())
        reply.runs, reply.epoch = len(machine.runs), self.driver.store.epoch
        return reply

    def gauges(self) -> dict[str, Callable[[], float]]:
        """What Prometheus may look at whenever it likes, from a thread of its own."""
        driver, inbox = self.driver, self.inbox
        return {
            "hansa_parties": lambda: sum(guest.state == "active" for guest in [*driver.machine.guests.values()]),
            "hansa_parties_connected": lambda: sum(guest.listening for guest in [*driver.machine.guests.values()]),
            "hansa_runs_under_way": lambda: len(driver.machine.runs),
            "hansa_epoch": lambda: driver.store.epoch,
            "hansa_queue_depth": driver.queue.qsize,
            "hansa_uploads_in_flight": lambda: len(inbox.open),
            "hansa_spool_bytes": lambda: sum(one.receiver.offset for one in [*inbox.open.values()]),
        }


def _event_lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[m.EventLines]:
    """Events in as few messages as their size allows."""
    message = m.EventLines()
    for row in rows:
        message.lines.add(seq=row["seq"], at=row["at"], kind=row["kind"], body=canonical(row["body"]))
        if message.ByteSize() > chunks.CHUNK:
            yield message
            message = m.EventLines()
    if message.lines:
        yield message
