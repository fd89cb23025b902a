"""The coordinator's folder: made once, read again, its operator's key renewed in time."""

from __future__ import annotations

import datetime as dt
import os
import sys
from pathlib import Path

import pytest

from hansa.coordinator import home as module
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.store import INLINE, CoordinatorStore
from hansa.crypto import pki
from hansa.errors import StoreError, UnreachableError
from hansa.wire.operator import OperatorKeys


def test_a_folder_is_made_once_and_stays_the_same(tmp_path: Path) -> None:
    first = CoordinatorHome.open(tmp_path / "c", "hanse")
    again = CoordinatorHome.open(tmp_path / "c", "another")
    assert again.name == "hanse"
    assert again.lobby_seed == first.lobby_seed
    assert again.authority.certificate_pem == first.authority.certificate_pem


def test_a_folder_without_a_part_is_named_and_never_made_anew(tmp_path: Path) -> None:
    CoordinatorHome.open(tmp_path / "c", "hanse")
    (tmp_path / "c" / "lobby.seed").unlink()
    with pytest.raises(StoreError, match="incomplete"):
        CoordinatorHome.open(tmp_path / "c", "hanse")


def test_a_name_that_was_garbled_is_named(tmp_path: Path) -> None:
    CoordinatorHome.open(tmp_path, "hanse")
    (tmp_path / "name").write_bytes(b"\xff\xfe")
    with pytest.raises(StoreError, match=r"name is damaged.*hansa coordinator restore"):
        CoordinatorHome.open(tmp_path, "hanse")


def test_a_database_that_is_gone_is_not_begun_anew(tmp_path: Path) -> None:
    home = CoordinatorHome.open(tmp_path, "hanse")
    CoordinatorStore(tmp_path).close()
    home.write_address("fl.example.org:8443", "127.0.0.1:8443")
    CoordinatorStore(tmp_path).close()
    for path in tmp_path.glob("coordinator.db*"):
        path.unlink()
    with pytest.raises(StoreError, match=r"coordinator\.db is missing.*hansa coordinator restore.*--database"):
        CoordinatorStore(tmp_path)
    assert not (tmp_path / "coordinator.db").exists()


def test_the_folder_of_an_agent_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "party.json").write_text("{}")
    (tmp_path / "authority.pem").write_bytes(b"of the coordinator that it joined")
    with pytest.raises(StoreError, match="is an agent's") as caught:
        CoordinatorHome.open(tmp_path, "hanse")
    assert str(tmp_path) in caught.value.message
    assert "--home" in caught.value.remedy
    assert (tmp_path / "authority.pem").read_bytes() == b"of the coordinator that it joined"
    assert not (tmp_path / "authority.key").exists()


def test_a_folder_that_lost_its_key_is_never_given_another_authority(tmp_path: Path) -> None:
    first = CoordinatorHome.open(tmp_path / "c", "hanse")
    (tmp_path / "c" / "coordinator.db").touch()
    (tmp_path / "c" / "authority.key").unlink()
    with pytest.raises(StoreError):
        CoordinatorHome.open(tmp_path / "c", "hanse")
    kept = (tmp_path / "c" / "authority.pem").read_bytes()
    assert kept == first.authority.certificate_pem


def test_a_first_start_that_was_cut_short_begins_again(tmp_path: Path) -> None:
    CoordinatorHome.open(tmp_path / "c", "hanse")
    (tmp_path / "c" / "authority.key").unlink()
    assert CoordinatorHome.open(tmp_path / "c", "hanse").name == "hanse"


def test_the_operators_certificate_is_renewed_when_it_is_due_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = CoordinatorHome.open(tmp_path, "hanse")
    home.write_address("fl.example.org:8443", "127.0.0.1:8443")
    monkeypatch.setattr(module, "OPERATOR_LIFETIME", dt.timedelta(minutes=2))
    home.renew_operator()
    due = OperatorKeys.read(tmp_path)
    assert pki.renewal_due(due.certificate_pem)
    monkeypatch.undo()
    home.renew_operator()
    fresh = OperatorKeys.read(tmp_path)
    assert fresh.certificate_pem != due.certificate_pem
    assert pki.identify(fresh.certificate_pem, home.authority.public_key).role == pki.OPERATOR
    home.renew_operator()
    assert OperatorKeys.read(tmp_path) == fresh


def test_a_folder_in_which_nothing_was_started_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match="no coordinator was started"):
        OperatorKeys.read(tmp_path)


def test_an_operators_file_without_a_certificate_is_none(tmp_path: Path) -> None:
    home = CoordinatorHome.open(tmp_path, "hanse")
    home.write_address("fl.example.org:8443", "127.0.0.1:8443")
    (tmp_path / "operator.pem").write_bytes(b"cut short")
    with pytest.raises(UnreachableError, match="no coordinator was started"):
        OperatorKeys.read(tmp_path)


def test_a_damaged_authority_is_named_before_anything_is_sent(tmp_path: Path) -> None:
    home = CoordinatorHome.open(tmp_path, "hanse")
    home.write_address("fl.example.org:8443", "127.0.0.1:8443")
    home.renew_operator()
    (tmp_path / "authority.pem").write_bytes(b"garbled")
    with pytest.raises(StoreError, match=r"authority\.pem is damaged") as caught:
        OperatorKeys.read(tmp_path)
    assert "hansa coordinator restore" in caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="modes are those of POSIX")
def test_nobody_else_on_the_machine_reads_what_it_keeps(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = CoordinatorHome.open(tmp_path / "c", "hanse").folder
        store = CoordinatorStore(folder)
        store.apply([store.blob("run", 0, "answer bremen", bytes(INLINE + 1))])
        store.close()
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o077 == 0
    [blob] = [path for path in (folder / "blobs").rglob("*") if path.is_file()]
    assert blob.stat().st_mode & 0o077 == 0
    for path in folder.glob("*.db*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_folder_is_synced_once_for_all_its_blobs_and_before_a_row_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, happened = CoordinatorStore(tmp_path), list[object]()
    monkeypatch.setattr("hansa.coordinator.store.sync_folder", happened.append)
    monkeypatch.setattr(store, "_execute", lambda connection, change: happened.append("row"))
    try:
        store.apply([store.blob("run", 0, f"answer {name}", bytes(INLINE + 1)) for name in ("bremen", "köln", "上海")])
        assert {*happened[:3]} == {tmp_path / "blobs", tmp_path / "blobs" / "run", tmp_path / "blobs" / "run" / "0"}
        assert happened[3:] == ["row"] * 3
        store.apply([])
        assert len(happened) == 6  # nothing is left to sync
    finally:
        store.close()
