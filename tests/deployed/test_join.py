"""A party that joins while a study runs takes part in it from the next training round on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import hansa as hs
from hansa.agent.service import Agent

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""

NEW = "bremen"  # the first by name, and the last of the roster


class Gate:
    """Holds an agent's training of a round at its door."""

    def __init__(self, agent: Agent, round: int) -> None:
        self.reached, self.opened = asyncio.Event(), threading.Event()
        loop, original = asyncio.get_running_loop(), agent._desk.work

        def work(asked: Any, *more: Any) -> Any:
            if (asked.ask.work, asked.ask.round) == ("train", round):
                loop.call_soon_threadsafe(self.reached.set)
                assert self.opened.wait(20)
            return original(asked, *more)

        agent._desk.work = work  # type: ignore[method-assign]

    async def reach(self) -> None:
        await asyncio.wait_for(self.reached.wait(), 20)


async def test_a_third_agent_joins_after_round_2_and_the_record_has_it_through_restarts_of_both_sides(
    town: Town, harvests: Tables, study: Study
) -> None:
    method = hs.methods.Scaffold(local=hs.SGD(lr=0.2, batch_size=8))
    federation = study(rounds=5, method=method, cohort=hs.All(minimum=2, open=True))
    before = [name for name in harvests if name != NEW]
    await town.settle({name: harvests[name] for name in before})
    gate = Gate(town.agents["lübeck"], 2)
    run = await town.submit(federation)
    await gate.reach()
    await town.join(NEW, harvests[NEW])
    gate_of_new = Gate(town.begin(NEW), 4)
    await town.present(*harvests)
    gate.opened.set()
    await gate_of_new.reach()
    await town.kill()
    await town.end("lübeck")  # it will not know the run any more, and is told of the longer roster
    await town.open()
    town.begin("lübeck")
    await town.present(*harvests)
    gate_of_new.opened.set()
    ended = await town.watch(run)

    assert ended.status == "finished"
    [joined] = [event.body for event in ended.events if event.kind == "joined"]
    assert joined == {"party": NEW, "round": 3, "work": "train"}
    assert ended.setup is not None
    assert ended.setup.parties == (*before, NEW)
    counted = {e.body["round"]: e.body["counted"] for e in ended.events if e.kind == "arrived"}
    assert counted == {0: before, 1: before, 2: before, **{number: [*before, NEW] for number in (3, 4, 5)}}
    again = federation.run(hs.Local(harvests, replay=ended))
    assert again.progress is not None
    assert ended.progress is not None
    assert again.progress.pack() == ended.progress.pack()
    assert again.metrics() == ended.metrics()
    twice = federation.run(hs.Local(harvests, replay=again))
    assert twice.parameters.tobytes() == ended.parameters.tobytes()
    assert ended.model.predict(harvests[NEW]).shape == (harvests[NEW].rows,)
