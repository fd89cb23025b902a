"""An agent that was restored from an old backup knows less than it answered, and takes part in nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

import hansa as hs
from hansa.agent.offers import Offers
from hansa.errors import RunError

Tables = dict[str, hs.Table]


async def gone(town: Any, name: str) -> None:
    await town.end(name)
    await town.until(lambda: name not in town.listening())


@pytest.mark.parametrize("killed", [False, True], ids=["same coordinator", "restarted coordinator"])
async def test_an_agent_from_an_old_backup_refuses_until_its_owner_confirms(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation], killed: bool
) -> None:
    await town.settle(harvests)
    name = next(iter(harvests))
    keys: dict[str, Any] = {"rounds": 2, "cohort": hs.All(minimum=len(harvests))}
    assert (await town.run(study(**keys))).status == "finished"
    folder, backup = town.folder / name, town.folder / "backup"
    await gone(town, name)
    shutil.copytree(folder, backup)
    town.begin(name)
    await town.present(*harvests)
    assert (await town.run(study(**keys))).status == "finished"  # of which the backup knows nothing
    await gone(town, name)
    shutil.rmtree(folder)
    shutil.copytree(backup, folder)
    if killed:
        await town.kill()
        await town.open()
    agent = town.begin(name)
    await town.present(*harvests)
    await town.until(lambda: bool(agent._ledger.missing))
    with pytest.raises(RunError, match="ledger is older than its answers"):
        await town.run(study(**keys))
    await gone(town, name)

    offers = Offers(folder)
    assert list(offers.privacy()["missing"].values())
    offers.take_as_spent()
    offers.close()
    agent = town.begin(name)
    await town.present(*harvests)
    assert (await town.run(study(**keys))).status == "finished"
    assert not agent._ledger.missing  # what was confirmed is not asked again


async def test_an_agent_that_remembers_everything_is_never_in_doubt(
    town: Any, harvests: Tables, study: Callable[..., hs.Federation]
) -> None:
    await town.settle(harvests)
    assert (await town.run(study(rounds=2))).status == "finished"
    for name in harvests:
        await town.end(name)
    await town.kill()
    await town.open()
    for name in harvests:
        town.begin(name)
    await town.present(*harvests)
    assert (await town.run(study(rounds=2))).status == "finished"
    assert not any(agent._ledger.missing for agent in town.agents.values())
