"""Whatever breaks, nothing is lost: seeds of a simulator, and the bugs that it would find."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from tests.faults import plan as plans
from tests.faults.invariants import replayed
from tests.faults.plan import KINDS, NAMES, Plan
from tests.faults.planted import PLANTS
from tests.faults.seeds import Outcome, outcomes
from tests.faults.world import World, stage

import hansa as hs
from hansa.run import Event, Run

ROOT = Path(__file__).parents[2]


def judged(found: list[Outcome]) -> None:
    failed = [
        f"{one.failure}\n  {one.plan}\n  make simulate-faults ARGS='--seed {one.seed}'" for one in found if one.failure
    ]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("first", [0, 100, 200])
def test_three_hundred_seeds_break_no_promise(first: int) -> None:
    judged(list(outcomes(range(first, first + 100))))


@pytest.mark.parametrize("first", [300, 400])
def test_two_hundred_seeds_on_real_files_break_no_promise(first: int) -> None:
    memory = Path("/dev/shm")  # where nothing waits for a disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        judged(list(outcomes(range(first, first + 100), Path(folder))))


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found_within_two_hundred_seeds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PLANTS[name](monkeypatch)
    failure = next(one.failure for one in outcomes(range(200)) if one.failure)
    assert failure.startswith("ViolationError: ")


def test_the_same_seed_is_the_same_to_the_last_event() -> None:
    program = "from tests.faults.seeds import outcomes; print([one.hash for one in outcomes(range(20, 23))])"
    hashes = {str([one.hash for one in outcomes(range(20, 23))])}
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": salt}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        hashes.add(done.stdout.strip())
    assert len(hashes) == 1


def test_seeds_differ_and_every_fault_happens() -> None:
    found = list(outcomes(range(60)))
    assert len({one.hash for one in found}) == 60
    happened = {line[2] for one in found for line in one.trace if line[1] == "fault"}
    assert happened == set(plans.FAULTS)
    assert any("joined" in line for one in found for line in one.trace if line[1] == "committed")


def test_a_coordinator_that_was_replaced_while_it_stood_still_is_refused_and_stops() -> None:
    """At a commit, or when it looks; its run goes on under the second, without it."""
    found = list(outcomes(seed for seed in range(120) if Plan.of(seed).spells))
    judged(found)
    happened = Counter(line[1] for one in found for line in one.trace)
    newest = [max(line[3] for line in one.trace if line[1] == "takes over") for one in found]
    assert sum(epoch > 1 for epoch in newest) > len(found) / 2
    assert {"stands still", "is cut off", "wakes up", "steps down"} < happened.keys()
    refused = [line for one in found for line in one.trace if line[1] == "stops" and "has taken over" in line[2]]
    assert refused


def test_a_failing_seed_says_how_to_see_it_again(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.faults import __main__ as program

    PLANTS["a lost answer row"](monkeypatch)
    monkeypatch.setattr(sys, "argv", ["faults", "--seeds", "5", "--jobs", "1"])
    assert program.main() == 1
    said = capfd.readouterr().out
    assert 'make simulate-faults ARGS="--seed ' in said
    assert "is not durable" in said


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.hidden and kind.budget is None])
def test_the_plain_loop_that_replays_decisions_is_the_simulation_of_users(kind: str) -> None:
    """What the simulator compares with is what `hansa.Local` gives for the same record."""
    cheats, joins = {"bremen": "nan"} if kind != "everyone" else {}, {NAMES[4]: 0.1} if KINDS[kind].open else {}
    plan = Plan(0, kind, 4, calm=0.0, inline=1 << 16, cheats=cheats, joins=joins)
    world = World(plan)
    with stage() as enter:
        enter(world)
        record = world.run()
    world.close()
    run = Run("run", plan.federation)
    for row in record.events:
        run.hear(Event(row["seq"], row["at"], row["kind"], row["body"]))
    assert record.joined == tuple(joins)
    tables = {name: plans.tables()[name] for name in record.roster}
    again = plan.federation.run(hs.Local(tables, replay=run))
    assert again.progress is not None
    progress, memories = replayed(kind, 4, tuple(record.decisions))
    assert again.parameters.tobytes() == progress.parameters.tobytes()
    if not plan.late:  # there a simulation's progress says who is under way
        assert again.progress.pack() == progress.pack()
    assert {n: dict(m) for n, m in again.memories.items() if m}.keys() == {n for n, m in memories.items() if m}
