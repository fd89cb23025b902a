"""Ten real processes in three buckets: one is killed for good, the coordinator again and again, and the run ends."""

from __future__ import annotations

import os

import numpy as np
import pytest
from benchmarks.fleet import COORDINATOR, Fleet, disturbed, tables, tiny

import hansa as hs
from hansa import aggregation as agg

pytestmark = pytest.mark.skipif(os.environ.get("HANSA_LONG") != "1", reason="HANSA_LONG is not set")
ROUNDS = 8


def test_buckets_go_on_without_a_killed_party_and_through_kills_of_the_coordinator(fleet: Fleet) -> None:
    fleet.found()
    fleet.join(rows := tables(10), "--honest", "1")
    fleet.acquaint(honest=1)
    federation = tiny(
        ROUNDS,
        method=hs.FedAvg(local=hs.SGD(lr=0.1, batch_size=8), weights="equal"),
        aggregation=agg.clip(1.0)
        >> agg.grid(bits=16)
        >> agg.bucket(size=3, minimum=2)
        >> agg.secure_sum()
        >> agg.geometric_median(),
        cohort=hs.All(minimum=6, deadline=6.0),
    )
    run = fleet.submit(federation)
    told = disturbed(fleet, run, 4, seed=3, whom=COORDINATOR, rounds=4)
    assert fleet.reach(run, 5), fleet.ended(run).reason
    fleet.kill("p4")
    ended = fleet.ended(run)
    assert ended.status == "finished"
    assert told.kills
    trained = [e.body for e in ended.events if e.kind == "arrived" and e.body["work"] == "train"]
    assert len(trained) == ROUNDS
    assert all(len(body["buckets"]) >= 3 or len(body["counted"]) >= 6 for body in trained)
    assert "p4" in trained[0]["counted"]
    assert "p4" not in trained[-1]["counted"]
    here = federation.run(hs.Local({name: hs.Table.of(columns) for name, columns in rows.items()}, replay=ended))
    np.testing.assert_allclose(here.parameters, ended.parameters, atol=1e-3)  # each rounds with its own chance
    assert fleet.undercharged() == {}
