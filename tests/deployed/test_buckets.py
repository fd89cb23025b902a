"""Sums over buckets of parties between real processes' roles, and what is robust to them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.agent.offers import Offers
from hansa.coordinator import engine as coordinator_engine
from hansa.crypto.agreement import Identity, words
from hansa.crypto.vault import kept_key
from hansa.errors import PipelineError, RunError
from hansa.secure.terms import Phase

pytestmark = pytest.mark.untraced

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""

LONG = os.environ.get("HANSA_LONG") == "1"
NAMES = [f"party-{i:02d}" for i in range(1, 11)]
CHAIN = agg.clip(1.0) >> agg.grid(bits=12)


@pytest.fixture(scope="session")
def ten() -> Tables:
    """Ten parties with two numbers and a binary target."""
    random = np.random.default_rng(12)
    tables = {}
    for name in NAMES:
        x = random.normal(0, 2.0, (32, 2)).clip(-9, 9)
        tables[name] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": (x.sum(axis=1) > 0).astype(float)})
    return tables


@pytest.fixture
def nine(ten: Tables) -> Tables:
    """One fewer: three buckets of three."""
    return dict(list(ten.items())[:9])


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rounding and noise come from the seed, as in simulation, so that the bits can be compared."""
    course = hs.Federation.course
    monkeypatch.setattr(hs.Federation, "course", lambda self, setup, secret=b"": course(self, setup))


@pytest.fixture
def dealt(study: Study, seeded: None) -> Study:
    """One round of the geometric median of buckets of three, of which one may be lost."""

    def make(**more: Any) -> hs.Federation:
        bucket, robust = more.pop("bucket", agg.bucket(size=3, minimum=2)), more.pop("robust", agg.geometric_median())
        return study(
            **{
                "method": hs.FedAvg(local=hs.SGD(lr=0.2, batch_size=8), weights="equal"),
                "aggregation": CHAIN >> bucket >> agg.secure_sum() >> robust,
                "rounds": 1,
                "cohort": hs.All(minimum=6),
                "preprocessing": hs.Moments(standardise=False),
                "evaluation": hs.Evaluate(every=0),
                **more,
            }
        )

    return make


async def settle(town: Town, tables: Mapping[str, hs.Table], honest: int = 1) -> None:
    """Let parties join that have confirmed each other over the telephone, and start."""
    for name, table in tables.items():
        await town.join(name, table)
    said = {name: words(Identity(kept_key(town.folder / name / "identity.key")).public) for name in tables}
    for name in tables:
        with contextlib.closing(Offers(town.folder / name)) as offers:
            offers.ask_for(honest)
            for other in said:
                if other != name:
                    offers.confirm(other, said[other])
        town.begin(name)
    await town.present(*tables)


def kinds(run: Any, kind: str) -> list[dict[str, Any]]:
    return [event.body for event in run.events if event.kind == kind]


async def test_the_bits_are_those_of_the_simulation_of_the_same_buckets(town: Town, nine: Tables, dealt: Study) -> None:
    federation = dealt(rounds=2, evaluation=hs.Evaluate(every=2))
    await settle(town, nine)
    there = await town.run(federation)
    trained = [body for body in kinds(there, "arrived") if body["work"] == "train"]
    assert len(trained) == 2
    for body in trained:
        assert sorted(name for names in body["buckets"] for name in names) == NAMES[:9]
        assert [len(names) for names in body["buckets"]] == [3, 3, 3]
    assert trained[0]["buckets"] != trained[1]["buckets"]  # they are dealt anew
    for masks in (False, True):
        here = federation.run(hs.Local(nine, replay=there, masks=masks))
        assert here.parameters.tobytes() == there.parameters.tobytes()
        assert here.metrics() == there.metrics()
    assert not kinds(there, "refused")


def silent(town: Town, name: str, phase: Phase) -> None:
    """Let a party fall silent where it would answer in a phase."""
    agent, gone = town.agents[name], [False]
    say, send = agent._say_step, agent._send

    async def quiet(step: Any) -> None:
        gone[0] |= step.phase == phase
        if not gone[0]:
            await say(step)

    async def kept(held: Any) -> None:
        gone[0] |= phase == Phase.MASK
        if not gone[0]:
            await send(held)

    agent._say_step, agent._send = quiet, kept


@pytest.mark.parametrize("phase", [Phase.MASK, *LONG * [Phase.SURVIVORS]])
async def test_a_bucket_goes_on_without_a_party_that_is_lost_in_the_middle(
    phase: Phase, town: Town, nine: Tables, dealt: Study
) -> None:
    federation = dealt(cohort=hs.All(minimum=6, deadline=2.5))
    await settle(town, nine)
    silent(town, NAMES[3], phase)
    ended = await town.run(federation)
    [arrived] = kinds(ended, "arrived")
    inside = phase == Phase.SURVIVORS  # its vector was there
    assert sorted(map(len, arrived["buckets"])) == [3 if inside else 2, 3, 3]
    assert inside or arrived["excluded"] == {NAMES[3]: "no answer within 2.5 s"}
    again = federation.run(hs.Local(nine, replay=ended))
    assert ended.parameters.tobytes() == again.parameters.tobytes()


async def test_a_bucket_that_comes_to_nothing_is_left_out_with_its_parties_and_the_round_goes_on(
    town: Town, nine: Tables, dealt: Study
) -> None:
    federation = dealt(
        bucket=agg.bucket(size=2), robust=agg.median(), cohort=hs.All(minimum=6, deadline=2.5)
    )  # four buckets, of which nobody may be lost
    await settle(town, nine)
    silent(town, NAMES[0], Phase.MASK)
    ended = await town.run(federation)
    [arrived] = kinds(ended, "arrived")
    reasons = arrived["excluded"]
    assert len(arrived["buckets"]) == 3
    assert reasons.pop(NAMES[0]) == "no answer within 2.5 s"
    assert set(reasons.values()) == {"too few of its bucket were left for a sum"}
    assert 1 <= len(reasons) <= 2  # of nine in four buckets one has three
    assert len(arrived["counted"]) == 8 - len(reasons)
    again = federation.run(hs.Local(nine, replay=ended, masks=True))
    assert ended.parameters.tobytes() == again.parameters.tobytes()


async def test_too_few_buckets_before_any_vector_is_given_begin_anew_with_others(
    town: Town, ten: Tables, dealt: Study
) -> None:
    federation = dealt(bucket=agg.bucket(size=3), cohort=hs.All(minimum=9, deadline=2.5))
    await settle(town, ten)
    silent(town, NAMES[5], Phase.SHARE)
    ended = await town.run(federation)
    [attempt] = kinds(ended, "attempt")
    assert attempt["without"] == {NAMES[5]: "no answer within 2.5 s"}
    [arrived] = kinds(ended, "arrived")
    assert [len(names) for names in arrived["buckets"]] == [3, 3, 3]
    for name in arrived["counted"]:
        assert len(town.agents[name]._store.rows("charge")) == 1


@pytest.mark.parametrize("number", [2, 5, *LONG * [1, 3, 4, 6]])
async def test_a_coordinator_killed_in_any_phase_goes_on_with_the_same_buckets(
    number: int, town: Town, nine: Tables, dealt: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_engine, "INLINE", -1)  # nothing is at hand: the sum is a transaction of its own
    await settle(town, nine)
    federation, driver = dealt(), town.running.driver
    reached, left, carry_out = asyncio.Event(), [number], driver._carry_out
    before = list[Any]()

    async def cut(effects: Any, done: Any) -> None:
        left[0] -= any(blob.name == "desk" for blob in effects.blobs)
        if left[0]:
            await carry_out(effects, done)
            return
        if number % 2:
            await driver.read(driver._commit, effects)
            before.extend(desk.terms.names for live in driver.machine.runs.values() for desk in live.desk.desks)
        reached.set()
        await asyncio.Event().wait()

    driver._carry_out = cut
    submitting = asyncio.create_task(town.submit(federation))
    await asyncio.wait_for(reached.wait(), 30)
    await town.kill()
    await asyncio.gather(submitting, return_exceptions=True)
    await town.open()
    [row] = await town.rows("run")
    ended = await town.watch(row["id"])
    [arrived] = kinds(ended, "arrived")
    assert len(arrived["counted"]) == 9
    assert not before or [tuple(names) for names in arrived["buckets"]] == before
    assert ended.parameters.tobytes() == federation.run(hs.Local(nine, replay=ended)).parameters.tobytes()
    assert not kinds(ended, "attempt")


async def test_an_owner_asks_for_company_in_a_bucket(town: Town, nine: Tables, dealt: Study) -> None:
    await settle(town, nine, honest=3)
    with pytest.raises(RunError, match="3 honest parties beside it in a secure sum, and the study is sure of 1"):
        await town.run(dealt())


async def test_a_study_with_too_few_parties_for_its_buckets_fails_before_anything_is_given(
    town: Town, nine: Tables, dealt: Study
) -> None:
    await settle(town, nine)
    with pytest.raises(PipelineError, match="geometric-median needs 3 buckets, and there are parties for 2 of 4"):
        await town.run(dealt(bucket=agg.bucket(size=4)))
    assert not any(agent._store.rows("seat") for agent in town.agents.values())
