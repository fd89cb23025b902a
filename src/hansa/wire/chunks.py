"""Large bodies in chunks of 1 MiB, resumable by offset, checked by BLAKE3 at the end."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from hansa.errors import ContributionError, UnreachableError
from hansa.files import sync_folder
from hansa.wire.messages import Chunk
from hansa.wire.tensors import Buffer

if TYPE_CHECKING:
    from io import BufferedWriter

CHUNK = 1 << 20
"""Bytes in a chunk; a body of at most this size travels inline instead."""


def digest(data: Buffer) -> bytes:
    """BLAKE3 of ``data``, 32 bytes."""
    return blake3(data).digest()


def split(data: Buffer, offset: int = 0) -> Iterator[Chunk]:
    """``data`` from ``offset`` on, as chunks."""
    view = memoryview(data)
    for start in range(offset, len(view), CHUNK):
        yield Chunk(offset=start, data=bytes(view[start : start + CHUNK]))


class Receiver:
    """Takes the chunks of one body, in order, into memory or into a file.

    In a file they gather under ``NAME.part``; a receiver that is made again finds it there and goes on at its
    :attr:`offset`. The file appears under its own name when it is whole, verified and synced, never before.

    Args:
        size: bytes of the whole body, as declared; whether so many are allowed, the caller checks.
        digest: BLAKE3 of the whole body, as declared.
        path: where the file goes; None for memory, which is taken as bytes arrive.
    """

    def __init__(self, size: int, digest: bytes, path: Path | None = None) -> None:
        self.size, self._digest, self._path = size, digest, path
        self.offset, self._resumed = 0, False
        self._hash: Any = blake3()
        self._part = path.with_name(f"{path.name}.part") if path else None
        self._memory = bytearray()
        self._file: BufferedWriter | None = None
        if self._part:
            self._part.parent.mkdir(parents=True, exist_ok=True)
            self._part.touch(0o600)
            self._file = self._part.open("ab")
            found = self._part.stat().st_size
            if found > self.size:  # of another body: begin again
                self._file.truncate(0)
            elif found:
                self._hash.update_mmap(self._part)
                self.offset, self._resumed = found, True

    def accept(self, chunk: Chunk) -> None:
        """Take the next chunk; raises ContributionError: it does not continue what is here, or goes past the declared
        size.
        """
        if chunk.offset != self.offset:
            raise ContributionError(f"a chunk begins at {chunk.offset}, not at {self.offset}")
        if not chunk.data or len(chunk.data) > CHUNK:
            raise ContributionError(f"a chunk of {len(chunk.data)} bytes is none")
        if self.offset + len(chunk.data) > self.size:
            raise ContributionError(f"more arrives than the {self.size} bytes declared")
        if self._file:
            self._file.write(chunk.data)
        else:
            self._memory += chunk.data
        self._hash.update(chunk.data)
        self.offset += len(chunk.data)

    def finish(self) -> bytes | Path:
        """The body, or the path of its file: whole, verified, and durable.

        Raises:
            ContributionError: it is shorter than declared (and may be resumed), or its digest is
                another than declared (and what arrived is thrown away).
            UnreachableError: the digest is another one, and the beginning had been kept from an
                earlier transfer: that may have suffered, and all of it must be sent again.
        """
        self.close(sync=True)
        if self.offset != self.size:
            raise ContributionError(f"only {self.offset} of {self.size} bytes arrived")
        if not secrets.compare_digest(self._hash.digest(), self._digest):
            if self._part:
                self._part.unlink()
            if self._resumed:
                raise UnreachableError("what was kept of an earlier transfer is damaged; begin anew")
            raise ContributionError("what arrived is not what was declared: its digest differs")
        if not self._path or not self._part:
            return bytes(self._memory)
        self._part.replace(self._path)
        sync_folder(self._path.parent)
        return self._path

    def discard(self) -> None:
        """Let go of the file, and of what arrived."""
        self.close()
        if self._part:
            self._part.unlink(missing_ok=True)

    def close(self, *, sync: bool = False) -> None:
        """Let go of the file and keep its part, so that another receiver can go on."""
        file, self._file = self._file, None
        if file:
            with file:
                file.flush()
                if sync:
                    os.fsync(file.fileno())
