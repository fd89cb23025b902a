"""The machine with its store: events in, one transaction for all that are waiting, then the effects.

Nothing here waits or knows the time. Whoever runs an engine gives it the hands: `Driver` those of production, and a
simulator of faults its own."""

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import structlog

from hansa import tensors
from hansa.aggregation.reduce import Reduction, discounted, piecewise
from hansa.aggregation.ring import parted, pooled
from hansa.contribution import Array, Contribution, Contributions, Values
from hansa.coordinator import events as ev
from hansa.coordinator.live import Guest, Live, revived
from hansa.coordinator.machine import Machine
from hansa.coordinator.store import INLINE, CoordinatorStore, Spooled
from hansa.database import Put
from hansa.errors import HansaError, reason_of
from hansa.files import unload
from hansa.methods.course import Progress
from hansa.run import now
from hansa.secure.coordinator import LOST, total
from hansa.telemetry import span
from hansa.tensors import Buffer

PAGE = 256  # events that are handed out at once, and that are kept at hand of each run under way

Key = tuple[str, int, str]  # a blob: run, version, name

Tell = Callable[[str, ev.Notice], None]
Over = Callable[[Collection[tuple[str, int]], Collection[str]], None]

LOG = structlog.get_logger("hansa.coordinator")


@dataclass(frozen=True)
class Resume:
    """An operator asks a run that ended without its result to go on; the store knows it."""

    run: str


Waiting = tuple[ev.MachineEvent | Resume, tuple[Put, ...], object]  # with further rows, and who waits for the commit


class Engine:
    """Feeds the machine, commits what it changes, and only then tells anybody.

    Args:
        store: the coordinator's.
        tell: hands a notice to a party, if it listens.
        over: hears of the exchanges that settled and the runs that ended, before their files go.
        secret: the key that the noise of all runs is derived from."""

    read: Callable[..., Awaitable[Any]]  # runs a query where the database may be used
    _more: Callable[[list[Waiting], ev.Effects], Awaitable[bool]]  # whether a batch waited for one more, and has it
    post: Callable[..., object]  # puts an event, with further rows for its transaction, into the queue
    _answer: Callable[[object, object], None]  # tells a ticket: durable (None), (taken, reason), or an error
    _set_alarms: Callable[[ev.Effects], None]  # posts deadlines when they pass, but of what is over

    def __init__(self, store: CoordinatorStore, tell: Tell, over: Over = lambda *_: None, secret: bytes = b"") -> None:
        self.store, self._tell, self._over, self._secret = store, tell, over, secret
        self._bodies: dict[Key, Buffer] = {}
        self._tails: dict[str, deque[dict[str, Any]]] = {}
        self.under_way: set[str] = set()
        self.machine = Machine(secret=secret)

    async def restore(self) -> None:
        """Restore the machine, and do what a restart left undone."""
        self.machine = await self.read(self._restore)
        self.under_way = set(self.machine.runs)
        await self._carry_out(self.machine.restart(), [])

    async def _step(self, batch: list[Waiting]) -> None:
        merged, done, at = ev.Effects(), list[object](), 0
        while at < len(batch) or await self._more(batch, merged):
            (event, also, waiting), at = batch[at], at + 1
            try:
                if isinstance(event, Resume) or (isinstance(event, ev.Connected) and event.pending):
                    # The store is asked, and must know what the machine knows.
                    await self._carry_out(merged, done)
                    merged, done = ev.Effects(), []
                    completed = await self.read(self._answered, event)
                else:
                    completed = event
                merged.extend(self.machine.handle(completed))
            except HansaError as error:
                self._answer(waiting, error)
                continue
            merged.changes.extend(also)
            done.append(waiting)
        await self._carry_out(merged, done)

    def _answered(self, event: ev.Connected | Resume) -> ev.MachineEvent:
        """The event with what the store says: of the run, or of each unsettled answer."""
        if isinstance(event, Resume):
            return ev.Resumed(self._revive(self.store.run(event.run)))
        runs, versions = ([*{getattr(said, name) for said in event.pending}] for name in ("run", "version"))
        answers = self.store.rows("answer", party=event.party, run=runs, version=versions)
        taken = {(answer["run"], answer["version"]) for answer in answers if answer["taken"]}
        kept = self.store.rows("blob", order="version", columns=("run", "version"), run=runs, name="checkpoint")
        applied = {row["run"]: row["version"] for row in kept}
        known = [replace(p, taken=(p.run, p.version) in taken, applied=applied.get(p.run, 0)) for p in event.pending]
        return replace(event, pending=tuple(known))

    def _sum_at_once(self, effects: ev.Effects) -> None:
        """Make the sums whose answers are all at hand, so that the last answer and the end of its round
        are one transaction; whatever is acknowledged is durable all the same."""
        later = []
        while effects.reduce:
            run, version, parties = effects.reduce.pop(0)
            fresh = {(b.run, b.version, b.name): b.body for b in effects.blobs if isinstance(b.body, bytes)}
            at_hand, place = {**self._bodies, **fresh}, self.machine.runs[run].place
            bodies = [at_hand.get((run, place(party)[0].version, f"answer {party}")) for party in parties]
            if sum(INLINE + 1 if body is None else len(body) for body in bodies) > INLINE:
                later.append((run, version, parties))
                continue
            with span("aggregate", run=run, version=version):
                effects.extend(self.machine.handle(self._reduce(run, version, parties, at_hand)))
        effects.reduce = later
        over = set(effects.settled)
        effects.blobs = [blob for blob in effects.blobs if (blob.run, blob.version) not in over]

    async def _carry_out(self, effects: ev.Effects, done: Iterable[object]) -> None:
        """Commit, and then everything else."""
        self._sum_at_once(effects)
        self._over(effects.settled, effects.ended)
        if effects.changes or effects.blobs:
            with span("commit"):
                await self.read(self._commit, effects)
        self._remember(effects)
        for waiting in done:
            self._answer(waiting, None)
        for ticket, taken, reason in effects.receipts:
            self._answer(ticket, (taken, reason))
        for party, notice in effects.notices:
            self._tell(party, notice)
        self._set_alarms(effects)
        for run, version in effects.settled:
            await self.read(self.store.sweep, run, version, run in effects.ended)
        for run, version, parties in effects.reduce:
            with span("aggregate", run=run, version=version):
                reduced = await self.read(self._reduce, run, version, parties, self._bodies)
            self.post(reduced)

    def _remember(self, effects: ev.Effects) -> None:
        """Which runs are under way as far as it is committed (the machine is a commit ahead), and what the
        open exchanges and those who follow will need, as far as it is small."""
        for run in effects.ended:
            self._tails.pop(run, None)
        for change in effects.changes:
            row = dict(change.values)
            if change.table == "run" and "status" in row:
                under_way = row["status"] == "running"
                (self.under_way.add if under_way else self.under_way.discard)(row["id"])
            if change.table == "event" and row["run"] in self.machine.runs:
                self._tails.setdefault(row["run"], deque(maxlen=PAGE)).append(row)
        over = {*effects.settled}
        for key in [k for k in self._bodies if k[:2] in over or k[0] in effects.ended]:
            del self._bodies[key]
        for blob in effects.blobs:
            small = blob.name.startswith("answer") and len(blob.body) <= INLINE
            if (blob.name == "ask" or small) and not isinstance(blob.body, Spooled | list):
                self._bodies[blob.run, blob.version, blob.name] = blob.body

    def _commit(self, effects: ev.Effects) -> None:
        # An open ask is made again from the checkpoint, to the bit.
        late = {run for run, live in [*self.machine.runs.items()] if live.federation.pace.late}
        kept = [blob for blob in effects.blobs if blob.name != "ask" or blob.run in late]
        self.store.apply([*effects.changes, *[self.store.blob(b.run, b.version, b.name, b.body) for b in kept]])
        effects.blobs = [*map(self._held, effects.blobs)]

    def _held(self, blob: ev.Blob) -> ev.Blob:
        """What is held of a blob once it is committed; a run holds a large ask or checkpoint as a map of its file, too,
        in place of the arrays that its method made."""
        if not isinstance(pieces := blob.body, list):
            return blob
        live, large = self.machine.runs.get(blob.run), sum(map(len, pieces)) > INLINE
        body = b"" if blob.name != "ask" else self.store.laid(pieces) if large else b"".join(pieces)
        if large and live and live.ask and body and live.ask.version == blob.version:
            object.__setattr__(live.ask, "send", Values(tensors.read(body)))
        elif large and live and self.store.maps and not body and live.progress.version == blob.version:
            live.progress, _ = Progress.unpack(self.store.read_blob(blob.run, blob.version, blob.name))
        return ev.Blob(blob.run, blob.version, blob.name, body)

    def _reduce(self, run: str, version: int, parties: tuple[str, ...], at_hand: Mapping[Key, Buffer]) -> ev.Reduced:
        """Sum the answers in roster order: large ones a piece of all at a time, or one after the other if a stage
        has to open them."""
        live = self.machine.runs[run]
        assert live.ask is not None
        course, ask = live.course, live.ask
        signal, population = course.signals(ask)[-1], len(course.setup.parties)
        reduction = Reduction(signal.fields, [*dict.fromkeys((*ask.parties, *parties))])
        excluded, failure = dict[str, str](), ""
        places, bodies = {party: live.place(party) for party in parties}, list[Buffer]()
        large = all(since is ask and answer.size > INLINE for since, answer in places.values())
        plain = large and live.desk is None and not self.store.vault and not course.opens(ask)

        def read(party: str) -> dict[str, Array]:
            key = (run, places[party][0].version, f"answer {party}")
            bodies.append(at_hand.get(key) or self.store.read_blob(*key))
            return tensors.read(bodies[-1] if plain else bodies.pop())

        try:
            if live.desk is not None:
                summed = [desk for desk in live.desk.desks if desk.ended == "summed"]
                vectors = [total(desk, lambda party: read(party)["masked"].data) for desk in summed]
                sums = {d.survivors: parted(v, signal.fields) for d, v in zip(summed, vectors, strict=True)}
                known = {name for name, answer in live.answers.items() if not answer.taken}.union(live.desk.survivors)
                lost = {name: LOST for name in live.desk.names if name not in known}
                return ev.Reduced(run, version, pooled(sums, signal, ask, population), lost)
            if plain:
                given = {party: Contribution(Values(read(party)), places[party][1].weight) for party in parties}
                whole = piecewise(
                    signal.fields, ask.parties, given, population, self.store.laid, lambda: [*map(unload, bodies)]
                )
                return ev.Reduced(run, version, whole)
            for party in parties:
                since, answer = places[party]
                arrived = Contribution(Values(read(party)), answer.weight)
                stack, refused = course.open(since, Contributions.of(party, arrived))
                stack = discounted(stack, signal.fields, live.federation.pace.discount(ask.round - since.round))
                excluded |= refused
                for opened in stack.parties:
                    reduction.add(opened, stack.one(0), checked=True)
        except HansaError as error:
            failure = error.said
        return ev.Reduced(run, version, reduction.total(population), excluded, failure)

    def _checkpoint_version(self, run: str) -> int:
        """How many exchanges of a run were applied; 0 if there is no such run."""
        kept = self.store.rows("blob", order="version", columns=("version",), run=run, name="checkpoint")
        return int(kept[-1]["version"]) if kept else 0

    def _restore(self) -> Machine:
        guests = {row["name"]: Guest.from_row(row) for row in self.store.rows("party")}
        for party, run, version in self.store.counted():
            guests[party].counted[run] = version
        runs: dict[str, Live] = {}
        for row in self.store.rows("run", status="running"):
            try:
                runs[row["id"]] = self._revive(row)
            except Exception as error:  # whatever is damaged in one run, the others go on
                self._give_up(row["id"], reason_of(error))
        return Machine(guests, runs, self._secret)

    def _give_up(self, run: str, why: str) -> None:
        """Let a run that cannot be restored end, so that its operator learns why."""
        reason = f"it cannot be restored: {why}"
        seq = len(self.store.rows("event", columns=("seq",), run=run)) + 1
        row = self.store.run(run)
        LOG.error("failed", run=run, round=row["round"], reason=reason)
        body = {"reason": reason, "round": row["round"]}
        event = {"run": run, "seq": seq, "at": now(), "kind": "failed", "body": body}
        failed = {"id": run, "status": "failed", "reason": reason}
        self.store.apply([Put("event", event), Put("run", failed)])

    def _revive(self, row: dict[str, Any]) -> Live:
        run = row["id"]
        version = self._checkpoint_version(run)
        packed = self.store.read_blob(run, version, "checkpoint")
        seq = len(self.store.rows("event", columns=("seq",), run=run))
        ask = self.store.row("ask", run=run, version=version)
        kept = {name: self.store.row("blob", run=run, version=version, name=name) for name in ("desk", "past", "begun")}
        desk, past, begun = (
            bytes(self.store.read_blob(run, version, name)) if there else b"" for name, there in kept.items()
        )
        if row["status"] != "running":
            live = revived(row, packed, seq, secret=self._secret, past=past)
            live.attempt = ask["attempt"] if ask else 1
            return live
        answers = self.store.rows("answer", run=run, version=version)

        def earlier(version: int) -> tuple[Buffer, list[dict[str, Any]]]:
            return self.store.read_blob(run, version, "ask"), self.store.rows("answer", run=run, version=version)

        return revived(row, packed, seq, ask, answers, self._secret, desk, past, begun, earlier)
