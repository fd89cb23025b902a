"""Write what all contenders read: the data, and who takes part in which round."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import hansa as hs
from benchmarks.simulation import work as w
from hansa.data.population import Numbered
from hansa.methods.base import Setup


def prepare(home: Path) -> None:
    """Data and cohorts. Hansa draws the cohorts, from (seed, round); all others read them from a file."""
    w.generate(home)
    for name, work in w.WORKS.items():
        names = Numbered(work.parties)
        cohort, setup = hs.Fixed(size=work.cohort), Setup(names, (), {}, w.SEED)
        draws = [cohort.draw(setup, round) for round in range(1, work.rounds + 1)]
        numbers = [[names.index(party) for party in drawn] for drawn in draws]
        np.save(home / f"{name}-cohorts.npy", np.array(numbers, dtype=np.int64))
