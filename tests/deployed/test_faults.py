"""What breaks and comes back ends with the bits of what never broke."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import product
from typing import Any, ClassVar

import pytest
from tests.deployed.halts import Cut, Gate

import hansa as hs
from hansa.contribution import Array, Values
from hansa.coordinator import driver
from hansa.coordinator import engine as coordinator_engine
from hansa.coordinator.events import Effects
from hansa.errors import HansaError, RunError, StoreError
from hansa.methods import GradientMethod
from hansa.methods.base import METHODS
from hansa.wire import messages as m
from hansa.wire.rpcs import RESUME

pytestmark = pytest.mark.untraced

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""


class Remembering(GradientMethod):
    """A method that goes wrong at once if a memory is lost, kept too soon, or kept twice."""

    kind: ClassVar[str] = "remembering"
    memory: ClassVar[tuple[str, ...]] = ("past",)

    def finish(
        self, parameters: Array, received: Values, memory: Values, steps: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        update = parameters - received.parameters + 0.1 * memory.past
        return {"update": update}, {"past": 0.5 * memory.past + update}


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))
    METHODS.register(Remembering)


@pytest.fixture
def short(study: Study) -> hs.Federation:
    """Four exchanges, each of which needs what the parties remember of the one before."""
    return study(
        method=Remembering(local=hs.SGD(lr=0.2, batch_size=8)),
        rounds=3,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=3),
    )


async def test_an_agent_killed_at_work_rejoins_and_works_again(
    town: Town, harvests: Tables, short: hs.Federation
) -> None:
    await town.settle(harvests)
    gate = Gate(town.agents["bremen"], round=2)
    run = await town.submit(short)
    await gate.reach()
    await town.end("bremen")
    gate.open()
    await town.present("lübeck", "上海")
    town.begin("bremen")
    ended = await town.watch(run)
    assert ended.parameters.tobytes() == short.run(hs.Local(harvests)).parameters.tobytes()
    assert not [event for event in ended.events if event.kind == "refused"]
    presence = [e for e in ended.events if e.kind in {"waiting", "returned"}]
    assert [(e.kind, e.body["party"], e.body["round"]) for e in presence] == [
        ("waiting", "bremen", 2),
        ("returned", "bremen", 2),
    ]


async def test_an_agent_killed_after_it_answered_sends_exactly_those_bytes_again(
    town: Town, harvests: Tables, short: hs.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    await town.settle(harvests)
    agent, sent = town.agents["bremen"], asyncio.Event()

    async def nowhere(held: Any) -> None:
        sent.set()

    agent._send = nowhere  # the answer is durable here, and never arrives
    run = await town.submit(short)
    await asyncio.wait_for(sent.wait(), 20)
    [held] = agent._machine.held.values()
    await town.end("bremen")
    again = town.begin("bremen")
    resent: list[Any] = []
    send = again._send

    async def note(held: Any) -> None:
        resent.append(held)
        await send(held)

    again._send = note
    worked = Gate(again, round=1)
    ended = await town.watch(run)
    assert resent[0] == held
    assert worked.calls == 0
    assert ended.parameters.tobytes() == short.run(hs.Local(harvests)).parameters.tobytes()


async def test_work_outlives_a_broken_link(town: Town, harvests: Tables, short: hs.Federation) -> None:
    await town.settle(harvests)
    gate = Gate(town.agents["bremen"], round=1)
    run = await town.submit(short)
    await gate.reach()
    await town.kill()
    await town.open()
    await town.present(*harvests)
    gate.open()
    ended = await town.watch(run)
    assert gate.calls == 1
    assert ended.parameters.tobytes() == short.run(hs.Local(harvests)).parameters.tobytes()


@pytest.mark.parametrize(
    ("number", "when"),
    # Before 1 no run was begun; five there are in any case: its beginning, and the end of each round.
    [(1, "after"), *product([2, 3, 4, 5], ["before", "after"])],
)
async def test_a_coordinator_killed_anywhere_ends_with_the_undisturbed_bits(
    number: int, when: str, town: Town, harvests: Tables, short: hs.Federation
) -> None:
    await town.settle(harvests)
    cut = Cut(town, number, when)
    submitting = asyncio.create_task(town.submit(short))
    await asyncio.wait_for(cut.reached.wait(), 20)
    await town.kill()
    await asyncio.gather(submitting, return_exceptions=True)
    await town.open()
    [row] = await town.rows("run")
    ended = await town.watch(row["id"])
    simulated = short.run(hs.Local(harvests))
    assert ended.parameters.tobytes() == simulated.parameters.tobytes()
    assert ended.metrics() == simulated.metrics()
    assert [e.kind for e in ended.events].count("restarted") <= 1
    # The last commit may have ended the run, whose parties hear of it when they are there again.
    await town.until(lambda: not any(agent._machine.pending for agent in town.agents.values()))
    for name, agent in town.agents.items():
        [memory] = agent._machine.memories.values()
        assert memory, name


async def test_answers_of_a_moment_share_a_commit_and_the_last_waits_for_nobody(
    town: Town, harvests: Tables, short: hs.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "MOMENT", 60.0)  # longer than anybody here waits
    await town.settle(harvests)
    written = list[set[str]]()
    commit = town.running.driver._commit

    def counted(effects: Effects) -> None:
        written.append({change.table for change in effects.changes})
        commit(effects)

    monkeypatch.setattr(town.running.driver, "_commit", counted)
    await town.run(short)
    assert sum("event" in tables for tables in written) == 1 + 4  # the run's beginning, and one for each exchange
    assert sum("answer" in tables for tables in written) == 4


async def test_an_answer_that_is_alone_is_acknowledged_after_a_moment(
    town: Town, harvests: Tables, short: hs.Federation
) -> None:
    await town.settle(harvests)
    gates = [Gate(town.agents[name], round=1) for name in ("bremen", "上海")]
    run = await town.submit(short)
    for gate in gates:
        await gate.reach()
    async with asyncio.timeout(20):
        while not (answers := await town.rows("answer", run=run)):
            await asyncio.sleep(0.005)
    assert [answer["party"] for answer in answers] == ["lübeck"]
    for gate in gates:
        gate.open()
    assert (await town.watch(run)).status == "finished"


async def test_everybody_is_killed_and_everybody_comes_back(town: Town, harvests: Tables, short: hs.Federation) -> None:
    await town.settle(harvests)
    gate = Gate(town.agents["上海"], round=2)
    run = await town.submit(short)
    await gate.reach()
    for name in harvests:
        await town.end(name)
    await town.kill()
    gate.open()
    await town.open()
    for name in harvests:
        town.begin(name)
    ended = await town.watch(run)
    assert ended.parameters.tobytes() == short.run(hs.Local(harvests)).parameters.tobytes()


async def test_an_agent_says_once_that_it_waits_and_once_that_it_is_connected(
    town: Town, harvests: Tables, short: hs.Federation
) -> None:
    await town.settle(harvests)
    for outage in range(2):
        await town.kill()
        await asyncio.sleep(0.5)
        said = town.said["bremen"]
        assert len([line for line in said if line.startswith("waiting for")]) == outage + 1
        await town.open()
        await town.present(*harvests)
    connected = f"connected to Lübeck at 127.0.0.1:{town.port}"
    await town.until(lambda: said.count(connected) == 3)
    assert [line.split()[0] for line in said] == ["connected", "waiting"] * 2 + ["connected"]


async def test_a_party_that_never_answers_is_left_out_after_the_deadline(
    town: Town, harvests: Tables, study: Study
) -> None:
    await town.settle(harvests)
    gate = Gate(town.agents["bremen"], round=1)
    federation = study(
        rounds=2,
        cohort=hs.All(minimum=2, deadline=1.5),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0),
    )
    run = await town.submit(federation)
    await gate.reach()
    watching = asyncio.create_task(town.watch(run))
    await asyncio.sleep(1.7)
    gate.open()
    ended = await watching
    arrived = [event.body for event in ended.events if event.kind == "arrived"]
    assert arrived[0]["counted"] == ["lübeck", "上海"]
    assert arrived[0]["excluded"] == {"bremen": "no answer within 1.5 s"}


async def test_below_the_minimum_the_run_fails_with_the_reasons_and_resume_goes_on(
    town: Town, harvests: Tables, study: Study
) -> None:
    await town.settle(harvests)
    federation = study(
        method=Remembering(local=hs.SGD(lr=0.2, batch_size=8)),
        rounds=2,
        cohort=hs.All(minimum=3, deadline=1.5),
        evaluation=hs.Evaluate(every=0),
    )
    gate = Gate(town.agents["bremen"], round=2)
    run = await town.submit(federation)
    await gate.reach()
    for name in ("bremen", "lübeck"):
        await town.end(name)
    with pytest.raises(RunError) as caught:
        await town.watch(run)
    text = str(caught.value)
    assert "1 of 3 contributions could be counted, and the study needs 3" in text or (
        "2 of 3 contributions could be counted" in text
    )
    assert "bremen: no answer within 1.5 s" in text
    assert f"hansa resume {run}" in text
    gate.open()
    for name in ("bremen", "lübeck"):
        town.begin(name)
    await town.present(*harvests)
    ended = await asyncio.to_thread(town.remote.resume, run)
    assert ended.parameters.tobytes() == federation.run(hs.Local(harvests)).parameters.tobytes()
    kinds = [event.kind for event in ended.events]
    assert kinds.count("failed") == kinds.count("resumed") == 1
    async with town.operator() as client:
        with pytest.raises(RunError, match="nothing to resume"):
            await client.unary(RESUME, m.ResumeRequest(run=run))


async def test_a_run_whose_agents_are_all_gone_fails_with_the_reasons(
    town: Town, harvests: Tables, study: Study
) -> None:
    await town.settle(harvests)
    gates = [Gate(agent) for agent in town.agents.values()]
    run = await town.submit(study(cohort=hs.All(deadline=1.5)))
    await gates[0].reach()
    for name in harvests:
        await town.end(name)
    for gate in gates:
        gate.open()
    with pytest.raises(RunError, match="0 of 3 contributions could be counted"):
        await town.watch(run)


async def test_a_coordinator_whose_disk_fails_acknowledges_nothing_more_and_stops(
    town: Town, harvests: Tables, short: hs.Federation
) -> None:
    await town.settle(harvests)
    driver = town.running.driver

    def full(changes: object) -> None:
        raise StoreError("the database refuses to write: disk full")

    driver.store.apply = full
    with pytest.raises(HansaError, match="the coordinator has stopped"):
        await town.submit(short)
    with pytest.raises(StoreError, match="disk full"):
        await driver.failed
    with pytest.raises(HansaError, match="the coordinator has stopped"):
        await asyncio.wait_for(town.submit(short), 5)


async def test_a_damaged_answer_fails_its_run_and_not_the_coordinator(
    town: Town, harvests: Tables, short: hs.Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator_engine, "INLINE", -1)  # nothing is kept at hand
    await town.settle(harvests)
    store = town.running.driver.store
    read = store.read_blob

    def damaged(run: str, version: int, name: str) -> bytes:
        if name == "answer bremen":
            raise StoreError("the blob is damaged")
        return bytes(read(run, version, name))

    store.read_blob = damaged
    with pytest.raises(RunError, match="the blob is damaged"):
        await town.run(short)
    store.read_blob = read
    assert (await town.run(short)).status == "finished"
