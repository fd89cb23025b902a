"""Who may change a coordinator's database: on a file whoever came last, on a server whoever has the lock."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.postgresql import empty_schema

from hansa import database
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.service import Coordinator
from hansa.coordinator.store import CoordinatorStore
from hansa.database import Put
from hansa.errors import StoreError, TrustError, UsageError

Open = Callable[[str], CoordinatorStore]
ROW = Put("run", {"id": "r", "round": 1})


@pytest.fixture(params=["sqlite", "postgresql"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens the same database for coordinators in folders of their own."""
    url = empty_schema("hansa_test_epochs") if request.param == "postgresql" else f"sqlite:///{tmp_path / 'shared.db'}"
    made: list[CoordinatorStore] = []

    def open_it(name: str) -> CoordinatorStore:
        made.append(CoordinatorStore(tmp_path / name, url))
        return made[-1]

    yield open_it
    for store in made:
        store.close()


def take(store: CoordinatorStore, name: str, keys: str = "keys") -> bool:
    return store.take(name, f"{name}.example:8443", keys)


def dropped(store: CoordinatorStore) -> None:
    """Let the connection of a store break as if its machine were gone."""
    store._connection.connection.driver_connection.close()


def test_epochs_are_numbered_and_the_newest_alone_may_write(opened: Open) -> None:
    first, second = opened("first"), opened("second")
    assert take(first, "first")
    assert first.epoch == 1
    first.apply([ROW])
    if first.server:
        assert not take(second, "second")
        dropped(first)
    give_up = time.monotonic() + 20
    while not take(second, "second"):  # until the server has seen it
        assert time.monotonic() < give_up
    assert second.epoch == 2
    before = second.rows("run")
    with pytest.raises(StoreError, match="another coordinator has taken over"):
        first.apply([Put("run", {"id": "r", "round": 2}), Put("run", {"id": "late", "round": 1})])
    with pytest.raises(StoreError, match="another coordinator has taken over"):
        first.peers()
    assert second.rows("run") == before
    second.apply([Put("run", {"id": "r", "round": 3})])
    assert second.row("run", id="r")["round"] == 3


def test_parties_are_told_of_all_coordinators_if_they_are_several(opened: Open) -> None:
    first, second = opened("first"), opened("second")
    assert take(first, "first")
    assert first.peers() == []
    take(second, "second")
    active = first if first.server else second
    assert active.peers() == ["first.example:8443", "second.example:8443"]


def test_a_coordinator_with_other_keys_neither_takes_over_nor_stands_by(opened: Open) -> None:
    first, stranger = opened("first"), opened("stranger")
    assert take(first, "first")
    with pytest.raises(TrustError, match=r"that of first, whose keys .* copy its authority\.key"):
        take(stranger, "stranger", "other keys")
    first.apply([ROW])
    assert first.peers() == []


def test_a_coordinator_that_comes_back_at_its_address_takes_the_next_epoch(opened: Open) -> None:
    for epoch in (1, 2, 3):
        store = opened("first")
        assert take(store, "first")
        assert store.epoch == epoch
        store.close()
    assert [row["number"] for row in opened("x").rows("epoch")] == [3]


# --- on a server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CoordinatorStore]:
    store = CoordinatorStore(tmp_path, empty_schema("hansa_test_epochs"))
    yield store
    store.close()


def test_a_broken_connection_is_made_again_and_the_transaction_repeated(server: CoordinatorStore) -> None:
    assert take(server, "first")
    dropped(server)
    server.apply([ROW])
    dropped(server)
    assert server.row("run", id="r")["round"] == 1
    assert server.epoch == 1
    assert server._sole


def test_a_transaction_whose_commit_was_not_heard_of_leaves_what_one_leaves(
    server: CoordinatorStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert take(server, "first")
    server.apply([ROW, Put("run", {"id": "gone", "round": 1})])
    server.apply([database.Drop("run", {"id": "gone"}), Put("run", {"id": "r", "round": 5})])
    psycopg = pytest.importorskip("psycopg")
    original, broken = server._fence, list[int]()

    def breaks_after_the_commit(connection: sa.Connection) -> None:
        original(connection)
        if not broken:
            broken.append(1)
            raw = connection.connection.driver_connection
            commit = raw.commit

            def committed_and_lost() -> None:
                commit()
                raw.close()
                raise psycopg.OperationalError("the connection was lost")

            raw.commit = committed_and_lost

    monkeypatch.setattr(server, "_fence", breaks_after_the_commit)
    server.apply([database.Drop("run", {"id": "gone"}), Put("run", {"id": "r", "round": 6})])
    assert broken
    assert [(row["id"], row["round"]) for row in server.rows("run")] == [("r", 6)]


def test_who_waits_for_a_lost_server_stops_when_told(server: CoordinatorStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert take(server, "first")
    dropped(server)
    monkeypatch.setattr(server, "_engine", sa.create_engine("postgresql+psycopg://hansa@127.0.0.1:1/none"))
    threading.Timer(0.3, server.stopping.set).start()
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"refuses to write: connection failed.*goes on at the last commit"):
        server.apply([ROW])
    assert time.monotonic() - began < 5


def test_large_blobs_are_in_a_server_that_is_all_that_coordinators_share(server: CoordinatorStore) -> None:
    body = os.urandom(1 << 20)
    server.apply([server.blob("r", 1, "ask", body)])
    assert server.row("blob", run="r")["body"] == body
    assert bytes(server.read_blob("r", 1, "ask")) == body


# --- what cannot be used


def test_no_password_is_repeated_and_the_way_out_is_said(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hansa[postgres]'")
    with pytest.raises(StoreError, match=r"postgresql.*127\.0\.0\.1:1/hansa cannot be opened") as refused:
        CoordinatorStore(tmp_path, "postgresql://hansa:geheim@127.0.0.1:1/hansa")
    assert "geheim" not in str(refused.value)
    assert "HANSA_DATABASE" in refused.value.remedy


@pytest.mark.parametrize("url", ["mysql://h/d", "postgresql://h:port/d", "://", "sqlite://"])
def test_an_address_that_no_coordinator_can_use_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"postgresql://USER@HOST/NAME"):
        CoordinatorStore(tmp_path, url)


def test_a_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StoreError, match=r"needs the package 'psycopg'.*pip install 'hansa\[postgres\]'"):
        CoordinatorStore(tmp_path, "postgresql://hansa@127.0.0.1:1/hansa")


def test_a_database_that_refuses_to_write_is_named(tmp_path: Path) -> None:
    CoordinatorStore(tmp_path).close()
    with sqlite3.connect(tmp_path / "coordinator.db") as other:
        other.execute("CREATE TRIGGER no BEFORE INSERT ON run BEGIN SELECT RAISE(ABORT, 'readonly'); END")
    other.close()
    store = CoordinatorStore(tmp_path)
    with pytest.raises(StoreError, match=r"coordinator\.db refuses to write: readonly.*may be written"):
        store.apply([ROW])
    store.close()


# --- whole coordinators


async def test_of_two_coordinators_on_one_file_the_older_is_refused_and_ends(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first = Coordinator(CoordinatorHome.open(tmp_path / "first", "Lübeck"), "127.0.0.1", url)
    await first.start("127.0.0.1", 0)
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = Coordinator(CoordinatorHome.open(tmp_path / "second", "Lübeck"), "127.0.0.1", url)
    await second.start("127.0.0.1", 0)
    with pytest.raises(StoreError, match="another coordinator has taken over"):
        await first.driver.failed
    assert not second.driver.failed.done()
    await first.stop()
    await second.stop()
