"""Real processes, of which one stands still: rounds do not wait for it, and what it sends later counts with its lag."""

from __future__ import annotations

import os
from typing import Any

import pytest
from benchmarks.fleet import Fleet, disturbed, tables, tiny

import hansa as hs

LONG = bool(os.environ.get("HANSA_LONG"))
ROUNDS = 300 if LONG else 80
FEDBUFF = hs.methods.FedBuff(local=hs.SGD(lr=0.1, batch_size=8), buffer=2, concurrency=3)
KINDS: dict[str, dict[str, Any]] = {"late": {"cohort": hs.All(goal=2, late=ROUNDS)}, "fedbuff": {"method": FEDBUFF}}


@pytest.mark.parametrize(
    "kind", ["late", pytest.param("fedbuff", marks=pytest.mark.skipif(not LONG, reason="HANSA_LONG is not set"))]
)
def test_a_process_that_stands_still_holds_up_nobody_and_counts_when_it_goes_on(kind: str, fleet: Fleet) -> None:
    fleet.found()
    fleet.join(rows := tables(3))
    still = fleet.agents[0]
    federation = tiny(ROUNDS, **KINDS[kind])
    run = fleet.submit(federation)
    assert fleet.reach(run, 5)
    fleet.freeze(still)
    assert fleet.reach(run, fleet.place(run)[0] + 25)
    fleet.thaw(still)
    told = disturbed(fleet, run, 6 if LONG else 1, seed=7, whom="any", rounds=ROUNDS - 15)
    ended = fleet.ended(run)
    assert (ended.status, told.kills > 0) == ("finished", True)
    arrived = [event.body for event in ended.events if event.kind == "arrived" and event.body["work"] == "train"]
    assert len(arrived) == ROUNDS
    assert max(body.get("lags", {}).get(still, 0) for body in arrived) >= 20
    again = federation.run(hs.Local({name: hs.Table.of(columns) for name, columns in rows.items()}, replay=ended))
    assert again.parameters.tobytes() == ended.parameters.tobytes()
    assert fleet.undercharged() == {}
