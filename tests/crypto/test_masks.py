import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB

from hansa.crypto import masks

KEYS = [bytes([i]) * 32 for i in range(1, 6)]


def counted(key, length, dtype):
    """The key stream of CTR written out: AES of 2, 3, 4 ... as big-endian blocks."""
    blocks = -(-length * np.dtype(dtype).itemsize // 16)
    counter = b"".join(i.to_bytes(16, "big") for i in range(2, blocks + 2))
    made = Cipher(AES256(key), ECB()).encryptor().update(counter)  # the definition of CTR
    return np.frombuffer(made, dtype)[:length]


@pytest.mark.parametrize("dtype", ["<u4", "<u8"])
@pytest.mark.parametrize("length", [1, 3, 1000, masks.BLOCK // 4 - 1, masks.BLOCK // 4 + 7, masks.BLOCK])
def test_a_mask_is_the_key_stream_of_aes_ctr_whatever_the_blocks(dtype, length):
    vector = np.arange(length).astype(dtype)
    masks.apply(vector, [(KEYS[0], True)])
    assert np.array_equal(vector, np.arange(length).astype(dtype) + counted(KEYS[0], length, dtype))


def test_what_is_added_and_taken_off_is_gone(monkeypatch):
    before = np.random.default_rng(0).integers(0, 2**32, 70_000, np.uint32)
    vector = before.copy()
    masks.apply(vector, [(key, True) for key in KEYS])
    assert not np.array_equal(vector, before)
    masks.apply(vector, ((key, False) for key in reversed(KEYS)))
    assert np.array_equal(vector, before)


def test_more_masks_than_are_open_at_a_time():
    keys = [i.to_bytes(32, "big") for i in range(1, 1100)]
    vector = np.zeros(9, np.uint64)
    masks.apply(vector, [(key, i % 2 == 0) for i, key in enumerate(keys)])
    want = np.zeros(9, np.uint64)
    for i, key in enumerate(keys):
        want += counted(key, 9, "<u8") if i % 2 == 0 else -counted(key, 9, "<u8")
    assert np.array_equal(vector, want)


def test_a_stream_is_deterministic_and_its_keys_are_of_256_bits():
    assert masks.stream(KEYS[0], 40) == counted(KEYS[0], 40, "u1").tobytes()
    assert masks.stream(KEYS[0], 0) == b""
    assert masks.stream(KEYS[0], 32) != masks.stream(KEYS[1], 32)
    with pytest.raises(ValueError, match="key size"):
        masks.stream(b"short", 4)
