"""A million draws of integer noise on one core: processor time of the draws, tables made beforehand."""

from __future__ import annotations

import time

from hansa.privacy import noise

DRAWS = 1_000_000
TABLES = {
    "discrete_gaussian_10": lambda: noise.discrete_gaussian(10.0),
    "discrete_gaussian_600": lambda: noise.discrete_gaussian(600.0),
    "discrete_gaussian_2^30": lambda: noise.discrete_gaussian(2.0**30),
    "discrete_laplace_10": lambda: noise.discrete_laplace(10.0),
    "skellam_100": lambda: noise.skellam(100.0),
}


def measure(repeats: int = 7) -> dict[str, float]:
    """The least of some repeats, in microseconds for one draw, by distribution."""
    found = {}
    for name, make in TABLES.items():
        table, stream = make(), noise.Stream(bytes(32))
        table.draw(stream, DRAWS // 10)
        taken = []
        for _ in range(repeats):
            began = time.process_time()
            table.draw(stream, DRAWS)
            taken.append(time.process_time() - began)
        found[f"{name}_us"] = min(taken) / DRAWS * 1e6
    return found
