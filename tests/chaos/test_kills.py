"""Real processes, killed with SIGKILL at random moments: every run ends, and with the bits of the undisturbed one."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from benchmarks.fleet import COORDINATOR, Fleet, disturbed, tables, tiny

import hansa as hs
from hansa import aggregation as agg

LONG = bool(os.environ.get("HANSA_LONG"))
BOUNDED = hs.Contract(columns={f"x{i}": hs.ColumnRule(type="number", low=-10, high=10) for i in range(4)})
FEDAVG = hs.FedAvg(local=hs.SGD(lr=0.1, batch_size=8), weights="equal")
PRIVATE = hs.DPSGD(lr=0.1, clip=1.0, noise_multiplier=1.0, rate=0.5, steps=2, batch_size=8)


@dataclass(frozen=True)
class Kind:
    """A kind of study, and how its agents are started."""

    parts: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    acquainted: bool = False
    columns: int = 4
    within: float = 0.03
    rounds: int = 30


CLASSES = tuple(range(2000))

KINDS = {
    "memory": Kind(),
    "secure sum": Kind(
        {
            "method": FEDAVG,
            "aggregation": agg.clip(1.0) >> agg.grid(bits=12) >> agg.secure_sum(threshold=0.6),
            "cohort": hs.All(minimum=3),
        },
        acquainted=True,
    ),
    "noise and a ledger": Kind(
        {
            "method": hs.FedAvg(local=PRIVATE, weights="equal"),
            "aggregation": agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0),
            "cohort": hs.All(minimum=3),
            "privacy": hs.Privacy(unit="example"),
            "contract": BOUNDED,
            "statistics": agg.local_gaussian(noise_multiplier=1.0),
            "evaluation": hs.Evaluate(every=10, holdout=0.5),
        },
        words=("--budget", "1000", "--delta", "0.01"),
    ),
    # An answer has 8 MB: it travels in pieces, into files that are written over from round to round.
    "large bodies": Kind(
        {"task": hs.SoftmaxRegression(target="y", classes=CLASSES)},
        words=("--allow", "softmax-regression"),
        columns=250,
        within=1.0,
        rounds=20,
    ),
}


RUNS = {"memory": 10, "secure sum": 3, "noise and a ledger": 3, "large bodies": 3}


def study(kind: str, rounds: int) -> hs.Federation:
    """The study of a kind."""
    return tiny(rounds, **KINDS[kind].parts)


def test_a_run_whose_processes_are_killed_in_turn_ends_with_the_simulated_bits(fleet: Fleet) -> None:
    fleet.found()
    fleet.join(rows := tables(3))
    federation = study("memory", 8)
    run = fleet.submit(federation)
    told = disturbed(fleet, run, 3, seed=1, whom="any", rounds=6)
    simulated = federation.run(hs.Local({name: hs.Table.of(columns) for name, columns in rows.items()}))
    assert fleet.ended(run).parameters.tobytes() == simulated.parameters.tobytes()
    assert told.kills
    assert fleet.undercharged() == {}


@pytest.mark.skipif(not LONG, reason="HANSA_LONG is not set")
@pytest.mark.parametrize(("kind", "runs"), RUNS.items())
def test_runs_of_killed_processes_end_with_the_undisturbed_bits(kind: str, runs: int, fleet: Fleet) -> None:
    kills, chosen = 10, KINDS[kind]
    rounds = chosen.rounds
    fleet.found()
    fleet.join(tables(5, columns=chosen.columns), *chosen.words)
    if chosen.acquainted:
        fleet.acquaint()
    federation = study(kind, rounds)
    run = fleet.begun(federation)
    fleet.again()
    undisturbed = fleet.ended(run).parameters
    total = {COORDINATOR: 0, "agents": 0}
    for seed in range(runs):
        for whom in total:
            fleet.again()
            total[whom] += disturbed(fleet, run, kills, seed, whom, rounds, within=chosen.within).kills
            ended = fleet.ended(run)
            attempts = [event.body for event in ended.events if event.kind == "attempt"]
            if attempts:  # what was rounded anew for another attempt has other bits, and the same sum
                np.testing.assert_allclose(ended.parameters, undisturbed, atol=0.01)
            else:
                assert ended.parameters.tobytes() == undisturbed.tobytes(), (whom, seed)
            assert fleet.undercharged() == {}
    print(f"{kind}: killed {total}")
    assert min(total.values()) >= kills * runs * 0.8  # a run may end before its last kill
