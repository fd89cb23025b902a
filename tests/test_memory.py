"""Memory that is lent again."""

from __future__ import annotations

import gc
import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from hansa.memory import LARGE, lent


def place(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


@pytest.mark.parametrize("size", [0, 1, LARGE - 1, LARGE, LARGE + 1])
def test_memory_of_every_size_may_be_written(size: int) -> None:
    memory = lent(size)
    assert len(memory) == size
    memory[:] = bytes([7]) * size
    assert bytes(memory[-5:]) == bytes([7]) * min(size, 5)


def test_what_somebody_looks_at_is_not_lent_again() -> None:
    memory = lent(LARGE)
    memory[:] = bytes([1]) * LARGE
    views = [
        np.frombuffer(memory, np.float32)[100:],
        memoryview(memory).cast("B").toreadonly()[5:],
        np.ndarray((LARGE // 4,), "<f4", buffer=memory[:LARGE]).reshape(2, -1).T,
    ]
    del memory
    for view in views:
        other = lent(LARGE)
        other[:] = bytes([2]) * LARGE
        assert bytes(view)[:4] == bytes([1]) * 4
        del other
    assert len(views) == 3


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system takes no advice about memory")
def test_what_nobody_looks_at_is_lent_again_for_the_same_size_only() -> None:
    memory = lent(LARGE)
    where = place(memory)
    del memory
    gc.collect()
    again = lent(LARGE)
    assert place(again) == where
    del again
    gc.collect()
    longer = lent(2 * LARGE)
    longer[:] = bytes(2 * LARGE)
    assert len(longer) == 2 * LARGE


def test_threads_never_share_what_is_lent() -> None:
    def own(byte: int) -> bool:
        for _ in range(30):
            memory = lent(LARGE)
            memory[:] = bytes([byte]) * LARGE
            if bytes(memory) != bytes([byte]) * LARGE:
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(own, range(4)))
