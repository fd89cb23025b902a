"""What every database of Hansa's keeps: the coordinator's and the agent's, whatever lies beneath."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from tests.faults.stores import Disk, Memory, Simulated, SimulatedAgentStore, SimulatedCoordinatorStore
from tests.postgresql import empty_schema

from hansa.agent import store as agent
from hansa.agent.store import AgentStore
from hansa.coordinator import store as coordinator
from hansa.coordinator.store import INLINE, CoordinatorStore
from hansa.database import Database, Drop, Put, upgrade
from hansa.errors import StoreError, TrustError

Open = Callable[[], Any]
PARTS = {"coordinator": coordinator, "agent": agent}
SIMULATED = {"coordinator": SimulatedCoordinatorStore, "agent": SimulatedAgentStore}
SQL = [(part, base) for part in PARTS for base in ("sqlite", "postgresql")]
ROW = {
    "coordinator": ("answer", {"run": "r", "version": 3, "party": "诊所"}, "weight"),
    "agent": (
        "answer",
        {"run": "r", "version": 3, "attempt": 1, "round": 2, "body": b"\x00\xff", "memory": b""},
        "weight",
    ),
}


@pytest.fixture(params=[*SQL, *((part, "simulated") for part in PARTS)])
def kind(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture
def part(kind: tuple[str, str]) -> str:
    return kind[0]


@pytest.fixture
def opened(kind: tuple[str, str], tmp_path: Path) -> Iterator[Open]:
    """Opens the database, again and again; all of it is closed at the end."""
    module = PARTS[kind[0]]
    url: str | Path = tmp_path / "hansa.db"
    if kind[1] == "postgresql":
        url = empty_schema(f"hansa_test_{kind[0]}")
    made: list[Database] = []
    if kind[1] == "simulated":
        yield Memory(SIMULATED[kind[0]]).open
        return

    def open_it() -> Database:
        made.append(Database(url, module.metadata, module.MIGRATIONS, module.HEAD))
        return made[-1]

    yield open_it
    for store in made:
        store.close()


def test_a_commit_is_there_after_it_is_opened_anew(opened: Open, part: str) -> None:
    table, row, column = ROW[part]
    first = opened()
    first.apply([Put(table, {**row, column: 2.5})])
    first.close()
    assert opened().row(table, run="r")[column] == 2.5


def test_a_failed_transaction_changes_nothing(opened: Open, part: str) -> None:
    table, row, column = ROW[part]
    store = opened()
    with pytest.raises(StoreError, match="refuses to write"):
        store.apply([Put(table, {**row, column: 1.0}), Put(table, {**row, "run": None})])
    assert store.rows(table) == []
    store.apply([Put(table, {**row, column: 1.0})])
    assert len(store.rows(table)) == 1


def test_a_put_inserts_or_updates_what_it_names(opened: Open, part: str) -> None:
    table, row, column = ROW[part]
    store = opened()
    store.apply([Put(table, {**row, column: 1.0})])
    before = store.row(table, run="r")
    store.apply([Put(table, {**row, column: 2.0})])
    assert store.rows(table) == [{**before, column: 2.0}]


def test_a_drop_takes_the_rows_that_match_and_no_others(opened: Open, part: str) -> None:
    table, row, column = ROW[part]
    store = opened()
    store.apply([Put(table, {**row, "version": v, column: 1.0}) for v in range(4)])
    store.apply([Drop(table, {"run": "r", "version": 1}), Drop(table, {"run": "x"})])
    assert [r["version"] for r in store.rows(table, "version")] == [0, 2, 3]
    assert [r["version"] for r in store.rows(table, "version", ("version", 2))] == [3]
    assert store.rows(table, columns=("run",), version=[0, 2]) == [{"run": "r"}, {"run": "r"}]


@pytest.mark.parametrize("kind", SQL, indirect=True)
def test_its_migrations_build_exactly_its_tables(opened: Open, part: str) -> None:
    store, module = opened(), PARTS[part]
    with store._connection.begin():
        module.metadata.drop_all(store._connection)
        store._connection.execute(sa.text("DELETE FROM alembic_version"))
    upgrade(store._engine, module.MIGRATIONS)
    context = MigrationContext.configure(store._connection, opts={"compare_type": True})
    assert compare_metadata(context, module.metadata) == []
    store._connection.rollback()
    assert store._revision() == module.HEAD


@pytest.mark.parametrize("kind", SQL, indirect=True)
def test_a_database_of_a_newer_hansa_is_refused_and_let_go(opened: Open, tmp_path: Path) -> None:
    store = opened()
    with store._connection.begin():
        store._connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    store.close()
    with pytest.raises(StoreError, match=r"does not know: .*9999.*Update Hansa"):
        opened()
    assert str(tmp_path / "hansa.db") not in [file.path for file in psutil.Process().open_files()]


# --- where it is a file


@pytest.fixture(params=["coordinator", "agent"])
def filed(request: pytest.FixtureRequest) -> tuple[str, Callable[[Path], Database]]:
    if request.param == "agent":
        return "agent.db", AgentStore
    return "coordinator.db", CoordinatorStore


def test_a_file_that_is_no_database_is_named(filed: tuple[str, Callable[[Path], Database]], tmp_path: Path) -> None:
    name, make = filed
    (tmp_path / name).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError, match=rf"{name} is damaged .*; it was set aside as {name}\.damaged-"):
        make(tmp_path)
    with pytest.raises(StoreError, match=r"set aside as .*restore"):  # and not begun anew
        make(tmp_path)


def test_a_folder_in_which_nothing_can_be_made_is_named(
    filed: tuple[str, Callable[[Path], Database]], tmp_path: Path
) -> None:
    name, make = filed
    (tmp_path / name).mkdir()
    with pytest.raises(StoreError, match="cannot be opened"):
        make(tmp_path)


def test_a_commit_is_on_the_disk_when_it_returns(filed: tuple[str, Callable[[Path], Database]], tmp_path: Path) -> None:
    store = filed[1](tmp_path)
    with store._connection.begin():
        pragma = {
            name: store._connection.execute(sa.text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous")
        }
    assert pragma == {"journal_mode": "wal", "synchronous": 2}
    store.close()


# --- blobs


@pytest.fixture
def blobs(tmp_path: Path) -> Iterator[CoordinatorStore]:
    store = CoordinatorStore(tmp_path)
    yield store
    store.close()


@pytest.fixture(params=["files", "simulated"])
def coordinators(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the coordinator's store, with its blobs, again and again."""
    if request.param == "simulated":
        yield Memory(SimulatedCoordinatorStore).open
        return
    made: list[CoordinatorStore] = []

    def open_it() -> CoordinatorStore:
        made.append(CoordinatorStore(tmp_path))
        return made[-1]

    yield open_it
    for store in made:
        store.close()


@pytest.mark.parametrize("size", [0, 1, INLINE, INLINE + 1, 3 << 20])
def test_a_blob_comes_back_as_it_was(coordinators: Open, size: int) -> None:
    body, store = bytes(range(256)) * (size // 256) + b"x" * (size % 256), coordinators()
    store.apply([store.blob("r", 1, "answer 诊所", body)])
    store.close()
    assert coordinators().read_blob("r", 1, "answer 诊所") == body


def test_who_was_counted_when_last_is_what_was_taken_and_applied(coordinators: Open) -> None:
    store = coordinators()
    rows = [("a", 0, True), ("a", 1, True), ("a", 2, True), ("b", 0, True), ("b", 1, False), ("c", 0, False)]
    answers = [{"run": "r", "version": v, "party": name, "taken": taken} for name, v, taken in rows]
    store.apply([Put("answer", row) for row in [*answers, {**answers[0], "run": "new"}]])
    store.apply([store.blob("r", 2, "checkpoint", b"two")])
    assert sorted(store.counted()) == [("a", "r", 1), ("b", "r", 0)]


def test_who_took_the_newest_epoch_writes_and_who_was_replaced_is_refused(coordinators: Open) -> None:
    first, second = coordinators(), coordinators()
    row = Put("run", {"id": "r", "round": 1})
    assert first.take("first", "first:1", "keys")
    first.apply([row])
    assert second.take("second", "second:1", "keys")
    assert (first.epoch, second.epoch) == (1, 2)
    for refused in (lambda: first.apply([Put("run", {"id": "r", "round": 2})]), first.peers):
        with pytest.raises(StoreError, match="another coordinator has taken over"):
            refused()
    assert second.row("run", id="r")["round"] == 1
    second.apply([row])
    assert second.peers() == ["first:1", "second:1"]
    with pytest.raises(TrustError, match="whose keys this coordinator has not"):
        first.take("first", "first:1", "other keys")


def test_the_simulated_store_loses_in_a_crash_what_was_not_synced_and_nothing_else() -> None:
    disk = Disk(agent.metadata)
    table, row, column = ROW["agent"]
    Simulated(disk).apply([Put(table, {**row, column: 1.0})])
    disk.write(Put(table, {**row, column: 2.0}))
    disk.write(Put(table, {**row, "version": 4, column: 2.0}))
    disk.write(Drop(table, {"version": 3}))
    disk.crash()
    assert [(kept["version"], kept[column]) for kept in Simulated(disk).rows(table)] == [(3, 1.0)]


@pytest.mark.parametrize("size", [1, INLINE + 1])
def test_a_blob_that_is_written_anew_is_the_old_one_until_its_row_is(coordinators: Open, size: int) -> None:
    blobs = coordinators()
    blobs.apply([blobs.blob("r", 1, "desk", b"a" * size)])
    row = blobs.blob("r", 1, "desk", b"b" * size)  # a crash here takes nothing
    assert blobs.read_blob("r", 1, "desk") == b"a" * size
    blobs.apply([row])
    assert blobs.read_blob("r", 1, "desk") == b"b" * size


def test_a_large_blob_that_was_damaged_is_named(blobs: CoordinatorStore, tmp_path: Path) -> None:
    blobs.apply([blobs.blob("r", 1, "ask", b"y" * (INLINE + 1))])
    [path] = [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    path.write_bytes(b"z" + path.read_bytes()[1:])
    with pytest.raises(StoreError, match=rf"{path.name} is damaged, and was set aside as {path.name}\.damaged-"):
        blobs.read_blob("r", 1, "ask")
    assert not path.exists()
    with pytest.raises(StoreError, match="cannot be read: it was damaged, and set aside"):
        blobs.read_blob("r", 1, "ask")


def test_a_small_blob_that_was_damaged_is_named(blobs: CoordinatorStore, tmp_path: Path) -> None:
    blobs.apply([blobs.blob("r", 1, "ask", b"small")])
    with sqlite3.connect(tmp_path / "coordinator.db") as other:
        other.execute("UPDATE blob SET body = ?", (b"sm4ll",))
    other.close()
    with pytest.raises(StoreError, match="is damaged"):
        blobs.read_blob("r", 1, "ask")
    with pytest.raises(StoreError, match="is missing"):
        blobs.read_blob("r", 1, "checkpoint")


def test_what_an_exchange_left_is_swept_and_nothing_else(blobs: CoordinatorStore, tmp_path: Path) -> None:
    body = b"y" * (INLINE + 1)
    blobs.apply([blobs.blob("r", version, "ask", body) for version in (1, 2)])
    spool = blobs.spool("r", 1, "1 诊所")
    spool.with_name(f"{spool.name}.part").write_bytes(b"half")
    blobs.apply([Drop("blob", {"run": "r", "version": 1})])
    blobs.sweep("r", 1)
    assert [path.name for path in (tmp_path / "blobs" / "r").iterdir()] == ["2"]
    assert blobs.read_blob("r", 2, "ask") == body
