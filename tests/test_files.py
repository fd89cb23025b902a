"""Files that are written over, and those without a name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from hansa.files import Spares, mapped, writing


def inode(path: Path) -> int:
    return path.stat().st_ino


def test_a_spare_of_the_same_size_is_written_over(tmp_path: Path) -> None:
    spares, old = Spares(tmp_path / ".spare"), tmp_path / "old"
    old.write_bytes(b"abc")
    was = inode(old)
    spares.give([old])
    assert not old.exists()
    with writing(tmp_path / "other", spares=spares, size=2) as file:
        file.write(b"xy")
    with writing(tmp_path / "new", spares=spares, size=3) as file:
        file.write(b"xyz")
    assert [(path.name, path.read_bytes()) for path in sorted(tmp_path.glob("[a-z]*"))] == [
        ("new", b"xyz"),
        ("other", b"xy"),
    ]
    assert inode(tmp_path / "new") == was
    assert not spares.take(3, tmp_path / "another")


def test_what_could_not_be_written_whole_is_no_spare_any_more(tmp_path: Path) -> None:
    spares, old = Spares(tmp_path / ".spare"), tmp_path / "old"
    old.write_bytes(b"abc")
    spares.give([old])
    with pytest.raises(TypeError), writing(tmp_path / "new", spares=spares, size=3) as file:
        file.writelines([b"x", "no bytes"])
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_backup_has_linked_is_not_written_over(tmp_path: Path) -> None:
    spares, old, backup = Spares(tmp_path / ".spare"), tmp_path / "old", tmp_path / "backup"
    old.write_bytes(b"abc")
    os.link(old, backup)
    spares.give([old])
    assert not spares.take(3, tmp_path / "new")
    assert backup.read_bytes() == b"abc"


def test_what_somebody_still_reads_is_not_written_over(tmp_path: Path) -> None:
    spares, old = Spares(tmp_path / ".spare"), tmp_path / "old"
    for kept in (True, False):
        old.write_bytes(b"abc")
        read = np.frombuffer(mapped(old), np.uint8)[1:]
        if not kept:
            del read
        spares.give([old])
        assert spares.take(3, tmp_path / "new") is not kept
        assert not kept or bytes(read) == b"bc"


def test_a_file_that_became_a_spare_while_it_was_opened_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spares, old, fstat = Spares(tmp_path / ".spare"), tmp_path / "old", os.fstat
    old.write_bytes(b"abc")

    def swept(handle: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        spares.give([old])
        return fstat(handle)

    monkeypatch.setattr(os, "fstat", swept)
    with pytest.raises(FileNotFoundError):
        mapped(old)
    assert spares.take(3, tmp_path / "new")


def test_only_what_was_given_last_is_spare(tmp_path: Path) -> None:
    spares = Spares(tmp_path / ".spare")
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(name.encode())
        spares.give([tmp_path / name, tmp_path / "nothing is here"])
    assert not spares.take(len("first"), tmp_path / "new")
    spares.give()
    assert not spares.take(len("second"), tmp_path / "new")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_full_disk_says_for_which_file_it_had_no_room(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="operator") as full, writing(tmp_path / "operator.pem"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert full.value.filename == str(tmp_path / "operator.pem")
    assert not [*tmp_path.iterdir()]


def test_bytes_that_were_laid_stay_until_nobody_looks_at_a_piece_of_them(tmp_path: Path) -> None:
    spares = Spares(tmp_path / ".spare")
    first = np.frombuffer(spares.laid([b"first", b" body"]), np.uint8)[6:]
    second = spares.laid(iter([b"another and longer body"]))
    assert bytes(first) == b"body"
    del second
    assert len(spares._idle) == 1
    third = spares.laid([b"short"])
    assert (bytes(first), bytes(third)) == (b"body", b"short")
    assert not spares._idle
    del first, third
    assert len(spares._idle) == 2
    spares.give()
    assert not spares._idle


def test_a_file_without_a_name_that_could_not_be_written_is_let_go(tmp_path: Path) -> None:
    spares = Spares(tmp_path / ".spare")

    def broken() -> object:
        yield b"a piece"
        raise RuntimeError("broken")

    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    with pytest.raises(RuntimeError, match="broken"):
        spares.laid(broken())
    assert not spares._idle
    assert bytes(spares.laid([b"next"])) == b"next"
    spares.give()
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
