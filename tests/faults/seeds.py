"""What comes of seeds."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults.invariants import digest
from tests.faults.memo import remembered
from tests.faults.plan import Plan
from tests.faults.stores import Folder, quickly
from tests.faults.world import Crash, World, stage

from hansa.agent.store import AgentStore
from hansa.coordinator.store import CoordinatorStore


class Outcome(NamedTuple):
    """What came of a seed: why it failed, if it did, and all that happened."""

    seed: int
    plan: str
    failure: str
    status: str
    fates: dict[str, int]
    trace: list[tuple[Any, ...]]

    @property
    def hash(self) -> str:
        return digest(self.trace)


def outcomes(seeds: Iterable[int], folder: Path | None = None) -> Iterator[Outcome]:
    """Run seeds one after the other, on simulated stores or on SQLite files in a folder."""
    with remembered(), quickly(), stage() as enter:
        for seed in seeds:
            plan = Plan.of(seed)
            world = World(plan, None if folder is None else _files(folder / f"{seed}"))
            enter(world)
            failure = ""
            try:
                world.run()
            except (Exception, Crash) as error:  # whatever it is: it is not to happen
                failure = f"{type(error).__name__}: {error}"
            finally:
                world.close()
            if folder is not None:
                shutil.rmtree(folder / f"{seed}")
            record = world.record
            yield Outcome(seed, str(plan), failure, record.status, record.fates, world.trace)


def _files(folder: Path) -> Callable[[str], Folder]:
    return lambda name: Folder(AgentStore, folder / name) if name else Folder(CoordinatorStore, folder / "coordinator")
