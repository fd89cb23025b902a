from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hansa.crypto import shares

KEY = b"k" * 32


@settings(max_examples=60, deadline=None)
@given(
    secrets=st.lists(st.binary(min_size=32, max_size=32), min_size=1, max_size=4),
    points=st.lists(st.integers(1, shares.PRIME - 1), min_size=1, max_size=12, unique=True),
    data=st.data(),
)
def test_any_threshold_of_shares_gives_the_secret_back(secrets, points, data):
    t = data.draw(st.integers(1, len(points)))
    at = np.array(points)
    dealt = shares.split(secrets, at, t, KEY)
    assert dealt.shape == (len(points), len(secrets), shares.SHARE)
    chosen = data.draw(st.permutations(range(len(points))))[:t]
    for i, secret in enumerate(secrets):
        assert shares.combine(dealt[chosen, i], at[chosen]) == secret


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, b"\0" * 31 + b"\x80"])
def test_the_extremes_are_secrets_like_others(secret):
    at = np.arange(1, 6)
    dealt = shares.split([secret], at, 3, KEY)[:, 0]
    for chosen in combinations(range(5), 3):
        assert shares.combine(dealt[list(chosen)], at[list(chosen)]) == secret


def test_the_polynomial_is_the_one_that_python_would_evaluate():
    """Shares against plain integers: differences of order t vanish where those of order t - 1 do not."""
    at = np.arange(1, 9)
    values = shares.split([b"s" * 32], at, 4, KEY).view("<u4").astype(object)[:, 0, 0]
    for order in range(1, 5):
        values = [(b - a) % shares.PRIME for a, b in pairwise(values)]
        assert any(values) == (order < 4)


def test_fewer_shares_say_nothing():
    """Of two secrets, each set of t - 1 shares is as likely: one value more completes it to either."""
    at = np.array([1, 2, 3])
    dealt = shares.split([b"a" * 32], at, 3, KEY)[:, 0]
    few = dealt[:2].copy()
    # Whatever the secret, a third share exists that gives it: here those of two secrets.
    for secret in (b"x" * 32, b"y" * 32):
        lagrange = shares.weights((1, 2, 3)).tolist()
        whole = int.from_bytes(secret, "little")
        limbs = [whole >> 30 * i & (1 << 30) - 1 for i in range(9)]
        known = few.view("<u4").astype(object)
        third = [
            (limb - lagrange[0] * a - lagrange[1] * b) * pow(lagrange[2], -1, shares.PRIME) % shares.PRIME
            for limb, a, b in zip(limbs, *known, strict=True)
        ]
        held = np.concatenate([few, np.array([third], "<u4").view(np.uint8)])
        assert shares.combine(held, at) == secret


def test_shares_are_uniform():
    """Chi-square of the top four bits, 15 degrees: beyond 60 has a chance of 2e-7."""
    at = np.arange(1, 40)
    dealt = [shares.split([bytes(32)], at, 5, bytes([i]) * 32).view("<u4") for i in range(60)]
    top = np.concatenate(dealt).ravel() >> 27
    counts = np.bincount(top, minlength=16)
    expected = len(top) / 16
    assert ((counts - expected) ** 2 / expected).sum() < 60


def test_a_changed_share_changes_the_secret_or_opens_none():
    at = np.arange(1, 4)
    dealt = shares.split([b"s" * 32], at, 3, KEY)[:, 0]
    for byte in range(shares.SHARE):
        bad = dealt.copy()
        bad[1, byte] ^= 1
        assert shares.combine(bad, at) != b"s" * 32


def test_the_weights_are_lagranges():
    points = (3, 1, 7)
    want = []
    for j in points:
        value = 1
        for m in points:
            value = value * m * pow(m - j, -1, shares.PRIME) % shares.PRIME if m != j else value
        want.append(value)
    assert shares.weights(points).tolist() == want


def test_many_terms_stay_exact():
    """2,000 terms of the largest elements: the sum of halves is still below 2^53."""
    big = np.full((1, 2000), shares.PRIME - 1, np.uint64)
    assert shares._product(big, big.T).tolist() == [[2000]]
