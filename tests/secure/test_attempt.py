"""An attempt between honest roles: the plain sum bit for bit, whoever drops out and whenever."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.errors import ContributionError, StudyError
from hansa.secure import coordinator
from hansa.secure.coordinator import Desk
from hansa.secure.party import Seat
from hansa.secure.terms import Phase, Rules, decode, encode

LATE = [Phase.MASK, Phase.SURVIVORS, Phase.UNMASK]


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 12),
    bits=st.sampled_from([32, 64]),
    corrupt=st.integers(0, 2),
    length=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_the_sum_is_the_plain_sum_of_the_survivors_bit_for_bit(play, n, bits, corrupt, length, seed, data):
    rules = Rules(corrupt=corrupt, dropout=0.3, honest=1)
    try:
        rules.numbers(n)
    except StudyError:
        return
    hall = play.Hall(n, rules, bits=bits, length=length, seed=seed)
    may = n - hall.terms.numbers.survivors
    lost = data.draw(st.lists(st.tuples(st.sampled_from(hall.names), st.sampled_from(LATE)), max_size=may))
    silent = set()
    while not hall.desk.ended:
        silent |= {name for name, phase in lost if phase <= hall.desk.phase}
        hall.turn(silent)
    assert hall.desk.ended == "summed"
    gone = {name for name, phase in lost if phase == Phase.MASK}
    assert hall.desk.survivors == tuple(name for name in hall.names if name not in gone)
    assert np.array_equal(hall.total(), hall.plain(hall.desk.survivors))


@pytest.mark.parametrize("bits", [32, 64])
def test_a_large_roster_masks_along_a_regular_graph(play, bits):
    hall = play.Hall(120, Rules(corrupt=12, dropout=0.1), bits=bits)
    assert hall.terms.numbers.degree < 119
    hall.until(Phase.MASK)
    hall.turn(silent=hall.names[:6])
    hall.until(Phase.UNMASK)
    hall.turn(silent=hall.names[:12])
    assert hall.desk.ended == "summed"
    assert np.array_equal(hall.total(), hall.plain(hall.names[6:]))


@pytest.mark.parametrize("phase", [Phase.ROSTER, Phase.SHARE])
def test_who_drops_out_before_the_vectors_costs_nothing_but_the_attempt(play, phase):
    hall = play.Hall().until(phase)
    hall.turn(silent=hall.names[:1])
    assert hall.desk.ended == "failed"
    hall.turn(silent=hall.names[:1])
    assert {hall.seats[name].ended for name in hall.names[1:]} == {"unused"}
    assert not hall.spool


def test_too_few_survivors_sign_that_no_sum_will_be(play):
    hall = play.Hall().until(Phase.MASK)
    hall.turn(silent=hall.names[:2])
    hall.turn(silent=hall.names[:1])
    assert (hall.desk.ended, hall.desk.survivors) == ("abandoned", ())
    hall.turn(silent=hall.names[:1])
    assert {hall.seats[name].ended for name in hall.names[1:]} == {"abandoned"}
    assert not any(hall.seats[name].entropy for name in hall.names[1:])
    with pytest.raises(StudyError, match="no sum: it abandoned"):
        hall.total()


@pytest.mark.parametrize("phase", [Phase.SURVIVORS, Phase.UNMASK])
def test_too_few_left_after_the_set_is_fixed_is_a_failure_and_never_another_set(play, phase):
    hall = play.Hall().until(phase)
    fixed = hall.desk.chosen
    hall.turn(silent=hall.names[:3])
    assert hall.desk.ended == "failed"
    assert hall.desk.chosen == fixed
    assert hall.desk.opened == b""


def test_every_state_becomes_bytes_and_comes_back(play):
    hall = play.Hall(6)
    while True:
        assert decode(encode(hall.desk), Desk) == hall.desk
        for seat in hall.seats.values():
            assert decode(encode(seat), Seat) == seat
        if hall.desk.ended:
            break
        hall.turn()
    with pytest.raises(ContributionError, match="no Seat"):
        decode(encode(hall.desk), Seat)


def test_a_vector_of_another_ring_or_length_is_not_masked(play):
    hall = play.Hall().until(Phase.MASK)
    name = hall.names[0]
    party = hall.parties[name]
    seat, _ = party.step(hall.seats[name], [hall.request(name)])
    for wrong in (np.zeros(7, np.int32), np.zeros(7, np.uint64), np.zeros(8, np.uint32)):
        with pytest.raises(ContributionError, match="were agreed on"):
            party.commit(seat, wrong)
    with pytest.raises(StudyError, match="takes no vector now"):
        party.commit(hall.seats[hall.names[1]], hall.vectors[name])


def test_a_second_call_with_other_numbers_gives_the_first_bytes(play):
    hall = play.Hall().until(Phase.MASK)
    name = hall.names[0]
    (first,) = hall.answer(name, hall.request(name))
    _, (again,) = hall.parties[name].commit(hall.seats[name], hall.vectors[name] + 1)
    _, (asked,) = hall.parties[name].step(hall.seats[name], [hall.request(name)])
    assert first == again == asked


def test_no_phase_but_the_masked_one_grows_with_the_vector(play):
    sizes = []
    for length in (10, 10_000):
        hall, size = play.Hall(length=length), {}
        while not hall.desk.ended:
            phase, before = hall.desk.phase, dict(hall.seats)
            hall.turn()
            size[phase] = len(hall.seats[hall.names[0]].answer)
            assert before != hall.seats
        sizes.append(size)
    assert sizes[1].pop(Phase.MASK) - sizes[0].pop(Phase.MASK) == 4 * 9_990
    assert sizes[0] == sizes[1]


def test_a_wrong_answer_is_noted_and_counts_as_missing(play):
    hall = play.Hall().until(Phase.MASK)
    out = [said for e in hall.out for said in hall.answer(e.receiver, e)]
    short = replace(out[0], payload=b"short")
    desk, _ = coordinator.step(hall.desk, [short, *out[1:]])
    assert desk.missing == (hall.names[0],)
    assert desk.refused == (f"{hall.names[0]}: an answer of 5 bytes where 28 are due",)


@pytest.mark.parametrize(("at", "of"), [(0, "coin"), (40, "signature")])
def test_who_signs_another_roster_or_shows_another_coin_is_named_before_anybody_else_sees_it(play, at, of):
    hall = play.Hall().until(Phase.ROSTER)
    out = [said for e in hall.out for said in hall.answer(e.receiver, e)]
    wrong = bytearray(out[0].payload)
    wrong[at] ^= 1
    desk, sent = coordinator.step(hall.desk, [replace(out[0], payload=bytes(wrong)), *out[1:]])
    assert (desk.phase, desk.missing, sent) == (Phase.ROSTER, (hall.names[0],), ()), of
    assert desk.refused == (f"{hall.names[0]}: another roster signed, or another coin",)


@pytest.mark.parametrize(
    ("rules", "n", "why"),
    [
        (Rules(), 3, "needs 4 that stay"),
        (Rules(corrupt=1), 4, "needs 5 that stay"),
        (Rules(dropout=0.5), 10, "6 that sign"),
        (Rules(corrupt=60, dropout=0.5), 100, "81 that sign; 50 may drop out and 60 collude"),
    ],
)
def test_rules_that_so_few_parties_cannot_hold_are_refused(rules, n, why):
    with pytest.raises(StudyError, match=why):
        rules.numbers(n)


@pytest.mark.parametrize("wrong", [{"dropout": 1.0}, {"corrupt": -1}, {"adversary": "lazy"}, {"honest": 0}])
def test_rules_out_of_range_are_refused(wrong):
    with pytest.raises(StudyError, match="cannot be the rules"):
        Rules(**wrong)


def test_a_roster_out_of_order_is_not_opened(play):
    hall = play.Hall()
    wrong = replace(hall.terms, roster=hall.terms.roster[::-1])
    with pytest.raises(StudyError, match="in order"):
        coordinator.opening(wrong)
