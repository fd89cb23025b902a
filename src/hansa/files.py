"""Writing a file whole or not at all."""

import os
import secrets
from contextlib import suppress
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make a rename in it durable, where folders can be opened (not on Windows)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def kept_key(path: Path) -> bytes:
    """The 32 secret bytes of a file; drawn, and written for its owner alone, the first time."""
    if not path.exists():
        write_whole(path, secrets.token_bytes(32), private=True)
    return path.read_bytes()


def write_whole(path: Path, data: bytes, *, private: bool = False) -> None:
    """Write a file so that readers, and a crash, find the old one or the new one, durably.

    Its folder is made if it is not there. A ``private`` file only its owner may read, where the system can say so.
    """
    path.parent.mkdir(0o700 if private else 0o777, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # Made with its mode: a chmod afterwards would leave a moment in which others can open it.
    mode = 0o600 if private else 0o666
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
