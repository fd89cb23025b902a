"""A coordinator that leaves the protocol, and what an honest party answers: nothing."""

from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest

from hansa.crypto import masks, shares
from hansa.crypto.agreement import digest
from hansa.errors import ConsentError, HansaError, StudyError, TrustError
from hansa.secure import coordinator
from hansa.secure.party import BLIND, DEALT, MASKING, Certificate
from hansa.secure.terms import Member, Phase, Rules, Terms, Work, decode, encode


def certified(hall, names, signers=None):
    """A certificate over a set, with the keys of any signers: a coordinator that had stolen them all."""
    chosen = hall.terms.marks(names)
    signers = signers or hall.names
    said = (
        hall.identities[name].sign(b"survivors", hall.terms.digest, chosen) if name in signers else b""
        for name in hall.names
    )
    return encode(Certificate(chosen, tuple(said)))


def refused(hall, name, phase, payload, why, **other):
    """The party refuses a request, and its seat stays as it was."""
    before = hall.seats[name]
    with pytest.raises(TrustError, match=why) as caught:
        hall.answer(name, hall.say(name, phase, payload, **other))
    assert hall.seats[name] == before
    assert caught.value.party == name
    assert "Nothing was given" in str(caught.value)


def masked(play, **hall):
    """A hall where every vector is sent, and nothing was signed about survivors."""
    return play.Hall(**hall).until(Phase.SURVIVORS)


def test_both_secrets_of_one_party_are_not_given(play):
    hall = masked(play).until(Phase.UNMASK)
    one, victim = hall.names[0], hall.names[3]
    hall.answer(one, hall.request(one))
    without = [name for name in hall.names if name != victim]
    refused(hall, one, Phase.UNMASK, certified(hall, without), "second set of survivors")
    assert hall.seats[one].shares == hall.seats[one].entropy == b""


def test_two_survivor_sets_are_not_signed(play):
    hall = masked(play)
    one = hall.names[0]
    hall.answer(one, hall.say(one, Phase.SURVIVORS, hall.terms.marks(hall.names)))
    for other in (hall.names[:4], hall.names[1:], ()):
        refused(hall, one, Phase.SURVIVORS, hall.terms.marks(other), "second request of a phase")


def test_who_signed_that_no_sum_will_be_gives_none(play):
    hall = masked(play)
    one = hall.names[0]
    hall.answer(one, hall.say(one, Phase.SURVIVORS, hall.terms.marks(())))
    refused(hall, one, Phase.UNMASK, certified(hall, hall.names), "second set of survivors")


def test_a_second_unmasking_without_one_party_is_refused(play):
    hall = masked(play).until(Phase.UNMASK)
    hall.turn()
    for name in hall.names[:4]:
        refused(hall, name, Phase.UNMASK, certified(hall, hall.names[:4]), "second set of surviv")


def test_a_set_that_too_few_signed_opens_nothing(play):
    hall = masked(play)
    one, need = hall.names[0], hall.terms.numbers.signers
    few = certified(hall, hall.names, hall.names[: need - 1])
    refused(hall, one, Phase.UNMASK, few, f"fewer than {need}")
    forged = decode(certified(hall, hall.names), Certificate)
    same = forged.signatures[:1] * len(hall.names)
    refused(hall, one, Phase.UNMASK, encode(replace(forged, signatures=same)), f"fewer than {need}")
    twice = replace(forged, signatures=forged.signatures * 2)
    refused(hall, one, Phase.UNMASK, encode(twice), f"fewer than {need}")


def test_a_sum_of_few_or_without_oneself_is_not_signed(play):
    hall = masked(play)
    one = hall.names[0]
    refused(hall, one, Phase.SURVIVORS, hall.terms.marks(hall.names[:3]), "a sum of 3 parties")
    refused(hall, one, Phase.SURVIVORS, hall.terms.marks(hall.names[1:]), "own vector is not in")
    refused(hall, one, Phase.UNMASK, certified(hall, hall.names[:3]), "a sum of 3 parties")
    refused(hall, one, Phase.SURVIVORS, b"\xff", "survivors that is none")


def test_another_model_to_one_party_ends_at_the_roster(play):
    hall = play.Hall()
    one, rest = hall.names[0], hall.names[1:]
    trap = replace(hall.work, model=b"trap" * 8)
    other = replace(hall.terms, work=trap)
    refused(hall, one, Phase.ROSTER, encode(other), "terms of other work")
    # The trap is sent as its model, so its terms are what it expects; the others signed theirs.
    hall.seats[one] = hall.parties[one].expect(hall.seats[one], trap)
    said = {one: hall.answer(one, hall.say(one, Phase.ROSTER, encode(other)))}
    said |= {name: hall.answer(name, hall.request(name)) for name in rest}
    told = b"".join(said[name][0].payload for name in hall.names)
    refused(hall, one, Phase.SHARE, told, f"roster that '{rest[0]}' did not sign")
    refused(hall, rest[0], Phase.SHARE, told, f"roster that '{one}' did not sign")


def swapped(hall, name, **other):
    """Terms in which one member is another."""
    roster = [replace(m, **other) if m.name == name else m for m in hall.terms.roster]
    return encode(replace(hall.terms, roster=tuple(roster)))


def test_substituted_keys_are_refused(play):
    hall = play.Hall()
    one, other = hall.names[:2]
    mine = hall.identities[one].public
    refused(hall, one, Phase.ROSTER, swapped(hall, other, identity=mine), "not pin")
    refused(hall, one, Phase.ROSTER, swapped(hall, one, said=bytes(128)), "advert than its own")
    # Another's keys cannot be checked yet, but their owner will not have signed this roster.
    hall.answer(one, hall.say(one, Phase.ROSTER, swapped(hall, other, said=bytes(128))))
    told = hall.seats[one].answer + b"".join(
        hall.answer(name, hall.request(name))[0].payload for name in hall.names[1:]
    )
    refused(hall, one, Phase.SHARE, told, f"'{other}' did not sign")


@pytest.mark.parametrize("part", [0, 1], ids=["masking", "sealing"])
def test_a_key_of_small_order_is_refused_before_anything_is_dealt(play, part):
    hall = play.Hall()
    liar, said = hall.names[-1], hall.seats[hall.names[-1]].answer
    bad = said[: 32 * part] + bytes(32) + said[32 * part + 32 :]
    hall.seats[liar] = replace(hall.seats[liar], answer=bad)  # it advertises, and stands by it
    roster = (*hall.terms.roster[:-1], replace(hall.terms.roster[-1], said=bad))
    hall.desk, hall.out = coordinator.opening(replace(hall.terms, roster=roster))
    hall.terms = hall.desk.terms
    hall.until(Phase.SHARE)
    for name in hall.names[:-1]:
        refused(hall, name, Phase.SHARE, hall.request(name).payload, "none to agree with")


@pytest.mark.parametrize(
    "lower", [Rules(dropout=0.2, honest=2), Rules(dropout=0.4, honest=3), Rules(adversary="curious", dropout=0.2)]
)
def test_a_lowered_threshold_is_refused(play, lower):
    hall = play.Hall(10)
    one = hall.names[0]
    refused(hall, one, Phase.ROSTER, encode(replace(hall.terms, rules=lower)), "where it holds to")


def test_a_replayed_unmasking_gives_the_same_bytes_or_nothing(play):
    hall = masked(play).until(Phase.UNMASK)
    one = hall.names[0]
    request = hall.request(one)
    first = hall.answer(one, request)
    assert hall.answer(one, request) == first
    hall.answer(one, hall.say(one, Phase.CLOSE, b""))
    assert hall.answer(one, request) == ()
    later = masked(play, attempt=2)
    refused(later, one, Phase.UNMASK, request.payload, "fewer than")
    refused(later, one, Phase.UNMASK, request.payload, "of another attempt", attempt=1)


def test_a_zombies_old_messages_are_refused(play):
    hall, one = masked(play, attempt=2), "party 000"
    old = masked(play, attempt=1)
    for other in ({"attempt": 1}, {"session": "before"}, {"run": "another"}, {"sender": "party 001"}):
        payload = old.request(one).payload
        refused(hall, one, Phase.SURVIVORS, payload, "of another attempt", **other)
    fresh = play.Hall(attempt=2)
    refused(fresh, one, Phase.ROSTER, encode(old.terms), "terms of another attempt")
    for phase in (Phase.SHARE, Phase.MASK):
        refused(fresh, one, phase, b"", "out of turn")
    refused(fresh, one, Phase.SURVIVORS, fresh.terms.marks(()), "before the roster")
    desk, out = coordinator.step(hall.desk, [replace(e, attempt=1) for e in hall.answer(one, hall.request(one))])
    assert (desk, out) == (hall.desk, ())


def test_a_bad_share_that_is_not_needed_changes_nothing(play):
    hall = play.Hall(6, Rules(dropout=0.34, honest=3)).until(Phase.MASK)
    lost, liar = hall.names[0], hall.names[5]
    hall.turn(silent={lost})
    hall.until(Phase.UNMASK)
    said = [e for request in hall.out for e in hall.answer(request.receiver, request)]
    bad = bytearray(said[-1].payload)
    bad[32] ^= 1  # the liar's share of the one that is lost, the first of its neighbours
    assert said[-1].sender == liar
    hall.desk, _ = coordinator.step(hall.desk, [*said[:-1], replace(said[-1], payload=bytes(bad))])
    assert hall.desk.ended == "summed"
    assert np.array_equal(hall.total(), hall.plain(hall.names[1:]))


def test_a_bad_share_among_those_that_are_used_is_named(play):
    hall = play.Hall(6, Rules(dropout=0.34, honest=3)).until(Phase.MASK)
    lost, liar = hall.names[5], hall.names[0]
    hall.turn(silent={lost})
    hall.until(Phase.UNMASK)
    said = [e for request in hall.out for e in hall.answer(request.receiver, request)]
    bad = bytearray(said[0].payload)
    bad[-1] ^= 1
    desk, _ = coordinator.step(hall.desk, [replace(said[0], payload=bytes(bad)), *said[1:]])
    assert desk.refused == (f"{liar}: a share of {lost!r} that is not the one dealt",)
    assert desk.ended == "summed"
    assert np.array_equal(coordinator.total(desk, hall.spool.__getitem__), hall.plain(hall.names[:5]))


def test_a_seed_that_was_not_committed_to_is_named_and_opened_from_the_shares(play):
    hall = masked(play).until(Phase.UNMASK)
    said = [e for request in hall.out for e in hall.answer(request.receiver, request)]
    said[1] = replace(said[1], payload=bytes(32) + said[1].payload[32:])
    hall.desk, _ = coordinator.step(hall.desk, said)
    assert hall.desk.refused == (f"{hall.names[1]}: a seed that it did not commit to",)
    assert np.array_equal(hall.total(), hall.plain(hall.names))


def test_a_share_that_was_tampered_with_is_not_accepted(play):
    hall = play.Hall().until(Phase.MASK)
    one, other = hall.names[:2]
    told = hall.request(one).payload
    for at in (0, 40, DEALT - 1):  # a commitment, which is in the header; the sealed text; its tag
        bad = bytearray(told)
        bad[at] ^= 1
        refused(hall, one, Phase.MASK, bytes(bad), f"does not open, of '{other}'")
    refused(hall, one, Phase.MASK, told[DEALT:], "not all its neighbours")
    refused(hall, one, Phase.MASK, told[DEALT:] + told[:DEALT], "does not open")


def test_a_dealer_whose_shares_are_not_those_it_committed_to_is_named(play, monkeypatch):
    hall = play.Hall().until(Phase.SHARE)
    liar = hall.names[1]
    hall.seats[liar], (said,) = hall.parties[liar].step(hall.seats[liar], [hall.request(liar)])
    honest = hall.seats[liar]
    import hansa.secure.party as room

    real = room.promises
    monkeypatch.setattr(room, "promises", lambda *place: digest(b"else", real(*place)) * 2)
    before = replace(honest, phase=Phase.ROSTER.value, answer=b"", heard=honest.heard[:-1])
    hall.seats[liar], (said,) = hall.parties[liar].step(before, [hall.request(liar)])
    monkeypatch.undo()
    inbox = [said] + [e for r in hall.out if r.receiver != liar for e in hall.answer(r.receiver, r)]
    hall.desk, hall.out = coordinator.step(hall.desk, inbox)
    one = hall.names[0]
    refused(hall, one, Phase.MASK, hall.request(one).payload, f"'{liar}' dealt is not the one")


def test_shares_of_no_secret_are_the_dealers_fault(play, monkeypatch):
    hall = play.Hall(6, Rules(dropout=0.34, honest=3)).until(Phase.SHARE)
    liar = hall.names[2]
    real = shares.split

    def noise(secrets, points, threshold, key):
        return real([bytes(32), bytes(32)], points, threshold, key)

    inbox = []
    for request in hall.out:
        monkeypatch.setattr(shares, "split", noise if request.receiver == liar else real)
        inbox += hall.answer(request.receiver, request)
    hall.desk, hall.out = coordinator.step(hall.desk, inbox)
    hall.turn(silent={liar})
    hall.until(Phase.CLOSE, silent={liar})
    assert hall.desk.ended == "failed"
    assert hall.desk.refused == (f"{liar}: shares that open no secret it committed to",)


def test_sybils_do_not_count(play):
    hall = play.Hall(4, Rules(honest=3))
    one = hall.names[0]
    draw = np.random.default_rng(1)
    sybil = Member("party 999", draw.bytes(32), draw.bytes(128))
    crowd = replace(hall.terms, roster=(*hall.terms.roster[:3], sybil))
    refused(hall, one, Phase.ROSTER, encode(crowd), "'party 999'., under keys it does not pin")
    fewer = replace(hall.terms, roster=hall.terms.roster[:3])
    refused(hall, one, Phase.ROSTER, encode(fewer), "needs 4 that stay")
    again = replace(hall.terms, roster=(*hall.terms.roster, hall.terms.roster[3]))
    refused(hall, one, Phase.ROSTER, encode(again), "different names")
    mirror = replace(hall.terms.roster[3], name="party 999")
    party = replace(hall.parties[one], pins=hall.pins | {"party 999": mirror.identity})
    hall.parties[one] = party
    doubled = replace(hall.terms, roster=(*hall.terms.roster, mirror))
    refused(hall, one, Phase.ROSTER, encode(doubled), "one identity under two names")


def test_a_sum_over_three_and_one_over_two_of_them_would_give_the_third_away(play):
    first = masked(play).until(Phase.UNMASK)
    first.turn()
    first.turn()
    second = play.Hall(4, attempt=2)
    for name in second.names:
        party, seat = second.parties[name], second.seats[name]
        with pytest.raises(ConsentError, match="give away their difference"):
            party.expect(seat, second.work, earlier=[first.seats[name]])
    # The difference is exactly the vector of the fifth.
    lost = first.plain(first.names) - first.plain(first.names[:4])
    assert np.array_equal(lost, first.vectors[first.names[4]])


def test_an_attempt_whose_end_is_unknown_blocks_a_second_sum_and_an_abandoned_one_does_not(play):
    open_end = masked(play)
    one = open_end.names[0]
    party, work = open_end.parties[one], open_end.work
    open_end.answer(one, open_end.say(one, Phase.CLOSE, b""))
    assert open_end.seats[one].ended == "undecided"
    fresh = play.Hall(attempt=2)
    with pytest.raises(ConsentError):
        party.expect(fresh.seats[one], work, earlier=[open_end.seats[one]])
    open_end.answer(one, open_end.say(one, Phase.UNMASK, certified(open_end, ())))
    assert open_end.seats[one].ended == "abandoned"
    assert party.expect(fresh.seats[one], work, earlier=[open_end.seats[one]]).work == work


def test_an_end_is_not_taken_back(play):
    hall = masked(play).until(Phase.UNMASK)
    hall.turn()
    one = hall.names[0]
    refused(hall, one, Phase.UNMASK, certified(hall, ()), "second set of survivors")
    assert hall.seats[one].ended == "summed"


def test_no_two_sets_are_ever_certified_whatever_the_coordinator_asks_whom(play):
    """Exhaustive, five parties of which one colludes: every assignment of a set to every honest party.

    What a party answers to a set does not depend on what the others are asked, so each pair of party and set is
    played once against the real party; the assignments are then counted through.
    """
    hall = masked(play, rules=Rules(corrupt=1, dropout=0.2, honest=2))
    liar, honest = hall.names[0], hall.names[1:]
    least, need = hall.terms.numbers.survivors, hall.terms.numbers.signers
    sets = [()] + [s for size in range(1, 6) for s in combinations(hall.names, size)]
    signs = {}
    for name in honest:
        party, seat = hall.parties[name], hall.seats[name]
        signs[name] = []
        for chosen in sets:
            request = hall.say(name, Phase.SURVIVORS, hall.terms.marks(chosen))
            try:
                after, _ = party.step(seat, [request])
            except HansaError:
                continue
            signs[name].append(chosen)
            assert chosen == () or (name in chosen and len(chosen) >= least)
            for other in sets:
                if other != chosen:
                    again = hall.say(name, Phase.SURVIVORS, hall.terms.marks(other))
                    with pytest.raises(TrustError):
                        party.step(after, [again])
    certain = 0
    for asked in product(*(range(len(signs[name])) for name in honest)):
        count = {}
        for name, i in zip(honest, asked, strict=True):
            count[signs[name][i]] = count.get(signs[name][i], 0) + 1
        certified_sets = [chosen for chosen, got in count.items() if got + 1 >= need]  # + the liar
        assert len(certified_sets) <= 1
        certain += len(certified_sets)
    assert certain  # some set can be certified, so the check means something
    assert liar not in signs


def test_without_the_majority_two_sets_could_be_certified(play):
    """T must be above (n + c) / 2: with one signature less, the colluding party makes two sets out of one."""
    hall = play.Hall(rules=Rules(corrupt=1, dropout=0.2, honest=2))
    n, c, t = 5, 1, hall.terms.numbers.signers
    assert 2 * t > n + c >= 2 * (t - 1)


def test_a_copied_key_does_not_cancel_an_honest_pairs_mask(play):
    """A colluding party that advertises another's key shares no mask of that other's."""
    hall = play.Hall(4, Rules(honest=1, corrupt=1))
    bound = hall.terms.bound(b"")

    keys = {bound.key(b"s" * 32, MASKING, a, b) for a, b in [(0, 1), (0, 2), (1, 2)]}
    assert len(keys) == 3
    assert bound.key(b"s" * 32, MASKING, 1, 0) == bound.key(b"s" * 32, MASKING, 0, 1)


def test_what_the_coordinator_receives_looks_uniform(play):
    """Bits, parities and bytes of masked zeros; a chi-square of 255 degrees beyond 400 has chance 1e-8."""
    hall = play.Hall(length=50_000)
    hall.vectors = {name: np.zeros(50_000, np.uint32) for name in hall.names}
    hall.until(Phase.SURVIVORS)
    for name in hall.names:
        sent = np.frombuffer(hall.spool[name], np.uint32)
        assert abs((sent & 1).mean() - 0.5) < 3 / np.sqrt(len(sent))  # six standard deviations
        parity = np.bitwise_count(sent) & 1
        assert abs(parity.mean() - 0.5) < 3 / np.sqrt(len(sent))
        counts = np.bincount(sent.view(np.uint8), minlength=256)
        expected = sent.nbytes / 256
        assert 130 < ((counts - expected) ** 2 / expected).sum() < 400
    a, b = (np.frombuffer(hall.spool[name], np.uint32).astype(float) for name in hall.names[:2])
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(len(a))
    total = hall.until(Phase.CLOSE).total()
    assert not total.any()


@pytest.mark.parametrize("size", [0, 4, 8, 16, 31, 33])
def test_a_mask_does_not_come_from_a_short_seed(play, size):
    hall = play.Hall()
    with pytest.raises(StudyError, match="32 bytes of randomness"):
        hall.parties[hall.names[0]].advertise("run", "session", 2, bytes(size))
    with pytest.raises(ValueError, match="key size"):
        masks.apply(np.zeros(4, np.uint32), [(bytes(size or 1), True)])


def test_every_bit_of_the_entropy_counts(play):
    hall = play.Hall()
    party = hall.parties[hall.names[0]]
    seen = set()
    for bit in range(256):
        seat, _ = party.advertise("run", "session", 1, (1 << bit).to_bytes(32, "big"))
        seen |= {seat.secret(BLIND), seat.secret(MASKING)}
    assert len(seen) == 512


def test_each_attempt_has_masks_of_its_own(play):
    """The same entropy by mistake, in another run, session or attempt: still other secrets."""
    party = play.Hall().parties["party 000"]
    places = [("run", "s", 1), ("run", "s", 2), ("run", "t", 1), ("ran", "s", 1)]
    seats = [party.advertise(*place, b"e" * 32)[0] for place in places]
    assert len({seat.secret(BLIND) for seat in seats}) == 4


def test_terms_from_a_stranger_that_are_none_are_refused(play):
    hall = play.Hall()
    one = hall.names[0]
    for payload in (b"", b"{}", b"[" * 100_000, encode(hall.work), encode(hall.terms)[:-1]):
        with pytest.raises(HansaError):
            hall.answer(one, hall.say(one, Phase.ROSTER, payload))
    assert isinstance(decode(encode(hall.terms), Terms).work, Work)


def test_who_signed_another_roster_is_named_when_everybody_refused_it(play):
    hall = play.Hall()
    said = [e for request in hall.out for e in hall.answer(request.receiver, request)]
    for i, flip in ((1, 0), (3, 40)):  # a coin, and a signature
        bad = bytearray(said[i].payload)
        bad[flip] ^= 1
        said[i] = replace(said[i], payload=bytes(bad))
    hall.desk, hall.out = coordinator.step(hall.desk, said)
    for request in hall.out:
        with pytest.raises(TrustError, match="'party 001'"):
            hall.answer(request.receiver, request)
    hall.desk, _ = coordinator.advance(hall.desk)
    assert hall.desk.ended == "failed"
    assert [line[:9] for line in hall.desk.refused] == ["party 001", "party 003"]
