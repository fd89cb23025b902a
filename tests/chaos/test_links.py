"""Links that are cut, late and lossy: whoever waits for everyone waits, and nothing is sent twice that arrived."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.fleet import COORDINATOR, Fleet, patience, tables, tiny
from benchmarks.network import NET, Link, Network

import hansa as hs

LONG = pytest.mark.skipif(not os.environ.get("HANSA_LONG"), reason="HANSA_LONG is not set")
KEEPALIVE = 35.0
"""Seconds after which both sides take a silent connection for broken."""

Wired = Callable[[int], tuple[Fleet, dict[str, Link]]]


@pytest.fixture
def wired(tmp_path: Path) -> Iterator[Wired]:
    """Makes a coordinator and so many agents, each in a network namespace of its own."""
    with ExitStack() as stack:

        def make(parties: int) -> tuple[Fleet, dict[str, Link]]:
            names = (COORDINATOR, *tables(parties))
            try:
                network = stack.enter_context(Network(names))
            except (OSError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here: {error}")
            fleet = Fleet(tmp_path, address=f"{NET}.1", before={name: network.inside(name) for name in names})
            fleet.words[COORDINATOR] = ("--listen", f"{NET}.1")
            stack.callback(fleet.close)
            fleet.found()
            return fleet, network.links

        yield make


def simulated(federation: hs.Federation, parties: int) -> bytes:
    """The bits that the run is to end with."""
    alone = {name: hs.Table.of(columns) for name, columns in tables(parties).items()}
    return federation.run(hs.Local(alone)).parameters.tobytes()


def test_a_run_over_late_and_lossy_links_that_are_cut_for_a_while_ends_with_the_simulated_bits(wired: Wired) -> None:
    fleet, links = wired(2)
    fleet.join(tables(2))
    for link in links.values():
        link.delay, link.loss = 0.01, 0.01
    federation = tiny(6)
    run = fleet.submit(federation)
    assert fleet.reach(run, 2)
    links["p1"].cut()
    time.sleep(1)
    links["p1"].mend()
    assert fleet.ended(run).parameters.tobytes() == simulated(federation, 2)


@LONG
def test_a_twentieth_lost_and_a_fifth_of_a_second_late(wired: Wired) -> None:
    fleet, links = wired(3)
    fleet.join(tables(3))
    for name in fleet.agents:
        links[name].delay, links[name].loss = 0.2, 0.05
    federation = tiny(10)
    assert fleet.ended(fleet.submit(federation)).parameters.tobytes() == simulated(federation, 3)


@LONG
@pytest.mark.parametrize("direction", ["both ways", "to the agent", "from the agent"])
def test_a_run_waits_for_a_party_that_is_cut_off_for_longer_than_the_keepalive(wired: Wired, direction: str) -> None:
    fleet, links = wired(3)
    fleet.join(tables(3))
    federation = tiny(60)
    run = fleet.submit(federation)
    assert fleet.reach(run, 3)
    link = links["p1"]
    link.down, link.up = direction == "from the agent", direction == "to the agent"
    time.sleep(KEEPALIVE)
    at, status = fleet.place(run)
    assert status == "running"
    time.sleep(1)
    assert fleet.place(run)[0] == at  # it waits
    link.mend()
    ended = fleet.ended(run)
    assert ended.parameters.tobytes() == simulated(federation, 3)
    said = [event.body["party"] for event in ended.events if event.kind == "waiting"]
    assert said == ["p1"]
    assert fleet.undercharged() == {}


@LONG
def test_a_run_with_a_deadline_goes_on_without_a_party_that_is_cut_off(wired: Wired) -> None:
    fleet, links = wired(3)
    fleet.join(tables(3))
    run = fleet.submit(tiny(40, method=hs.FedSGD(), cohort=hs.All(minimum=2, deadline=1.0)))
    assert fleet.reach(run, 3)
    links["p1"].cut()
    ended = fleet.ended(run)
    excluded = [event.body["excluded"] for event in ended.events if event.kind == "arrived"]
    assert {"p1": "no answer within 1 s"} in excluded
    assert not [names for names in excluded if set(names) - {"p1"}]


def wide(columns: int, rows: int = 12) -> dict[str, dict[str, Any]]:
    """Two parties with so many columns: a large model."""
    chance = np.random.default_rng(0)
    return {
        name: {**{f"x{i}": chance.normal(size=rows) for i in range(columns)}, "y": np.arange(float(rows))}
        for name in ("p0", "p1")
    }


@LONG
def test_an_upload_that_is_cut_in_its_middle_goes_on_where_it_broke_off(wired: Wired) -> None:
    classes, columns = 5000, 500
    size = 8 * classes * (columns + 1)
    fleet, links = wired(2)
    fleet.join(wide(columns), "--allow", "softmax-regression")
    federation = tiny(
        1,
        task=hs.SoftmaxRegression(target="y", classes=tuple(range(classes))),
        method=hs.FedSGD(),
        evaluation=hs.Evaluate(every=0, holdout=0.0),
    )
    run = fleet.submit(federation)
    link = links["p1"]
    with patience("no upload") as waiting:
        while waiting() and link.sent < size / 2:
            time.sleep(0.005)
    link.cut()
    sent = link.sent
    time.sleep(KEEPALIVE)
    link.sent = 0
    link.mend()
    ended = fleet.ended(run)
    assert ended.status == "finished"
    assert size / 2 <= sent < size
    assert link.sent < size - sent + (4 << 20)  # what was under way when it was cut, and what TCP adds
