"""Writing a file whole or not at all."""

import mmap
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
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


def mapped(path: Path) -> memoryview:
    """The bytes of a file, which come into memory as they are read."""
    with path.open("rb") as file:
        empty = not os.fstat(file.fileno()).st_size
        return memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def laid(folder: Path, pieces: Iterable[Any]) -> memoryview:
    """Some bytes, in a file without a name that is gone with them: in memory is what is looked at."""
    folder.mkdir(0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.writelines(pieces)
        file.flush()
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def unload(body: object) -> None:
    """Let what was read of a file that is `mapped` go from memory, where the system can be told."""
    if isinstance(body, memoryview) and isinstance(body.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        body.obj.madvise(mmap.MADV_DONTNEED)


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
def writing(path: Path, *, private: bool = False) -> Iterator[BinaryIO]:
    """A file to write into, which takes its place as `write_whole` says, at the end."""
    path.parent.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Made with its mode: a chmod afterwards would leave a moment in which others can open it.
    mode = 0o600 if private else 0o666
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
