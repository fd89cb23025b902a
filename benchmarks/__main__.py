"""``make bench``: measure everything in one run and write docs/benchmarks.md.

Names of parts may be given: ``make bench ARGS="startup deployed"``, or ``simulation:W1`` for one race of it; the
page keeps the rest.
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import deployed, install, noise, secure_sum, simulation, startup, transfer
from benchmarks.peers import flower
from benchmarks.simulation import report

PAGE = Path(__file__).parent.parent / "docs" / "benchmarks.md"
RESULTS = Path(__file__).parent / "results.json"
PARTS = {
    "startup": startup.measure,
    "install": install.measure,
    "deployed": deployed.measure,
    "flower": flower.measure,
    "transfer": transfer.measure,
    "secure-sum": secure_sum.measure,
    "noise": noise.measure,
}


def machine() -> str:
    """Where this was measured, in one line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        if names:
            model = f"{len(names)} x {names[0].partition(':')[2].strip()}"
    return f"{model}, {platform.system()}, Python {platform.python_version()}"


def verdict(value: float, limit: float) -> str:
    """Whether a figure is within its limit."""
    return "yes" if value <= limit else "**no**"


def page(results: dict[str, dict[str, object] | None]) -> str:
    """The page of the documentation, from what was measured."""
    lines = [PREFACE]
    for name, write in (("install", _install), ("deployed", _deployed), ("startup", _startup)):
        if name in results:
            lines += write(results)
    for name, section in (("transfer", transfer), ("secure-sum", secure_sum), ("noise", noise)):
        if measured := results.get(name):
            lines += section.lines(measured, _taken(measured))
    if part := results.get("simulation"):
        lines += report.lines(part)
    return "\n".join(lines) + "\n"


PREFACE = """# Benchmarks

Every figure here was written by `make bench`, in one run on one machine; `benchmarks/` says how each is taken.
Machines differ and are noisy: medians are given, and what holds elsewhere are the ratios. No test of the
suite depends on time.
"""


def _taken(part: dict[str, object]) -> str:
    return f"Measured {part['date']} on {part['machine']}, Hansa {part['version']}.\n"


def _install(results: dict[str, dict[str, object] | None]) -> list[str]:
    r = results["install"]
    assert r is not None
    return [
        "## Installation and demo\n",
        _taken(r),
        "| what | measured | reach | reached |",
        "|---|---|---|---|",
        f"| `hansa demo` after installation, median of {len(r['demos_s'])} | {r['demo_s']:.1f} s "
        f"| 20 s | {verdict(r['demo_s'], 20)} |",
        f"| an environment with Hansa | {r['core_mb']:.0f} MB | | |",
        f"| the same with dp-accounting | {r['with_accounting_mb']:.0f} MB | 440 MB "
        f"| {verdict(r['with_accounting_mb'], 440)} |",
        "",
        f"An empty environment takes {r['venv_mb']:.0f} MB of it.\n",
    ]


def _deployed(results: dict[str, dict[str, object] | None]) -> list[str]:
    r, peer = results["deployed"], results.get("flower")
    assert r is not None
    bound = r["commits"] * r["fsync_ms"] + 15
    lines = [
        "## A deployed round\n",
        "Five processes on loopback: a coordinator and four agents, mutual TLS, every answer durable at the",
        "agent before it is sent and at the coordinator before it is acknowledged; a model of five parameters,",
        "one gradient a round. A round is the time from one ask to the next in the coordinator's own record.\n",
        _taken(r),
        "| what | measured | reach | reached |",
        "|---|---|---|---|",
        f"| Hansa, median round | {r['round_ms']:.1f} ms | 25 ms | {verdict(r['round_ms'], 25)} |",
        f"| the same | {r['round_ms']:.1f} ms | {r['commits']} commits x {r['fsync_ms']:.2f} ms fsync + 15 ms "
        f"= {bound:.1f} ms | {verdict(r['round_ms'], bound)} |",
        f"| Hansa, 95th percentile | {r['round_p95_ms']:.1f} ms | | |",
    ]
    if peer:
        lines.append(
            f"| Flower {peer['version_of']}, median round, the same run, without TLS "
            f"| {peer['round_s']:.2f} s | | {peer['round_s'] * 1e3 / r['round_ms']:.0f} x slower |"
        )
    return [*lines, ""]


def _startup(results: dict[str, dict[str, object] | None]) -> list[str]:
    r = results["startup"]
    assert r is not None
    return [
        "## Start-up\n",
        _taken(r),
        "| what | measured | reach | reached |",
        "|---|---|---|---|",
        f"| `hansa --help` | {r['hansa_ms']:.0f} ms | 200 ms | {verdict(r['hansa_ms'], 200)} |",
        f"| the same tree in bare cyclopts | {r['bare_ms']:.0f} ms | | |",
        f"| ratio, pair by pair | {r['ratio']:.2f} | 1.25 | {verdict(r['ratio'], 1.25)} |",
        "",
    ]


def _raced(results: dict[str, Any], race: str) -> dict[str, object]:
    """The races, or one of them beside those of before."""
    taken = f"{datetime.now(UTC):%Y-%m-%d} on {machine()}, Hansa {version('hansa')}"
    before = (results.get("simulation") or {}).get("works", {})
    measured = simulation.measure([race] if race else (), taken=taken)
    return {"works": before | measured["works"]}


def main(chosen: list[str]) -> None:
    """Measure the chosen parts, all of them if none is named."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for word in chosen or [*PARTS, "simulation"]:
        print(f"{word} ...", file=sys.stderr, flush=True)
        name, _, race = word.partition(":")
        measured = _raced(results, race) if name == "simulation" else PARTS[name]()
        if measured is None:
            print(f"{name}: left out, see benchmarks/README.md", file=sys.stderr)
            continue
        facts = {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}"}
        results[name] = {**facts, "version": version("hansa"), **measured}
        print(json.dumps(results[name], indent=2))
    RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    PAGE.write_text(page(results))


if __name__ == "__main__":
    main(sys.argv[1:])
