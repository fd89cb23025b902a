"""Start contenders as processes, in turn, and take their time, their memory, and how busy everybody else was."""

from __future__ import annotations

import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
DISTURBED = 0.15
"""Cores that others used, above which a run says little."""
PEERS = {
    "flower": "HANSA_BENCH_FLOWER",
    "pfl": "HANSA_BENCH_PFL",
    "fedjax": "HANSA_BENCH_FEDJAX",
    "nvflare": "HANSA_BENCH_NVFLARE",
    "tff": "HANSA_BENCH_TFF",
}


@dataclass(frozen=True)
class Contender:
    """One way of doing a workload.

    Args:
        name: in the table.
        words: what follows `python`.
        peer: a key of PEERS, in whose environment it runs; ours if empty.
        needs: modules without which it is left out, in our environment.
        repeats: at most so many runs, for those that take minutes.
        times: what its seconds a round are multiplied by, where it does only a part of the work.
        limit: seconds after which a run is given up.
    """

    name: str
    words: tuple[str, ...]
    peer: str = ""
    needs: tuple[str, ...] = ()
    repeats: int = 99
    times: float = 1.0
    limit: float = 300.0

    @property
    def key(self) -> str:
        """The same in results.json, whatever the name says."""
        return " ".join(word.removeprefix("benchmarks.") for word in self.words if word != "-m")

    def lacks(self) -> str:
        """Why it cannot run here; empty if it can."""
        if self.peer:
            variable = PEERS[self.peer]
            return "" if os.environ.get(variable) else f"{variable} is not set"
        absent = [module for module in self.needs if find_spec(module) is None]
        return f"{', '.join(absent)} is not installed" if absent else ""

    def command(self) -> list[str]:
        """The whole command line."""
        folder = Path(os.environ[PEERS[self.peer]]) if self.peer else Path(sys.executable).parent
        return [str(folder / "python"), *self.words]


def strays(marks: Path) -> list[psutil.Process]:
    """Who was started for this run, by its environment, even if it has left the tree of processes since."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("HANSA_BENCH_MARKS") == str(marks):
                found.append(process)
    return found


def used() -> float:
    """Seconds that all cores together were busy, or were taken away by the host, since the start."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def quiet(patience: float = 10.0) -> None:
    """Wait until others leave the machine alone, but not for ever."""
    end = time.monotonic() + patience
    while time.monotonic() < end and psutil.cpu_percent(0.5) > 15:
        pass


def once(contender: Contender, data: Path) -> dict[str, object]:
    """Run it once.

    Raises:
        RuntimeError: with the end of what it said, if it did not come to its end.
    """
    quiet()
    with tempfile.TemporaryDirectory(prefix="hansa-bench-", ignore_cleanup_errors=True) as folder:
        marks, log = Path(folder) / "marks", Path(folder) / "log"
        environment = {
            **os.environ,
            "HANSA_BENCH_DATA": str(data),
            "HANSA_BENCH_MARKS": str(marks),
            "PYTHONPATH": os.pathsep.join([str(ROOT)] + [str(ROOT / "src")] * (not contender.peer)),
        }
        before, own_before = used(), sum(psutil.Process().cpu_times()[:2])
        began = time.monotonic()
        with log.open("wb") as said:
            process = psutil.Popen(contender.command(), cwd=folder, env=environment, stdout=said, stderr=said)
        try:
            code, peak, cpu = _watch(process, marks, began + contender.limit)
        finally:  # also where the race itself is ended
            _kill(strays(marks))
        ended = time.monotonic()
        busy = used() - before - (sum(psutil.Process().cpu_times()[:2]) - own_before) - cpu
        told = [json.loads(line) for line in marks.read_text().splitlines()] if marks.exists() else []
        rounds = [mark["at"] for mark in told if mark["kind"] == "round"]
        last = [mark for mark in told if mark["kind"] == "done"]
        if code or not last or len(rounds) < 3:
            tail = log.read_text(errors="replace")[-3000:]
            raise RuntimeError(f"{contender.name} ended with {code}\n{tail}")
    taken = statistics.median(b - a for a, b in pairwise(rounds))
    facts = {key: value for key, value in last[0].items() if key not in ("kind", "at")}
    return {
        **facts,
        "round_s": taken * contender.times,
        "start_s": max(0.0, rounds[0] - began - taken),
        "total_s": ended - began,
        "memory_mb": peak / 1e6,
        "other_cores": max(0.0, busy) / (ended - began),
    }


def _watch(process: psutil.Popen, marks: Path, end: float) -> tuple[int, float, float]:
    """Wait for it; its exit status, the peak of all its processes' memory in bytes, their seconds of CPU.

    The system's own record of the largest process stands in for what was missed between two looks.
    """
    peak, seconds = 0, dict[int, float]()
    wandered: list[psutil.Process] = []
    looks = 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        members = {process.pid: process}
        with suppress(psutil.Error):
            members |= {p.pid: p for p in process.children(recursive=True)}
        if looks % 20 == 10:  # reads every process of the machine, so only now and then
            wandered = strays(marks)
        members |= {p.pid: p for p in wandered}
        resident = 0
        for member in members.values():
            with suppress(psutil.Error), member.oneshot():
                resident += member.memory_info().rss
                seconds[member.pid] = sum(member.cpu_times()[:2])
        peak = max(peak, resident)
        if time.monotonic() > end:
            _kill(members.values())
        looks += 1
        time.sleep(0.1)
    process.returncode = os.waitstatus_to_exitcode(status)
    largest = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    cpu = max(usage.ru_utime + usage.ru_stime, sum(seconds.values()))
    return process.returncode, max(peak, largest), cpu


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()


def race(
    contenders: Sequence[Contender], data: Path, repeats: int, said: Callable[[str], None]
) -> list[dict[str, object]]:
    """Run them in turn, A B C A B C ...; a row for each, with the medians of its undisturbed runs.

    A contender that fails keeps its row, with the reason, and is not started again. A race that is told to end
    takes its contenders with it.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    runs: dict[Contender, list[dict[str, Any]]] = {c: [] for c in contenders}
    failed: dict[Contender, str] = {}
    for turn in range(repeats):
        for contender in contenders:
            if contender in failed or turn >= contender.repeats:
                continue
            try:
                run = once(contender, data)
            except RuntimeError as error:
                failed[contender] = str(error)
                said(str(error))
                continue
            runs[contender].append(run)
            said(
                f"{contender.name}: {run['round_s']:.4f} s a round, start {run['start_s']:.1f} s, "
                f"{run['memory_mb']:.0f} MB, others {run['other_cores']:.2f}, "
                f"accuracy {run['accuracy']}, norm {run['norm']:.6g}"
            )
    return [_row(c, runs[c], failed.get(c)) for c in contenders]


def _row(contender: Contender, runs: list[dict[str, Any]], failure: str | None) -> dict[str, object]:
    row: dict[str, object] = {"name": contender.name, "key": contender.key, "runs": len(runs)}
    if not runs:
        return {**row, "failed": failure}
    clean = [run for run in runs if run["other_cores"] <= DISTURBED]
    for name in ("round_s", "start_s", "memory_mb", "other_cores"):
        row[name] = statistics.median(run[name] for run in clean or runs)
    row |= {k: v for k, v in runs[-1].items() if k not in row and k != "total_s"}
    return {**row, "clean": len(clean), "disturbed": not clean, "rounds_s": [r["round_s"] for r in runs]}
