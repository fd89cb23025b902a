"""What is deployed is what was simulated, to the last bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa import files, methods
from hansa.aggregation import clip
from hansa.coordinator import engine, store
from hansa.wire import chunks

pytestmark = pytest.mark.untraced

TASKS = {
    "linear": hs.LinearRegression(target="y", features=("a", "b"), l2=0.01),
    "logistic": hs.LogisticRegression(target="y", features=("a", "b")),
    "softmax": hs.SoftmaxRegression(target="c", classes=(0, 1, 2), features=("a", "b")),
}
METHODS = {
    "fedavg": hs.FedAvg(local=hs.SGD(lr=0.1, batch_size=8), server=hs.SGD(lr=0.9, momentum=0.5)),
    "fedsgd": hs.FedSGD(server=hs.SGD(lr=0.3), weights="equal"),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_deployed_run_ends_with_the_bits_of_the_simulated_one(
    task: str,
    deployed: Callable[[Mapping[str, hs.Table]], Any],
    harvests: dict[str, hs.Table],
    study: Callable[..., hs.Federation],
) -> None:
    backend = deployed(harvests)
    for method in METHODS.values():
        federation = study(task=TASKS[task], method=method, aggregation=clip(1.0), cohort=hs.Fixed(size=2), seed=7)
        there, here = backend.run(federation), federation.run(hs.Local(harvests))
        assert there.parameters.tobytes() == here.parameters.tobytes()
        assert there.metrics() == here.metrics()
        assert there.progress is not None
        assert here.progress is not None
        assert there.progress.pack() == here.progress.pack()
        asked = [[e.body["parties"] for e in r.events if e.kind == "asked"] for r in (there, here)]
        assert asked[0] == asked[1]


LOCAL = hs.SGD(lr=0.1, batch_size=8)
WITH_MEMORY = {
    "adam": hs.FedAvg(local=hs.Adam(lr=0.1, moments="keep"), server=hs.Yogi(lr=0.1)),
    "scaffold": methods.Scaffold(local=LOCAL),
    "fednova": methods.FedNova(local=LOCAL),
    "ditto": methods.Ditto(local=LOCAL),
    "fedper": methods.FedPer(local=LOCAL, head=("intercept",)),
    "fedrep": methods.FedRep(local=LOCAL, head=("intercept",)),
    "ifca": methods.IFCA(local=LOCAL),
}


@pytest.mark.parametrize("method", WITH_MEMORY)
def test_what_parties_remember_between_rounds_is_the_same_where_it_is_kept_by_themselves(
    method: str,
    deployed: Callable[[Mapping[str, hs.Table]], Any],
    harvests: dict[str, hs.Table],
    study: Callable[..., hs.Federation],
) -> None:
    federation = study(method=WITH_MEMORY[method], cohort=hs.Fixed(size=2), evaluation=hs.Evaluate(own=True), rounds=4)
    there, here = deployed(harvests).run(federation), federation.run(hs.Local(harvests))
    assert there.progress is not None
    assert here.progress is not None
    assert there.progress.pack() == here.progress.pack()
    assert there.metrics() == here.metrics()


@pytest.mark.parametrize("method", ["adam", "scaffold"])
def test_models_and_sums_that_a_coordinator_holds_in_files_have_the_same_bits(
    method: str,
    deployed: Callable[[Mapping[str, hs.Table]], Any],
    harvests: dict[str, hs.Table],
    study: Callable[..., hs.Federation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = list[int]()

    laid = files.Spares.laid

    def spy(*given: Any) -> memoryview:
        body = laid(*given)
        sizes.append(len(body))
        return body

    monkeypatch.setattr(files.Spares, "laid", spy)
    took, take = list[str](), files.Spares.take

    def taken(spares: files.Spares, size: int, path: Path) -> bool:
        took.extend([path.suffix] if (there := take(spares, size, path)) else [])
        return there

    monkeypatch.setattr(files.Spares, "take", taken)
    for large in (store, engine, chunks):
        monkeypatch.setattr(large, "INLINE", 64)
    federation = study(method=WITH_MEMORY[method], evaluation=hs.Evaluate(every=0), rounds=4)
    there, here = deployed(harvests).run(federation), federation.run(hs.Local(harvests))
    assert there.progress is not None
    assert here.progress is not None
    assert there.progress.pack() == here.progress.pack()
    assert len(sizes) >= 6, "an ask and a sum of each round"
    assert took.count(".part") >= 3, "answers of a round are written over those of the one before"
    assert set(took) > {".part"}, "the model is written over the one before the last"


async def test_a_federation_runs_inside_a_running_event_loop(
    deployed: Callable[[Mapping[str, hs.Table]], Any],
    harvests: dict[str, hs.Table],
    study: Callable[..., hs.Federation],
) -> None:
    assert asyncio.get_running_loop().is_running()
    assert study(rounds=1).run(deployed(harvests)).status == "finished"
