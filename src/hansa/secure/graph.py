"""Who shares a mask with whom, how many neighbours that takes, and how many shares open a secret.

After Bell, Bonawitz, Gascón, Lepoint and Raykova 2020 ("Secure single-server aggregation with (poly)logarithmic
overhead", CCS, eprint 2020/704), with exact hypergeometric tails in place of bounds on them."""

from functools import lru_cache
from math import comb, floor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hansa.crypto import masks

Adversary = Literal["curious", "malicious"]


def lost(n: int, dropout: float) -> int:
    """How many of ``n`` parties may drop out at a share of ``dropout``."""
    return floor(n * dropout + 1e-9)


def neighbours(n: int, k: int, seed: bytes) -> NDArray[np.int64]:
    """The neighbours of each party, ``[n, k]``, ascending: all others, or a Harary graph (1962). There the parties sit
    on a circle, in an order drawn from ``seed``, each beside k / 2 on either hand: it takes two gaps of k / 2 seats to
    part it."""
    if k >= n - 1:
        others = np.arange(n - 1)
        return others + (others >= np.arange(n)[:, None])
    seats = _shuffled(n, seed)
    steps = np.append(np.arange(-k // 2, 0), np.arange(1, k // 2 + 1))
    found = np.empty((n, k), np.int64)
    found[seats] = seats[(np.arange(n)[:, None] + steps) % n]
    return np.sort(found, axis=1)


def buckets(n: int, size: int, seed: bytes) -> list[NDArray[np.int64]]:
    """Who of ``n`` parties sits in which bucket, ascending: at least ``size`` in each, if there are so many."""
    return [np.sort(one) for one in np.array_split(_shuffled(n, seed), max(1, n // size))]


def _shuffled(n: int, seed: bytes) -> NDArray[np.int64]:
    return np.argsort(np.frombuffer(masks.stream(seed, 8 * n), "<u8"), kind="stable")


def edges(graph: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where, among all that parties have for their neighbours, lies what each gets from them: ``[n, k]``."""
    small = graph.ravel().astype(np.min_scalar_type(len(graph)))  # of 16 bits, a sort is by radix
    return np.argsort(small, kind="stable").reshape(graph.shape)


@lru_cache(maxsize=256)
def degrees(
    n: int, corrupt: int, dropout: float, adversary: Adversary, privacy: float = 2.0**-40, failure: float = 2.0**-30
) -> tuple[int, int]:
    """The degree k of the graph and the threshold t of the shares; n - 1 if none but the complete one does.

    For fixed ``corrupt`` parties and a graph drawn after them, where X_m is how many of m parties are among k
    drawn of n - 1 others, the smallest even k with a t for which

    - nobody has t corrupt neighbours: n P[X_corrupt >= t] <= privacy;
    - one that is lost keeps t neighbours: n P[X_(n - lost) < t] <= failure; others give their own secret;
    - the honest who stay hang together. To part them takes two gaps of k / 2 seats, one of n (n - 1) / 2 pairs,
      of lost and corrupt parties where losses come as they come ("curious"), of ``lost`` and else corrupt ones
      where the coordinator chooses when it has seen the graph ("malicious"): a probability up to privacy.

    Split views need no larger k: a set that is acted on was signed by more than half of the honest."""
    gone, t = lost(n, dropout), 1
    for k in range(2, n - 1, 2):
        gaps = (corrupt + gone, k) if adversary == "curious" else (corrupt, k - gone)
        while n * _tail(n - 1, corrupt, k, t) > privacy:
            t += 1
        parted = n * (n - 1) / 2 * _tail(n, gaps[0], k, gaps[1])
        if t <= k and parted <= privacy and n * _tail(n - 1, gone - 1, k, k - t + 1) <= failure:
            return k, t
    return n - 1, min(n - 1, n - gone)


def _tail(n: int, marked: int, drawn: int, least: int) -> float:
    """P[X >= least] of the marked among ``drawn`` of ``n``, in integers up to the last division."""
    terms = range(max(least, drawn - (n - marked), 0), min(marked, drawn) + 1)
    return sum(comb(marked, j) * comb(n - marked, drawn - j) for j in terms) / comb(n, drawn)
