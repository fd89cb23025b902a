"""``mean.py float32|float64``: W3 in NumPy, a running weighted mean in that precision, party after party."""

import sys

import numpy as np

from benchmarks.simulation import work as w

kind = np.dtype(sys.argv[1])
sums: list[np.ndarray] = []
for _ in range(w.W3_ROUNDS):
    sums = [np.zeros(w.W3_LENGTH, kind) for _ in range(w.W3_ARRAYS)]
    examples = 0
    for i in range(w.W3_PARTIES):
        weight = w.weight(i)
        for total, array in zip(sums, w.update(i), strict=True):
            total += np.multiply(array, kind.type(weight), dtype=kind)
        examples += weight
    for total in sums:
        total /= kind.type(examples)
    w.mark("round")
w.done(np.__version__, sums)
