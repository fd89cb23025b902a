"""Large memory that is used again."""

import mmap
import weakref
from contextlib import suppress

import numpy as np

LARGE = 1 << 20
"""Bytes from which on memory is lent again."""

_IDLE = list[mmap.mmap]()


def lent(size: int) -> memoryview:
    """So many bytes, of any content. They come back when nobody looks at them any more, and are lent again: to find as
    much anew takes a system as long as what is done with it. What lies idle it may take away."""
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, np.uint8).data
    idle: mmap.mmap | None = None
    with suppress(IndexError):  # threads take turns at nothing here
        idle = _IDLE.pop()
    whole = idle if idle is not None and len(idle) == size else mmap.mmap(-1, size, mmap.MAP_PRIVATE)
    with suppress(OSError):  # a system may be without large pages
        whole.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(whole, np.uint8)
    weakref.finalize(array, _back, whole)
    return array.data


def _back(whole: mmap.mmap) -> None:
    with suppress(OSError):
        whole.madvise(mmap.MADV_FREE)
    _IDLE[:] = [whole]
