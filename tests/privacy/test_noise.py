"""Tables against exact probabilities, drawn integers against tables, and the stream against its cipher."""

import hashlib
import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from hansa.errors import PrivacyError
from hansa.privacy import noise

KEY = bytes(range(32))


def stream(*purpose):
    return noise.Stream(noise.derived(KEY, "test", *purpose))


class Words:
    """A stream of given words."""

    def __init__(self, *words):
        self.left = list(words)

    def words(self, count):
        taken, self.left = self.left[:count], self.left[count:]
        assert len(taken) == count
        return np.array(taken, dtype=np.uint64)


def weights(table):
    """Of each row, in units of 2^-128, as its thresholds and others have it."""
    rows = len(table.other)
    share, found = 2**128 // rows, [0] * rows
    for row in range(rows):
        threshold = int(table.first[row]) << 64 | int(table.second[row])
        assert threshold <= share
        found[row] += threshold
        found[int(table.other[row])] += share - threshold
    return found


def bessel(order, x):
    """exp(-x) I_order(x), by its series."""
    term = (x / 2) ** order / math.factorial(order)
    total, k = Decimal(0), 0
    while k < 2 * x + 10 or term > total * Decimal(10) ** -55:
        total += term
        k += 1
        term *= (x / 2) ** 2 / (k * (k + order))
    return total * (-x).exp()


def densities(name, parameter, reach):
    """Probabilities of -reach to reach, to some 50 digits."""
    at = Decimal(parameter)
    if name == "skellam":
        half = [bessel(x, at) for x in range(reach + 1)]
    elif name == "discrete_gaussian":
        half = [(-(x * x) / (2 * at * at)).exp() for x in map(Decimal, range(reach + 1))]
    else:
        half = [(-x / at).exp() for x in map(Decimal, range(reach + 1))]
    both = half[:0:-1] + half
    if name == "skellam":
        return both
    scale = sum(both)
    return [one / scale for one in both]


NARROW = [
    ("discrete_gaussian", 0.3),
    ("discrete_gaussian", 1.0),
    ("discrete_gaussian", 7.7),
    ("discrete_gaussian", 40.0),
    ("discrete_laplace", 0.2),
    ("discrete_laplace", 3.0),
    ("skellam", 1e-4),
    ("skellam", 0.7),
    ("skellam", 60.0),
]


@pytest.mark.parametrize(("name", "parameter"), NARROW)
def test_a_table_is_its_distribution_but_for_2_to_the_minus_100(name, parameter):
    table = getattr(noise, name)(parameter)
    rows = weights(table)
    assert sum(rows) == 2**128
    half = len(rows) // 2
    with localcontext(prec=70):
        exact = densities(name, parameter, half + 30)
        mine = [Decimal(0)] * 30 + [Decimal(w) / 2**128 for w in rows] + [Decimal(0)] * 31
        distance = sum(abs(a - b) for a, b in zip(exact, mine, strict=True)) / 2
    assert distance < noise.FAILURE


def chi_square(observed, expected):
    """The chance of a deviation as large; cells of fewer than ten are one, with the next smallest if need be."""
    from scipy.stats import chi2

    order = np.argsort(expected)
    first = max(1, int(np.argmax(np.cumsum(expected[order]) >= 10)), int((expected < 10).sum()))
    edges = [0, *range(first, len(order))] if first < len(order) else [0]
    seen, due = (np.add.reduceat(cells[order], edges) for cells in (observed, expected))
    assert due[1:].min() >= 10
    seen, due = (seen, due) if due[0] >= 10 else (seen[1:], due[1:])
    assert len(due) >= 3
    return chi2.sf(float(((seen - due) ** 2 / due).sum()), len(due) - 1)


@pytest.mark.parametrize(("name", "parameter"), NARROW)
def test_what_is_drawn_passes_a_chi_square_test(name, parameter):
    table, count = getattr(noise, name)(parameter), 400_000
    drawn = table.draw(stream(name, parameter.hex()), count)
    half = len(table.other) // 2
    assert drawn.dtype == np.int64
    assert drawn.shape == (count,)
    with localcontext(prec=40):
        due = np.array(densities(name, parameter, half), dtype=float) * count
    observed = np.bincount(drawn + half, minlength=2 * half + 1)
    if (due >= 10).sum() < 4:  # nearly all are zero
        assert abs(observed[half] - due[half]) < 5 * math.sqrt(due[half - 1] + due[half + 1]) + 1
    else:
        assert chi_square(observed, due) > 1e-3


def cells(name, parameter, edges):
    """Chances of the integers in [edge, next edge) of a wide distribution, by their continuous counterpart."""
    from scipy.stats import laplace, norm

    law = norm if name == "discrete_gaussian" else laplace
    return np.diff(law.cdf((np.asarray(edges) - 0.5) / parameter))


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("discrete_gaussian", 2000.0),
        ("discrete_gaussian", 123_456.7),
        ("discrete_gaussian", 2.0**30),
        ("discrete_laplace", 5000.0),
        ("discrete_laplace", 2.0**25),
    ],
)
def test_wide_noise_passes_a_chi_square_test_in_its_high_and_low_bits(name, parameter):
    table, count = getattr(noise, name)(parameter), 400_000
    assert table.bits > 0
    drawn = table.draw(stream("wide", name, parameter.hex()), count)
    edges = np.round(np.linspace(-4 * parameter, 4 * parameter, 401)).astype(np.int64)
    observed, _ = np.histogram(drawn, bins=[*edges[:-1], edges[-1] - 0.5])
    due = cells(name, parameter, edges)
    rest = count - observed.sum()
    due = np.append(due, 1 - due.sum()) * count
    assert chi_square(np.append(observed, rest), due) > 1e-3
    low = np.bincount(drawn & 31, minlength=32)  # even, to about exp(-2 (pi sigma / 32)^2)
    assert chi_square(low, np.full(32, count / 32)) > 1e-3


def test_within_a_row_of_a_wide_table_the_numbers_have_their_own_chances():
    """Which fall by a third over the rows here, as a table that took them evenly would not show."""
    sigma, bits = 4.0, 3
    narrow = noise.discrete_gaussian(sigma)
    with localcontext(prec=60):
        scale = 2 * Decimal(sigma) ** 2
        plane = [(-(Decimal(a << bits) ** 2) / scale).exp() for a in range(17)]
        table = noise._table(2, scale, bits, plane)
    drawn = table.draw(stream("rows"), 300_000)
    half = len(narrow.other) // 2
    due = np.array([float(Decimal(w) / 2**128) for w in weights(narrow)]) * 300_000
    observed = np.bincount(drawn + half, minlength=2 * half)
    assert chi_square(observed, due) > 1e-3
    assert abs(drawn.mean()) < 5 * sigma / math.sqrt(300_000)


def test_ties_are_decided_on_128_bits():
    table = noise.discrete_gaussian(3.0)
    left = 65 - len(table.other).bit_length()
    row = next(i for i in range(len(table.other)) if table.other[i] != i and table.first[i] > 0)
    tie = row << left | int(table.first[row])
    half = len(table.other) // 2
    below = Words(tie, int(table.second[row]) - 1)
    assert table.draw(below, 1) == [row - half]
    at = Words(tie, int(table.second[row]))
    assert table.draw(at, 1) == [table.other[row] - half]
    assert not below.left
    assert not at.left
    just = Words(row << left | int(table.first[row]) - 1)
    assert table.draw(just, 1) == [row - half]
    over = Words(row << left | int(table.first[row]) + 1)
    assert table.draw(over, 1) == [table.other[row] - half]


def test_what_float64_cannot_tell_is_decided_on_128_bits():
    table = noise.discrete_gaussian(2.0**30)
    left = 65 - len(table.other).bit_length()
    inner, beyond = 3000, 12_345
    row = len(table.other) // 2 + inner
    assert table.first[row] > 0
    x = (inner << table.bits) + beyond
    with localcontext(prec=60):
        exponent = Decimal(x**2 - (inner << table.bits) ** 2) / table.scale
        chance = int(2**128 * (-exponent).exp())
    high, low = divmod(chance, 2**64)
    words = row << left, high, beyond << (64 - table.bits)
    kept = Words(*words, low)
    assert table.draw(kept, 1) == [x]
    assert not kept.left
    again = row << left, 0, 7 << (64 - table.bits)
    dropped = Words(*words, low + 1, *again)
    assert table.draw(dropped, 1) == [(inner << table.bits) + 7]


def test_the_stream_is_aes_256_in_counter_mode():
    ecb = Cipher(algorithms.AES256(KEY), modes.ECB()).encryptor()
    blocks = b"".join(ecb.update(i.to_bytes(16, "big")) for i in range(50))
    made = noise.Stream(KEY)
    taken = np.concatenate([made.words(3), made.words(0), made.words(97)])
    assert taken.tobytes() == blocks


def test_keys_differ_by_purpose_and_by_persisted_key():
    purposes = [("a", 1, 2, "noise"), ("a", 1, 3, "noise"), ("a", 12, "noise"), ("a", 1, 2)]
    purposes += [("a,1", 2), ("a", "1", 2, "noise")]
    made = {noise.derived(KEY, *purpose) for purpose in purposes}
    made |= {noise.derived(bytes(32), *purpose) for purpose in purposes}
    assert len(made) == 2 * len(purposes)
    assert {len(key) for key in made} == {32}


def test_derivation_is_hkdf_sha256():
    """RFC 5869, written out: extract with a salt of zeros, expand once."""
    import hmac

    extracted = hmac.digest(bytes(32), KEY, hashlib.sha256)
    expanded = hmac.digest(extracted, b'["run",7,1,"noise"]' + b"\x01", hashlib.sha256)
    assert noise.derived(KEY, "run", 7, 1, "noise") == expanded


def test_a_retransmission_repeats_the_noise_and_a_new_attempt_does_not():
    table = noise.discrete_gaussian(1e6)
    first, again, other = (
        table.draw(noise.Stream(noise.derived(KEY, "run", 4, attempt, "noise")), 70_000) for attempt in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert abs(np.corrcoef(first, other)[0, 1]) < 0.02
    assert (first == other).mean() < 1e-3


def test_nothing_and_many_are_drawn_in_full():
    for table in (noise.discrete_gaussian(2.0), noise.discrete_gaussian(1e5)):
        assert table.draw(stream(), 0).shape == (0,)
        assert table.draw(stream(), 200_001).shape == (200_001,)


@pytest.mark.parametrize("wrong", [0.0, -1.0, 1e-9, 2.0**40, math.inf, math.nan])
def test_a_grid_on_which_noise_cannot_be_drawn_is_refused(wrong):
    for make in (noise.discrete_gaussian, noise.discrete_laplace, noise.skellam):
        with pytest.raises(PrivacyError, match="noise") as refused:
            make(wrong)
        assert "grid" in refused.value.remedy


def test_skellam_noise_is_drawn_up_to_its_limit():
    drawn = noise.skellam(1.9e7).draw(stream("far"), 200_000)
    assert drawn.std() == pytest.approx(math.sqrt(1.9e7), rel=0.01)
    assert abs(drawn.mean()) < 5 * math.sqrt(1.9e7 / 200_000)


def test_opendp_draws_from_the_same_distributions():
    dp = pytest.importorskip("opendp.prelude", reason="OpenDP, to compare with, is not installed")
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int)), dp.l2_distance(T=float)
    count, sigma = 60_000, 5.0
    theirs = np.array((space >> dp.m.then_gaussian(scale=sigma))([0] * count))
    ours = noise.discrete_gaussian(sigma).draw(stream("opendp"), count)
    for drawn in (theirs, ours):
        assert abs(drawn.mean()) < 5 * sigma / math.sqrt(count)
    reach = 4 * int(sigma)
    one, other = (
        np.bincount(np.clip(drawn, -reach, reach) + reach, minlength=2 * reach + 1) for drawn in (theirs, ours)
    )
    from scipy.stats import chi2

    both = one + other
    used = both >= 20
    statistic = float(((one - other)[used] ** 2 / both[used]).sum())
    assert chi2.sf(statistic, int(used.sum()) - 1) > 1e-6  # theirs has no seed
