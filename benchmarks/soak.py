"""Thousands of rounds of a tiny run: what grows, and whether a round costs the same at the end."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import hansa as hs
from benchmarks.fleet import COORDINATOR, Fleet, tables, tiny

SETTLED = 500
"""Rounds after which memory is to grow no more."""

PARTIES = 3


def anonymous_mb(pid: int) -> float:
    """MB that a process holds and that are no file's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise OSError(pid)


def cpu_s(pid: int) -> float:
    """Seconds of a processor that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def study(rounds: int) -> hs.Federation:
    """SCAFFOLD, so that parties remember something, and nothing beside it."""
    return tiny(rounds, evaluation=hs.Evaluate(every=0, holdout=0.25))


def deployed(rounds: int = 10_000) -> dict[str, Any]:
    """Between real processes: the memory of each, what a round costs, what lies on the disk, and a restart."""
    with tempfile.TemporaryDirectory(prefix="hansa-soak-") as temporary:
        fleet = Fleet(Path(temporary))
        try:
            fleet.found()
            fleet.join(tables(PARTIES))
            run = fleet.submit(study(rounds))
            memory: dict[str, list[tuple[int, float]]] = {name: [] for name in fleet.running}
            spent: list[tuple[int, float]] = []
            step = max(SETTLED // 2, rounds // 40)
            for mark in range(step, rounds, step):
                assert fleet.reach(run, mark)
                for name, process in fleet.running.items():
                    memory[name].append((mark, anonymous_mb(process.pid)))
                spent.append((mark, sum(cpu_s(process.pid) for process in fleet.running.values())))
                print(mark, {n: round(m[-1][1], 1) for n, m in memory.items()}, file=sys.stderr, flush=True)
            ended = fleet.ended(run)
            homes = {name: fleet.homes / name for name in memory}
            sizes = {
                "coordinator.db": _mb(homes[COORDINATOR], "coordinator.db*"),
                "agent.db": _mb(homes["p0"], "agent.db*"),
                "left.jsonl": _mb(homes["p0"], "left.jsonl"),
            }
            began = time.monotonic()
            fleet.kill(*fleet.running)
            for name in homes:
                fleet.start(name)
            fleet.document(COORDINATOR)
            fleet.present(*fleet.agents)
            restart = time.monotonic() - began
        finally:
            fleet.close()
    asked = [datetime.fromisoformat(e.at).timestamp() for e in ended.events if e.kind == "asked"]
    costs = [b - a for a, b in pairwise(asked)]
    return {
        "rounds": rounds,
        "memory_mb": memory,
        "grew_mb": {name: grown(samples) for name, samples in memory.items()},
        **_compared(costs),
        "cpu_ms": _slopes(spent),
        "kb_a_round": {name: size * 1024 / rounds for name, size in sizes.items()},
        "restart_s": restart,
    }


def grown(samples: list[tuple[int, float]]) -> float:
    """MB between the first sample after `SETTLED` rounds and the last."""
    after = [mb for mark, mb in samples if mark >= SETTLED]
    return after[-1] - after[0]


def _slopes(spent: list[tuple[int, float]]) -> list[float]:
    """Milliseconds of a processor that a round took, of all processes: soon after `SETTLED`, and at the end."""
    after = [at for at in spent if at[0] >= SETTLED]
    some = max(1, len(after) // 10)
    pairs = (after[0], after[some]), (after[-1 - some], after[-1])
    return [(end - begin) / (last - first) * 1e3 for (first, begin), (last, end) in pairs]


def _mb(folder: Path, pattern: str) -> float:
    return sum(path.stat().st_size for path in folder.glob(pattern)) / 2**20


def _compared(costs: list[float]) -> dict[str, float]:
    part = min(1000, len(costs) // 3)
    return {
        "first_ms": statistics.median(costs[10 : part + 10]) * 1e3,
        "last_ms": statistics.median(costs[-part:]) * 1e3,
    }


def weight(kept: object, seen: set[int]) -> int:
    """Bytes of what is kept and of all that is in it, but of what was seen before."""
    if id(kept) in seen:
        return 0
    seen.add(id(kept))
    inside: list[object] = [getattr(kept, "__dict__", None)]
    if isinstance(kept, dict):
        inside += [*kept, *kept.values()]
    elif isinstance(kept, list | tuple):
        inside += kept
    return sys.getsizeof(kept) + sum(weight(one, seen) for one in inside if one is not None)


SIMULATION = """
import json, os, sys, time
from benchmarks.fleet import tables
from benchmarks.soak import PARTIES, SETTLED, anonymous_mb, study, weight
import hansa as hs
rounds, marks, at = int(sys.argv[1]), [], []
def heard(event):
    if event.kind == "asked":
        at.append(time.monotonic())
        if len(at) % 250 == 0:
            marks.append((len(at), anonymous_mb(os.getpid())))
parties = {name: hs.Table.of(columns) for name, columns in tables(PARTIES).items()}
run = study(rounds).run(hs.Local(parties, seed=0, follow=heard))
early = [event.kind for event in run.events].index("asked") + len(run.events) * SETTLED // rounds
seen = set()
weight(run.events[:early], seen)
print(json.dumps([marks, at, weight(run.events[early:], seen) / 2**20]))
"""


def simulated(rounds: int = 10_000) -> dict[str, Any]:
    """The same in the simulator, in a process of its own."""
    import json

    said = subprocess.run(  # our own words
        [sys.executable, "-c", SIMULATION, str(rounds)], check=True, capture_output=True, text=True
    )
    marks, at, record = json.loads(said.stdout)
    costs = [b - a for a, b in pairwise(at)]
    return {"rounds": rounds, "memory_mb": marks, "grew_mb": grown(marks), "record_mb": record, **_compared(costs)}
