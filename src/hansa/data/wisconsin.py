"""The Wisconsin breast cancer table, and three hospitals that hold it between them."""

from importlib import resources

import numpy as np

from hansa.data.source import read
from hansa.data.table import Table
from hansa.keyed import generator

TARGET = "malignant"

TRAINING = {"north": (4, 80), "harbour": (60, 8), "river": (25, 35)}
"""Malignant and benign training rows of each hospital.

The skew is on purpose: north screens the healthy and has hardly seen a tumour, harbour is sent the
cases that others suspect, river stands between them. All that remains, 123 malignant and 234 benign
rows, is held out, a third at each hospital: 41 and 78."""


_BESIDE = resources.files("hansa.data").joinpath("wisconsin")


def table() -> Table:
    """All 569 rows: 30 features of cell nuclei, and ``malignant`` (1 or 0); see SOURCE.md."""
    with resources.as_file(_BESIDE.joinpath("table.csv")) as path:
        return read(path)


def study(seed: int = 0, private: bool = False) -> str:
    """The text of a study on them, in TOML: a plain one, or one that hides each patient."""
    text = _BESIDE.joinpath("private.toml" if private else "study.toml").read_text("utf-8")
    return text.replace("seed = 0", f"seed = {seed}", 1)


def hospitals(seed: int = 0) -> dict[str, Table]:
    """Every row given to one of three hospitals, by `TRAINING` and keyed by the seed; their tables have a further text
    column ``split``: ``train`` or ``test``."""
    whole, random = table(), generator(seed, "wisconsin", "hospitals")
    labels = whole.column(TARGET)
    rows: dict[str, dict[str, list[int]]] = {name: {"train": [], "test": []} for name in TRAINING}
    for position, label in enumerate((1.0, 0.0)):
        shuffled = random.permutation(np.flatnonzero(labels == label)).tolist()
        for name, counts in TRAINING.items():
            rows[name]["train"] += shuffled[: counts[position]]
            shuffled = shuffled[counts[position] :]
        for place, name in enumerate(TRAINING):
            rows[name]["test"] += shuffled[place :: len(TRAINING)]
    return {name: _hospital(whole, **split) for name, split in rows.items()}


def _hospital(whole: Table, train: list[int], test: list[int]) -> Table:
    taken = np.array(sorted(train) + sorted(test))
    split = np.array(["train"] * len(train) + ["test"] * len(test), dtype=object)
    return Table({**whole.take(taken).columns, "split": split})
