"""A coordinator starts with what can be restored, and says of the rest why it cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

import hansa as hs
from hansa.coordinator.driver import Driver
from hansa.coordinator.events import Connected, Joined, Offered, Resumed, Submitted
from hansa.coordinator.store import CoordinatorStore
from hansa.data.table import ColumnSchema
from hansa.database import Put
from hansa.errors import StudyError

COLUMNS = (ColumnSchema("x", "number"), ColumnSchema("y", "number"))


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A coordinator's store with two open runs, one and two."""
    driver = Driver(CoordinatorStore(tmp_path), lambda party, notice: None)
    await driver.start()
    for name in ("a", "b"):
        await driver.put(Joined(name, "1", "later"))
        offer = Offered("tumours", 9, COLUMNS, ("linear-regression",))
        await driver.put(Connected(name, (offer,)))
    federation = hs.Federation(
        name="tumours", task=hs.LinearRegression(target="y"), method=hs.FedAvg(local=hs.SGD(lr=0.1)), rounds=1
    )
    for run in ("one", "two"):
        await driver.put(Submitted(run, federation))
    await driver.stop()
    return tmp_path


def damaged_checkpoint(store: CoordinatorStore) -> None:
    row = store.row("blob", run="one", version=0, name="checkpoint")
    assert row is not None
    store.apply([Put("blob", {**row, "digest": "00"})])


def another_checkpoint(store: CoordinatorStore) -> None:
    store.apply([store.blob("one", 0, "checkpoint", b"no tensors")])


def another_ask(store: CoordinatorStore) -> None:
    store.apply([Put("ask", {"run": "one", "version": 0, "attempt": 1, "digest": "00"})])


def unknown_kind(store: CoordinatorStore) -> None:
    body = json.loads(store.run("one")["federation"])
    body["task"]["kind"] = "of-the-future"
    store.apply([Put("run", {"id": "one", "federation": json.dumps(body).encode()})])


def no_setup(store: CoordinatorStore) -> None:
    store.apply([Put("run", {"id": "one", "setup": {}})])


@pytest.fixture
async def begin() -> AsyncIterator[Callable[[Path], Any]]:
    drivers: list[Driver] = []

    async def start(folder: Path) -> Driver:
        drivers.append(Driver(CoordinatorStore(folder), lambda party, notice: None))
        await drivers[-1].start()
        return drivers[-1]

    yield start
    for driver in drivers:
        await driver.stop()


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (damaged_checkpoint, "is damaged"),
        (another_checkpoint, ""),
        (another_ask, "another version of Hansa began it"),
        (unknown_kind, "of-the-future"),
        (no_setup, "KeyError"),
    ],
)
async def test_a_run_that_cannot_be_restored_fails_and_the_others_go_on(
    folder: Path, begin: Any, damage: Callable[[CoordinatorStore], None], why: str
) -> None:
    store = CoordinatorStore(folder)
    damage(store)
    before = len(store.rows("event", run="one"))
    store.close()
    driver = await begin(folder)
    assert set(driver.machine.runs) == driver.under_way == {"two"}
    row = await driver.read(driver.store.run, "one")
    assert row["status"] == "failed"
    assert row["reason"].startswith("it cannot be restored: ")
    assert why in row["reason"]
    events = await driver.events("one", 0)
    assert [event["seq"] for event in events] == list(range(1, before + 2))
    assert (events[-1]["kind"], events[-1]["body"]["reason"]) == ("failed", row["reason"])
    assert (await driver.read(driver.store.run, "two"))["status"] == "running"


async def test_a_run_whose_ask_has_changed_can_be_resumed_with_a_new_one(folder: Path, begin: Any) -> None:
    store = CoordinatorStore(folder)
    another_ask(store)
    store.close()
    driver = await begin(folder)
    await driver.put(Resumed(await driver.read(lambda: driver._revive(driver.store.run("one")))))
    assert driver.machine.runs["one"].attempt == 2


async def test_a_run_whose_name_is_mistyped_is_guessed(folder: Path, begin: Any) -> None:
    driver = await begin(folder)
    with pytest.raises(StudyError) as caught:
        await driver.read(driver.store.run, "tow")
    assert caught.value.remedy == "Did you mean 'two'?"
    with pytest.raises(StudyError) as caught:
        await asyncio.wait_for(driver.read(driver.store.run, "肿瘤"), 5)
    assert caught.value.remedy == "`hansa runs` lists them"
