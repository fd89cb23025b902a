"""The tables of docs/benchmarks.md, from the rows of the races."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TITLES = {
    "W1": "1000 small parties",
    "W2": "A convolutional network",
    "W3": "Ten updates of 100 MB",
    "W4": "A million registered parties",
}
TEXTS = {
    "W1": "1000 parties of 20 to 100 examples, softmax regression from 784 features to 10 classes, 100 parties a"
    " round, batches of 20, one epoch, learning rate 0.1, 20 rounds.",
    "W2": "200 parties of about 60 images, the network of McMahan et al. 2017 with 1,663,370 parameters, 10"
    " parties a round, batches of 20, one epoch, learning rate 0.05, 6 rounds.",
    "W3": "Ten parties return 25 arrays of a million float32 each; the coordinator takes their weighted mean."
    " Nothing is trained.",
    "W4": "W1's rows and model; party `i` holds the rows of party `i mod 1000`, and 1000 take part in a round.",
}
PREFACE = """## Simulation, beside others

All do the same work: the same rows in the same parties, the same cohorts (Hansa draws them, the others
read them), the same weights to start from, plain SGD over each party's rows in the party's own order, the
weighted mean.
Where that is so, the L1 norm of the final parameters is the same, too. Hansa's default, shuffled rows, is a row
of its own.

Each contender is a process of its own, in an environment of its own; they run in turn, A B C A B C, several
times. *Seconds a round* is the median over the runs of the median round without the first. *Start-up* is
everything before the first round: interpreter, imports, data. *Memory* is the peak of all its processes
together. *Others* is how many cores were busy with something else; runs above 0.15 are left out of the medians,
and a row that has no others is marked †.
"""
OURS = "simulation.hansa_side"
# what, the measured row and the row it is held against, the largest ratio
RATIOS = (
    ("W1, own order, against the hand-stacked loop", "W1", f"{OURS} W1 ordered", "simulation.stacked W1 2", 0.6),
    ("W1, shuffled, against the hand-stacked loop", "W1", f"{OURS} W1", "simulation.stacked W1 2", 0.8),
    ("W1 with clip, rotation and 8 bits, against W1", "W1", f"{OURS} W1 codecs", f"{OURS} W1", 1.5),
    ("W1 with SCAFFOLD, against W1", "W1", f"{OURS} W1 scaffold", f"{OURS} W1", 1.3),
    ("W1 with Ditto, against W1", "W1", f"{OURS} W1 ditto", f"{OURS} W1", 2.2),
    ("W2, float32, against the plain loop on two threads", "W2", f"{OURS} W2", "simulation.plain W2 2", 0.72),
    ("W2, bfloat16, against the plain loop on two threads", "W2", f"{OURS} W2 bfloat16", "simulation.plain W2 2", 0.65),
    ("W3, against NumPy in float64", "W3", f"{OURS} W3", "simulation.mean float64", 1.1),
    ("W4, a million registered parties against 10,000", "W4", f"{OURS} W4", f"{OURS} W4-small", 1.1),
)
# what, the row, its column, the most, the unit
LIMITS = (
    ("W1, start-up", "W1", f"{OURS} W1", "start_s", 2.0, "s"),
    ("W3, memory", "W3", f"{OURS} W3", "memory_mb", 500.0, "MB"),
    ("W4, memory", "W4", f"{OURS} W4", "memory_mb", 1500.0, "MB"),
)


def lines(part: Mapping[str, Any]) -> list[str]:
    """The section of the page."""
    races: Mapping[str, Any] = part["works"]
    said = [PREFACE, *_reaches(races)]
    for name, race in sorted(races.items()):
        said += [f"### {name}: {TITLES[name]}\n", f"{TEXTS[name]} Measured {race['taken']}.\n"]
        said += ["| contender | seconds a round | start-up, s | memory, MB | accuracy | L1 norm | others | runs |"]
        said += ["|---|---|---|---|---|---|---|---|", *map(_row, race["rows"]), ""]
        if race["left_out"]:
            gone = [f"{contender} ({reason})" for contender, reason in race["left_out"].items()]
            said.append(f"Left out: {'; '.join(gone)}.\n")
    return said


def _row(row: Mapping[str, Any]) -> str:
    name = row["name"] + (f" {row['version']}" if "version" in row and "Hansa" not in row["name"] else "")
    if "round_s" not in row:
        return f"| {name} | failed | | | | | | |"
    accuracy = "" if row["accuracy"] is None else f"{row['accuracy']:.3f}"
    mark = " †" if row["disturbed"] else ""
    return (
        f"| {name} | {row['round_s']:.3g}{mark} | {row['start_s']:.1f} | {row['memory_mb']:.0f} | {accuracy} "
        f"| {row['norm']:.5g} | {row['other_cores']:.2f} | {row['clean']} of {row['runs']} |"
    )


def _reaches(races: Mapping[str, Any]) -> list[str]:
    """What was to be reached, and whether it was; of rows that are there."""
    rows = {(name, row["key"]): row for name, race in races.items() for row in race["rows"] if "round_s" in row}
    said = ["| figure | measured | reach | reached |", "|---|---|---|---|"]
    for what, work, mine, other, most in RATIOS:
        a, b = rows.get((work, mine)), rows.get((work, other))
        if a and b:
            ratio = a["round_s"] / b["round_s"]
            disturbed = a["disturbed"] or b["disturbed"]
            reached = "† cannot be said" if disturbed else _yes(ratio <= most)
            said.append(f"| {what} | {ratio:.2f} x | {most} x | {reached} |")
    for what, work, mine, column, limit, unit in LIMITS:
        if row := rows.get((work, mine)):
            said.append(f"| {what} | {row[column]:.3g} {unit} | {limit:g} {unit} | {_yes(row[column] <= limit)} |")
    half, full = (rows.get(("W2", f"{OURS} {key}")) for key in ("W2 bfloat16", "W2"))
    if half and full:
        off = abs(half["accuracy"] - full["accuracy"]) * 100
        said.append(f"| W2, bfloat16, accuracy | {off:.1f} points off | 1 point | {_yes(off <= 1)} |")
    return [*said, ""]


def _yes(reached: bool) -> str:
    return "yes" if reached else "**no**"
