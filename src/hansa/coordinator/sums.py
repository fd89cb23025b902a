"""Attempts at an exchange: who is asked and left out, and a secure sum by its phases."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import product

from hansa.aggregation.ring import sitting
from hansa.contribution import Ask, Json, canonical
from hansa.coordinator import events as ev
from hansa.coordinator.live import Answered, Guest, Live
from hansa.crypto.agreement import KEY
from hansa.database import Drop, Put
from hansa.errors import HansaError, RunError, StudyError
from hansa.keyed import generator
from hansa.run import goal, now, too_few
from hansa.secure.coordinator import Desk, Table, seated, unfit
from hansa.secure.terms import Envelope, Member, Phase, Rules, Step, Terms, encode

LONGEST_REASON = 600  # characters of a party's own words that are kept

ATTEMPTS = 5  # at the secure sum of one exchange, before the run fails


class Sums:
    """The machine's attempts at an exchange: whom it asks and waits for, and what comes of those under masks."""

    def __init__(
        self, guests: Mapping[str, Guest] | None = None, runs: Mapping[str, Live] | None = None, secret: bytes = b""
    ) -> None:
        self._secret, self.guests, self.runs = secret, dict(guests or {}), dict(runs or {})
        self._applied: dict[str, int] = {}  # exchanges of the runs that ended since the start

    def _call(self, effects: ev.Effects, live: Live, ask: Ask) -> None:
        """Begin an attempt at an ask, or a phase of it, with those who are not left out."""
        if live.desk is None:
            row = {"run": live.id, "version": ask.version}
            effects.changes.append(Put("ask", {**row, "attempt": live.attempt, "digest": ask.digest}))
        for party in live.due:
            if self.guests[party].state == "removed":
                self._leave(effects, live, party, "removed")
            elif not self.guests[party].listening:
                self._missing(effects, live, party)
            elif live.desk is None and not live.federation.pace.late:
                self._tell(effects, live, party)
        self._begin(effects, live, always=True)
        self._ask_steps(effects, live, {party for party in live.waiting if self.guests[party].listening})
        self._alarm(effects, live)
        self._go_on(effects, live)

    def _begin(self, effects: ev.Effects, live: Live, always: bool = False) -> None:
        """Where late answers count, let those begin who are free, of those that train no more than the study says."""
        if live.ask is None or live.reducing or not live.federation.pace.late:
            return
        known = {*live.told, *(live.begun if live.trains else ())}
        free = [p for p in live.due if p not in known and self.guests[p].listening]
        if live.trains and (most := getattr(live.federation.method, "concurrency", 0)):
            at_work = [p for p in live.begun if self.guests[p].listening and p not in {*live.late, *live.answers}]
            drawn = generator(live.course.setup.seed, "begins", live.ask.version).permutation(len(live.ask.parties))
            order = dict(zip(live.ask.parties, drawn.tolist(), strict=True))
            free = sorted(free, key=order.__getitem__)[: max(0, most - len(at_work))]
        for party in free:
            if live.trains:
                live.begun[party] = live.ask.version, live.attempt
            self._tell(effects, live, party)
        if free or always:
            self._save_begun(effects, live)

    def _save_begun(self, effects: ev.Effects, live: Live) -> None:
        begun, here = [(party, *place) for party, place in live.begun.items()], live.progress.version
        body = canonical([begun, [ask.header() for version, ask in live.asks.items() if version != here]])
        effects.blobs.append(ev.Blob(live.id, here, "begun", body))

    def _tell(self, effects: ev.Effects, live: Live, party: str) -> None:
        live.told.add(party)
        if live.busy(party):
            version, attempt = live.begun[party]
            effects.notices.append((party, ev.WorkNotice(live.id, live.asks[version], attempt, live.hash)))
        elif live.ask is not None:
            proven = [(attempt, proof) for attempt, names, proof in live.past.proofs if party in names]
            for attempt, proof in proven[-1:]:  # it may have been away, and works only with its vector free
                effects.notices.append((party, Step(live.id, live.ask.version, attempt, Phase.UNMASK, proof)))
            effects.notices.append((party, ev.WorkNotice(live.id, live.ask, live.attempt, live.hash)))

    def _missing(self, effects: ev.Effects, live: Live, party: str) -> None:
        """Say that the run waits for a party that does not listen; once in an exchange."""
        if party not in live.missing and not live.federation.pace.goal:
            live.missing[party] = True
            self._event(effects, live, "waiting", **live.about(party), seconds=live.federation.cohort.deadline)

    def _alarm(self, effects: ev.Effects, live: Live) -> None:
        passed = ev.DeadlinePassed(live.id, live.progress.version, live.attempt, live.phase)
        effects.alarms.append((passed, live.federation.cohort.deadline))

    def _go_on(self, effects: ev.Effects, live: Live, over: bool = False) -> None:
        """Once nobody is waited for, or the time is ``over``: sum, or its next phase; fail if too few are counted."""
        if live.ask is None or live.reducing:
            return
        if live.waiting and not live.enough and not (over and not live.rules):
            self._begin(effects, live)
            return
        if live.desk is not None and live.desk.ended:
            live.reducing = True
            effects.reduce.append((live.id, live.ask.version, live.desk.survivors))
            return
        if live.desk is not None:
            self._turn(effects, live, live.desk, live.desk.advance())
            return
        if live.rules is not None:
            self._seat(effects, live, live.ask, live.rules)
            return
        taken = {party for party, answer in live.answers.items() if answer.taken}
        if live.trains:  # the oldest late ones first; who finds no room, will in the next
            most = goal(live.federation, live.ask) or len(taken) + len(live.late)
            taken |= set(sorted(live.late, key=lambda p: (live.begun[p], p))[: max(0, most - len(taken))])
        excluded = dict.fromkeys(live.waiting, f"no answer within {live.federation.cohort.deadline:g} s")
        excluded |= {p: a.reason for p, a in live.answers.items() if not a.taken}
        if error := too_few(live.federation, live.ask, len(taken), excluded):
            self._end(effects, live, "failed", error.said)
            return
        order = (*live.ask.parties, *sorted(taken.difference(live.ask.parties)))
        live.reducing, live.summed = True, tuple(party for party in order if party in taken)
        effects.reduce.append((live.id, live.ask.version, live.summed))

    def _ask_steps(self, effects: ev.Effects, live: Live, parties: Collection[str]) -> None:
        """Ask these parties for their steps of a secure sum, if there is one and they are to take one."""
        for out in live.desk.requests if live.desk else ():
            if out.receiver in parties:
                where = live.id, live.progress.version, live.attempt
                effects.notices.append((out.receiver, Step(*where, out.phase, out.payload)))

    def _said(self, effects: ev.Effects, event: ev.Said) -> None:
        """An answer in a phase need not be durable before it is heard: who gave it, gives it again."""
        said, party = event.step, event.party
        live, stale = self._expected(party, said)
        effects.receipts.append((event.ticket, live is not None, stale))
        if live is None or live.rules is None:
            return
        if live.desk is not None and said.phase != Phase.MASK:
            envelope = Envelope(live.id, live.hash, said.number, said.phase, party, "", said.payload)
            self._turn(effects, live, live.desk, live.desk.step([envelope]))
        elif live.desk is None and said.phase == Phase.ADVERTISE and party in live.waiting:
            if wrong := unfit(said.payload):
                self._leave(effects, live, party, wrong)
            else:
                live.adverts[party] = said.payload
        self._go_on(effects, live)

    def _seat(self, effects: ev.Effects, live: Live, ask: Ask, rules: Rules) -> None:
        """Open an attempt with those who advertised, if they are enough."""
        for party in [name for name in live.adverts if len(self.guests[name].identity) != KEY]:
            self._leave(effects, live, party, "it shows no identity, or another party's")
        adverts = sorted(live.adverts.items())
        excluded = {p: a.reason for p, a in live.answers.items()}
        try:
            if few := too_few(live.federation, ask, len(adverts), excluded):
                raise few
            signal = live.course.signals(ask)[-1]
            roster = tuple(Member(name, self.guests[name].identity, said) for name, said in adverts)
            table = seated(Terms(live.id, live.hash, live.number, sitting(ask, signal), rules, roster))
            if (due := signal.buckets) and len(table.desks) < due.least:
                what = f"{len(roster)} parties are too few for {due.least} buckets of {due.size}"
                raise StudyError(what, remedy="Lower bucket.size, or invite more parties")
        except HansaError as error:
            told = error.said if isinstance(error, RunError) else f"{error.said} ({_listed(excluded)})"
            self._end(effects, live, "failed", told)
            return
        self._turn(effects, live, Table(tuple(Desk(desk.terms) for desk in table.desks)), table)

    def _turn(self, effects: ev.Effects, live: Live, before: Table, desk: Table) -> None:
        """Take what the desks have become; another phase is durable before its requests leave."""
        ask, live.desk = live.ask, desk
        for was, one in zip(before.desks, desk.desks, strict=True):
            for said, name in product(one.refused[len(was.refused) :], one.terms.names):
                if said.startswith(f"{name}: ") and not live.out(name):
                    self._leave(effects, live, name, said.removeprefix(f"{name}: "))
            if one.ended == "abandoned" != was.ended:
                live.past.proofs += ((live.attempt, one.terms.names, one.told),)
                self._save_past(effects, live)
                self._ask_steps(effects, live, set(one.terms.names))
        if ask is None or (desk.phase, desk.ended) == (before.phase, before.ended):
            return
        buckets, left = live.course.signals(ask)[-1].buckets, sum(len(one.terms.names) for one in desk.open)
        few = too_few(live.federation, ask, left, {}) or len(desk.open) < (buckets.least if buckets else 1)
        if desk.ended in ("abandoned", "failed") or (desk.phase <= Phase.MASK and few):
            self._again(effects, live, ask, before, desk)
            return
        effects.blobs.append(ev.Blob(live.id, ask.version, "desk", encode(desk)))
        if desk.ended:
            self._go_on(effects, live)
        else:
            self._call(effects, live, ask)

    def _again(self, effects: ev.Effects, live: Live, ask: Ask, before: Table, desk: Table) -> None:
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
        fewer, known = any(map(live.out, before.names)), live.answers
        live.anew()
        without = {party: answer.reason for party, answer in live.answers.items()}
        facts = {"phase": Phase(before.phase).name, "ended": desk.ended or "failed", "without": without}
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

    # --- parties in a run, and its end

    def _expected(self, party: str, event: ev.Delivered | ev.Failed | Step) -> tuple[Live | None, str]:
        """The run that waits for this answer, or why none does."""
        live = self.runs.get(event.run)
        if live is None:
            return None, f"no run {event.run!r} waits for answers"
        if live.ask is None or not (party in live.ask.parties or party in live.begun):
            return None, "the party was not asked"
        if live.asked(party, event.version, event.attempt) is None:
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

    def _drop(self, effects: ev.Effects, live: Live, party: str, reason: str) -> None:
        """Expect nothing more of who works on an earlier exchange, and is asked anew."""
        version, attempt = live.begun.pop(party)
        live.late.pop(party, None)
        self._save_answer(effects, live, party, Answered(attempt, "", 0.0, False, _short(reason)), version)
        self._event(effects, live, "refused", **live.about(party, version), reason=_short(reason))
        effects.notices.append((party, ev.SettledNotice(live.id, version, False, reason)))
        self._save_begun(effects, live)

    def _exclude(self, effects: ev.Effects, live: Live, party: str, reason: str) -> None:
        """The party is not counted in this exchange; the run goes on with the others."""
        reason = _short(reason)
        live.answers[party] = answer = Answered(live.attempt, "", 0.0, taken=False, reason=reason)
        self._save_answer(effects, live, party, answer)
        self._event(effects, live, "refused", **live.about(party), reason=reason)

    def _save_answer(self, effects: ev.Effects, live: Live, party: str, answer: Answered, at: int = -1) -> None:
        key = {"run": live.id, "version": live.progress.version if at < 0 else at, "party": party}
        effects.changes.append(Put("answer", {**key, **vars(answer)}))

    def _end(self, effects: ev.Effects, live: Live, status: str, reason: str) -> None:
        for party, late in live.late.items():
            version, why = live.begun[party][0], "it came late, and the run ended before it counted"
            self._save_answer(effects, live, party, replace(late, reason=why), version)
            self._event(effects, live, "refused", **live.about(party, version), reason=why)
        hidden = live.ask.parties if live.ask and live.rules else ()
        taken = hidden or [party for party, answer in live.answers.items() if answer.taken]
        owed = {(party, live.progress.version) for party in taken}
        for party, version in sorted(owed | {(party, version) for party, (version, _) in live.begun.items()}):
            effects.notices.append((party, ev.SettledNotice(live.id, version, False, reason)))  # it counts nobody
        live.begun, live.late = {}, {}
        self._forget(effects, live, set(live.asks) - {live.progress.version})
        live.answers, live.status = {}, status
        live.take(None)
        del self.runs[live.id]
        self._applied[live.id] = live.progress.version
        self._event(effects, live, status, reason=reason, round=live.progress.round)
        effects.changes.append(Put("run", {"id": live.id, "status": status, "reason": reason}))
        effects.ended.append(live.id)

    def _forget(self, effects: ev.Effects, live: Live, versions: Collection[int]) -> None:
        """Let go of exchanges that nobody works on any more."""
        for version in sorted(versions):
            live.asks.pop(version, None)
            for table in ("blob", "ask"):
                effects.changes.append(Drop(table, {"run": live.id, "version": version}))
            effects.settled.append((live.id, version))

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
