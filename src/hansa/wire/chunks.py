"""Large bodies in chunks of 1 MiB, resumable by offset, checked by BLAKE3 at the end."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

from blake3 import blake3

from hansa.crypto import masks
from hansa.errors import ContributionError, UnreachableError
from hansa.memory import lent
from hansa.tensors import Buffer

INLINE = 1 << 16
"""Bytes of a body that travels in one message with what is said of it; a larger one comes in chunks, in its turn."""

CHUNK = 1 << 20  # most bytes in a chunk


def split(data: Buffer, offset: int = 0) -> Iterator[bytes]:
    """``data`` from ``offset`` on, as chunks: messages that hold nothing else."""
    view = memoryview(data)
    for start in range(offset, len(view), CHUNK):
        yield bytes(view[start : start + CHUNK])


_COUNT = 8  # bytes behind a body that is not whole in its file yet: how many of it are there


class Receiver:
    """Takes the chunks of one body, in order, into memory or into a file.

    A receiver that is made again finds what had gathered in the file and goes on at its :attr:`offset`; a file of just
    its size is written over. Chunks may be taken in another thread than it is closed in.

    Args:
        size: bytes of the whole body, as declared; whether so many are allowed, the caller checks.
        digest: BLAKE3 of the whole body, as declared.
        path: the file; None for memory, which is taken as bytes arrive.
        key: hides what is in the file, and is not to come twice with another body (`hansa.crypto.masks.opened`)."""

    def __init__(self, size: int, digest: bytes, path: Path | None = None, key: bytes = b"") -> None:
        self.size, self._digest, self._path = size, digest, path
        self.offset, self._behind, self._resumed, self._placed = 0, 0, False, False
        self._hash: Any = blake3()
        self._memory = lent(0 if path else size)
        self._file: FileIO | None = None
        self._lock = threading.Lock()
        self._hide: Callable[[Buffer], Buffer] = masks.opened(key).update if key else lambda data: data
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            self._file = path.open("r+b", buffering=0)
            self._placed = (found := path.stat().st_size) == size  # a spare, to be written over
            self._file.truncate(size + _COUNT)
            if (
                found == size + _COUNT
                and (there := int.from_bytes(os.pread(self._file.fileno(), _COUNT, size), "little")) <= size
            ):
                self.offset, self._resumed = there, there > 0
            self._behind = self.offset  # bytes that are yet to be hashed: with the next chunk, in its thread

    @property
    def lacking(self) -> int:
        """Bytes for which the disk must still find room."""
        return 0 if self._placed else self.size - self.offset

    def accept(self, data: bytes) -> None:
        """Take the next chunk; raises ContributionError: it is empty or too long, or goes past the declared size; or
        OSError: the file cannot take it, or was closed."""
        end = self.offset + len(data)
        if not data or len(data) > CHUNK:
            raise ContributionError(f"a chunk of {len(data)} bytes is none")
        if end > self.size:
            raise ContributionError(f"more arrives than the {self.size} bytes declared")
        self._catch_up()
        with self._lock:
            if not self._path:
                self._memory[self.offset : end] = data
            elif self._file is None or self._file.write(self._hide(data)) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            else:  # a crash finds no more counted than is there
                self._file.seek(self.size)
                self._file.write(end.to_bytes(_COUNT, "little"))
                self._file.seek(end)
            self._hash.update(data)
            self.offset = end

    def finish(self) -> memoryview | Path:
        """The body, or the path of its file: whole, verified, and its bytes durable.

        Raises ContributionError: it is shorter than declared (and may be resumed), or its digest is another than
        declared (and what arrived is thrown away); UnreachableError: the digest is another one, and the beginning had
        been kept from an earlier transfer: that may have suffered, and all of it must be sent again."""
        self._catch_up()
        self.close(whole=self.offset == self.size)
        if self._behind:  # another receiver has the file now
            raise UnreachableError("the transfer was broken off; it may be resumed")
        if self.offset != self.size:
            raise ContributionError(f"only {self.offset} of {self.size} bytes arrived")
        if not secrets.compare_digest(self._hash.digest(), self._digest):
            if self._path:
                self._path.unlink()
            if self._resumed:
                raise UnreachableError("what was kept of an earlier transfer is damaged; begin anew")
            raise ContributionError("what arrived is not what was declared: its digest differs")
        return self._path or self._memory.toreadonly()

    def _catch_up(self) -> None:
        """Hash what an earlier transfer left, read and not mapped: another receiver may cut it short meanwhile."""
        while self._behind:
            with self._lock:
                if not self._file or not (data := self._file.read(min(self._behind, CHUNK))):
                    return
                self._hash.update(self._hide(data))
                self._behind -= len(data)

    def discard(self) -> None:
        """Let go of the file, and of what arrived."""
        self.close()
        if self._path:
            self._path.unlink(missing_ok=True)

    def close(self, *, whole: bool = False) -> None:
        """Let go of the file; keep its part, so that another receiver can go on, or the body, durably."""
        with self._lock:
            file, self._file = self._file, None
            if file:
                with file:
                    if whole:
                        file.truncate(self.size)
                        os.fsync(file.fileno())
