"""Shamir's secret sharing (1979) of keys of 32 bytes, many at a time, in NumPy.

The field is GF(2^31 - 1). A secret is nine limbs of 30 bits, each the value at 0 of a polynomial of its own,
of degree t - 1 with uniform coefficients; a share is the nine values at its holder's point. Any t shares give the
secret back, by Lagrange's weights at 0, the same for all secrets of the same holders; fewer say nothing."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa.crypto import masks

PRIME = (1 << 31) - 1
LIMBS = 9
SHARE = 4 * LIMBS  # bytes: nine numbers, little-endian
Numbers: TypeAlias = NDArray[np.uint64]


def split(secrets: Sequence[bytes], points: NDArray[np.int64], threshold: int, key: bytes) -> NDArray[np.uint8]:
    """Shares ``[m, s, 36]`` of s secrets of 32 bytes, of which ``threshold`` give one back. ``points``: ``[m]``, each
    holder's, from 1 to 2^31 - 2. ``key``: 32 bytes, for the coefficients alone."""
    whole = [int.from_bytes(secret, "little") for secret in secrets]
    limbs = [[n >> 30 * i & (1 << 30) - 1 for i in range(LIMBS)] for n in whole]
    count = (threshold - 1) * LIMBS * len(secrets)
    drawn = np.frombuffer(masks.stream(key, 4 * (count + 64)), "<u4") & PRIME
    uniform = drawn[drawn < PRIME][:count]  # that over 64 are 2^31 - 1 has a chance below 2^-1000
    coefficients = np.append(np.array(limbs, np.uint64).ravel(), uniform).reshape(threshold, -1)
    base = points.astype(np.uint64)[:, None]
    powers: Numbers = np.ones_like(base)
    while powers.shape[1] < threshold:  # 1, x | x^2, x^3 | x^4 ... x^7 | ...
        powers = np.concatenate([powers, powers * base % PRIME], axis=1)
        base = base * base % PRIME
    values = _product(powers[:, :threshold], coefficients).astype("<u4")
    return values.view(np.uint8).reshape(len(points), len(secrets), SHARE)


@lru_cache(maxsize=16)
def weights(points: tuple[int, ...]) -> Numbers:
    """Lagrange's weights at 0 of points, ``[t]``: the product over m != j of x_m / (x_m - x_j)."""
    x = np.array(points, np.int64)
    above, below = 1, x.astype(np.uint64)
    for m, point in enumerate(points):
        apart = (point - x) % PRIME
        apart[m] = 1
        below = below * apart.astype(np.uint64) % PRIME
        above = above * point % PRIME
    return np.array([above * pow(value, -1, PRIME) % PRIME for value in below.tolist()], np.uint64)


def combine(shares: NDArray[np.uint8], points: NDArray[np.int64]) -> bytes | None:
    """The secret behind shares ``[t, 36]`` at ``[t]``, right if they are; None if they are of no 32 bytes."""
    values = np.ascontiguousarray(shares).view("<u4").astype(np.uint64) % PRIME
    limbs = _product(weights(tuple(points.tolist()))[None], values)[0].tolist()
    joined = sum(limb << 30 * i for i, limb in enumerate(limbs))
    return joined.to_bytes(32, "little") if max(limbs) < 1 << 30 and joined >> 256 == 0 else None


def _product(a: Numbers, b: Numbers) -> Numbers:
    """``a @ b`` in the field: of halves of 16 bits, a product in float64 is exact up to 2^20 terms."""
    a1, b1 = ((x >> np.uint64(16)).astype(float) for x in (a, b))
    a0, b0 = ((x & np.uint64(0xFFFF)).astype(float) for x in (a, b))
    high, middle, low = (x.astype(np.uint64) % PRIME for x in (a1 @ b1, a1 @ b0 + a0 @ b1, a0 @ b0))
    found: Numbers = (high * 2 + (middle << np.uint64(16)) + low) % PRIME  # 2^32 = 2 in the field
    return found
