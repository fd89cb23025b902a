"""The coordinator as a state machine without I/O: events in, effects out.

Whoever drives it (a server, a simulator, a test) commits `Effects.changes` in one transaction and only then carries out
the rest: an acknowledgement that was sent is durable. Killed anywhere, `Machine` on what `revived` makes of what was
committed stands where it stood; the ask that is open is made again from the checkpoint, to the bit."""

from dataclasses import replace

from hansa import tensors
from hansa.contribution import Arrival
from hansa.coordinator import events as ev
from hansa.coordinator.admission import admissible, joining
from hansa.coordinator.live import LATE, Answered, Guest, Live, Past
from hansa.coordinator.sums import Sums
from hansa.database import Drop, Put
from hansa.errors import RunError, StudyError, TrustError, did_you_mean, reason_of
from hansa.federation import deployed
from hansa.run import arrived, asked, draw, now, too_few
from hansa.secure.terms import Phase

GRACE = 10  # parts of a deadline that one whose upload makes progress is given beyond it, one after the other

ACCUSED = 16  # parties that one complaint may name: enough to tell that it is about who complains


class Machine(Sums):
    """The coordinator, with the parties that it knows and the runs under way (`live.revived`)."""

    def restart(self) -> ev.Effects:
        """What is left to do after a restart: sums that were not made, deadlines that run anew."""
        effects = ev.Effects()
        for live in list(self.runs.values()):
            self._event(effects, live, "restarted", version=live.progress.version)
            if live.ask is None:  # it goes on from a backup
                self._open(effects, live)
                continue
            for party in live.due:
                self._missing(effects, live, party)
            self._alarm(effects, live)
            self._go_on(effects, live)
        return effects

    def handle(self, event: ev.MachineEvent) -> ev.Effects:
        """One step. Raises HansaError for what cannot be: `Joined`, `Renewed`, `Removed`, `Submitted`, `Resumed`;
        nothing changed then."""
        effects = ev.Effects()
        getattr(self, f"_{type(event).__name__.lower()}")(effects, event)
        return effects

    # --- parties

    def _connected(self, effects: ev.Effects, event: ev.Connected) -> None:
        guest = self.guests[event.party]
        guest.listening, identity = True, event.identity
        if any(g.identity == identity for g in self.guests.values() if g.state == "active" and g is not guest):
            identity = b""  # who shows it first, has it
        if (guest.offers, guest.identity) != (event.offers, identity):
            guest.offers, guest.identity = event.offers, identity
            self._save_guest(effects, event.party)
        for said in event.pending:
            live = self.runs.get(said.run)
            applied = live.progress.version if live else self._applied.get(said.run, said.applied)
            due = live.begun.get(event.party, (-1, 0))[0] if live else -1
            if live is None or due != said.version < applied:
                notice = ev.SettledNotice(said.run, said.version, said.taken and said.version < applied)
                effects.notices.append((event.party, notice))
        for run, version in guest.counted.items():  # what it does not remember, it has lost
            effects.notices.append((event.party, ev.SettledNotice(run, version, True)))
        for live in self.runs.values():
            live.told.discard(party := event.party)
            if live.ask is None or live.out(party) or not (party in live.ask.parties or party in live.begun):
                continue
            if live.missing.get(event.party):
                live.missing[event.party] = False
                self._event(effects, live, "returned", **live.about(event.party))
            if party in live.begun and party not in live.late:
                self._tell(effects, live, party)
            elif live.federation.pace.late:
                self._begin(effects, live)
            elif party not in live.answers:
                self._tell(effects, live, party)
            self._ask_steps(effects, live, [event.party])

    def _disconnected(self, effects: ev.Effects, event: ev.Disconnected) -> None:
        if (party := event.party) not in self.guests:
            return
        self.guests[party].listening = False
        for live in self.runs.values():
            if party in live.due:
                self._missing(effects, live, party)
            self._begin(effects, live)

    def _joined(self, effects: ev.Effects, event: ev.Joined) -> None:
        known = self.guests.get(party := event.party)
        if known is not None and known.state == "active":
            remedy = f"The operator can say `hansa party remove {party}` and invite it anew"
            raise TrustError("a party of that name has joined already", party=party, remedy=remedy)
        self.guests[party] = Guest("active", event.serial, event.expires, counted=known.counted if known else {})
        self._save_guest(effects, party)

    def _renewed(self, effects: ev.Effects, event: ev.Renewed) -> None:
        """The former certificate stays good until the next renewal: the reply may be lost."""
        guest = self.guests[event.party]
        if not guest.has(event.former):
            raise TrustError("this party was removed in the meantime", party=event.party)
        guest.serial, guest.expires = f"{event.serial} {event.former}", event.expires
        self._save_guest(effects, event.party)

    def _removed(self, effects: ev.Effects, event: ev.Removed) -> None:
        guest = self.guests.get(party := event.party)
        if guest is None or guest.state == "removed":
            active = [name for name, known in self.guests.items() if known.state == "active"]
            remedy = did_you_mean(party, active, otherwise="`hansa party list` names them")
            what = f"the party {party!r} was removed already" if guest else f"there is no party named {party!r}"
            raise StudyError(what, remedy=remedy)
        guest.state, guest.listening = "removed", False
        self._save_guest(effects, party)
        effects.changes.append(Drop("token", {"party": party}))
        effects.notices.append((party, ev.RemovedNotice(event.reason)))
        for live in list(self.runs.values()):
            if party in live.waiting:
                leave = self._drop if live.behind(party) else self._leave
                leave(effects, live, party, f"removed: {event.reason}")
                self._go_on(effects, live)

    def _save_guest(self, effects: ev.Effects, name: str) -> None:
        effects.changes.append(Put("party", {"name": name, **self.guests[name].to_row()}))

    # --- runs

    def _submitted(self, effects: ev.Effects, event: ev.Submitted) -> None:
        run, federation = event.run, event.federation
        setup = federation.resolve(admissible(federation, self.guests))
        course = deployed(federation, setup, self._secret, run)
        self.runs[run] = live = Live(run, federation, federation.hash, course, course.begin(), seq=0)
        row = {"id": run, "federation": federation.to_json(), "setup": setup.to_json()}
        begun = {"status": "running", "reason": "", "round": 0}
        effects.changes.append(Put("run", {**row, **begun, "created": now()}))
        self._event(effects, live, "created", run=run, name=federation.name, federation=live.hash)
        self._event(effects, live, "resolved", setup=setup.to_json())
        self._checkpoint(effects, live)
        self._open(effects, live)

    def _resumed(self, effects: ev.Effects, event: ev.Resumed) -> None:
        live, run = event.live, event.live.id
        if run in self.runs:
            raise RunError(f"the run {run} is under way", remedy=f"`hansa watch {run}` follows it")
        if live.status in ("finished", "stopped"):
            raise RunError(f"the run {run} is {live.status}: there is nothing to resume", remedy="See `hansa runs`")
        self.runs[run] = live
        live.status, live.answers, live.reducing = "running", {}, False
        live.attempt += 1
        live.past = Past(proofs=live.past.proofs)
        self._event(effects, live, "resumed", version=live.progress.version)
        effects.changes.append(Put("run", {"id": run, "status": "running", "reason": ""}))
        effects.changes.append(Drop("answer", {"run": run, "version": live.progress.version}))
        self._open(effects, live)

    def _open(self, effects: ev.Effects, live: Live) -> None:
        """Ask the next thing, or finish."""
        try:
            ask = live.course.ask(live.progress)
            if ask is not None and ask.work == "train" and live.federation.cohort.open and live.attempt == 1:
                self._welcome(effects, live, ask.round)
            ask = None if ask is None else draw(live.federation, live.course, ask)
        except Exception as error:
            self._end(effects, live, "failed", reason_of(error))
            return
        if ask is None:
            self._end(effects, live, "finished", live.progress.reason)
            return
        live.answers, live.missing, live.reducing, live.summed, live.told = {}, {}, False, (), set()
        live.take(ask)
        if late := live.federation.pace.late:
            live.asks[ask.version] = ask
            for party in [p for p, (v, _) in live.begun.items() if ask.round - live.asks[v].round > late]:
                self._drop(effects, live, party, f"it is more than {late} rounds late")
        effects.blobs.append(ev.Blob(live.id, ask.version, "ask", tensors.pieces(ask.send)))
        self._event(effects, live, "asked", **asked(ask), attempt=live.attempt)
        self._call(effects, live, ask)

    def _welcome(self, effects: ev.Effects, live: Live, round: int) -> None:
        """Let parties join an open study before this round is first asked for; later, one number has one ask."""
        setup, before = live.course.setup, live.unfit
        live.unfit = joining(live.federation, setup, self.guests)
        for party, why in live.unfit.items():
            if why != before.get(party):
                kind, reason = ("refused", {"reason": f"it cannot join: {why}"}) if why else ("joined", {})
                self._event(effects, live, kind, party=party, round=round, work="train", **reason)
        if joined := [party for party, why in live.unfit.items() if not why]:  # at the end, where they move nobody
            setup = replace(setup, parties=(*setup.parties, *joined))
            live.course = deployed(live.federation, setup, self._secret, live.id)
            effects.changes.append(Put("run", {"id": live.id, "setup": setup.to_json()}))

    # --- answers

    def _delivered(self, effects: ev.Effects, event: ev.Delivered) -> None:
        live, stale = self._expected(event.party, event)
        if live is None or live.ask is None:
            effects.receipts.append((event.ticket, False, stale))
            return
        closed = live.reducing and live.trains and event.party in set(live.begun).difference(live.answers)
        late = event.version < live.ask.version or closed
        earlier = (live.late if late else live.answers).get(event.party)
        if earlier is None and live.reducing and not (late or live.rules):
            effects.receipts.append((event.ticket, False, "the round had closed"))
            return
        if earlier is not None:
            same = earlier.digest == event.digest and (late or earlier.taken)
            other = "another answer to this ask was taken already"
            reason = "" if same else other if earlier.taken else earlier.reason
            effects.receipts.append((event.ticket, same, reason))
            return
        early = live.rules and live.phase != Phase.MASK
        refusal = "a vector before it was asked for" if early else event.refusal
        rows = self.guests[event.party].rows(live.federation.dataset)
        if not refusal and event.weight >= rows:
            refusal = f"the weight is {event.weight:g}, and it offers fewer than {rows} rows"
        if refusal:
            (self._drop if late and not live.trains else self._exclude)(effects, live, event.party, refusal)
            effects.receipts.append((event.ticket, False, refusal))
            self._go_on(effects, live)
            return
        answer = Answered(event.attempt, event.digest, event.weight, not late, LATE * late, len(event.body))
        (live.late if late else live.answers)[event.party] = answer
        self._save_answer(effects, live, event.party, answer, event.version)
        effects.blobs.append(ev.Blob(live.id, event.version, f"answer {event.party}", event.body))
        effects.receipts.append((event.ticket, True, ""))
        if live.desk is not None:
            self._turn(effects, live, live.desk, live.desk.holding([event.party]).step(()))
        self._go_on(effects, live)

    def _failed(self, effects: ev.Effects, event: ev.Failed) -> None:
        live, stale = self._expected(event.party, event)
        if live is None or live.out(event.party):
            effects.receipts.append((event.ticket, False, stale))
            return
        desks = live.desk.desks if live.desk else ()
        roster = {*next((d.terms.names for d in desks if event.party in d.terms.names), ())} - {event.party}
        if (others := sorted(roster.intersection(event.about))[:ACCUSED]) and event.party not in live.answers:
            live.past.complaints += tuple((event.party, other) for other in others)
            self._save_past(effects, live)
        leave = self._drop if live.behind(event.party) and not live.trains else self._leave
        leave(effects, live, event.party, event.reason)
        effects.receipts.append((event.ticket, True, ""))
        self._go_on(effects, live)

    def _deadlinepassed(self, effects: ev.Effects, passed: ev.DeadlinePassed) -> None:
        live = self.runs.get(passed.run)
        if live is None or live.ask is None or live.reducing:
            return
        if (live.ask.version, live.attempt, live.phase) != (passed.version, passed.attempt, passed.phase):
            return
        deadline, moving = live.federation.cohort.deadline, passed.moving if passed.again < GRACE else frozenset()
        for party in live.waiting:
            if party not in live.begun and party not in moving:  # the others are late, or nearly there
                self._leave(effects, live, party, f"no answer within {deadline:g} s")
        if moving := moving.intersection(live.waiting).difference(live.begun):
            effects.alarms.append((replace(passed, again=passed.again + 1), deadline / GRACE))
        self._go_on(effects, live, over=not moving)

    def _reduced(self, effects: ev.Effects, event: ev.Reduced) -> None:
        live, version, total = self.runs.get(event.run), event.version, event.total
        ask = live.ask if live else None
        if live is None or ask is None or ask.version != version or not live.reducing:
            return
        for party, reason in event.excluded.items():
            self._exclude(effects, live, party, reason)
        excluded = {p: a.reason for p, a in live.answers.items() if p not in total.parties}
        late = {p: live.asks[live.begun[p][0]] for p in live.summed if live.trains and p in live.late}
        answers = [*live.answers.values(), *(live.late[party] for party in late)]
        told = live.told if live.federation.pace.late else ask.parties
        sent, came = ask.send.nbytes * len(told), sum(answer.size for answer in answers)
        metrics = {"bytes_out": float(sent), "bytes_in": float(came)}
        lags = {p: ask.round - one.round for p, one in late.items() if one is not ask and p in total.parties}
        arrival = Arrival(ask, total, excluded, metrics, lags)
        try:
            if event.failure:
                raise RunError(event.failure, round=ask.round)
            if few := too_few(live.federation, ask, len(total.parties), arrival.excluded):
                raise few
            live.progress = live.course.apply(live.progress, ask, total)
        except Exception as error:
            # A defect in one run's method must not stop the others, nor come back at every restart.
            self._end(effects, live, "failed", reason_of(error))
            return
        self._event(effects, live, "arrived", **arrived(arrival))
        if ask.work == "evaluate":
            self._event(effects, live, "metrics", round=ask.round, **live.progress.metrics)
        for party in dict.fromkeys((*ask.parties, *live.summed)):
            known = party in live.answers or party in live.summed
            if live.federation.pace.late and not known and (live.trains or live.busy(party)):
                continue  # it works on, and will be late
            begun = live.begun.pop(party, (version, 0))[0] if live.trains else version
            counted = party in total.parties
            why = "" if counted else excluded.get(party, "others were first")
            if counted:
                self.guests[party].counted[live.id] = begun
            if party in late:
                self._save_answer(effects, live, party, replace(live.late.pop(party), taken=counted, reason=why), begun)
            effects.notices.append((party, ev.SettledNotice(live.id, begun, counted, why)))
        live.attempt, live.answers = 1, {}
        live.take(None)
        self._checkpoint(effects, live)
        self._forget(effects, live, {version, *live.asks} - {begun for begun, _ in live.begun.values()})
        self._open(effects, live)

    def _checkpoint(self, effects: ev.Effects, live: Live) -> None:
        effects.blobs.append(ev.Blob(live.id, live.progress.version, "checkpoint", live.progress.pieces()))
        effects.changes.append(Put("run", {"id": live.id, "round": live.progress.round}))
