"""Trap weights: a coordinator that lies about the model reads rows off sums, unless there is noise in them.

After Boenisch et al. 2023 (arXiv 2112.02918) and Fowl et al. 2022 (arXiv 2110.13057). Logistic regression with
weights ``steep * measure`` and intercept ``-steep * cut`` is a step: its gradient is that of the rows beyond the
cut. Two cuts differ by the rows between them, and where that is one row, it is read like that of a single party.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa import audit
from hansa.aggregation.stage import Context
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Values
from hansa.party import Crowd

WIDTH, STEEP = 16, 1e6
SUM = agg.clip(100.0) >> agg.grid(bits=22) >> agg.secure_sum()
NOISED = agg.clip(4.0) >> agg.grid(bits=14) >> agg.skellam(noise_multiplier=1.0) >> agg.secure_sum()


def stolen(chain: hs.Aggregation, cuts: int = 150) -> tuple[np.ndarray, np.ndarray]:
    """The rows of five parties, and those that the coordinator reads off the sums of many rounds."""
    random = np.random.default_rng(5)
    x, y = random.random((50, WIDTH)), random.integers(0, 2, 50)
    tables = {f"p{i}": hs.Table({"x": x[i::5], "y": y[i::5].astype(float)}) for i in range(5)}
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.FedSGD(weights="equal"),
        aggregation=chain,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0.0),
    )
    course = federation.course(federation.resolve({n: t.schema() for n, t in tables.items()}))
    exchange, begun = LocalExchange(course, Crowd(tables, course)), course.begin()
    honest = course.ask(begun)
    assert honest is not None
    measure, sums = np.ones(WIDTH), []
    for version, cut in enumerate(np.linspace(x.sum(axis=1).min() - 0.1, x.sum(axis=1).max(), cuts)):
        trap = Values({**honest.send, "parameters": STEEP * np.append(measure, -cut)})
        ask = replace(honest, send=trap, version=version, parties=tuple(tables))
        [arrival] = exchange.exchange([ask])
        assert not arrival.excluded  # the party sees nothing wrong
        signals = course.signals(ask)
        at = Context(0, 1, version, (), signals[0], signals[0])
        total, _ = course.aggregation.decode(arrival.total, Values(), signals, at)
        sums.append(total.values["update"])
    between = np.diff(sums, axis=0)
    between = between[np.abs(between[:, -1]) > 0.5 / 50]  # a row weighs 1/10 of its party, a fifth of all
    return x, between[:, :-1] / between[:, -1:]


def read(rows: np.ndarray, found: np.ndarray, least: float) -> float:
    """The share of rows that are found in that quality."""
    best = [max((audit.psnr(one, row) for one in found), default=-np.inf) for row in rows]
    return float(np.mean(np.asarray(best) > least))


def test_a_sum_without_noise_gives_most_rows_away() -> None:
    rows, found = stolen(SUM)
    assert read(rows, found, 60.0) > 0.5


@pytest.mark.parametrize("chain", [NOISED, agg.clip(4.0) >> agg.local_gaussian(noise_multiplier=1.0)])
def test_a_sum_with_noise_gives_none_away(chain: hs.Aggregation) -> None:
    rows, found = stolen(chain)
    assert read(rows, found, 20.0) == 0.0
