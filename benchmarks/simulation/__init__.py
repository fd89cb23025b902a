"""Simulation, side by side: the same data, the same cohorts, the same training, in every framework."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[2] / ".cache" / "simulation"
"""Where the data of the workloads is kept between runs."""


def measure(works: Sequence[str] = (), only: str = "", repeats: int = 5, taken: str = "") -> dict[str, Any]:
    """Race the contenders of some workloads.

    Args:
        works: keys of `contenders.RACES`; all if empty.
        only: words, one of which a contender's key must hold; separated by commas.
        repeats: runs of each.
        taken: when and where, as the page says it.
    """
    from benchmarks.simulation import contenders, prepare, runner

    home = Path(os.environ.get("HANSA_BENCH_DATA", DATA))
    prepare.prepare(home)
    races: dict[str, Any] = {}
    for name in works or list(contenders.RACES):
        chosen = [
            contender for contender in contenders.RACES[name] if any(word in contender.key for word in only.split(","))
        ]
        left_out = {c.name: c.lacks() for c in chosen if c.lacks()}

        def say(line: str, name: str = name) -> None:
            print(f"  {name} {line}", file=sys.stderr, flush=True)

        racing = [contender for contender in chosen if contender.name not in left_out]
        rows = runner.race(racing, home, repeats, say)
        races[name] = {"taken": taken, "rows": rows, "left_out": left_out}
    return {"works": races}
