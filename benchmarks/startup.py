"""``hansa --help`` beside the same tree in bare cyclopts: whole processes, in turn."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path


def seconds(command: list[str]) -> float:
    """Wall seconds of one process that must succeed."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(pairs: int = 15) -> dict[str, object]:
    """Medians in milliseconds, and the median of the ratios pair by pair."""
    ours = [str(Path(sys.executable).parent / "hansa"), "--help"]
    bare = [sys.executable, "-m", "benchmarks.bare_tree", "--help"]
    seconds(ours), seconds(bare)
    both = [(seconds(ours), seconds(bare)) for _ in range(pairs)]
    return {
        "hansa_ms": statistics.median(a for a, _ in both) * 1e3,
        "bare_ms": statistics.median(b for _, b in both) * 1e3,
        "ratio": statistics.median(a / b for a, b in both),
    }
