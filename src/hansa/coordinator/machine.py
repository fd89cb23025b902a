"""The coordinator as a state machine without I/O: events in, effects out.

Whoever drives it (a server, a simulator, a test) commits `Effects.changes` in one transaction and only then carries out
the rest: an acknowledgement that was sent is durable. Killed anywhere, `Machine` on what `revived` makes of what was
committed stands where it stood; the ask that is open is made again from the checkpoint, to the bit.
"""

from collections.abc import Collection, Mapping

from hansa.aggregation.ring import sitting
from hansa.contribution import Arrival, Ask, Json
from hansa.coordinator import events as ev
from hansa.coordinator.admission import admissible
from hansa.coordinator.live import Answered, Guest, Live, Past
from hansa.crypto.agreement import KEY
from hansa.database import Drop, Put
from hansa.errors import HansaError, RunError, StudyError, TrustError, did_you_mean, reason_of
from hansa.federation import deployed
from hansa.run import arrived, asked, draw, now, too_few
from hansa.secure.coordinator import Desk, advance, opening, requests, step, unfit
from hansa.secure.terms import Envelope, Member, Phase, Rules, Step, Terms, encode
from hansa.wire import tensors

LONGEST_REASON = 600
"""Characters of a party's own words that are kept."""

ATTEMPTS = 5
"""At the secure sum of one exchange, before the run fails."""

ACCUSED = 16
"""Parties that one complaint may name: enough to tell that it is about who complains."""


class Machine:
    """The coordinator, with the parties that it knows and the runs under way (`live.revived`)."""

    def __init__(
        self, guests: Mapping[str, Guest] | None = None, runs: Mapping[str, Live] | None = None, secret: bytes = b""
    ) -> None:
        self._secret = secret
        self.guests = dict(guests or {})
        self.runs = dict(runs or {})
        self._applied: dict[str, int] = {}  # exchanges of the runs that ended since the start

    def restart(self) -> ev.Effects:
        """What is left to do after a restart: sums that were not made, deadlines that run anew."""
        effects = ev.Effects()
        for live in list(self.runs.values()):
            self._event(effects, live, "restarted", version=live.progress.version)
            for party in live.waiting:
                self._missing(effects, live, party)
            self._alarm(effects, live)
            self._go_on(effects, live)
        return effects

    def handle(self, event: ev.MachineEvent) -> ev.Effects:
        """One step.

        Raises:
            HansaError: for what cannot be: `Joined`, `Renewed`, `Removed`, `Submitted`, `Resumed`;
                nothing changed then.
        """
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
            if live is None or said.version < applied:
                counted = said.taken and said.version < applied
                notice = ev.SettledNotice(said.run, said.version, counted)
                effects.notices.append((event.party, notice))
        for run, version in guest.counted.items():  # what it does not remember, it has lost
            effects.notices.append((event.party, ev.SettledNotice(run, version, True)))
        for live in self.runs.values():
            if live.ask is None or event.party not in live.ask.parties or live.out(event.party):
                continue
            if live.missing.get(event.party):
                live.missing[event.party] = False
                self._event(effects, live, "returned", **live.about(event.party))
            if event.party not in live.answers:
                self._tell(effects, live, event.party)
            self._ask_steps(effects, live, [event.party])

    def _disconnected(self, effects: ev.Effects, event: ev.Disconnected) -> None:
        if (party := event.party) not in self.guests:
            return
        self.guests[party].listening = False
        for live in self.runs.values():
            if party in live.waiting:
                self._missing(effects, live, party)

    def _missing(self, effects: ev.Effects, live: Live, party: str) -> None:
        """Say that the run waits for a party that does not listen; once in an exchange."""
        if party not in live.missing:
            live.missing[party] = True
            seconds = live.federation.cohort.deadline
            self._event(effects, live, "waiting", **live.about(party), seconds=seconds)

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
        if guest.state != "active" or event.former not in guest.serial.split():
            raise TrustError("this party was removed in the meantime", party=event.party)
        guest.serial, guest.expires = f"{event.serial} {event.former}", event.expires
        self._save_guest(effects, event.party)

    def _removed(self, effects: ev.Effects, event: ev.Removed) -> None:
        guest = self.guests.get(party := event.party)
        if guest is None or guest.state == "removed":
            active = [name for name, known in self.guests.items() if known.state == "active"]
            remedy = did_you_mean(party, active, otherwise="`hansa party list` names them")
            raise StudyError(f"there is no party named {party!r}", remedy=remedy)
        guest.state, guest.listening = "removed", False
        self._save_guest(effects, party)
        effects.changes.append(Drop("token", {"party": party}))
        effects.notices.append((party, ev.RemovedNotice(event.reason)))
        for live in list(self.runs.values()):
            if party in live.waiting:
                self._leave(effects, live, party, f"removed: {event.reason}")
                self._go_on(effects, live)

    def _save_guest(self, effects: ev.Effects, name: str) -> None:
        effects.changes.append(Put("party", {"name": name, **self.guests[name].to_row()}))

    # --- runs

    def _submitted(self, effects: ev.Effects, event: ev.Submitted) -> None:
        run, federation = event.run, event.federation
        offers = admissible(federation, self.guests)
        setup = federation.resolve(offers)
        course = deployed(federation, setup, self._secret, run)
        live = Live(run, federation, federation.hash, course, course.begin(), seq=0)
        self.runs[run] = live
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
        if live.status == "finished":
            raise RunError(f"the run {run} is finished: there is nothing to resume")
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
            ask = None if ask is None else draw(live.federation, live.course, ask)
        except Exception as error:
            self._end(effects, live, "failed", reason_of(error))
            return
        if ask is None:
            self._end(effects, live, "finished", live.progress.reason)
            return
        live.answers, live.missing, live.reducing = {}, {}, False
        live.take(ask)
        effects.blobs.append(ev.Blob(live.id, ask.version, "ask", tensors.write(ask.send)))
        self._event(effects, live, "asked", **asked(ask), attempt=live.attempt)
        self._call(effects, live, ask)

    def _call(self, effects: ev.Effects, live: Live, ask: Ask) -> None:
        """Begin an attempt at an ask, or a phase of it, with those who are not left out."""
        if live.desk is None:
            row = {"run": live.id, "version": ask.version}
            effects.changes.append(Put("ask", {**row, "attempt": live.attempt, "digest": ask.digest}))
        for party in live.waiting:
            if self.guests[party].state == "removed":
                self._leave(effects, live, party, "removed")
            elif not self.guests[party].listening:
                self._missing(effects, live, party)
            elif live.desk is None:
                self._tell(effects, live, party)
        self._ask_steps(effects, live, {party for party in live.waiting if self.guests[party].listening})
        self._alarm(effects, live)
        self._go_on(effects, live)

    def _alarm(self, effects: ev.Effects, live: Live) -> None:
        passed = ev.DeadlinePassed(live.id, live.progress.version, live.attempt, live.phase)
        effects.alarms.append((passed, live.federation.cohort.deadline))

    def _tell(self, effects: ev.Effects, live: Live, party: str) -> None:
        if live.ask is not None:
            proven = [(attempt, proof) for attempt, (names, proof) in live.past.proofs.items() if party in names]
            for attempt, proof in proven[-1:]:  # it may have been away, and works only with its vector free
                step = Step(live.id, live.ask.version, attempt, Phase.UNMASK, proof)
                effects.notices.append((party, step))
            notice = ev.WorkNotice(live.id, live.ask, live.attempt, live.hash)
            effects.notices.append((party, notice))

    def _ask_steps(self, effects: ev.Effects, live: Live, parties: Collection[str]) -> None:
        """Ask these parties for their steps of a secure sum, if there is one and they are to take one."""
        for out in requests(live.desk) if live.desk else ():
            if out.receiver in parties:
                where = live.id, live.progress.version, live.attempt
                effects.notices.append((out.receiver, Step(*where, out.phase, out.payload)))

    # --- answers

    def _delivered(self, effects: ev.Effects, event: ev.Delivered) -> None:
        live, stale = self._expected(event.party, event)
        if live is None or live.ask is None:
            effects.receipts.append((event.ticket, False, stale))
            return
        earlier = live.answers.get(event.party)
        if earlier is not None:
            same = earlier.digest == event.digest and earlier.taken
            other = "another answer to this ask was taken already"
            reason = "" if same else other if earlier.taken else earlier.reason
            effects.receipts.append((event.ticket, same, reason))
            return
        refusal = event.refusal
        if live.rules and live.phase != Phase.MASK:
            refusal = "a vector before it was asked for"
        rows = self.guests[event.party].rows(live.federation.dataset)
        if not refusal and event.weight >= rows:
            refusal = f"the weight is {event.weight:g}, and it offers fewer than {rows} rows"
        if refusal:
            self._exclude(effects, live, event.party, refusal)
            effects.receipts.append((event.ticket, False, refusal))
            self._go_on(effects, live)
            return
        answer = Answered(event.attempt, event.digest, event.weight, taken=True, size=len(event.body))
        live.answers[event.party] = answer
        self._save_answer(effects, live, event.party, answer)
        effects.blobs.append(ev.Blob(live.id, event.version, f"answer {event.party}", event.body))
        effects.receipts.append((event.ticket, True, ""))
        if live.desk is not None:
            self._turn(effects, live, live.desk, step(live.desk.holding([event.party]), ())[0])
        self._go_on(effects, live)

    def _failed(self, effects: ev.Effects, event: ev.Failed) -> None:
        live, stale = self._expected(event.party, event)
        if live is None or live.out(event.party):
            effects.receipts.append((event.ticket, False, stale))
            return
        roster = set(live.desk.terms.names if live.desk else ()) - {event.party}
        if (others := sorted(roster.intersection(event.about))[:ACCUSED]) and event.party not in live.answers:
            live.past.complaints += tuple((event.party, other) for other in others)
            self._save_past(effects, live)
        self._leave(effects, live, event.party, event.reason)
        effects.receipts.append((event.ticket, True, ""))
        self._go_on(effects, live)

    def _said(self, effects: ev.Effects, event: ev.Said) -> None:
        """An answer in a phase need not be durable before it is heard: who gave it, gives it again."""
        said, party = event.step, event.party
        live, stale = self._expected(party, said)
        effects.receipts.append((event.ticket, live is not None, stale))
        if live is None or live.rules is None:
            return
        if live.desk is not None and said.phase != Phase.MASK:
            envelope = Envelope(live.id, live.hash, said.number, said.phase, party, "", said.payload)
            self._turn(effects, live, live.desk, step(live.desk, [envelope])[0])
        elif live.desk is None and said.phase == Phase.ADVERTISE and party in live.waiting:
            if wrong := unfit(said.payload):
                self._leave(effects, live, party, wrong)
            else:
                live.adverts[party] = said.payload
        self._go_on(effects, live)

    def _expected(self, party: str, event: ev.Delivered | ev.Failed | Step) -> tuple[Live | None, str]:
        """The run that waits for this answer, or why none does."""
        live = self.runs.get(event.run)
        if live is None:
            return None, f"no run {event.run!r} waits for answers"
        if live.ask is None or party not in live.ask.parties:
            return None, "the party was not asked"
        if (event.version, event.attempt) != (live.ask.version, live.attempt):
            said, at = f"{event.version}.{event.attempt}", f"{live.ask.version}.{live.attempt}"
            return None, f"stale: an answer to exchange {said}, and the run is at {at}"
        return live, ""

    def _leave(self, effects: ev.Effects, live: Live, party: str, reason: str) -> None:
        """Expect no more of a party; if its vector is here already, that is still counted."""
        if party not in live.answers:
            live.adverts.pop(party, None)
            self._exclude(effects, live, party, reason)
            return
        live.gone.add(party)
        if live.answers[party].taken:
            self._event(effects, live, "refused", **live.about(party), reason=_short(reason))

    def _exclude(self, effects: ev.Effects, live: Live, party: str, reason: str) -> None:
        """The party is not counted in this exchange; the run goes on with the others."""
        reason = _short(reason)
        live.answers[party] = answer = Answered(live.attempt, "", 0.0, taken=False, reason=reason)
        self._save_answer(effects, live, party, answer)
        self._event(effects, live, "refused", **live.about(party), reason=reason)

    def _save_answer(self, effects: ev.Effects, live: Live, party: str, answer: Answered) -> None:
        key = {"run": live.id, "version": live.progress.version, "party": party}
        effects.changes.append(Put("answer", {**key, **vars(answer)}))

    def _deadlinepassed(self, effects: ev.Effects, passed: ev.DeadlinePassed) -> None:
        live = self.runs.get(passed.run)
        if live is None or live.ask is None or live.reducing:
            return
        if (live.ask.version, live.attempt, live.phase) != (passed.version, passed.attempt, passed.phase):
            return
        for party in live.waiting:
            self._leave(effects, live, party, f"no answer within {live.federation.cohort.deadline:g} s")
        self._go_on(effects, live)

    def _go_on(self, effects: ev.Effects, live: Live) -> None:
        """Once nobody is waited for: sum, or the next phase of a secure sum; fail if too few can be counted."""
        if live.ask is None or live.reducing or live.waiting:
            return
        if live.desk is not None and live.desk.ended:
            live.reducing = True
            effects.reduce.append((live.id, live.ask.version, live.desk.survivors))
            return
        if live.desk is not None:
            self._turn(effects, live, live.desk, advance(live.desk)[0])
            return
        if live.rules is not None:
            self._seat(effects, live, live.ask, live.rules)
            return
        taken = tuple(party for party in live.ask.parties if live.answers[party].taken)
        excluded = {p: a.reason for p, a in live.answers.items() if not a.taken}
        if error := too_few(live.federation, live.ask, len(taken), excluded):
            self._end(effects, live, "failed", error.said)
            return
        live.reducing = True
        effects.reduce.append((live.id, live.ask.version, taken))

    # --- secure sums

    def _seat(self, effects: ev.Effects, live: Live, ask: Ask, rules: Rules) -> None:
        """Open an attempt with those who advertised, if they are enough."""
        for party in [name for name in live.adverts if len(self.guests[name].identity) != KEY]:
            self._leave(effects, live, party, "it shows no identity, or another party's")
        adverts = sorted(live.adverts.items())
        excluded = {p: a.reason for p, a in live.answers.items()}
        try:
            if few := too_few(live.federation, ask, len(adverts), excluded):
                raise few
            work = sitting(ask, live.course.signals(ask)[-1])
            roster = tuple(Member(name, self.guests[name].identity, said) for name, said in adverts)
            desk, _ = opening(Terms(live.id, live.hash, live.number, work, rules, roster))
        except HansaError as error:
            told = error.said if isinstance(error, RunError) else f"{error.said} ({_listed(excluded)})"
            self._end(effects, live, "failed", told)
            return
        self._turn(effects, live, Desk(desk.terms), desk)

    def _turn(self, effects: ev.Effects, live: Live, before: Desk, desk: Desk) -> None:
        """Take what a desk has become; another phase is durable before its requests leave."""
        ask, live.desk = live.ask, desk
        for said in desk.refused[len(before.refused) :]:
            for name in desk.terms.names:
                if said.startswith(f"{name}: ") and not live.out(name):
                    self._leave(effects, live, name, said.removeprefix(f"{name}: "))
        if ask is None or (desk.phase, desk.ended) == (before.phase, before.ended):
            return
        if desk.ended in ("abandoned", "failed"):
            if desk.ended == "abandoned":
                live.past.proofs[live.attempt] = desk.terms.names, desk.told
                self._ask_steps(effects, live, set(desk.terms.names))
            self._again(effects, live, ask, before, desk)
            return
        effects.blobs.append(ev.Blob(live.id, ask.version, "desk", encode(desk)))
        if desk.ended:
            self._go_on(effects, live)
        else:
            self._call(effects, live, ask)

    def _again(self, effects: ev.Effects, live: Live, ask: Ask, before: Desk, desk: Desk) -> None:
        """An attempt came to nothing, and nothing was revealed: the next one is without those who failed it."""
        place = {"run": live.id, "version": ask.version}
        for party in sorted(p for p in live.gone if live.answers[p].taken):
            self._exclude(effects, live, party, "it did not go through with the attempt before")
        past, blamed = live.past, live.past.blamed()
        said = {one: live.answers[one] for one, _ in past.complaints[past.heeded :]}
        live.answers = {p: answer for p, answer in live.answers.items() if p in blamed or p not in said}
        for party, one in blamed.items():
            if party not in said:
                self._exclude(effects, live, party, f"{one}: {said[one].reason}")
        fewer, known = any(map(live.out, before.terms.names)), live.answers
        live.anew()
        without = {party: answer.reason for party, answer in live.answers.items()}
        facts = {"phase": Phase(before.phase).name, "ended": desk.ended, "without": without}
        where = {"round": ask.round, "work": ask.work, "version": ask.version, "attempt": live.attempt}
        self._event(effects, live, "attempt", **where, **facts)
        for name in ("desk", *(f"answer {party}" for party in known)):
            effects.changes.append(Drop("blob", {**place, "name": name}))
        effects.changes.append(Drop("answer", place))
        for party, answer in live.answers.items():
            self._save_answer(effects, live, party, answer)
        live.attempt, past.failures, past.heeded = live.attempt + 1, past.failures + 1, len(past.complaints)
        self._save_past(effects, live)
        if past.failures < ATTEMPTS and fewer:
            self._call(effects, live, ask)
        else:
            what = f"{past.failures} attempts at a secure sum came to nothing ({_listed(without)})"
            self._end(effects, live, "failed", RunError(what, round=ask.round).said)

    def _save_past(self, effects: ev.Effects, live: Live) -> None:
        effects.blobs.append(ev.Blob(live.id, live.progress.version, "past", encode(live.past)))

    def _reduced(self, effects: ev.Effects, event: ev.Reduced) -> None:
        live, version, total = self.runs.get(event.run), event.version, event.total
        ask = live.ask if live else None
        if live is None or ask is None or ask.version != version or not live.reducing:
            return
        for party, reason in event.excluded.items():
            self._exclude(effects, live, party, reason)
        excluded = {p: a.reason for p, a in live.answers.items() if p not in total.parties}
        metrics = {
            "bytes_out": float(ask.send.nbytes * len(ask.parties)),
            "bytes_in": float(sum(answer.size for answer in live.answers.values())),
        }
        arrival = Arrival(ask, total, excluded, metrics)
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
        for party in ask.parties:
            if counted := party in total.parties:
                self.guests[party].counted[live.id] = version
            notice = ev.SettledNotice(live.id, version, counted, excluded.get(party, ""))
            effects.notices.append((party, notice))
        live.attempt, live.answers = 1, {}
        live.take(None)
        self._checkpoint(effects, live)
        for table in ("blob", "ask"):
            effects.changes.append(Drop(table, {"run": live.id, "version": version}))
        effects.settled.append((live.id, version))
        self._open(effects, live)

    def _checkpoint(self, effects: ev.Effects, live: Live) -> None:
        version = live.progress.version
        effects.blobs.append(ev.Blob(live.id, version, "checkpoint", live.progress.pack()))
        effects.changes.append(Put("run", {"id": live.id, "round": live.progress.round}))

    def _end(self, effects: ev.Effects, live: Live, status: str, reason: str) -> None:
        hidden = live.ask.parties if live.ask and live.rules else ()
        for party in hidden or [party for party, answer in live.answers.items() if answer.taken]:
            notice = ev.SettledNotice(live.id, live.progress.version, False, reason)  # it counts nobody
            effects.notices.append((party, notice))
        live.answers, live.status = {}, status
        live.take(None)
        del self.runs[live.id]
        self._applied[live.id] = live.progress.version
        self._event(effects, live, status, reason=reason, round=live.progress.round)
        effects.changes.append(Put("run", {"id": live.id, "status": status, "reason": reason}))
        effects.ended.append(live.id)

    def _event(self, effects: ev.Effects, live: Live, kind: str, **body: Json) -> None:
        live.seq += 1
        row = {"run": live.id, "seq": live.seq, "at": now(), "kind": kind, "body": body}
        effects.changes.append(Put("event", row))


def _short(reason: str) -> str:
    """On one line and not too long: what a party says goes into events, logs and terminals."""
    short = reason if len(reason) <= LONGEST_REASON else f"{reason[:LONGEST_REASON]} ..."
    return "".join(c if c.isprintable() else " " for c in short)


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{party}: {reason}" for party, reason in sorted(reasons.items()))
