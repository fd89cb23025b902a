"""A backup is of one moment, and nobody who writes waits for it for long."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import tarfile
import threading
from pathlib import Path
from typing import Any

import pytest

from hansa import backup as module
from hansa.backup import backup, restored
from hansa.coordinator import store as coordinator
from hansa.coordinator.store import CoordinatorStore
from hansa.database import Drop
from hansa.errors import StoreError

ABOUT = {"program": "coordinator", "made": "noon"}


def test_a_backup_beside_a_writer_is_of_one_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each exchange has one blob in a file; the one before goes with the commit of the next."""
    monkeypatch.setattr(coordinator, "INLINE", 16)
    home, over, written = tmp_path / "home", threading.Event(), 0

    def write() -> None:
        nonlocal written
        with contextlib.closing(CoordinatorStore(home)) as store:
            while not over.is_set():
                body = b"%d " % written * 5000
                drop = Drop("blob", {"run": "r", "version": written - 1})
                store.apply([store.blob("r", written, "ask", body), drop])
                store.sweep("r", written - 1)
                written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        while written < 3:
            pass
        for number in range(8):
            backup(home, tmp_path / f"{number}.tar", ABOUT)
    finally:
        over.set()
        writer.join()
    seen = set()
    for number in range(8):
        with restored(tmp_path / f"{number}.tar", tmp_path / str(number), "coordinator"):
            pass
        with contextlib.closing(CoordinatorStore(tmp_path / str(number))) as store:
            [row] = store.rows("blob", columns=("run", "version", "name"))
            assert bytes(store.read_blob(**row)) == b"%d " % row["version"] * 5000
            seen.add(row["version"])
    assert len(seen) > 1


def test_a_folder_that_goes_while_it_is_listed_is_left_out_and_one_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, scandir, why = tmp_path / "home", os.scandir, FileNotFoundError(errno.ENOENT, "gone")
    (home / "blobs" / "over").mkdir(parents=True)
    for name in ("kept", "over/gone"):
        (home / "blobs" / name).write_bytes(b"1")
    sqlite3.connect(home / "coordinator.db").close()

    def listed(path: Any) -> Any:  # or a number, where one is open
        if f"{path}".endswith("over"):
            raise why
        return scandir(path)

    monkeypatch.setattr(os, "scandir", listed)
    assert set(backup(home, tmp_path / "archive.tar", ABOUT)) == {"blobs/kept", "coordinator.db"}
    why = PermissionError(errno.EACCES, "not yours")
    with pytest.raises(PermissionError):
        backup(home, tmp_path / "another.tar", ABOUT)
    assert not (tmp_path / "another.tar").exists()


def test_a_database_is_copied_while_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    CoordinatorStore(home).close()
    copied = module.closing

    def closing(connection: sqlite3.Connection) -> contextlib.closing[sqlite3.Connection]:
        """When the copy is opened, the lock is free again."""
        (path,) = (row[2] for row in connection.execute("PRAGMA database_list"))
        if Path(path).parent != home:
            with contextlib.closing(sqlite3.connect(home / "coordinator.db", timeout=0)) as other, other:
                other.execute("INSERT INTO token VALUES ('after', 'p', 0, 0)")
        return copied(connection)

    monkeypatch.setattr(module, "closing", closing)
    backup(home, tmp_path / "a.tar", ABOUT)
    monkeypatch.undo()
    with restored(tmp_path / "a.tar", tmp_path / "new", "coordinator"):
        pass
    with contextlib.closing(CoordinatorStore(tmp_path / "new")) as store:
        assert store.rows("token") == []
    with contextlib.closing(CoordinatorStore(home)) as store:
        assert len(store.rows("token")) == 1


def test_what_is_under_way_aside_or_of_this_machine_alone_is_left_out(tmp_path: Path) -> None:
    home = tmp_path / "home"
    CoordinatorStore(home).close()
    (home / "blobs").mkdir()
    for name in ("name", "noise.key", "serving.lock", "storage-key", ".name.1f", "old.db.damaged-20261121-141144",
                 "blobs/a", "blobs/a.part", "blobs/b.part.0f0f", "left.jsonl"):  # fmt: skip
        (home / name).write_bytes(name.encode())
    assert set(backup(home, tmp_path / "a.tar", ABOUT)) == {
        "blobs/a",
        "coordinator.db",
        "left.jsonl",
        "name",
        "noise.key",
    }
    (home / "coordinator.db").rename(home / "agent.db")
    assert "noise.key" not in backup(home, tmp_path / "b.tar", ABOUT)
    with tarfile.open(tmp_path / "b.tar") as tar:
        manifest = tar.extractfile("manifest.json")
        assert manifest is not None
        assert json.loads(manifest.read())["files"].keys() == {*tar.getnames()} - {"manifest.json"}
    assert not list(home.glob(".backup-*"))


@pytest.mark.parametrize("at", [0, 5000, 20_000, 40_000])
def test_a_damaged_archive_is_refused_and_leaves_nothing(tmp_path: Path, at: int) -> None:
    CoordinatorStore(tmp_path / "home").close()
    archive = tmp_path / "a.tar"
    backup(tmp_path / "home", archive, ABOUT)
    body = bytearray(archive.read_bytes())
    body[at] ^= 0xFF
    for spoilt in (body, body[: len(body) // 2], body[:at]):
        archive.write_bytes(spoilt)
        refused = pytest.raises(StoreError, match="cannot be restored")
        with refused, restored(archive, tmp_path / "new", "coordinator"):
            pass
        assert {path.name for path in tmp_path.iterdir()} == {"home", "a.tar"}
