"""Masks: streams of AES-256-CTR added to vectors of integers modulo 2^32 or 2^64.

A mask is the key stream under a key of 256 bits for this one mask, its counter from 2, as little-endian
integers. GCM with a nonce of zeros makes it (SP 800-38D), whose tag nobody asks for: OpenSSL has wide
instructions for it, and none for CTR alone, half as fast. It is added in blocks that stay in a cache."""

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM
from numpy.typing import NDArray

DTYPES: dict[int, np.dtype[Any]] = {32: np.dtype("<u4"), 64: np.dtype("<u8")}  # by modulus bits
BLOCK = 256 << 10  # bytes; three buffers of it fit in 1 MiB
_ZEROS = bytes(BLOCK)


def stream(key: bytes, length: int) -> bytes:
    """The first ``length`` bytes of the key stream under a key of 32 bytes."""
    return opened(key).update(bytes(length))


def apply(vector: NDArray[Any], masks: Iterable[tuple[bytes, bool]]) -> None:
    """Add masks to ``[d]`` of one of :data:`DTYPES`, or take them off; their keys have no other use."""
    step, waiting = max(1, min(BLOCK // vector.itemsize, len(vector))), iter(masks)
    buffer = bytearray(step * vector.itemsize + 15)  # older releases of `cryptography` ask for a block more
    made = np.frombuffer(buffer, vector.dtype, count=step)
    while streams := [
        (opened(key).update_into, np.add if added else np.subtract)
        for key, added in islice(waiting, 1024)  # open at a time
    ]:
        for begin in range(0, len(vector), step):
            part = vector[begin : begin + step]
            zeros, mask = memoryview(_ZEROS)[: part.nbytes], made[: len(part)]
            for expand, put in streams:
                expand(zeros, buffer)
                put(part, mask, out=part)


def opened(key: bytes) -> CipherContext:
    """The key stream under a key, which is added to whatever passes: as well to hide it as to see it again."""
    return Cipher(AES256(key), GCM(bytes(12))).encryptor()
