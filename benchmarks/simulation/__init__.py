"""Simulation, side by side: the same data, the same cohorts, the same training, in every framework."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DATA = Path(__file__).parents[2] / ".cache" / "simulation"
"""Where the data of the workloads is kept between runs."""


def measure(works: list[str] | None = None, only: str = "", repeats: int = 5) -> dict[str, object]:
    """Race the contenders of some workloads.

    Args:
        works: keys of `contenders.RACES`; all if None.
        only: a word that a contender's key must hold.
        repeats: runs of each.
    """
    from benchmarks.simulation import contenders, prepare, runner

    home = Path(os.environ.get("HANSA_BENCH_DATA", DATA))
    prepare.prepare(home)
    rows: dict[str, object] = {}
    left_out: dict[str, str] = {}
    for name in works or list(contenders.RACES):
        racing = []
        for contender in contenders.RACES[name]:
            if only not in contender.key:
                continue
            if lack := contender.lacks():
                left_out[contender.name] = lack
            else:
                racing.append(contender)

        def say(line: str, name: str = name) -> None:
            print(f"  {name} {line}", file=sys.stderr, flush=True)

        rows[name] = runner.race(racing, home, repeats, say)
    return {"works": rows, "left_out": left_out}
