"""What a user waits for and stores: the wheel in an empty environment, and the demo there."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def megabytes(folder: Path) -> float:
    """Bytes of all files below a folder, in 10^6."""
    return sum(f.lstat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6


def run(*command: object) -> str:
    """Run a command that must succeed and return what it printed."""
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def measure(demos: int = 3) -> dict[str, object]:
    """Size after installation, with and without the accountant, and seconds of the demo."""
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as temporary:
        folder = Path(temporary)
        run(sys.executable, "-m", "venv", folder / "venv")
        python = folder / "venv" / "bin" / "python"
        empty = megabytes(folder / "venv")
        run(python, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder / "dist", ROOT)
        wheel = next((folder / "dist").glob("*.whl"))
        limits = ("-c", ROOT / "constraints.txt")
        run(python, "-m", "pip", "install", "--quiet", *limits, wheel)
        core = megabytes(folder / "venv")
        run(python, "-m", "pip", "install", "--quiet", *limits, "dp-accounting>=0.6,<1")
        private = megabytes(folder / "venv")
        taken, inside = [], []
        for _ in range(demos):
            began = time.perf_counter()
            said = run(python, "-m", "hansa", "demo", "--json", "--output", folder / "out")
            taken.append(time.perf_counter() - began)
            inside.append(json.loads(said)["seconds"])
    return {
        "venv_mb": empty,
        "core_mb": core,
        "with_accounting_mb": private,
        "demo_s": statistics.median(taken),
        "demos_s": taken,
    }
