"""Large bodies in chunks of 1 MiB, resumable by offset, checked by BLAKE3 at the end."""

from __future__ import annotations

import errno
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from functools import reduce
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from hansa.crypto import masks
from hansa.errors import ContributionError, UnreachableError
from hansa.files import mapped
from hansa.wire.messages import Chunk
from hansa.wire.tensors import Buffer

INLINE = 1 << 16
"""Bytes of a body that travels in one message with what is said of it; a larger one comes in chunks, in its turn."""

CHUNK = 1 << 20  # bytes in a chunk; a body of at most this size travels inline instead


def digest(*data: Buffer) -> bytes:
    """BLAKE3 of ``data``, one after the other, 32 bytes."""
    return bytes(reduce(lambda hashed, piece: hashed.update(piece), data, blake3()).digest())


def split(data: Buffer, offset: int = 0) -> Iterator[bytes]:
    """``data`` from ``offset`` on, as chunks: messages that are serialised already, each byte copied once."""
    view = memoryview(data)
    for start in range(offset, len(view), CHUNK):
        body = view[start : start + CHUNK]
        yield b"".join((Chunk(offset=start).SerializeToString(), _tagged(_DATA, len(body)), body))


def uploaded(chunk: bytes) -> bytes:
    """An UploadPart that is this chunk."""
    return b"".join((_tagged(_CHUNK, len(chunk)), chunk))


_DATA, _CHUNK = 2, 2  # the numbers of Chunk.data and UploadPart.chunk


def _tagged(field: int, size: int) -> bytes:
    """What stands before the bytes of a field in a message of protobuf's: its number and kind, and how many."""
    out = [field << 3 | 2]
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


class Receiver:
    """Takes the chunks of one body, in order, into memory or into a file.

    A receiver that is made again finds what had gathered in the file and goes on at its :attr:`offset`. Chunks may
    be taken in another thread than it is closed in.

    Args:
        size: bytes of the whole body, as declared; whether so many are allowed, the caller checks.
        digest: BLAKE3 of the whole body, as declared.
        path: the file; None for memory, which is taken as bytes arrive.
        key: hides what is in the file, and is not to come twice with another body (`hansa.crypto.masks.opened`)."""

    def __init__(self, size: int, digest: bytes, path: Path | None = None, key: bytes = b"") -> None:
        self.size, self._digest, self._path = size, digest, path
        self.offset, self._resumed = 0, False
        self._hash: Any = blake3()
        self._memory = np.empty(0 if path else size, np.uint8).data
        self._file: FileIO | None = None
        self._lock = threading.Lock()
        self._hide: Callable[[Buffer], Buffer] = masks.opened(key).update if key else lambda data: data
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(0o600)
            self._file = path.open("ab", buffering=0)
            found = path.stat().st_size
            if found > self.size:  # of another body: begin again
                self._file.truncate(0)
            elif found:
                self._hash.update(self._hide(mapped(path)))
                self.offset, self._resumed = found, True

    def accept(self, chunk: Chunk) -> None:
        """Take the next chunk; raises ContributionError: it does not continue what is here, or goes past the declared
        size; or OSError: the file cannot take it, or was closed."""
        data = chunk.data  # each look at it is a copy
        end = self.offset + len(data)
        if chunk.offset != self.offset:
            raise ContributionError(f"a chunk begins at {chunk.offset}, not at {self.offset}")
        if not data or len(data) > CHUNK:
            raise ContributionError(f"a chunk of {len(data)} bytes is none")
        if end > self.size:
            raise ContributionError(f"more arrives than the {self.size} bytes declared")
        with self._lock:
            if not self._path:
                self._memory[self.offset : end] = data
            elif self._file is None or self._file.write(self._hide(data)) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._hash.update(data)
            self.offset = end

    def finish(self) -> memoryview | Path:
        """The body, or the path of its file: whole, verified, and its bytes durable.

        Raises ContributionError: it is shorter than declared (and may be resumed), or its digest is another than
        declared (and what arrived is thrown away); UnreachableError: the digest is another one, and the beginning had
        been kept from an earlier transfer: that may have suffered, and all of it must be sent again."""
        self.close(sync=True)
        if self.offset != self.size:
            raise ContributionError(f"only {self.offset} of {self.size} bytes arrived")
        if not secrets.compare_digest(self._hash.digest(), self._digest):
            if self._path:
                self._path.unlink()
            if self._resumed:
                raise UnreachableError("what was kept of an earlier transfer is damaged; begin anew")
            raise ContributionError("what arrived is not what was declared: its digest differs")
        return self._path or self._memory.toreadonly()

    def discard(self) -> None:
        """Let go of the file, and of what arrived."""
        self.close()
        if self._path:
            self._path.unlink(missing_ok=True)

    def close(self, *, sync: bool = False) -> None:
        """Let go of the file and keep its part, so that another receiver can go on."""
        with self._lock:
            file, self._file = self._file, None
            if file:
                with file:
                    if sync:
                        os.fsync(file.fileno())
