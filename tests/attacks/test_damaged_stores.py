"""Disks that forget, and hands that change what lies on them: a store says so, or gives what was kept."""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hansa.agent.store import AgentStore
from hansa.coordinator import store as coordinator
from hansa.coordinator.store import CoordinatorStore
from hansa.crypto.vault import MARK, VARIABLE
from hansa.database import Put
from hansa.errors import StoreError

LONG = bool(os.environ.get("HANSA_LONG"))
ANSWER = {"attempt": 1, "round": 1, "weight": 2.0}
BODIES = {("r", version): secrets.token_bytes(700) for version in range(6)}


@pytest.fixture(params=["plain", "encrypted"])
def encrypted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "encrypted":
        monkeypatch.setenv(VARIABLE, base64.b64encode(secrets.token_bytes(32)).decode())
    return bool(request.param == "encrypted")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The database of an agent with answers, closed."""
    with contextlib.closing(AgentStore(tmp_path / "agent")) as store:
        for (run, version), body in BODIES.items():
            row = {"run": run, "version": version, **ANSWER, "body": body, "memory": body[:9]}
            store.apply([Put("answer", row), Put("memory", {"run": f"{run}{version}", "body": body})])
    (tmp_path / "agent" / "party.json").write_bytes(b"{}")
    return tmp_path / "agent" / "agent.db"


def found(path: Path) -> list[dict[str, Any]]:
    with contextlib.closing(AgentStore(path.parent)) as store:
        for table in ("memory", "latest", "charge", "seat", "member", "rule"):
            store.rows(table)
        return store.rows("answer", "version")


def spoilt(path: Path, change: Callable[[bytearray], object]) -> Iterator[bytes]:
    """What comes of a copy that was changed: nothing, if it was refused."""
    body = bytearray(path.read_bytes())
    change(body)
    folder = path.parent.parent / secrets.token_hex(4)
    folder.mkdir()
    (folder / "agent.db").write_bytes(body)
    (folder / "party.json").write_bytes(b"{}")
    with contextlib.suppress(StoreError):
        yield from (row["body"] for row in found(folder / "agent.db"))
    shutil.rmtree(folder)


def test_a_byte_that_was_flipped_anywhere_is_no_other_answer(encrypted: bool, filled: Path) -> None:
    size, known, refused = filled.stat().st_size, set(BODIES.values()), 0
    assert set(spoilt(filled, lambda body: None)) == known
    positions = range(0, size, 61 if LONG else 997)
    for at in [*range(0, 100, 1 if LONG else 7), *positions]:

        def flip(body: bytearray, at: int = at) -> None:
            body[at] ^= 0x55

        got = list(spoilt(filled, flip))
        refused += not got
        assert set(got) <= known or not encrypted, at
    assert refused


def test_a_database_that_was_cut_is_set_aside(filled: Path) -> None:
    size = filled.stat().st_size
    for length in {0, 1, 99, 100, 4096, size // 2, size // 2 // 4096 * 4096, size - 4096}:
        assert not list(spoilt(filled, lambda body, length=length: body.__delitem__(slice(length, None)))), length
    os.truncate(filled, size // 2)
    with pytest.raises(StoreError, match=r"agent\.db is damaged .* set aside as agent\.db\.damaged-\d+.*restore"):
        found(filled)
    assert not filled.exists()
    with pytest.raises(StoreError, match=r"was damaged, and set aside as agent\.db\.damaged-"):
        found(filled)


def changed(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for statement in statements:
            database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE answer SET body = (SELECT body FROM answer WHERE version = 2) WHERE version = 1",
        "UPDATE answer SET body = memory WHERE version = 1",
        "UPDATE answer SET version = 9 WHERE version = 1",
        "UPDATE answer SET run = 'other' WHERE version = 1",
        "UPDATE answer SET body = (SELECT body FROM memory WHERE run = 'r1') WHERE version = 1",
        "UPDATE answer SET body = substr(body, 1, 600) WHERE version = 1",
        "UPDATE answer SET body = zeroblob(700) WHERE version = 1",
        "UPDATE answer SET body = x'' WHERE version = 1",
    ],
)
def test_what_was_swapped_between_rows_does_not_open(
    filled: Path, statement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, base64.b64encode(bytes(32)).decode())
    with contextlib.closing(AgentStore(filled.parent)) as store:
        store.vault.lenient = True
        store.rekey()
    assert len(found(filled)) == len(BODIES)
    changed(filled, statement)
    with pytest.raises(StoreError, match=r"answer/(body|memory)/\w+/\d is (damaged|not encrypted)"):
        found(filled)


def test_blobs_that_were_swapped_cut_or_flipped_are_set_aside(
    tmp_path: Path, encrypted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "INLINE", 16)
    bodies = {version: secrets.token_bytes(5000) for version in range(8)}
    with contextlib.closing(CoordinatorStore(tmp_path)) as store:
        for version, body in bodies.items():
            store.apply([store.blob("r", version, "ask", body)])
        paths = {version: next((tmp_path / "blobs/r" / str(version)).iterdir()) for version in bodies}
        assert all(path.read_bytes().startswith(MARK) == encrypted for path in paths.values())
        whole = {version: path.read_bytes() for version, path in paths.items()}
        paths[0].write_bytes(whole[1])
        paths[1].write_bytes(whole[0])
        paths[2].write_bytes(whole[2][:-1])
        paths[3].write_bytes(b"")
        paths[4].write_bytes(whole[4][:100] + bytes([whole[4][100] ^ 1]) + whole[4][101:])
        paths[5].write_bytes(whole[5] + b"\0")
        for version in range(6):
            with pytest.raises(StoreError, match=rf"{paths[version].name} is damaged, and was set aside|not encrypted"):
                store.read_blob("r", version, "ask")
            assert not paths[version].exists() or (encrypted and version == 3)
        assert [store.read_blob("r", version, "ask") for version in (6, 7)] == [bodies[6], bodies[7]]


def test_everything_is_under_the_first_key_when_it_was_sealed_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator, "INLINE", 16)
    first, second = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    body = secrets.token_bytes(100)
    with contextlib.closing(CoordinatorStore(tmp_path)) as store:
        rows = [store.blob("r", 1, "ask", body), store.blob("r", 1, "small", b"in the row")]
        store.apply([*rows, Put("run", {"id": "r", "federation": b"{study}"})])
    for keys, plain in ((first, True), (f"{second}\n{first}", False), (second, False)):
        monkeypatch.setenv(VARIABLE, keys)
        with contextlib.closing(CoordinatorStore(tmp_path)) as store:
            if plain:
                with pytest.raises(StoreError, match="not encrypted"):
                    store.read_blob("r", 1, "ask")
            store.vault.lenient = plain
            if keys != second:
                store.rekey()
            assert store.read_blob("r", 1, "ask") == body
            assert store.read_blob("r", 1, "small") == b"in the row"
            assert store.run("r")["federation"] == b"{study}"
            everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
            assert not any(secret in everything for secret in (body, b"in the row", b"{study}"))
    monkeypatch.setenv(VARIABLE, first)
    with (
        contextlib.closing(CoordinatorStore(tmp_path)) as store,
        pytest.raises(StoreError, match="another storage key"),
    ):
        store.read_blob("r", 1, "ask")
