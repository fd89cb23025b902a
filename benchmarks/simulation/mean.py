"""``mean.py float32|float64``: W3 in NumPy, a running weighted mean in that precision, party after party."""

import sys

import numpy as np

from benchmarks.simulation import work as w

kind = np.dtype(sys.argv[1])
scratch = np.empty(w.W3_LENGTH, kind)
sums: list[np.ndarray] = []


def add(arrays: np.ndarray, weight: int) -> None:
    """Count one party; its arrays are gone when it returns."""
    for total, array in zip(sums, arrays, strict=True):
        total += np.multiply(array, kind.type(weight), out=scratch)


for _ in range(w.W3_ROUNDS):
    sums.clear()
    sums += [np.zeros(w.W3_LENGTH, kind) for _ in range(w.W3_ARRAYS)]
    for i in range(w.W3_PARTIES):
        add(w.update(i), w.weight(i))
    for total in sums:
        total /= kind.type(sum(map(w.weight, range(w.W3_PARTIES))))
    w.mark("round")
w.done(np.__version__, sums)
