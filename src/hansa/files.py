"""Writing a file whole or not at all."""

import errno
import mmap
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO


def sync_folder(folder: Path) -> None:
    """Make a rename in it durable, where folders can be opened (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


_MAPS: dict[object, int] = {}  # the inodes of files that are mapped now


def mapped(path: Path) -> memoryview:
    """The bytes of a file, which come into memory as they are read."""
    with path.open("rb") as file:
        if not (found := os.fstat(file.fileno())).st_size:
            return memoryview(b"")
        _MAPS[key := object()] = found.st_ino
        try:
            if path.stat().st_ino != found.st_ino:  # it became a spare before it was known here
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except BaseException:
            del _MAPS[key]
            raise
    weakref.finalize(whole, _MAPS.pop, key)
    return memoryview(whole)


def unload(body: object) -> None:
    """Let what was read of a file that is `mapped` go from memory, where the system can be told."""
    if isinstance(body, memoryview) and isinstance(body.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        body.obj.madvise(mmap.MADV_DONTNEED)


class Spares:
    """Files that nobody needs any more, to be written over: where large ones come and go, new room for each costs more
    than its bytes do."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files, self._idle = folder, dict[int, list[Path]](), list[int]()

    def give(self, paths: Sequence[Path] = ()) -> None:
        """Keep these, and no longer what was there; one that is still `mapped` here, or in a backup, just goes."""
        shutil.rmtree(self._folder, ignore_errors=True)
        while len(self._idle) > (_NAMELESS if paths else 0):
            os.close(self._idle.pop())
        files = dict[int, list[Path]]()
        for path in paths:
            with suppress(OSError):
                self._folder.mkdir(0o700, parents=True, exist_ok=True)
                found = (kept := path.replace(self._folder / path.name)).stat()
                if found.st_nlink == 1 and found.st_ino not in [*_MAPS.values()]:
                    files.setdefault(found.st_size, []).append(kept)
        self._files = files

    def take(self, size: int, path: Path) -> bool:
        """Let one of this size be the file ``path``; whether there was one."""
        with suppress(LookupError, OSError):
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            return bool(self._files[size].pop().replace(path))
        return False

    def laid(self, pieces: Iterable[Any]) -> memoryview:
        """Some bytes, in a file without a name: in memory is what is looked at. Then the file is a spare."""
        (folder := self._folder.parent).mkdir(0o700, parents=True, exist_ok=True)
        handle = self._idle.pop() if self._idle else _nameless(folder)
        try:
            with os.fdopen(handle, "r+b", closefd=False) as file:
                file.seek(0)
                file.writelines(pieces)
                file.truncate()
            whole = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        except BaseException:
            os.close(handle)
            raise
        weakref.finalize(whole, self._idle.append, handle)
        return memoryview(whole)


_NAMELESS = 2  # spare files without a name that are kept


def _nameless(folder: Path) -> int:
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.dup(file.fileno())


def set_aside(path: Path) -> Path:
    """Rename what is damaged, to be looked at and never used; its new name."""
    kept = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    with suppress(OSError):
        path.replace(kept)
    return kept


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that readers, and a crash, find the old one or the new one, durably. Its folder is made if it is
    not there. A ``private`` file only its owner may read, where the system can say so."""
    with writing(path, private=private) as file:
        file.write(data)


@contextmanager
def writing(path: Path, *, private: bool = False, spares: Spares | None = None, size: int = 0) -> Iterator[BinaryIO]:
    """A file to write into, which takes its place as `write_whole` says, at the end. It may be one of the ``spares``,
    where all of its ``size`` is to be written."""
    path.parent.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Made with its mode: a chmod afterwards would leave a moment in which others can open it.
    mode = 0o600 if private else 0o666
    fresh = 0 if spares and spares.take(size, part) else os.O_CREAT | os.O_EXCL
    handle = os.open(part, os.O_WRONLY | fresh | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk does not say what it had no room for
        raise
