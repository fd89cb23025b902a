"""Estimates among real parties are those of the simulation, to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.methods import IRLS, Cox

METHODS: dict[str, tuple[hs.Task, hs.methods.Method]] = {
    "linear": (hs.LinearRegression(target="y", features=("a", "b")), IRLS()),
    "logistic": (hs.LogisticRegression(target="y", features=("a", "b")), IRLS()),
    "poisson": (hs.PoissonRegression(target="c", features=("a", "b")), IRLS()),
    "efron": (hs.CoxRegression(target="t", event="y", features=("a", "b")), Cox()),
    "grid": (hs.CoxRegression(target="t", event="y", features=("a", "b")), Cox(ties="breslow", grid=4.0)),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_deployed_run_ends_with_the_estimates_of_the_simulated_one(
    name: str,
    deployed: Callable[[Mapping[str, hs.Table]], Any],
    harvests: dict[str, hs.Table],
    study: Callable[..., hs.Federation],
) -> None:
    task, method = METHODS[name]
    random = np.random.default_rng(8)
    tables = {
        party: hs.Table.of({**table.columns, "t": np.ceil(random.exponential(9, table.rows))})
        for party, table in harvests.items()
    }
    evaluation = hs.Evaluate(holdout=0.3, every=2)
    federation = study(task=task, method=method, rounds=30, evaluation=evaluation)
    there, here = deployed(tables).run(federation), federation.run(hs.Local(tables))
    assert there.reason == here.reason
    assert there.reason.startswith("the estimates stand after")
    assert there.summary() == here.summary()
    assert there.metrics() == here.metrics()
    assert there.progress is not None
    assert here.progress is not None
    assert there.progress.pack() == here.progress.pack()
