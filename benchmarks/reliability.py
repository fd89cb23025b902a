"""Break real processes and count what is lost: the figures of docs/reliability.md.

    python -m benchmarks.reliability [PART ...]

Parts are named in `PARTS`; all of them, without a name. A part that is not named keeps its last figures.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hansa as hs
from benchmarks import load, soak
from benchmarks.__main__ import machine
from benchmarks.fleet import COORDINATOR, Fleet, disturbed, tables, tiny

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = Path(__file__).parent / "reliability.json"
BEGIN, END = "<!-- figures: python -m benchmarks.reliability writes what is between these lines -->", "<!-- end -->"

Results = dict[str, dict[str, Any]]
Row = tuple[str, str, str, bool | None]
"""What, measured, to reach, and whether it is reached."""


# --- killed


def kills(of_each: int = 100, a_run: int = 10) -> dict[str, Any]:
    """SIGKILLs of the coordinator and of agents, in runs of 30 rounds among five parties; the bits of their ends."""
    federation, parties = tiny(30), tables(5)
    simulated = federation.run(hs.Local({name: hs.Table.of(columns) for name, columns in parties.items()}))
    killed, seconds, ended, same = {COORDINATOR: 0, "agents": 0}, list[float](), 0, 0
    with tempfile.TemporaryDirectory(prefix="hansa-kills-") as folder:
        fleet = Fleet(Path(folder))
        try:
            fleet.found()
            fleet.join(parties)
            run, seed = fleet.begun(federation), 0
            for whom in killed:
                while killed[whom] < of_each:
                    fleet.again()
                    told = disturbed(fleet, run, min(a_run, of_each - killed[whom]), seed, whom)
                    bits = fleet.ended(run).parameters.tobytes()
                    same += bits == simulated.parameters.tobytes() and not fleet.undercharged()
                    killed[whom], ended, seed = killed[whom] + told.kills, ended + 1, seed + 1
                    seconds += told.seconds
                    print(f"{whom}: {killed[whom]} killed, {ended} runs, {same} the same", file=sys.stderr, flush=True)
        finally:
            fleet.close()
    return {"killed": killed, "runs": ended, "same": same, **_times(seconds)}


def restart(times: int = 10) -> dict[str, Any]:
    """From the start of a killed coordinator to the end of the next exchange, on a machine that does nothing else."""
    with tempfile.TemporaryDirectory(prefix="hansa-restart-") as folder:
        fleet = Fleet(Path(folder))
        try:
            fleet.found()
            fleet.join(tables(3))
            run = fleet.submit(tiny(100_000, evaluation=hs.Evaluate(every=0, holdout=0.25)))
            fleet.reach(run, 5)
            told = [disturbed(fleet, run, 1, seed, COORDINATOR, rounds=1, again=False) for seed in range(times)]
        finally:
            fleet.close()
    return _times([second for one in told for second in one.seconds])


def _times(seconds: list[float]) -> dict[str, Any]:
    return {"restarts": len(seconds), "median_s": statistics.median(seconds), "longest_s": max(seconds)}


# --- simulated faults


def simulate(seeds: int = 20_000) -> dict[str, Any]:
    """So many seeds of faults on the simulated store, and a tenth of them on SQLite's own files."""
    return {"simulated": _seeds(str(seeds)), "sqlite": _seeds(str(seeds // 10), "--sqlite")}


def _seeds(count: str, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.faults", "--seeds", count, *words]
    return seeded(subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT).stdout)


def seeded(said: str) -> dict[str, Any]:
    """What the last line of `make simulate-faults` says."""
    found = re.search(r"(\d+) seeds in (\d+) s on (\d+) processes, (\d+) failed", said)
    assert found, said
    return dict(zip(("seeds", "seconds", "cores", "failed"), map(int, found.groups()), strict=True))


# --- fuzzed


def fuzz(messages: int = 10_000_000) -> dict[str, Any]:
    """As many malformed messages, over all targets of `make fuzz`, fewer of those that take long."""
    sys.path.insert(0, str(ROOT / "tools"))
    from fuzz import SHARES

    said = ""
    for name, share in SHARES.items():
        command = [
            sys.executable,
            str(ROOT / "tools" / "fuzz.py"),
            name,
            "--runs",
            str(int(messages * share / sum(SHARES.values())) + 1),
        ]
        said += subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    return fuzzed(said)


def fuzzed(log: str) -> dict[str, Any]:
    """What a log of `make fuzz` says."""
    parts = re.split(r"^--- (\S+)$", log, flags=re.M)[1:]
    counted: dict[str, int] = {}
    for name, said in zip(parts[::2], parts[1::2], strict=True):
        done = [int(n) for n in re.findall(r"stat::number_of_executed_units:\s+(\d+)", said)]
        counted[name] = counted.get(name, 0) + sum(done)
    memory = [int(n) for n in re.findall(r"stat::peak_rss_mb:\s+(\d+)", log)]
    found = re.findall(r"^==\d+== ERROR.*|^SUMMARY: .*|Uncaught Python exception.*", log, flags=re.M)
    return {"messages": sum(counted.values()), "of": counted, "peak_mb": max(memory), "found": len(found)}


# --- the page


def _faulted(r: dict[str, Any]) -> Iterator[Row]:
    for where, reach in (("simulated", "20,000, and none fails"), ("sqlite", "none fails")):
        of = r[where]
        store = "on the simulated store" if where == "simulated" else "on SQLite's files"
        measured = f"{of['seeds']:,} seeds, {of['failed']} with a violation"
        enough = where == "sqlite" or of["seeds"] >= 20_000
        yield f"seeded faults {store}", measured, reach, not of["failed"] and enough
        pace = of["seeds"] / max(1, of["seconds"]) / of["cores"]
        fast = pace >= 100 if where == "simulated" else None
        yield f"seeds a second a core, {store}", f"{pace:.0f}", "100" if where == "simulated" else "", fast


def _killed(r: dict[str, Any]) -> Iterator[Row]:
    every = r["same"] == r["runs"]
    what = "runs of 30 rounds with 5 agents in which processes were killed with SIGKILL at random moments"
    where = f"{r['killed'][COORDINATOR]} times the coordinator, {r['killed']['agents']} times agents"
    measured = f"{r['same']} of {r['runs']} runs end with the promised bits ({where})"
    enough = min(r["killed"].values()) >= 100
    yield what, measured, "all, of 100 and 100 kills", every and enough


def _restarted(r: dict[str, Any]) -> Iterator[Row]:
    what = f"restart of a killed coordinator to the next finished round, tiny model, {r['restarts']} times"
    measured = f"median {r['median_s']:.2f} s, longest {r['longest_s']:.2f} s"
    yield what, measured, "2 s", r["longest_s"] <= 2


def _soaked(r: dict[str, Any]) -> Iterator[Row]:
    worst, grew = max(r["grew_mb"].items(), key=lambda pair: pair[1])
    what = f"{r['rounds']} rounds of a tiny run: memory after the first {soak.SETTLED}"
    yield what, f"grows by at most {grew:.1f} MB ({worst})", "less than 5 MB", grew < 5
    first, last = r["cpu_ms"]
    what = "what a round of them costs: processor time of all processes, in the first tenth and in the last"
    yield what, f"{first:.1f} ms, {last:.1f} ms", "the same", last <= 1.1 * first
    measured = f"{r['first_ms']:.1f} ms in the first 1000, {r['last_ms']:.1f} ms in the last 1000"
    yield "the same by the clock, median", measured, "", None
    sizes = ", ".join(f"`{name}` {kb:.2f} KB" for name, kb in r["kb_a_round"].items())
    yield "what a round of them leaves on the disks", sizes, "", None
    yield "restart of all processes after them", f"{r['restart_s']:.1f} s", "", None


def _simulated(r: dict[str, Any]) -> Iterator[Row]:
    what, kept = f"the same {r['rounds']} rounds simulated: memory", r.get("record_mb", 0.0)
    said = f", {kept:.1f} MB of it the record that is kept" * bool(kept)
    yield what, f"grows by {r['grew_mb']:.1f} MB{said}", "less than 5 MB beside the record", r["grew_mb"] - kept < 5
    measured = f"{r['first_ms']:.2f} ms in the first 1000, {r['last_ms']:.2f} ms in the last 1000"
    yield "what a simulated round of them costs", measured, "the same", r["last_ms"] <= 1.1 * r["first_ms"]


def _loaded(r: dict[str, Any]) -> Iterator[Row]:
    yield (
        f"{r['parties']} connected parties, {r['cohort']} a round, a model of 1 MB",
        f"{r['closed']} of {r['rounds']} rounds closed, at least {r['counted']} counted, {r['round_s']:.1f} s a round",
        "every round closes",
        r["closed"] == r["rounds"] and r["counted"] == r["cohort"],
    )
    above = r["peak_mb"] - r["start_mb"]
    yield "the coordinator's memory above its start", f"{above:.0f} MB", "300 MB", above <= 300
    p99 = max(r["status_p99_ms"], r["describe_p99_ms"])
    yield "p99 of a control message meanwhile", f"{p99:.0f} ms", "250 ms", p99 <= 250


def _fuzzed(r: dict[str, Any]) -> Iterator[Row]:
    measured = (
        f"{r['messages'] / 1e6:.1f} million over {len(r['of'])} targets: {r['found']} findings, {r['peak_mb']} MB"
    )
    yield "fuzzed messages: no crash, no hang, no memory over 1 GB", measured, "10 million", not r["found"]


PARTS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], Iterator[Row]]]] = {
    "faults": (simulate, _faulted),
    "kills": (kills, _killed),
    "restart": (restart, _restarted),
    "load": (load.measure, _loaded),
    "soak": (soak.deployed, _soaked),
    "soak-simulated": (soak.simulated, _simulated),
    "fuzz": (fuzz, _fuzzed),
}


def written(results: Results) -> str:
    """The table, from what was measured."""
    lines = ["| what | measured | reach | reached |", "|---|---|---|---|"]
    places = []
    for name, (_, rows) in PARTS.items():
        if name in results:
            places.append(f"{name}: {results[name]['date']} on {results[name]['machine']}")
            for what, measured, reach, reached in rows(results[name]):
                verdict = {True: "yes", False: "**no**", None: ""}[reached]
                lines.append(f"| {what} | {measured} | {reach} | {verdict} |")
    by = dict[str, list[str]]()
    for place in places:
        name, _, where = place.partition(": ")
        by.setdefault(where, []).append(name)
    taken = [f"Measured {where}, Hansa {version('hansa')}: {', '.join(names)}." for where, names in by.items()]
    return "\n".join([BEGIN, "", *lines, "", *taken, "", END])


def main(chosen: list[str]) -> None:
    """Measure the chosen parts, and write the page's table."""
    results: Results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in chosen or PARTS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        keep(results, name, PARTS[name][0]())
    write(results)


def keep(results: Results, name: str, measured: dict[str, Any]) -> None:
    """Remember the figures of a part, with the machine and the date."""
    results[name] = {"machine": machine(), "date": f"{datetime.now(UTC):%Y-%m-%d}", **measured}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def write(results: Results) -> None:
    """Put the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.partition(BEGIN)[0], page.partition(END)[2]
    PAGE.write_text(before + written(results) + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
