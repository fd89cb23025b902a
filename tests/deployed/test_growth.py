"""Rounds come and go, and leave nothing in what the programs hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

import hansa as hs
from hansa import methods
from hansa.coordinator import engine

ROUNDS = 60


async def test_neither_the_coordinator_nor_an_agent_holds_anything_more_of_every_round(
    town: Any, harvests: Mapping[str, hs.Table], study: Callable[..., hs.Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PAGE", 16)  # of the latest events some are kept at hand
    await town.settle(harvests)
    method, seldom = methods.Scaffold(local=hs.SGD(lr=0.1, batch_size=8)), hs.Evaluate(every=0, holdout=0.25)
    run = await town.submit(study(method=method, evaluation=seldom, rounds=10_000))
    machine = town.running.driver.machine

    async def kept(round: int) -> int:
        await town.until(lambda: machine.runs[run].progress.round >= round)
        return elements([town.running, *town.agents.values()])

    early, late = await kept(ROUNDS), await kept(3 * ROUNDS)
    assert early > 1000  # it sees into them
    assert late - early < ROUNDS  # and not one for each


def elements(roots: Iterable[object]) -> int:
    """How many things our own objects hold, at any depth."""
    seen, waiting = dict[int, object](), [*roots]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | frozenset | deque):
            waiting += one
        elif type(one).__module__.partition(".")[0] == "hansa":
            waiting += vars(one).values() if hasattr(one, "__dict__") else ()
    return len(seen)
