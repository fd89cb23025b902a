"""A thousand connected parties, some hundred a round, and how the one coordinator bears it."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fleet import COORDINATOR, Fleet
from benchmarks.light import study
from benchmarks.soak import anonymous_mb
from hansa.backends.remote import Remote
from hansa.wire import messages as m
from hansa.wire.rpcs import DESCRIBE, INVITE, STATUS

PROCESSES = 4
"""Of light parties."""

POLITE = 19
"""Their niceness: in truth they have processors of their own, and take none from the coordinator."""


async def _tokens(home: Path, names: list[str]) -> list[str]:
    async with Remote(home).client() as client:
        made = []
        for name in names:
            reply = await client.unary(INVITE, m.InviteRequest(party=name, lifetime_seconds=3600))
            made.append(f"{name} {reply.token}")
        return made


@contextmanager
def crowds(fleet: Fleet, parties: int) -> Iterator[list[subprocess.Popen[str]]]:
    """So many light parties, joined and listening."""
    made = []
    lines = asyncio.run(_tokens(fleet.homes / COORDINATOR, [f"p{i:04}" for i in range(parties)]))
    try:
        for i in range(PROCESSES):
            child = subprocess.Popen(  # our own words
                [sys.executable, "-m", "benchmarks.light", str(fleet.folder / "light")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
            made.append(child)
            os.setpriority(os.PRIO_PROCESS, child.pid, POLITE)
            with suppress(OSError):  # where Linux shares processors among sessions first
                Path(f"/proc/{child.pid}/autogroup").write_text(str(POLITE))
            assert child.stdin
            child.stdin.write("\n".join(lines[i::PROCESSES]) + "\n\n")
            child.stdin.flush()
        for child in made:
            assert child.stdout
            assert child.stdout.readline() == "ready\n"
        yield made
    finally:
        for child in made:
            child.kill()
            child.wait()


class Watch:
    """Looks at a coordinator while it works: its memory, and how long small calls take, every 50 ms."""

    def __init__(self, home: Path, pid: int, run: str) -> None:
        self.memory: list[float] = []
        self.seconds: dict[str, list[float]] = {"status": [], "describe": []}
        self._over, self._home, self._pid, self._run = threading.Event(), home, pid, run
        self._threads = [threading.Thread(target=self._weigh), threading.Thread(target=self._call)]

    def __enter__(self) -> Watch:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _weigh(self) -> None:
        while not self._over.wait(0.01):
            self.memory.append(anonymous_mb(self._pid))

    def _call(self) -> None:
        asyncio.run(self._calls())

    async def _calls(self) -> None:
        async with Remote(self._home).client() as client:
            while not self._over.is_set():
                for name, rpc, request in (
                    ("status", STATUS, m.StatusRequest()),
                    ("describe", DESCRIBE, m.Describe(run=self._run)),
                ):
                    began = time.monotonic()
                    await client.unary(rpc, request)
                    self.seconds[name].append(time.monotonic() - began)
                await asyncio.sleep(0.05)


def measure(parties: int = 1000, cohort: int = 300, rounds: int = 10) -> dict[str, Any]:
    """Rounds of a cohort of the connected parties with a model of 1 MB."""
    with tempfile.TemporaryDirectory(prefix="hansa-load-") as temporary:
        fleet = Fleet(Path(temporary))
        try:
            fleet.found()
            pid = fleet.running[COORDINATOR].pid
            start = anonymous_mb(pid)
            began = time.monotonic()
            with crowds(fleet, parties) as children:
                joined = time.monotonic() - began
                connected = anonymous_mb(pid)
                print(f"joined {joined:.1f} s, {start:.0f} -> {connected:.0f} MB", file=sys.stderr, flush=True)
                run = fleet.submit(study(rounds, cohort))
                with Watch(fleet.homes / COORDINATOR, pid, run) as watch:
                    peaks = []
                    for round in range(rounds + 1):
                        assert fleet.reach(run, round, 0.2) or round >= rounds
                        peaks.append(max(watch.memory[-200:], default=0.0))
                        print(round, round and peaks[-1], file=sys.stderr, flush=True)
                ended = fleet.ended(run)
                acknowledged, refused, lost = [], [], []
                for child in children:
                    assert child.stdin
                    assert child.stdout
                    child.stdin.write("\n")
                    child.stdin.flush()
                    said = json.loads(child.stdout.readline())
                    acknowledged += said["acknowledged"]
                    refused += said["refused"]
                    lost += said["lost"]
        finally:
            fleet.close()
    arrived = [e for e in ended.events if e.kind == "arrived" and e.body["work"] == "train"]
    asked = [datetime.fromisoformat(e.at).timestamp() for e in ended.events if e.kind == "asked"]
    return {
        "parties": parties,
        "cohort": cohort,
        "rounds": rounds,
        "join_s": joined,
        "closed": len(arrived),
        "counted": min(len(event.body["counted"]) for event in arrived),
        "refused": len(refused),
        "lost": len(lost),
        "round_s": statistics.median([b - a for a, b in pairwise(asked)][2:]),
        "start_mb": start,
        "connected_mb": connected,
        "peak_mb": max(watch.memory),
        "peaks_mb": peaks,
        "status_p99_ms": _p99(watch.seconds["status"]),
        "describe_p99_ms": _p99(watch.seconds["describe"]),
        "acknowledged_p50_ms": float(np.median(acknowledged)) * 1e3,
        "acknowledged_p99_ms": _p99(acknowledged),
        "calls": {name: len(taken) for name, taken in watch.seconds.items()},
    }


def _p99(seconds: list[float]) -> float:
    return float(np.quantile(seconds, 0.99)) * 1e3


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:])), indent=2))
