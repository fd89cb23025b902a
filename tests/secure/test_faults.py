"""The state machine of an attempt under every fault: it ends once, as one set's sum or as a failure."""

import random
from itertools import combinations, permutations

import pytest

from hansa.secure.terms import Phase, Rules

pytestmark = pytest.mark.untraced

KINDS = ["drop", "twice", "late", "before", "after", "between", "lose"]
FOUR = {"n": 4, "rules": Rules(dropout=0.25, honest=2), "length": 2}


def played(play, plan, **hall):
    done = play.Faults(plan, **hall).play()
    play.check(done)
    return done


def test_without_faults_everybody_ends_with_the_sum(play):
    done = played(play, {}, **FOUR)
    assert done.desk.ended == "summed"
    assert done.desk.survivors == tuple(done.names)
    assert {seat.ended for seat in done.seats.values()} == {"summed"}


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_at_any_event_of_four_parties(play, kind):
    events = played(play, {}, **FOUR).events
    ends = []
    for event in range(events):
        done = played(play, {event: kind}, **FOUR)
        ends.append((done.desk.ended, len(done.desk.survivors)))
    if kind != "lose":  # whatever is repeated is made good
        assert set(ends) == {("summed", 4)}
    else:
        assert {("failed", 0), ("summed", 3), ("summed", 4)} == set(ends)


@pytest.mark.parametrize("second", ["before", "lose"])
def test_a_party_lost_at_any_event_and_a_fault_at_any_other(play, second):
    three = {"n": 3, "rules": Rules(dropout=0.34, honest=1), "length": 1}
    events = played(play, {}, **three).events
    ended = set()
    for lost, other in (combinations if second == "lose" else permutations)(range(events), 2):
        ended.add(played(play, {lost: "lose", other: second}, **three).desk.ended)
    assert {"failed", "summed"} <= ended


@pytest.mark.parametrize("seed", range(60))
def test_many_faults_of_all_kinds_in_any_order(play, seed):
    draw = random.Random(seed)
    n = draw.randint(4, 8)
    rules = Rules(corrupt=draw.randint(0, 1), dropout=0.3, honest=draw.randint(1, 2))
    plan = {e: draw.choice(KINDS[: 7 if draw.random() < 0.3 else 6]) for e in range(200) if draw.random() < 0.2}
    hall = play.Faults(plan, n=n, rules=rules, length=2, seed=seed)

    def pick(waiting):
        i = draw.randrange(len(waiting))
        waiting.rotate(-i)
        return waiting.popleft()

    hall.pick = pick
    play.check(hall.play())


def test_the_simulator_would_see_a_party_that_answers_before_it_is_durable(play):
    """A check that cannot fail proves nothing: break the rule, and it must."""
    hall = play.Faults({}, **FOUR)
    party = hall.parties[hall.names[0]]
    seat = hall.seats[hall.names[0]]
    one, _ = party.advertise("run", "session", 1, b"1" * 32)
    hall.heard = [
        hall.say("", Phase.MASK, b"a", sender=hall.names[0]),
        hall.say("", Phase.MASK, b"b", sender=hall.names[0]),
    ]
    assert one.answer != seat.answer
    hall.play()
    with pytest.raises(AssertionError):
        play.check(hall)
