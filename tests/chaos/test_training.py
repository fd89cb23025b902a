"""An agent that is killed in the middle of a long local training goes on there when it is started again."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
from benchmarks.fleet import Fleet, patience, tables, tiny

import hansa as hs
from hansa import methods

OFTEN = """
import sys
from hansa.agent import checkpoint
from hansa.cli import main
checkpoint.EVERY, checkpoint.TIMES = 0.2, 2
sys.argv = ["hansa", *sys.argv[4:]]
main()
"""  # in the place of `python -m hansa`, whose words follow


@pytest.mark.skipif(not os.environ.get("HANSA_LONG"), reason="HANSA_LONG is not set")
def test_an_agent_that_is_killed_in_a_long_training_goes_on_there_with_the_same_bits(fleet: Fleet) -> None:
    rows = {**tables(1, rows=8000), **dict([*tables(2).items()][1:])}
    local = hs.Adam(lr=0.01, batch_size=8, epochs=80)
    federation = tiny(1, method=methods.FedAvg(local=local), evaluation=hs.Evaluate(every=0, holdout=0.25))
    fleet.before["p0"] = (sys.executable, "-c", OFTEN)
    fleet.found()
    fleet.join(rows)
    kept = fleet.homes / "p0" / "training"
    run, kills = fleet.submit(federation), 3
    for kill in range(kills):
        before = {path.stat().st_mtime_ns for path in kept.glob("*.part")}
        with patience("no checkpoint is written") as waiting:
            while waiting() and {path.stat().st_mtime_ns for path in kept.glob("*.part")} <= before:
                assert fleet.place(run)[1] == "running", "the training is too short to be killed in"
                time.sleep(0.01)
        fleet.kill("p0")
        assert len([*kept.glob("*.part")]) == 1, kill
        fleet.start("p0")
    ended = fleet.ended(run)
    simulated = federation.run(hs.Local({name: hs.Table.of(columns) for name, columns in rows.items()}))
    assert ended.parameters.tobytes() == simulated.parameters.tobytes()
    lines = [json.loads(line) for line in fleet.log("p0").splitlines() if line.startswith("{")]
    went = [line["step"] for line in lines if line["event"] == "training goes on"]
    assert len(went) == kills
    assert 0 < went[0] < went[1] < went[2]
    assert not [*kept.iterdir()]  # the answer is durable
    assert fleet.undercharged() == {}
