"""Public randomness, keyed by what it is for.

Batches, cohorts, partitions and initial weights are drawn from generators that depend on nothing but
their key: the seed of the study and the purpose (round, party, name). Whoever knows the key draws the
same numbers, on whichever machine and in whatever order; nobody who needs a secret may use this module.
"""

from __future__ import annotations

import json

import numpy as np
from blake3 import blake3


def key(seed: int, *purpose: str | int) -> bytes:
    """32 bytes that name one purpose under one seed (blake3 of their canonical JSON)."""
    return blake3(json.dumps([seed, *purpose], ensure_ascii=False).encode()).digest()


def generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """A generator for one purpose under one seed.

    Args:
        seed: the study's seed, any integer.
        purpose: what the numbers are for, such as ``("batches", 3, "north")``.

    Returns:
        Philox (Salmon et al. 2011), a counter-based generator, with a 128-bit key made of the purpose.
    """
    return np.random.Generator(
        np.random.Philox(key=int.from_bytes(key(seed, *purpose)[:16], "little"))
    )
