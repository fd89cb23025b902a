"""Flower, deployed on loopback without TLS, on the same trivial round.

It lives in an environment of its own, whose ``bin`` folder the variable HANSA_BENCH_FLOWER names; without it
this side of the table says so. See benchmarks/README.md for how to make one.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import tempfile
import time
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

APP = Path(__file__).parent / "flower_app"


def measure(rounds: int = 5, count: int = 4, port: int = 18000) -> dict[str, object] | None:
    """Median seconds of a round after the first; None without an environment."""
    home = os.environ.get("HANSA_BENCH_FLOWER")
    if not home:
        return None
    bin_folder = Path(home)
    with tempfile.TemporaryDirectory(prefix="hansa-bench-") as temporary:
        folder = Path(temporary)
        here = f'[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        (folder / "config.toml").write_text(f'[superlink]\ndefault = "here"\n\n{here}')
        environment = {
            **os.environ,
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
        }
        marks, log = folder / "marks", (folder / "log").open("wb")
        started: list[subprocess.Popen[bytes]] = []

        def start(*words: str) -> None:
            command = [str(bin_folder / words[0]), *words[1:]]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))

        try:
            alone = "--disable-runtime-dependency-installation"
            start("flower-superlink", "--insecure", "--port", str(port), alone)
            time.sleep(6)
            for i in range(count):
                own = ("--superlink", f"127.0.0.1:{port}", "--port", str(port + 100 + i))
                start("flower-supernode", "--insecure", *own, "--node-config", f"partition-id={i}")
            time.sleep(2)
            config = f'rounds={rounds} parties={count} marks="{marks}"'
            flwr = [str(bin_folder / "flwr"), "run", str(APP), "here", "--stream"]
            subprocess.run(
                [*flwr, "--run-config", config], env=environment, stdout=log, stderr=log, timeout=300, check=True
            )
            stamps = [float(line) for line in marks.read_text().split()]
        except (subprocess.SubprocessError, OSError) as error:
            tail = (folder / "log").read_text(errors="replace")[-6000:]
            raise RuntimeError(f"Flower did not run: {error}\n{tail}") from error
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
            log.close()
    taken = [later - earlier for earlier, later in pairwise(stamps)]
    told = subprocess.run([str(bin_folder / "flwr"), "--version"], capture_output=True, text=True, check=True)
    return {"round_s": statistics.median(taken), "rounds_s": taken, "version_of": told.stdout.split()[-1]}
