"""Rounds come and go, and leave nothing in what the programs hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

import hansa as hs
from hansa import methods
from hansa.coordinator import engine, store
from hansa.wire import chunks

pytestmark = pytest.mark.untraced

ROUNDS = 30
LOCAL = hs.SGD(lr=0.1, batch_size=8)
STUDIES: dict[str, dict[str, Any]] = {
    "small": {"method": methods.Scaffold(local=LOCAL)},
    "large": {"method": methods.Scaffold(local=LOCAL)},
    "late": {"method": methods.FedBuff(local=LOCAL, buffer=2, concurrency=3)},
}


@pytest.mark.parametrize("name", STUDIES)
async def test_neither_the_coordinator_nor_an_agent_holds_anything_more_of_every_round(
    name: str,
    town: Any,
    harvests: Mapping[str, hs.Table],
    study: Callable[..., hs.Federation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine, "PAGE", 16)  # of the latest events some are kept at hand
    for files in (store, engine, chunks) if name == "large" else ():
        monkeypatch.setattr(files, "INLINE", 64)
    await town.settle(harvests)
    run = await town.submit(study(evaluation=hs.Evaluate(every=0, holdout=0.25), rounds=10_000, **STUDIES[name]))
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
