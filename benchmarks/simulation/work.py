"""The workloads: data, cohorts and starting weights from seeds, with NumPy alone.

Every contender, in whatever environment, imports this module and no other of ours but `net`. It reads files
that the runner wrote once, under the folder that HANSA_BENCH_DATA names.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

CLASSES, PIXELS = 10, 784
SEED = 0
"""Of the cohorts."""


@dataclass(frozen=True)
class Work:
    """One workload: who takes part, and how each trains.

    Args:
        data: the workload whose rows, starting weights and test table it uses.
        parties: how many are registered; party i holds the rows of party i modulo those there are.
        cohort: parties a round.
        rounds: how many; the first is start-up and is not timed.
        lr: of plain local SGD, one epoch, batches of `batch` in the party's own order, the last one short.
    """

    data: str
    parties: int
    cohort: int
    rounds: int
    lr: float
    batch: int = 20


WORKS = {
    "W1": Work("W1", parties=1000, cohort=100, rounds=20, lr=0.1),
    "W2": Work("W2", parties=200, cohort=10, rounds=6, lr=0.05),
    "W4": Work("W1", parties=1_000_000, cohort=1000, rounds=10, lr=0.1),
    "W4-small": Work("W1", parties=10_000, cohort=1000, rounds=10, lr=0.1),
}

# W3: parties return arrays as they are; nothing is trained.
W3_PARTIES, W3_ROUNDS, W3_ARRAYS, W3_LENGTH = 10, 6, 25, 1_000_000


def update(party: int) -> np.ndarray:
    """W3: the 25 arrays of a million float32, 100 MB, that a party returns, each a row."""
    random = np.random.default_rng(100 + party).random(W3_LENGTH, dtype=np.float32)
    return np.add(random, np.arange(W3_ARRAYS, dtype=np.float32)[:, None])


def weight(party: int) -> int:
    """W3: how many examples a party says it has."""
    return 50 + 7 * party


class Data:
    """A workload's files. `x` is mapped, not read."""

    def __init__(self, name: str) -> None:
        self.work = WORKS[name]
        home = Path(os.environ["HANSA_BENCH_DATA"])
        base = home / self.work.data
        self.x = np.load(base / "x.npy", mmap_mode="r")  # float32 [rows, 784]
        self.y = np.load(base / "y.npy")  # int64 [rows]
        self.offsets = np.load(base / "offsets.npy")  # int64 [parties + 1]
        self.test_x, self.test_y = np.load(base / "test_x.npy"), np.load(base / "test_y.npy")
        self._cohorts = home / f"{name}-cohorts.npy"
        self._start = base / "start.npz"

    @cached_property
    def cohorts(self) -> np.ndarray:
        """Who takes part: int64 [rounds, cohort]."""
        return np.load(self._cohorts)

    @cached_property
    def start(self) -> dict[str, np.ndarray]:
        """The weights that every contender starts from, as PyTorch lays them out."""
        return dict(np.load(self._start))

    def span(self, party: int) -> slice:
        """The rows of a party."""
        own = int(party) % (len(self.offsets) - 1)
        return slice(int(self.offsets[own]), int(self.offsets[own + 1]))

    def party(self, party: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples of a party, copied: float32 [n, 784] and int64 [n]."""
        rows = self.span(party)
        return np.array(self.x[rows]), self.y[rows]


def generate(home: Path) -> None:
    """Write the data of W1 and of W2, once.

    Prototypes of ten classes plus noise; each party's mixture of classes is a Dirichlet(0.3) draw.
    """
    for name, seed in (("W1", 1), ("W2", 2)):
        folder = home / name
        if (folder / "start.npz").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        parties = WORKS[name].parties
        random = np.random.default_rng(seed)
        if name == "W1":
            sizes = 20 + (81 * random.beta(1.5, 2.5, parties)).astype(np.int64)  # 20 to 100
            prototypes, noise = 0.06 * random.normal(size=(CLASSES, PIXELS)), 0.5
        else:
            sizes = random.integers(40, 81, parties)  # about 60
            coarse = random.normal(size=(CLASSES, 7, 7))
            prototypes = coarse.repeat(4, axis=1).repeat(4, axis=2).reshape(CLASSES, PIXELS)
            noise = 1.3
        mixtures = random.dirichlet(np.full(CLASSES, 0.3), parties)
        labels = [random.choice(CLASSES, n, p=p) for n, p in zip(sizes, mixtures, strict=True)]
        y, test_y = np.concatenate(labels), random.integers(0, CLASSES, 2000)
        for prefix, of in (("", y), ("test_", test_y)):
            x = prototypes[of] + random.normal(0, noise, (len(of), PIXELS))
            np.save(folder / f"{prefix}x.npy", x.astype(np.float32))
            np.save(folder / f"{prefix}y.npy", of.astype(np.int64))
        np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(sizes)]))
        np.savez(folder / "start.npz", **beginning(name, random))


def beginning(name: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Starting weights: zeros for the softmax; for the CNN uniform in +-1/sqrt(fan in), as PyTorch draws them."""
    if name == "W1":
        return {"w": np.zeros((CLASSES, PIXELS), np.float32), "b": np.zeros(CLASSES, np.float32)}
    weights = {}
    shapes = {"c1": (32, 1, 5, 5), "c2": (64, 32, 5, 5), "f1": (512, 3136), "f2": (10, 512)}
    for key, shape in shapes.items():
        bound = float(np.prod(shape[1:])) ** -0.5
        weights[key] = random.uniform(-bound, bound, shape).astype(np.float32)
        weights[f"{key}_bias"] = random.uniform(-bound, bound, shape[:1]).astype(np.float32)
    return weights


def accuracy(scores: np.ndarray, data: Data) -> float:
    """The part of the test rows whose largest score is at their class; scores are [rows, 10]."""
    return float((scores.argmax(axis=1) == data.test_y).mean())


def mark(kind: str, **facts: object) -> None:
    """Tell the runner, with the moment: "round" at the end of each, "done" with what came out."""
    line = json.dumps({"kind": kind, "at": time.monotonic(), **facts})
    with Path(os.environ["HANSA_BENCH_MARKS"]).open("a") as file:
        file.write(line + "\n")


def done(version: str, arrays: Iterable[np.ndarray], accuracy: float | None = None, **facts: object) -> None:
    """The last mark: who it was, the L1 norm of the final parameters, the accuracy on the test rows."""
    norm = float(sum(np.abs(np.asarray(a, dtype=np.float64)).sum() for a in arrays))
    mark("done", version=version, norm=norm, accuracy=accuracy, **facts)
