"""Sums of which nobody sees a part, between real processes' roles: the bits are those of the plain sums."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from tests.deployed.halts import Cut

import hansa as hs
from hansa import aggregation as agg
from hansa import tensors
from hansa.agent.offers import Offers
from hansa.coordinator import engine as coordinator_engine
from hansa.crypto.agreement import Identity, words
from hansa.crypto.vault import kept_key
from hansa.errors import RunError

pytestmark = pytest.mark.untraced

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""

EQUAL = hs.FedAvg(local=hs.SGD(lr=0.2, batch_size=8), weights="equal")
CHAIN = agg.clip(1.0) >> agg.grid(bits=12)
SUMMED = CHAIN >> agg.secure_sum(threshold=0.6)
FIVE = hs.All(minimum=3)


@pytest.fixture(scope="session")
def five() -> Tables:
    """Five parties with two numbers and a binary target."""
    random = np.random.default_rng(11)
    tables = {}
    for name in ("bremen", "danzig", "köln", "lübeck", "上海"):
        x = random.normal(0, 2.0, (24, 2)).clip(-9, 9)
        y = (x.sum(axis=1) > 0).astype(float)
        tables[name] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": y})
    return tables


@pytest.fixture
def four(five: Tables) -> Tables:
    """One fewer."""
    return dict(list(five.items())[:4])


@pytest.fixture
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rounding and noise come from the seed, as in simulation, so that the bits can be compared."""
    course = hs.Federation.course
    monkeypatch.setattr(hs.Federation, "course", lambda self, setup, secret=b"": course(self, setup))


@pytest.fixture
def summed(study: Study, seeded: None) -> hs.Federation:
    """Two rounds and an evaluation of the plain kind."""
    return study(
        method=EQUAL,
        aggregation=SUMMED,
        rounds=2,
        cohort=FIVE,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=2),
    )


async def settle(town: Town, tables: Mapping[str, hs.Table], honest: int = 2, but: tuple[str, ...] = ()) -> None:
    """Let parties join that have confirmed each other over the telephone, and start; ``but`` confirmed nobody."""
    for name, table in tables.items():
        await town.join(name, table)
    said = {name: words(Identity(kept_key(town.folder / name / "identity.key")).public) for name in tables}
    for name in tables:
        with contextlib.closing(Offers(town.folder / name)) as offers:
            offers.ask_for(honest)
            for other in said:
                if other != name and name not in but:
                    offers.confirm(other, said[other])
        town.begin(name)
    await town.present(*tables)


def kinds(run: Any, kind: str) -> list[dict[str, Any]]:
    return [event.body for event in run.events if event.kind == kind]


async def test_the_bits_are_those_of_the_simulation_and_of_the_plain_sum(
    town: Town, five: Tables, summed: hs.Federation
) -> None:
    await settle(town, five)
    there = await town.run(summed)
    masked, plain = (summed.run(hs.Local(five, masks=masks)) for masks in (True, False))
    assert there.parameters.tobytes() == masked.parameters.tobytes() == plain.parameters.tobytes()
    assert there.metrics() == masked.metrics()
    assert not kinds(there, "refused")
    assert not kinds(there, "attempt")
    for agent in town.agents.values():
        for seat in (row["body"] for row in agent._store.rows("seat")):
            assert b'"entropy":""' in seat
            assert b'"ended":"summed"' in seat


async def test_statistics_and_evaluations_go_into_secure_sums_too(
    town: Town, five: Tables, study: Study, seeded: None
) -> None:
    chain = agg.grid(bits=10, examples=40) >> agg.skellam(noise_multiplier=2.0) >> agg.secure_sum()
    rule = hs.ColumnRule(type="number", low=-10, high=10)
    federation = study(
        rounds=1,
        cohort=hs.All(minimum=4),
        statistics=chain,
        contract=hs.Contract(columns={"a": rule, "b": rule}),
        privacy=hs.Privacy(unit="example"),
        evaluation=hs.Evaluate(holdout=0.5),
    )
    await settle(town, five)
    seen, sums = list[str](), town.running.driver._reduce

    def watched(run: str, *given: Any) -> Any:
        live = town.running.driver.machine.runs[run]
        seen.extend([live.ask.work] if live.desk else [])
        return sums(run, *given)

    town.running.driver._reduce = watched
    ended = await town.run(federation)
    assert seen == ["moments", "evaluate"]
    here = federation.run(hs.Local(five, masks=True))
    assert ended.parameters.tobytes() == here.parameters.tobytes()
    assert ended.metrics() == here.metrics()


async def test_the_coordinator_is_given_no_vector_and_the_record_names_every_step(
    town: Town, five: Tables, summed: hs.Federation
) -> None:
    await settle(town, five)
    given: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for name, agent in town.agents.items():
        work, send = agent._desk.work, agent._send

        def worked(*what: Any, work: Any = work, name: str = name) -> Any:
            done = work(*what)
            if done.sitting is not None:
                plain.setdefault(name, done.sitting.vector)
            return done

        async def sent(held: Any, send: Any = send, name: str = name) -> None:
            if held.version == 0:
                given[name] = tensors.read(held.body)["masked"]
            await send(held)

        agent._desk.work, agent._send = worked, sent
    await town.run(summed)
    assert set(given) == set(plain) == set(five)
    assert not any((given[name] == plain[name]).any() for name in five)
    lines = (town.folder / "bremen" / "left.jsonl").read_text(encoding="utf-8")
    assert all(f'"{phase}":' in lines for phase in ("advertise", "roster", "share", "survivors", "unmask"))


def short(summed: hs.Federation, **more: Any) -> hs.Federation:
    """One exchange."""
    return summed.model_copy(update={"rounds": 1, "evaluation": hs.Evaluate(every=0), **more})


@pytest.mark.parametrize(("number", "when"), [(n, ("after", "before")[n % 2]) for n in range(1, 7)] + [(6, "before")])
async def test_a_coordinator_killed_in_any_phase_goes_on_with_the_same_attempt(
    number: int, when: str, town: Town, four: Tables, summed: hs.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_engine, "INLINE", -1)  # nothing is at hand: the sum is a transaction of its own
    await settle(town, four)
    federation = short(summed)
    cut = Cut(town, number, when, lambda effects: any(blob.name == "desk" for blob in effects.blobs))
    submitting = asyncio.create_task(town.submit(federation))
    await asyncio.wait_for(cut.reached.wait(), 20)
    await town.kill()
    await asyncio.gather(submitting, return_exceptions=True)
    await town.open()
    [row] = await town.rows("run")
    ended = await town.watch(row["id"])
    assert ended.parameters.tobytes() == federation.run(hs.Local(four)).parameters.tobytes()
    assert not kinds(ended, "attempt")
    assert not kinds(ended, "refused")


class DiskError(Exception):
    """The disk of a party's machine fails, and the machine with it."""


@pytest.mark.parametrize(
    ("number", "when"),
    [(1, "after"), (2, "before"), (3, "after"), (4, "before"), (4, "after"), (5, "before"), (6, "after")],
)
async def test_an_agent_killed_around_any_of_its_commits_goes_on_where_it_was(
    number: int, when: str, town: Town, four: Tables, summed: hs.Federation
) -> None:
    await settle(town, four)
    agent, left = town.agents["köln"], [number]
    apply = agent._store.apply

    def fails(changes: Any, **how: bool) -> None:
        changes = list(changes)
        left[0] -= any(change.table == "seat" for change in changes)
        if left[0]:
            apply(changes, **how)
            return
        if when == "after":
            apply(changes, **how)
        raise DiskError

    agent._store.apply = fails
    federation = short(summed)
    run = await town.submit(federation)
    task = town.tasks.pop("köln")
    await asyncio.wait({task}, timeout=20)
    assert isinstance(task.exception(), DiskError)
    town.begin("köln")
    ended = await town.watch(run)
    assert ended.parameters.tobytes() == federation.run(hs.Local(four)).parameters.tobytes()
    assert not kinds(ended, "attempt")
    agent = town.agents["köln"]
    assert len(agent._store.rows("charge")) == agent._ledger.answers == 1  # whatever happened between


def stopped(town: Town, name: str, phase: str) -> asyncio.Event:
    """Let a party fall silent where it would answer in a phase."""
    agent, silent = town.agents[name], asyncio.Event()
    say, send = agent._say_step, agent._send

    async def quiet(step: Any) -> None:
        from hansa.secure.terms import Phase

        if Phase(step.phase).name == phase:
            silent.set()
        if not silent.is_set():
            await say(step)

    async def kept(held: Any) -> None:
        if phase == "MASK":
            silent.set()
        if not silent.is_set():
            await send(held)

    agent._say_step, agent._send = quiet, kept
    return silent


@pytest.mark.parametrize("phase", ["ROSTER", "SHARE", "MASK", "SURVIVORS", "UNMASK"])
async def test_a_party_that_is_lost_is_made_good_for_or_left_out_of_the_next_attempt(
    phase: str, town: Town, four: Tables, summed: hs.Federation
) -> None:
    federation = short(summed, cohort=hs.All(minimum=3, deadline=2.5))
    await settle(town, four)
    silent = stopped(town, "danzig", phase)
    ended = await town.run(federation)
    assert silent.is_set()
    assert [body["phase"] for body in kinds(ended, "attempt")] == ([phase] if phase in ("ROSTER", "SHARE") else [])
    [arrived] = kinds(ended, "arrived")
    inside = phase in ("SURVIVORS", "UNMASK")  # its vector was there
    assert ("danzig" in arrived["counted"]) == inside
    assert inside or arrived["excluded"] == {"danzig": "no answer within 2.5 s"}
    again = federation.run(hs.Local(four, replay=ended))
    assert ended.parameters.tobytes() == again.parameters.tobytes()


async def test_an_agent_that_was_away_at_the_end_erases_its_secrets_when_it_is_back(
    town: Town, four: Tables, summed: hs.Federation
) -> None:
    await settle(town, four)
    silent = stopped(town, "danzig", "SHARE")
    running = asyncio.create_task(town.run(short(summed, cohort=hs.All(minimum=3, deadline=2.5))))
    await silent.wait()
    await town.end("danzig")
    await running
    agent = town.begin("danzig")
    [seat] = agent._store.rows("seat")
    assert b'"entropy":""' not in seat["body"]
    await town.until(lambda: b'"entropy":""' in agent._store.rows("seat")[0]["body"])
    assert agent._machine.pending == []


async def test_a_roster_with_an_unconfirmed_identity_is_refused_and_the_run_goes_on_without_who_refused(
    town: Town, four: Tables, summed: hs.Federation
) -> None:
    await settle(town, four, but=("köln",))
    ended = await town.run(summed.model_copy(update={"evaluation": hs.Evaluate(every=0)}))
    reasons = {body["party"]: body["reason"] for body in kinds(ended, "refused")}
    assert set(reasons) == {"köln"}
    assert "'bremen'" in reasons["köln"]
    assert "`hansa agent confirm NAME WORDS`" in reasons["köln"]
    assert [body["without"] for body in kinds(ended, "attempt")] == [reasons] * 2
    again = summed.run(hs.Local(four, replay=ended))
    assert again.parameters.tobytes() == ended.parameters.tobytes()


async def test_a_party_with_a_new_identity_is_left_out_and_not_the_others_that_refuse_it(
    town: Town, four: Tables, summed: hs.Federation
) -> None:
    await settle(town, four)
    for name in ("bremen", "danzig", "lübeck"):
        with contextlib.closing(Offers(town.folder / name)) as offers:
            offers.confirm("köln", words(Identity(b"earlier" + bytes(25)).public))
    ended = await town.run(short(summed))
    [attempt] = kinds(ended, "attempt")
    assert list(attempt["without"]) == ["köln"]
    assert "the identity of 'köln' is not confirmed here" in attempt["without"]["köln"]
    assert kinds(ended, "arrived")[0]["counted"] == ["bremen", "danzig", "lübeck"]


async def test_too_few_vectors_open_nothing_and_the_next_attempt_is_charged_no_vector_twice(
    town: Town, five: Tables, summed: hs.Federation
) -> None:
    federation = short(
        summed, cohort=hs.All(minimum=2, deadline=2.5), aggregation=CHAIN >> agg.secure_sum(threshold=0.8)
    )
    await settle(town, five, honest=1)
    stopped(town, "danzig", "MASK")
    stopped(town, "köln", "MASK")
    ended = await town.run(federation)
    [attempt] = kinds(ended, "attempt")
    assert (attempt["ended"], attempt["phase"]) == ("abandoned", "SURVIVORS")
    assert set(attempt["without"]) == {"danzig", "köln"}
    [arrived] = kinds(ended, "arrived")
    assert arrived["counted"] == ["bremen", "lübeck", "上海"]
    for name in arrived["counted"]:
        assert len(town.agents[name]._store.rows("charge")) == 1
    assert ended.parameters.tobytes() == federation.run(hs.Local(five, replay=ended)).parameters.tobytes()


async def test_when_attempts_go_on_failing_the_run_fails_and_says_why(
    town: Town, five: Tables, summed: hs.Federation
) -> None:
    await settle(town, five, but=tuple(five))
    with pytest.raises(RunError, match="is not confirmed here"):
        await town.run(summed)
    for agent in town.agents.values():  # the one vector that each has made, of which nothing was asked
        assert len(agent._store.rows("charge")) == agent._ledger.answers == 1


async def test_an_owner_asks_for_company(town: Town, five: Tables, summed: hs.Federation) -> None:
    await settle(town, five, honest=3)
    with pytest.raises(
        RunError, match="asks for 3 honest parties beside it in a secure sum, and the study is sure of 2"
    ):
        await town.run(summed)


async def test_a_party_that_is_removed_in_the_middle_is_left_out(
    town: Town, five: Tables, summed: hs.Federation
) -> None:
    await settle(town, five)
    silent = stopped(town, "danzig", "SHARE")
    run = await town.submit(summed)
    await asyncio.wait_for(silent.wait(), 20)
    from hansa.coordinator.events import Removed

    await town.running.driver.put(Removed("danzig", "moved away"))
    ended = await town.watch(run)
    assert kinds(ended, "arrived")[0]["excluded"] == {"danzig": "removed: moved away"}
    assert ended.parameters.tobytes() == summed.run(hs.Local(five, replay=ended)).parameters.tobytes()
