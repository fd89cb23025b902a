"""The record of what left, large models in chunks, and links that break again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.run import Run
from hansa.wire import chunks
from hansa.wire import messages as m
from hansa.wire.rpcs import EVENTS

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""
Relays = Callable[..., Any]

WIDTH, CLASSES = 1000, 25


def wide() -> Tables:
    """Few rows with many columns: an update of 200 kB."""
    random = np.random.default_rng(1)
    tables = {}
    for name in ("bremen", "lübeck"):
        x = random.normal(size=(40, WIDTH))
        columns: dict[str, Any] = {f"x{i}": x[:, i] for i in range(WIDTH)}
        tables[name] = hs.Table.of({**columns, "c": random.integers(0, CLASSES, 40).astype(float)})
    return tables


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


async def test_the_record_agrees_with_a_relay_that_counts_bytes(town: Town, study: Study, relay: Relays) -> None:
    tables = wide()
    federation = study(
        task=hs.SoftmaxRegression(target="c", classes=tuple(range(CLASSES))),
        rounds=8,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=4),
    )
    for name, table in tables.items():
        await town.join(name, table)
    left = town.folder / "bremen" / "left.jsonl"
    joined = sum(line["bytes"] for line in lines(left))
    async with relay(town.port) as counting:
        home = replace(town.home("bremen"), address=f"127.0.0.1:{counting.port}")
        town.begin("bremen", home=home)
        town.begin("lübeck")
        await town.present(*tables)
        run = await town.run(federation)
        await town.end("bremen")
        await asyncio.sleep(0.05)
    recorded = sum(line["bytes"] for line in lines(left)) - joined
    assert counting.counted > 8 * 200_000
    assert recorded == pytest.approx(counting.counted, rel=0.05)
    uploads = [line for line in lines(left) if line["call"] == "Upload"]
    assert len(uploads) == 8 * 2 + 2  # an update is larger than what goes with its head
    for line in uploads:
        assert line["run"] == run.id
        assert isinstance(line["round"], int)
        assert len(line["hash"]) == 64
    shapes = [line["fields"] for line in uploads if "update" in line.get("fields", ())]
    assert shapes == [{"update": [(WIDTH + 1) * CLASSES]}] * 8
    assert [line["offset"] for line in uploads if "fields" not in line] == [0] * 8
    [hello] = [line for line in lines(left) if line["call"] == "Attend"]
    assert hello["offers"] == [
        {
            "dataset": "tumours",
            "rows": 1 << (tables["bremen"].rows.bit_length() - 1),
            "columns": len(tables["bremen"].names),
            "allow": [
                "linear-regression",
                "logistic-regression",
                "softmax-regression",
                "poisson-regression",
                "cox-regression",
            ],
        }
    ]
    assert "fields" not in hello
    assert "run" not in hello


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Everything but the smallest bodies travels in chunks."""
    monkeypatch.setattr(chunks, "CHUNK", 64)
    monkeypatch.setattr(chunks, "INLINE", 64)
    return 64


async def test_models_larger_than_a_chunk_end_with_the_same_bits(
    town: Town, harvests: Tables, study: Study, small_chunks: int
) -> None:
    await town.settle(harvests)
    federation = study(rounds=2)
    ended = await town.run(federation)
    assert ended.parameters.tobytes() == federation.run(hs.Local(harvests)).parameters.tobytes()
    left = lines(town.folder / "bremen" / "left.jsonl")
    assert sum(line["call"] == "Fetch" for line in left) >= 2
    heads = [line for line in left if "update" in line.get("fields", ())]
    assert len(heads) == 2
    for head in heads:
        pieces = [line for line in left if "offset" in line and line["version"] == head["version"]]
        assert len(pieces) > 1  # a head says what it is, and each chunk how far it is
        assert [line["offset"] for line in pieces] == [64 * i for i in range(len(pieces))]
        assert {line["round"] for line in pieces} == {head["round"]}


async def test_a_link_that_breaks_again_and_again_ends_with_the_same_bits(
    town: Town, harvests: Tables, study: Study, relay: Relays, small_chunks: int
) -> None:
    for name, table in harvests.items():
        await town.join(name, table)
    async with relay(town.port, cut=6000) as cutting:
        home = replace(town.home("bremen"), address=f"127.0.0.1:{cutting.port}")
        town.begin("bremen", home=home)
        town.begin("lübeck")
        town.begin("上海")
        await town.present(*harvests)
        federation = study(rounds=4, evaluation=hs.Evaluate(every=4))
        ended = await town.run(federation)
        await town.end("bremen")
    assert cutting.connections > 1
    assert ended.parameters.tobytes() == federation.run(hs.Local(harvests)).parameters.tobytes()
    assert not [event for event in ended.events if event.kind == "refused"]


# --- what an operator follows


async def test_events_are_followed_as_they_happen_and_from_where_one_left_off(
    town: Town, harvests: Tables, study: Study
) -> None:
    await town.settle(harvests)
    run = await town.submit(study())
    seen: list[int] = []
    async with town.operator() as client:
        async for message in client.stream(EVENTS, m.EventsRequest(run=run)):
            seen += [line.seq for line in message.lines]
        assert seen == list(range(1, len(seen) + 1))
        rest: list[int] = []
        async for message in client.stream(EVENTS, m.EventsRequest(run=run, after=seen[-3])):
            rest += [line.seq for line in message.lines]
    assert rest == seen[-2:]


async def test_a_run_that_ended_can_be_watched_and_is_kept_where_it_is_wanted(
    town: Town, harvests: Tables, study: Study, tmp_path: Path
) -> None:
    await town.settle(harvests)
    first = await town.run(study())
    told: list[str] = []
    remote = hs.Remote(
        town.folder / "coordinator", folder=tmp_path / "runs", follow=lambda event: told.append(event.kind)
    )
    again = await asyncio.to_thread(remote.watch, first.id)
    assert told == [event.kind for event in first.events]
    kept = Run.load(tmp_path / "runs" / first.id)
    assert kept.parameters.tobytes() == again.parameters.tobytes() == first.parameters.tobytes()
    assert kept.metrics() == first.metrics()


async def test_several_runs_at_once_do_not_disturb_each_other(town: Town, harvests: Tables, study: Study) -> None:
    await town.settle(harvests)
    federations = [study(seed=seed, rounds=2) for seed in range(3)]
    runs = await asyncio.gather(*(town.run(federation) for federation in federations))
    for federation, run in zip(federations, runs, strict=True):
        simulated = federation.run(hs.Local(harvests))
        assert run.parameters.tobytes() == simulated.parameters.tobytes()
