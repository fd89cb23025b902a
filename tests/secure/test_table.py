"""An attempt in buckets: who is dealt where, and how buckets that fail leave the others alone."""

from dataclasses import replace

import numpy as np
import pytest

from hansa.errors import StudyError, TrustError
from hansa.secure import coordinator as table
from hansa.secure.coordinator import total
from hansa.secure.graph import buckets
from hansa.secure.terms import Phase, Rules, decode, encode

RULES = Rules(dropout=1 / 3, honest=1, bucket=3)


@pytest.mark.parametrize(("n", "size"), [(1, 3), (3, 3), (5, 3), (9, 3), (11, 3), (100, 7), (13, 2)])
def test_everybody_is_dealt_into_one_bucket_and_none_is_smaller_or_twice_as_large(n, size):
    parts = buckets(n, size, b"s" * 32)
    assert sorted(np.concatenate(parts).tolist()) == list(range(n))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert n < size or size <= min(sizes) <= max(sizes) < 2 * size
    assert all((np.diff(part) > 0).all() for part in parts)


def test_where_a_party_is_dealt_depends_on_what_everybody_advertised(play):
    """So nobody who does not know the other adverts chooses; all buckets are about as likely."""
    terms = replace(play.Hall(9, replace(RULES, bucket=0)).terms, rules=RULES)

    def names(one):
        return [desk.terms.names for desk in table.seated(one).desks]

    assert names(terms) == names(terms)
    beside = set()
    for other in range(1, 60):
        last = replace(terms.roster[8], said=bytes([other]) + terms.roster[8].said[1:])
        dealt = names(replace(terms, roster=(*terms.roster[:8], last)))
        beside |= {one for bucket in dealt if terms.names[0] in bucket for one in bucket}
    assert beside == set(terms.names)
    assert names(replace(terms, attempt=terms.attempt + 1)) != names(terms)


class Hall:
    """Nine parties in three buckets, played over the parties of the plain hall."""

    def __init__(self, play):
        self.hall = play.Hall(9, replace(RULES, bucket=0))
        self.parties = {n: replace(party, rules=RULES) for n, party in self.hall.parties.items()}
        self.seats = self.hall.seats
        self.table = table.seated(replace(self.hall.terms, rules=RULES))
        self.spool = {}

    def turn(self, silent=()):
        """Everybody answers what is out, but the silent, whose time is up; through bytes, as after a crash."""
        before, answers = self.table.phase, []
        for envelope in self.table.requests:
            if (name := envelope.receiver) in silent or name not in self.table.missing:
                continue
            self.seats[name], out = self.parties[name].step(self.seats[name], [envelope])
            if envelope.phase == Phase.MASK:
                self.seats[name], out = self.parties[name].commit(self.seats[name], self.hall.vectors[name])
                self.spool[name] = out[0].payload
            answers += out
        for answer in answers:
            self.table = decode(encode(self.table.step([answer])), table.Table)
        if self.table.phase == before and not self.table.ended:
            self.table = self.table.advance()

    def sums(self):
        return {d.survivors: total(d, self.spool.__getitem__) for d in self.table.desks if d.ended == "summed"}


def test_each_bucket_has_the_plain_sum_of_its_own(play):
    hall = Hall(play)
    while not hall.table.ended:
        hall.turn()
    assert [len(names) for names in hall.sums()] == [3, 3, 3]
    for names, summed in hall.sums().items():
        assert np.array_equal(summed, hall.hall.plain(names))


@pytest.mark.parametrize("phase", [Phase.ROSTER, Phase.SHARE, Phase.MASK, Phase.SURVIVORS, Phase.UNMASK])
def test_buckets_go_from_phase_to_phase_together_and_one_that_fails_fails_alone(play, phase):
    hall = Hall(play)
    [first, *others] = [desk.terms.names for desk in hall.table.desks]
    lost = first[:1] if phase <= Phase.SHARE else first[:2]  # one, or more than the rules allow
    while not hall.table.ended:
        assert len({desk.phase for desk in hall.table.open}) == 1
        hall.turn(lost if hall.table.phase >= phase else ())
    assert hall.table.ended == "summed"
    assert [desk.ended for desk in hall.table.desks][1:] == ["summed"] * 2
    assert hall.table.desks[0].ended == "failed"
    assert hall.table.survivors == tuple(name for names in others for name in names)
    assert list(hall.sums()) == others


def test_a_bucket_of_which_one_vector_came_signs_that_it_has_no_sum(play):
    hall = Hall(play)
    first = hall.table.desks[0].terms.names
    while hall.table.phase != Phase.MASK:
        hall.turn()
    hall.turn(first[1:])
    assert hall.table.desks[0].survivors == ()
    hall.turn()
    assert [desk.ended for desk in hall.table.desks] == ["abandoned", "", ""]
    hall.turn()
    assert len(hall.sums()) == 2


@pytest.mark.parametrize("n", [2, 6])
def test_a_party_signs_no_smaller_or_larger_bucket_than_its_study_deals(play, n):
    hall = play.Hall(n, replace(RULES, bucket=0, dropout=0.0))
    party = replace(hall.parties[hall.names[0]], rules=replace(RULES, dropout=0.0))
    asked = hall.say(hall.names[0], Phase.ROSTER, encode(replace(hall.terms, rules=party.rules)))
    with pytest.raises(TrustError, match=f"a bucket of {n} parties where 3 are due"):
        party.step(hall.seats[hall.names[0]], [asked])
    with pytest.raises(StudyError, match="a bucket of"):
        party.rules.numbers(n)
