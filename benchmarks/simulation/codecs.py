"""Accuracy against bytes for each codec: ``python -m benchmarks.simulation.codecs FOLDER`` of MNIST's files.

Draws ``docs/assets/accuracy-bytes.svg`` and prints the table of ``docs/aggregation.md``. A softmax
regression, 100 parties of 600 rows each, 20 of them a round, one epoch with batches of 20, 200 rounds.
"""

from __future__ import annotations

import gzip
import math
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

import hansa as hs
from hansa.aggregation import Aggregation, low_rank, qsgd, quantize, random_mask, rotate, subsample, top_k
from hansa.data.population import Population

Point: TypeAlias = tuple[float, float, float]  # bytes of the parties, bytes both ways, accuracy

ROUNDS, PARTIES, COHORT, TARGET = 200, 100, 20, 0.9
PAGE = Path(__file__).parents[2] / "docs" / "assets" / "accuracy-bytes.svg"
# what one writes, the chain, the server's learning rate
CODECS: list[tuple[str, Any, float]] = [
    ("nothing", Aggregation(), 1.0),
    ("quantize(bits=8)", quantize(bits=8), 1.0),
    ("quantize(bits=4)", quantize(bits=4), 1.0),
    ("qsgd(bits=4)", qsgd(bits=4), 1.0),
    ("top_k(fraction=0.01)", top_k(fraction=0.01), 1.0),
    ("random_mask(fraction=0.1)", random_mask(fraction=0.1), 10.0),
    (
        "rotate() >> subsample(fraction=0.1) >> quantize(bits=4)",
        rotate() >> subsample(fraction=0.1) >> quantize(bits=4),
        1.0,
    ),
    ("low_rank(rank=8)", low_rank(rank=8), 11.0),
]
COLOURS = ("#222222", "#1f77b4", "#17becf", "#2ca02c", "#d62728", "#9467bd", "#ff7f0e", "#8c564b")


def images(folder: Path, part: str) -> dict[str, np.ndarray[Any, Any]]:
    """Pixels from 0 to 1, float32 ``[n, 784]``, and digits ``[n]``."""
    pixels, labels = (
        np.frombuffer(gzip.decompress((folder / f"{part}-{name}-ubyte.gz").read_bytes()), np.uint8)
        for name in ("images-idx3", "labels-idx1")
    )
    x = pixels[16:].reshape(-1, 784).astype(np.float32) / 255
    return {"x": x, "y": labels[8:].astype(np.int64)}


def measure(folder: Path, chain: Any, rate: float) -> list[Point]:
    """What was sent so far, and the accuracy, after every round."""
    train = images(folder, "train")
    rows = hs.partition.iid_rows(len(train["y"]), PARTIES, 0)
    federation = hs.Federation(
        task=hs.SoftmaxRegression(target="y", features=("x",), classes=tuple(range(10)), precision="float32"),
        method=hs.FedAvg(local=hs.SGD(lr=0.1, epochs=1, batch_size=20), server=hs.SGD(lr=rate)),
        rounds=ROUNDS,
        aggregation=chain if isinstance(chain, Aggregation) else Aggregation(stages=(chain,)),
        cohort=hs.Fixed(size=COHORT),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(central=True),
    )
    run = federation.run(hs.Local(Population.of_rows(train, rows), test=images(folder, "t10k")))
    points, up, both = [], 0.0, 0.0
    for event in run.events:
        if event.kind == "arrived" and event.body["work"] == "train":
            up += event.body["bytes_in"]
            both += event.body["bytes_in"] + event.body["bytes_out"]
        elif event.kind == "metrics":
            points.append((up, both, event.body["accuracy"]))
    return points


def spent(points: Sequence[Point], axis: int) -> float:
    """Bytes until the target was first reached; infinite if it never was."""
    return next((point[axis] for point in points if point[2] >= TARGET), math.inf)


def table(measured: Sequence[tuple[str, list[Point]]]) -> str:
    """The rows of the table."""
    lines = [
        "| you write | bytes an update | accuracy at the end | MB to 0.9, from parties | MB to 0.9, both ways |",
        "|---|---|---|---|---|",
    ]
    for name, points in measured:
        update = points[-1][0] / ROUNDS / COHORT
        to = [f"{b / 1e6:.2f}" if (b := spent(points, axis)) < math.inf else "-" for axis in (0, 1)]
        last = np.mean([accuracy for _, _, accuracy in points[-10:]])
        code = "nothing" if name == "nothing" else f"`{name}`"
        lines.append(f"| {code} | {update:,.0f} | {last:.3f} | {to[0]} | {to[1]} |")
    return "\n".join(lines)


def drawing(measured: Sequence[tuple[str, list[Point]]]) -> str:
    """Two panels, each with a line for every codec, and the names beneath."""
    low, high, width, height, left, top = 0.70, 0.93, 350, 260, 55, 34
    shapes = []
    for panel, title in enumerate(("sent by the parties", "sent both ways")):
        x0 = left + panel * (width + 45)
        ends = [p[panel] for _, points in measured for p in (points[0], points[-1])]
        first, last = math.floor(math.log10(min(ends))), math.log10(max(ends)) + 0.05

        def across(value: float, x0: int = x0, first: int = first, last: float = last) -> float:
            return x0 + (math.log10(value) - first) / (last - first) * width

        shapes.append(f'<text x="{x0}" y="20" class="title">Accuracy against megabytes {title}</text>')
        for power in range(first, math.floor(last) + 1):
            x = across(10.0**power)
            shapes.append(f'<path d="M{x:.1f} {top}v{height}" class="grid"/>')
            label = f"{10.0 ** (power - 6):g}"
            shapes.append(f'<text x="{x:.1f}" y="{top + height + 16}" class="tick">{label}</text>')
        for tick in np.arange(low, high, 0.05):
            y = _up(float(tick), low, high, height, top)
            shapes.append(f'<path d="M{x0} {y:.1f}h{width}" class="grid"/>')
            shapes.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" class="side">{tick:.2f}</text>')
        for colour, (_, points) in zip(COLOURS, measured, strict=True):
            few = [*points[:20], *points[20::6], points[-1]]  # on this scale the others lie on the line
            seen = [p for p in few if p[2] >= low]
            path = " ".join(f"{across(p[panel]):.1f},{_up(p[2], low, high, height, top):.1f}" for p in seen)
            shapes.append(f'<polyline points="{path}" stroke="{colour}"/>')
    for i, (colour, (name, _)) in enumerate(zip(COLOURS, measured, strict=True)):
        x, y = left + (i % 2) * (width + 45), top + height + 44 + i // 2 * 19
        short = re.sub(r"\w+=", "", name).replace(">", "&gt;")
        shapes.append(f'<path d="M{x} {y - 4}h22" stroke="{colour}" stroke-width="3"/>')
        shapes.append(f'<text x="{x + 29}" y="{y}">{short}</text>')
    wide, tall = left + 2 * width + 65, top + height + 118
    style = (
        "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.tick{text-anchor:middle}"
        ".side{text-anchor:end}.grid{stroke:#ddd}polyline{fill:none;stroke-width:1.6}"
    )
    box = f'viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box} role="img">',
            "<title>Accuracy on MNIST against bytes, for each codec</title>",
            f"<style>{style}</style>",
            f'<rect width="{wide}" height="{tall}" fill="#fff"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def _up(value: float, low: float, high: float, height: int, top: int) -> float:
    return top + (high - value) / (high - low) * height


def main(folder: Path, say: Callable[[str], object] = print) -> None:
    """Measure, draw, and print."""
    measured = [(name, measure(folder, chain, rate)) for name, chain, rate in CODECS]
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(drawing(measured), "utf-8")
    say(table(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
