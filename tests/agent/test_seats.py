"""What an agent answers in a secure sum, and what it refuses a coordinator that is not honest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hansa.agent.machine import READY, Asked, Effects, Heard, Machine, Settled, Sitting, Worked
from hansa.agent.seats import Seats
from hansa.contribution import Ask, Values
from hansa.crypto.agreement import Identity, words
from hansa.database import Put
from hansa.errors import TrustError
from hansa.secure import coordinator
from hansa.secure.coordinator import Desk
from hansa.secure.party import Certificate, Seat
from hansa.secure.terms import Envelope, Member, Phase, Rules, Step, Terms, Work, decode, encode, numbered

NAMES = ("a", "b", "c", "d")
RULES = Rules(dropout=0.25, honest=2)
KEYS = {name: Identity(bytes([i + 1]) * 32) for i, name in enumerate(NAMES)}
PUBLIC = {name: key.public for name, key in KEYS.items()}
PINS = {name: words(key) for name, key in PUBLIC.items()}
WORK = Work(1, b"m" * 32, 5)


VECTOR = np.arange(5, dtype=np.uint32)


def asked(attempt: int = 1, name: str = "a") -> Asked:
    ask = Ask("train", 0, 1, Values(), (), parties=NAMES)
    return Asked("run", ask, attempt, "federation", bytes([attempt]) * 31 + name.encode())


def worked(attempt: int, name: str = "a", fresh: bool = False, work: Work = WORK, rules: Rules = RULES) -> Worked:
    sitting = Sitting(work, rules, fresh, VECTOR)
    return Worked(asked(attempt, name), 1.0, b"", b"", {"number": attempt}, sitting)


class Four:
    """Four agents' machines, each with what is durable of it, and a coordinator's desk."""

    def __init__(self, fresh: bool = False, rules: Rules = RULES) -> None:
        self.rows: dict[str, dict[tuple[str, int], Any]] = {name: {} for name in NAMES}
        self.machines = {n: Machine(seats=Seats(n, KEYS[n])) for n in NAMES}
        self.fresh, self.rules, self.sent = fresh, rules, dict[str, Any]()
        self.begin(1)

    def begin(self, attempt: int) -> None:
        """Everybody is asked, works where that is called for, and advertises."""
        self.attempt, members = attempt, []
        for name in NAMES:
            effects = self.feed(name, asked(attempt, name))
            if effects.work:
                effects = self.feed(name, worked(attempt, name, self.fresh, rules=self.rules))
            if effects.say:
                members.append(Member(name, PUBLIC[name], effects.say[0].payload))
        self.members = tuple(members)

    def open(self, **other: Any) -> None:
        kept = {"work": WORK, "rules": self.rules, "roster": self.members}
        self.terms = Terms("run", "federation", numbered(0, self.attempt), **{**kept, **other})
        self.desk, self.out = coordinator.opening(self.terms)

    def feed(self, name: str, *events: Any) -> Effects:
        effects = Effects()
        for event in events:
            effects = self.machines[name].handle(event)
            for change in effects.changes:
                if change.table == "seat":
                    key = change.values["run"], change.values["attempt"]
                    self.rows[name].pop(key, None)
                    if isinstance(change, Put):
                        self.rows[name][key] = dict(change.values)
        return effects

    def restart(self, name: str) -> None:
        self.machines[name] = Machine(seats=Seats(name, KEYS[name], self.rows[name].values()))

    def note(self, name: str, effects: Effects) -> None:
        for held in effects.send:
            self.sent[name] = held
            self.desk = self.desk.holding([name])

    def request(self, name: str) -> Envelope:
        return next(envelope for envelope in self.out if envelope.receiver == name)

    def ask(self, envelope: Envelope) -> Effects:
        step = Step("run", 0, self.attempt, envelope.phase, envelope.payload)
        return self.feed(envelope.receiver, Heard(step, PINS))

    def turn(self, but: tuple[str, ...] = ()) -> None:
        said = []
        for envelope in self.out:
            if envelope.receiver in but:
                continue
            effects = self.ask(envelope)
            assert not effects.excuse, effects.excuse
            self.note(envelope.receiver, effects)
            place = (envelope.run, envelope.session, envelope.attempt, envelope.phase, envelope.receiver, "")
            said += [Envelope(*place, answer.payload) for answer in effects.say]
        before = self.desk.phase
        self.desk, self.out = coordinator.step(self.desk, said)
        if self.desk.phase == before and not self.desk.ended:
            self.desk, self.out = coordinator.advance(self.desk)

    def until(self, phase: Phase, but: tuple[str, ...] = ()) -> Four:
        while self.desk.phase < phase and not self.desk.ended:
            self.turn(but)
        return self


@pytest.fixture
def four() -> Four:
    made = Four()
    made.open()
    return made


def reason(effects: Effects) -> str:
    assert not effects.say
    assert not effects.send
    [excuse] = effects.excuse
    return excuse.reason


def test_an_attempt_goes_through_and_leaves_no_secret(four: Four) -> None:
    four.until(Phase.CLOSE)
    assert four.desk.ended == "summed"
    for name in NAMES:
        assert four.feed(name, Settled("run", 0, True)).changes
        [row] = four.rows[name].values()
        assert b'"entropy":""' in row["body"]
        assert b'"shares":""' in row["body"]


def test_the_seat_and_the_masked_bytes_are_one_transaction_and_the_charge_was_made_before(four: Four) -> None:
    four.until(Phase.MASK)
    effects = four.ask(four.request("a"))
    assert {change.table for change in effects.changes} == {"seat", "answer", "latest"}
    [held] = effects.send
    assert four.feed("a", asked()).send == [held]
    four.restart("a")
    assert not four.feed("a", worked(1)).send


def test_what_is_worked_out_again_after_a_restart_goes_into_the_attempt_that_waits_for_it(four: Four) -> None:
    four.until(Phase.MASK)
    four.restart("a")
    assert not four.ask(four.request("a")).send
    assert four.feed("a", asked()).work
    assert four.feed("a", worked(1)).send


def attacks() -> Iterator[tuple[str, Any]]:
    """Each plays a coordinator that is not honest to one party, and gives what that says."""

    def another_model(four: Four) -> Effects:
        four.open(work=replace(WORK, model=b"w" * 32))
        return four.ask(four.out[0])

    def lowered_threshold(four: Four) -> Effects:
        four.open(rules=replace(RULES, dropout=0.3))
        return four.ask(four.out[0])

    def substituted_key(four: Four) -> Effects:
        mine = replace(four.members[1], identity=Identity(bytes(32)).public)
        four.open(roster=(four.members[0], mine, *four.members[2:]))
        return four.ask(four.out[0])

    def second_set(four: Four) -> Effects:
        four.until(Phase.SURVIVORS)
        four.ask(four.out[0])
        return four.ask(replace(four.out[0], payload=four.terms.marks(NAMES[:3])))

    def unmask_after_another(four: Four) -> Effects:
        four.until(Phase.UNMASK)
        four.ask(four.out[0])
        said = decode(four.out[0].payload, Certificate)
        return four.ask(replace(four.out[0], payload=encode(replace(said, chosen=four.terms.marks(NAMES[:3])))))

    def old_message(four: Four) -> Effects:
        four.until(Phase.MASK)
        step = Step("run", 0, 1, four.out[0].phase, four.out[0].payload)
        four.begin(2)
        return four.feed("a", Heard(step, PINS))

    def used_number(four: Four) -> Effects:
        four.begin(2)
        four.restart("a")
        return four.feed("a", asked(1), worked(1))

    def unmask_at_once(four: Four) -> Effects:
        four.until(Phase.SHARE)
        return four.ask(replace(four.out[0], phase=Phase.UNMASK, payload=b"{}"))

    yield "terms of other work", another_model
    yield "where it holds to Rules(corrupt=0, dropout=0.25", lowered_threshold
    yield "the identity of 'b' is not confirmed here", substituted_key
    yield "a second request of a phase that it answered", second_set
    yield "fewer than 3 of the roster signed", unmask_after_another
    yield "an attempt that is not open", old_message
    yield "an attempt whose number was used", used_number
    yield "no Certificate", unmask_at_once


@pytest.mark.parametrize(("says", "attack"), [*attacks()], ids=lambda value: getattr(value, "__name__", ""))
def test_a_coordinator_that_is_not_honest_gets_nothing(says: str, attack: Any, four: Four) -> None:
    assert says in reason(attack(four))


def test_the_last_answer_is_given_again_byte_for_byte_and_by_a_restarted_agent(four: Four) -> None:
    for phase in (Phase.ROSTER, Phase.SHARE, Phase.SURVIVORS, Phase.UNMASK):
        four.until(phase)
        [first] = four.ask(four.out[0]).say
        assert four.ask(four.out[0]).say == [first]
        four.restart("a")
        assert four.ask(four.out[0]).say == [first]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_vector_that_may_be_in_a_sum_goes_into_no_other(fresh: bool) -> None:
    four = Four(fresh=fresh, rules=replace(RULES, adversary="curious"))
    four.open()
    four.until(Phase.SURVIVORS)
    assert four.feed("a", asked(2)).work  # anew, with other noise if there is any, and charged anew
    effects = four.feed("a", worked(2, fresh=fresh, rules=four.rules))
    if fresh:
        assert [step.phase for step in effects.say] == [Phase.ADVERTISE]
    else:
        assert "may be yet" in reason(effects)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_malicious_coordinator_gets_one_sum_of_an_exchange_however_its_vectors_are_noised(restarted: bool) -> None:
    four = Four(fresh=True)
    four.open()
    four.until(Phase.CLOSE)
    if restarted:
        four.restart("a")
    for attempt in (2, 3):
        effects = four.feed("a", asked(attempt))
        assert not effects.work  # which would be charged
        assert "may be yet" in reason(effects)
        assert "may be yet" in reason(four.feed("a", worked(attempt, fresh=True)))


def test_a_vector_for_one_study_does_not_sit_down_in_another() -> None:
    four = Four()
    for changed in (
        replace(asked(2), federation="another"),
        replace(asked(3), ask=replace(asked(3).ask, send=Values({"parameters": VECTOR}))),
    ):
        effects = four.feed("a", changed)
        assert [work.federation for work in effects.work] == [changed.federation]
        assert not effects.say


def test_a_vector_that_cannot_be_masked_is_an_excuse(four: Four, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise TrustError("no key to agree with")

    four.until(Phase.MASK)
    monkeypatch.setattr(Seats, "commit", refuse)
    effects = four.ask(four.request("a"))
    assert reason(effects) == "no key to agree with"
    assert (effects.excuse[0].asked.run, effects.excuse[0].asked.attempt) == ("run", 1)


@pytest.mark.parametrize("phase", [*Phase])
def test_what_is_secret_is_asked_about_until_it_is_settled_and_then_nothing_of_it_is_left(phase: Phase) -> None:
    four = Four()
    if phase > Phase.ADVERTISE:
        four.open()
        four.until(phase)
    four.restart("a")
    assert four.machines["a"].pending == [("run", 0)]
    assert four.feed("a", Settled("run", 0, False)).changes
    [row] = four.rows["a"].values()
    seat = decode(row["body"], Seat)
    assert seat.entropy == seat.agreed == seat.shares == seat.answer == b""
    assert four.machines["a"].pending == []
    assert not four.feed("a", Settled("run", 0, False)).changes


def test_a_refused_roster_shows_whom_the_ask_names_and_nobody_in_the_place_of_the_confirmed(four: Four) -> None:
    def shown(pins: dict[str, str], *members: Member) -> dict[str, bytes]:
        four.open(roster=members)
        [envelope] = [one for one in coordinator.requests(four.desk) if one.receiver == "a"]
        effects = four.feed("a", Heard(Step("run", 0, 1, Phase.ROSTER, envelope.payload), pins))
        assert "is not confirmed here" in reason(effects)
        return {change.values["name"]: change.values["identity"] for change in effects.changes}

    a, b, c, d = four.members
    other = Identity(bytes(32)).public
    assert shown({"b": PINS["b"]}, a, replace(b, identity=other), c, d) == {
        "c": PUBLIC["c"],
        "d": PUBLIC["d"],
        "a": PUBLIC["a"],
    }
    stranger = [replace(d, name=f"n{number}", identity=other) for number in range(9)]
    assert set(shown({}, a, b, c, d, *stranger)) == {"a", "b", "c", "d"}
    four.open()
    four.until(Phase.SHARE)
    again = replace(four.members[1], identity=other)
    effects = four.feed(
        "a", Heard(Step("run", 0, 1, Phase.ROSTER, encode(replace(four.terms, roster=(a, again, c, d)))), {})
    )
    assert (effects.changes, len(effects.excuse)) == ([], 1)


def test_a_vector_of_an_attempt_that_was_proved_to_have_no_sum_is_given_again_and_not_charged_again() -> None:
    four = Four()
    four.open()
    four.until(Phase.MASK)
    four.turn(but=("c", "d"))
    assert four.desk.survivors == ()
    four.turn()
    assert four.desk.ended == "abandoned"
    for envelope in coordinator.requests(four.desk):
        four.ask(envelope)
    first = four.sent["a"].body
    four.begin(2)
    assert len(four.members) == 4
    assert not four.machines["a"].handle(asked(2)).work
    four.open()
    four.until(Phase.MASK)
    effects = four.ask(four.request("a"))
    assert {change.table for change in effects.changes} == {"seat", "answer", "latest"}
    assert effects.send[0].body != first


def test_a_desk_that_holds_a_vector_goes_on_as_if_it_had_come(four: Four) -> None:
    four.until(Phase.MASK)
    desk, _ = coordinator.step(four.desk.holding(NAMES), ())
    assert isinstance(desk, Desk)
    assert desk.phase == Phase.SURVIVORS


def test_few_vectors_wait_in_memory_and_another_is_worked_out_again_and_not_charged_again() -> None:
    machine = Machine(seats=Seats("a", KEYS["a"]))
    runs = [replace(asked(), run=f"run {number}") for number in range(READY + 1)]
    for one in runs:
        assert machine.handle(one).work
        work = Work(1, bytes.fromhex(one.ask.digest), 5)
        assert machine.handle(replace(worked(1, work=work), asked=one)).say
    assert len(machine._ready) == READY
    [again] = machine.handle(runs[0]).work
    assert again.paid
    assert not machine.handle(runs[-1]).work
