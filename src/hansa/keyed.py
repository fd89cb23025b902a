"""Public randomness, keyed by what it is for.

Batches, cohorts, partitions and initial weights are drawn from generators that depend on nothing but
their key: the seed of the study and the purpose (round, party, name). Whoever knows the key draws the
same numbers, on whichever machine and in whatever order; nobody who needs a secret may use this module."""

import json
from collections.abc import Sequence
from json.encoder import encode_basestring
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed: int, *purpose: str | int) -> bytes:
    """32 bytes that name one purpose under one seed (blake3 of their canonical JSON)."""
    return blake3(json.dumps([seed, *purpose], ensure_ascii=False).encode()).digest()


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose under one seed.

    Args:
        seed: the study's seed, any integer.
        purpose: what the numbers are for, such as ``("batches", 3, "north")``.

    Returns:
        Philox (Salmon et al. 2011), a counter-based generator, with a 128-bit key made of the purpose."""
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key(seed, *purpose)[:16], "little")))


def keys(seed: int, *purpose: str | int, parties: Sequence[str]) -> NDArray[np.uint64]:
    """64 bits for each party, ``[k]``: the beginning of ``key(seed, *purpose, party)``."""
    begin = json.dumps([seed, *purpose], ensure_ascii=False)[:-1].encode() + b", "
    names = (encode_basestring(party).encode() for party in parties)
    digests = (blake3(begin + name + b"]").digest(8) for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8")


def bits(keys: NDArray[np.uint64], count: int, skip: int = 0) -> NDArray[np.uint64]:
    """The next ``count`` numbers of 64 bits of each key, ``[*keys.shape, count]``, after ``skip`` others.

    SplitMix64 (Steele, Lea and Flood 2014) with the key as its state: a party's numbers do not depend
    on whose are drawn beside them, and a whole stack is drawn at once."""
    return _mixed(keys[..., None] + np.arange(skip + 1, skip + count + 1, dtype=np.uint64) * _GOLDEN)


def _mixed(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What SplitMix64 makes of its state, in place."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def order(key: np.uint64, rows: int, number: int = 0) -> NDArray[Any]:
    """A permutation of ``rows``, the one with this number under the key: where the sorted bits came from."""
    return np.argsort(bits(np.asarray(key), rows, skip=number * rows), kind="stable")


def orders(keys: NDArray[np.uint64], sizes: NDArray[np.int64], number: int = 0) -> NDArray[np.int64]:
    """`order` of several keys at once: permutations of so many rows each, one after the other, each counted
    on from where its own begin."""
    begins, rows = np.cumsum(sizes) - sizes, np.arange(sizes.max(initial=0))
    if rows.size * sizes.size > 4 * sizes.sum():  # a table of them would be mostly empty
        each = zip(keys, sizes.tolist(), begins, strict=True)
        return np.concatenate([begin + order(key, size, number) for key, size, begin in each])
    drawn = _mixed(keys[:, None] + (number * sizes[:, None] + rows + 1).astype(np.uint64) * _GOLDEN)
    drawn[rows >= sizes[:, None]] = np.iinfo(np.uint64).max
    ranks = np.argsort(drawn, axis=1)  # a key's numbers differ: no tie is to be broken
    return np.asarray((ranks + begins[:, None])[ranks < sizes[:, None]])
