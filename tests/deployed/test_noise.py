"""Between machines, noise comes from keys that never leave, and not from the seed that everybody knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.errors import PrivacyError
from hansa.federation import deployed as course_of
from hansa.methods.base import Setup

Deployed = Callable[[Mapping[str, hs.Table]], Any]
EQUAL = hs.FedAvg(local=hs.SGD(lr=0.1, batch_size=8), weights="equal")
PRIVATE = hs.FedAvg(
    local=hs.DPSGD(lr=0.1, clip=1.0, noise_multiplier=1.0, rate=0.5, steps=2, batch_size=8), weights="equal"
)
BOUNDED = hs.Contract(columns={n: hs.ColumnRule(type="number", low=-100, high=100) for n in ("a", "b", "c")})
NOISY: dict[str, dict[str, Any]] = {
    "central": {"aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0)},
    "local": {"aggregation": agg.clip(1.0) >> agg.local_laplace(noise_multiplier=0.1)},
    "shares": {"aggregation": agg.clip(1.0) >> agg.grid(bits=8) >> agg.skellam(noise_multiplier=1.0)},
    "examples": {
        "method": PRIVATE,
        "privacy": hs.Privacy(unit="example"),
        "contract": BOUNDED,
        "statistics": agg.local_gaussian(noise_multiplier=1.0),
        "evaluation": hs.Evaluate(holdout=0.5),
    },
}


@pytest.mark.parametrize("name", NOISY)
def test_noise_is_nobody_elses_and_no_two_runs_share_it(
    name: str, deployed: Deployed, harvests: dict[str, hs.Table], study: Callable[..., hs.Federation]
) -> None:
    keys = {"method": EQUAL, "rounds": 2, "task": hs.LogisticRegression(target="y")}
    federation = study(**{**keys, "cohort": hs.All(minimum=3), **NOISY[name]})
    backend = deployed(harvests)
    runs = [backend.run(federation), backend.run(federation), federation.run(hs.Local(harvests))]
    models = [run.parameters for run in runs]
    assert all(np.isfinite(model).all() for model in models)
    assert not any(np.isclose(models[i], models[j]).all() for i, j in ((0, 1), (0, 2), (1, 2)))


def test_noise_without_a_key_is_refused(study: Callable[..., hs.Federation]) -> None:
    setup = Setup(("a", "b", "c"), ("x",))
    noisy = study(method=EQUAL, aggregation=NOISY["central"]["aggregation"])
    for federation in (noisy, study(method=PRIVATE, privacy=hs.Privacy(unit="example"))):
        with pytest.raises(PrivacyError, match="no key for the noise"):
            course_of(federation, setup, b"", "run")
    assert course_of(study(method=EQUAL), setup, b"", "run").secret == b""
    secrets = {course_of(noisy, setup, bytes(32), run).secret for run in ("one", "two")}
    assert len(secrets) == 2
