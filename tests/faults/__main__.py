"""``make simulate-faults``: many seeds on every core, or one of them again.

python -m tests.faults [--seeds 20000] [--first 0] [--jobs N] [--sqlite]
python -m tests.faults --seed 4711 --verbose
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from tests.faults.seeds import Outcome, outcomes

SOME = 20
"""Seeds that a process takes at a time."""


def main() -> int:
    read = argparse.ArgumentParser(prog="make simulate-faults ARGS=...", description="Simulate faults from seeds.")
    read.add_argument("--seeds", type=int, default=20_000, help="how many")
    read.add_argument("--first", type=int, default=0, help="the first of them")
    read.add_argument("--seed", type=int, help="this one alone")
    read.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    read.add_argument("--sqlite", action="store_true", help="on real files instead of the simulated store")
    read.add_argument("--verbose", action="store_true", help="every event of a seed")
    asked = read.parse_args()
    first, last = (asked.seed, asked.seed + 1) if asked.seed is not None else (asked.first, asked.first + asked.seeds)
    if asked.verbose or last - first == 1:
        with tempfile.TemporaryDirectory() as folder:
            files = Path(folder) if asked.sqlite else None
            return 1 if sum(_shown(one, asked.verbose) for one in outcomes(range(first, last), files)) else 0
    return _many(first, last, asked.jobs, asked.sqlite)


def _shown(one: Outcome, verbose: bool) -> bool:
    """Print what came of one seed; whether it failed."""
    for line in one.trace if verbose else ():
        at, *what = line
        print(f"{at:12.6f}", *what)
    print(f"seed {one.seed} ({one.plan}): {one.failure or one.status}, trace {one.hash}")
    return bool(one.failure)


def _many(first: int, last: int, jobs: int, sqlite: bool) -> int:
    begun, done, failed = time.monotonic(), 0, 0
    fates, ends = Counter[str](), Counter[str]()
    with ProcessPoolExecutor(jobs, initializer=_begin) as pool:
        parts = [range(at, min(at + SOME, last)) for at in range(first, last, SOME)]
        for finished in as_completed([pool.submit(_part, part, sqlite) for part in parts]):
            for one in finished.result():
                done, failed = done + 1, failed + bool(one.failure)
                fates.update(one.fates)
                ends[one.status] += 1
                if one.failure:
                    print(f'\r{one.failure}\n    {one.plan}\n    make simulate-faults ARGS="--seed {one.seed}"')
            if sys.stderr.isatty():
                rate = f"{done / (time.monotonic() - begun):.0f} a second"
                print(f"\r{done} of {last - first} seeds, {rate}, {failed} failed", end="", file=sys.stderr)
    told = ", ".join(f"{count} {what}" for what, count in sorted({**fates, **ends}.items()))
    print(f"\n{done} seeds in {time.monotonic() - begun:.0f} s on {jobs} processes, {failed} failed ({told})")
    return 1 if failed else 0


def _begin() -> None:
    """A process for nothing but seeds looks for garbage after each part, and not again among what is left then: that is
    what seeds share, there is more and more of it, and all of it is kept.
    """
    gc.disable()
    gc.freeze()


def _part(seeds: range, sqlite: bool) -> list[Outcome]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        found = [one._replace(trace=[]) for one in outcomes(seeds, Path(folder) if sqlite else None)]
    gc.collect(0)
    gc.freeze()
    return found


if __name__ == "__main__":
    sys.exit(main())
