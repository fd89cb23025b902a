"""A million draws of integer noise on one core: processor time of the draws, tables made beforehand.

OpenDP, which the developers' extra installs, draws beside it by its exact rejection samplers, onto a vector of
zeros.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from hansa.privacy import noise

DRAWS = 1_000_000
REACH = 0.1
"""Microseconds a draw of the discrete Gaussian."""
TABLES: dict[str, tuple[Callable[[], noise.Table], str, float]] = {
    "discrete Gaussian, sigma 10": (lambda: noise.discrete_gaussian(10.0), "gaussian", 10.0),
    "discrete Gaussian, sigma 600": (lambda: noise.discrete_gaussian(600.0), "gaussian", 600.0),
    "discrete Gaussian, sigma 2^30": (lambda: noise.discrete_gaussian(2.0**30), "gaussian", 2.0**30),
    "discrete Laplace, scale 10": (lambda: noise.discrete_laplace(10.0), "laplace", 10.0),
    "Skellam, variance 100": (lambda: noise.skellam(100.0), "", 0.0),
}


def seconds(work: Callable[[], object]) -> float:
    """Processor time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(repeats: int = 7) -> dict[str, object]:
    """The least of some repeats, in microseconds for one draw, by distribution; of OpenDP one of ten as many."""
    rows = {}
    for name, (make, kind, scale) in TABLES.items():
        table, stream = make(), noise.Stream(bytes(32))
        peer, few = _peer(kind, scale), [0] * (DRAWS // 10)
        table.draw(stream, DRAWS // 10)
        own, other = [], []
        for _ in range(repeats):
            own.append(seconds(lambda t=table, s=stream: t.draw(s, DRAWS)))
            other += [seconds(lambda p=peer, f=few: p(f))] if peer else []
        theirs = min(other) / len(few) * 1e6 if other else None
        rows[name] = {"own_us": min(own) / DRAWS * 1e6, "opendp_us": theirs}
    return {"rows": rows, "opendp": version("opendp") if any(r["opendp_us"] for r in rows.values()) else None}


def _peer(kind: str, scale: float) -> Any:
    """OpenDP's mechanism on a vector of integers; None without it."""
    try:
        import opendp.prelude as dp
    except ImportError:
        return None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=int))
    if kind == "gaussian":
        return dp.m.make_gaussian(space, dp.l2_distance(T=float), scale)
    return dp.m.make_laplace(space, dp.l1_distance(T=int), scale) if kind else None


def lines(r: dict[str, Any], taken: str) -> list[str]:
    """The section of the page."""
    rows = [
        "## Noise\n",
        "Integer noise that a claim may rest on, from AES-256 in counter mode: microseconds of one core for one",
        "of a million draws, with the table made beforehand. OpenDP draws a tenth as many, in turn with it.\n",
        taken,
        f"| distribution | Hansa | OpenDP {r['opendp'] or '(not installed)'} | reach | reached |",
        "|---|---|---|---|---|",
    ]
    for name, row in r["rows"].items():
        theirs = f"{row['opendp_us']:.2f}" if row["opendp_us"] else ""
        goal = f"{REACH} | {'yes' if row['own_us'] <= REACH else '**no**'}" if "Gaussian" in name else " | "
        rows.append(f"| {name} | {row['own_us']:.3f} | {theirs} | {goal} |")
    return [*rows, ""]
