"""A party that joins while a study runs takes part in it from the next training round on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.deployed.halts import Gate

import hansa as hs

Study = Callable[..., hs.Federation]
Tables = dict[str, hs.Table]
Town = Any
"""The fixture's class, which lives in a conftest and cannot be imported."""

NEW = "bremen"  # the first by name, and the last of the roster


async def test_a_third_agent_joins_after_round_2_and_the_record_has_it_through_restarts_of_both_sides(
    town: Town, harvests: Tables, study: Study
) -> None:
    method = hs.methods.Scaffold(local=hs.SGD(lr=0.2, batch_size=8))
    federation = study(rounds=5, method=method, cohort=hs.All(minimum=2, open=True))
    before = [name for name in harvests if name != NEW]
    await town.settle({name: harvests[name] for name in before})
    gate = Gate(town.agents["lübeck"], round=2)
    run = await town.submit(federation)
    await gate.reach()
    await town.join(NEW, harvests[NEW])
    gate_of_new = Gate(town.begin(NEW), round=4)
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
