"""One way to run a small federation on every row, nothing scaled and nothing held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

import hansa as hs

Federate = Callable[..., hs.Run]


@pytest.fixture
def federate() -> Federate:
    def run(task: hs.Task, method: hs.methods.Method, parties: Mapping[str, hs.Table], rounds: int = 1) -> hs.Run:
        federation = hs.Federation(
            task=task,
            method=method,
            rounds=rounds,
            preprocessing=hs.Moments(standardise=False),
            evaluation=hs.Evaluate(holdout=0),
            cohort=hs.All(minimum=1),
        )
        return federation.run(hs.Local(parties))

    return run
