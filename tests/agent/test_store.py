"""What of an agent's secrets is on its disk, and for whom."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

import pytest
from blake3 import blake3

from hansa.agent.home import AgentHome
from hansa.agent.left import Left
from hansa.agent.machine import Settled
from hansa.agent.service import Agent
from hansa.agent.store import LARGE, AgentStore
from hansa.database import Drop, Put
from hansa.errors import StoreError
from hansa.secure.party import Seat
from hansa.secure.terms import Rules, Work, encode


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


@pytest.mark.parametrize("size", [40, 100_000])
def test_what_is_erased_is_in_neither_the_database_nor_its_journal(tmp_path: Path, size: int) -> None:
    store, place = AgentStore(tmp_path), {"run": "run", "attempt": 1}
    bodies = [secrets.token_hex(size).encode() for _ in range(4)]
    for body in bodies:
        store.apply([Put("seat", {**place, "body": body, "rules": b""})])
    found = on_disk(tmp_path)
    assert bodies[-1][-40:] in found
    store.apply([Drop("seat", place)], erase=True)
    found = on_disk(tmp_path)
    for body in bodies:
        assert body[:40] not in found
        assert body[-40:] not in found
    store.close()


async def test_secrets_of_a_seat_are_gone_from_the_disk_when_its_exchange_is_settled(tmp_path: Path) -> None:
    home = AgentHome(tmp_path, "bremen", "hanse", "127.0.0.1:1", b"", b"", b"")
    seat = Seat("run", "federation", 1, bytes.fromhex("65" * 32), work=Work(1, b"m" * 32, 5))
    store = AgentStore(tmp_path)
    rules = encode(Rules())
    store.apply([Put("seat", {"run": "run", "attempt": 1, "body": encode(seat), "rules": rules})])
    store.close()
    entropy = encode(seat).split(b'"entropy":"')[1][:40]
    assert entropy in on_disk(tmp_path)
    agent = Agent(home, [])
    assert agent._machine.pending == [("run", 0)]
    await agent._handle(Settled("run", 0, False))
    assert entropy not in on_disk(tmp_path)
    agent._left.close()
    agent._store.close()


@pytest.mark.skipif(os.name == "nt", reason="Windows has other permissions")
def test_nobody_else_may_read_a_folder_or_a_file_of_it(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        for folder in (tmp_path / "a", tmp_path / "b"):
            (AgentStore(folder) if folder.name == "a" else Left(folder / "left.jsonl")).close()
            for path in (folder, *folder.iterdir()):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        os.umask(umask)


def test_a_large_answer_is_in_its_file_before_its_row_and_over_the_one_before_the_last(tmp_path: Path) -> None:
    store, bodies, inodes = AgentStore(tmp_path), [bytes([n]) * LARGE for n in range(5)], list[int]()
    for version, body in enumerate(bodies):
        kept = store.keep([body[:9], body[9:]])
        assert kept == body
        assert store.digest(kept) == blake3(body).digest()
        dropped = [Drop("answer", {"run": "run", "version": version - 1})] if version else []
        held = {"run": "run", "version": version, "attempt": 1, "round": 1, "weight": 1.0, "body": kept, "memory": b""}
        store.apply([*dropped, Put("answer", held)])
        assert [row["body"] for row in store.rows("answer")] == [body]
        (file,) = (path for path in (tmp_path / "large").iterdir() if path.is_file())
        assert file.name == blake3(body).hexdigest()
        inodes.append(file.stat().st_ino)
    assert inodes[2:] == inodes[:3]
    assert store.keep([b"small", b" one"]) == b"small one"
    store.apply([Drop("answer", {"run": "run", "version": 4})])
    assert not [path for path in (tmp_path / "large").rglob("*") if path.is_file()]
    store.close()


def test_what_was_kept_and_not_asked_for_is_written_over(tmp_path: Path) -> None:
    store, rest = AgentStore(tmp_path), {"attempt": 1, "round": 1, "weight": 1.0, "memory": b""}
    first = store.keep([bytes(LARGE)])
    second = store.keep([bytes([1]) * LARGE])
    store.apply([Put("answer", {"run": "run", "version": 1, **rest, "body": first})])
    store.apply([Put("answer", {"run": "run", "version": 2, **rest, "body": second})])
    assert [row["body"] for row in store.rows("answer", "version")] == [bytes(LARGE), bytes([1]) * LARGE]
    store.close()


def test_a_large_answer_lies_in_a_file_that_its_row_names_and_that_goes_with_it(tmp_path: Path) -> None:
    def files() -> list[bytes]:
        return [path.read_bytes() for path in (tmp_path / "large").glob("*") if path.is_file()]

    store, large, other = AgentStore(tmp_path), bytes(LARGE), bytes([7]) * LARGE
    rest = {"attempt": 1, "round": 1, "weight": 1.0}
    held = {"run": "run", "version": 1, **rest, "body": large, "memory": other}
    store.apply([Put("answer", held)])
    assert sorted(files()) == [large, other]
    store.close()
    assert (tmp_path / "agent.db").stat().st_size < LARGE
    store = AgentStore(tmp_path)
    assert store.rows("answer") == [held]
    place = {"run": "run", "version": 1}
    store.apply([Put("memory", {"run": "run", "body": other}), Drop("answer", place)])
    assert files() == [other]
    store.apply([Put("memory", {"run": "run", "body": b"small"})])
    assert not files()
    store.apply([Put("answer", {**held, "memory": b""})])
    (tmp_path / "large" / blake3(large).hexdigest()).write_bytes(other)
    with pytest.raises(StoreError, match="is damaged"):
        store.rows("answer")
    store.close()
