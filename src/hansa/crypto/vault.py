"""What lies on a disk, sealed with AES-256-GCM under keys that lie elsewhere.

A sealed body is a mark, the name of the key, 32 random bytes, and chunks under a key of this body's own: HKDF of the
storage key, bound to those bytes and to the body's place (its row and column, or its file). A chunk's nonce is its
number and whether it is the last: STREAM (Hoang, Reyhanitabar, Rogaway and Vizár 2015, eprint 2015/189). So no nonce
comes twice under a key, and what is cut, swapped or changed does not open. An older body of the same place does."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path

from hansa.crypto.agreement import KEY, TAG, derive, digest, seal, unseal
from hansa.errors import StoreError, UsageError
from hansa.files import write_whole

Buffer = bytes | bytearray | memoryview

VARIABLE = "HANSA_STORAGE_KEY"
REMEMBERED = "storage-key"  # a file in a folder that says where the file with its keys lies
KEYS = ("identity.key", "noise.key", "lobby.seed", "party.pem", "authority.key")
"""Files that are sealed, if they are there; the last one when all else is."""
MARK, CHUNK = b"\xffhansa1\n", 1 << 20
_NAME, _HEAD = len(MARK) + 8, len(MARK) + 8 + KEY


class DamagedError(StoreError):
    """What lies there is not what was written."""


class Vault:
    """Seals under the first of its keys and opens under any; without a key it takes and gives everything as it is.

    Args:
        keys: 32 bytes each.
        who: the program that it is for, to name its commands."""

    def __init__(self, keys: Iterable[bytes] = (), who: str = "agent") -> None:
        self._keys = {digest(b"name of a storage key", key)[:8]: key for key in keys}
        self._passing = secrets.token_bytes(KEY)
        self._who, self.lenient = who, not self._keys  # about what is not sealed: while it is to be

    def __bool__(self) -> bool:
        return bool(self._keys)

    @classmethod
    def of(cls, folder: Path, file: Path | None = None, anew: bool = False) -> Vault:
        """Under the keys for a folder: in a file, which it remembers once they opened what is there, or in the
        environment (`VARIABLE`). It is lenient if all is to be sealed ``anew``, and was not. Raises UsageError: they
        cannot be read, or are none; StoreError: those of a file do not open the folder."""
        who, remembered = "coordinator" if (folder / "authority.key").exists() else "agent", folder / REMEMBERED
        names = KEYS if who == "coordinator" else KEYS[:2] + KEYS[3:]  # a seed alone is of a start that was cut short
        sealed = [path for path in (folder / name for name in names) if os.access(path, os.R_OK)]
        source, said = file or VARIABLE, "" if file else os.environ.get(VARIABLE, "")
        try:
            if not said and (file or remembered.exists()):
                source = file or Path(remembered.read_text(encoding="utf-8"))
                said = source.read_text(encoding="ascii")
            keys = [base64.b64decode(line, validate=True) for line in said.split()]
            if any(len(key) != KEY for key in keys) or (file and not keys):
                raise ValueError
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or "a key is 32 bytes in base64, on a line of its own"
            remedy = f"Make one with `openssl rand -base64 32`, and name its file with --key-file or set {VARIABLE}"
            if remembered.exists() or any(path.read_bytes().startswith(MARK) for path in sealed):
                remedy = f"Only the key that encrypted it opens it: name its file with --key-file, or set {VARIABLE}"
            what = f"the storage key of {folder} cannot be read from {source}: {why}"
            raise UsageError(what, remedy=remedy) from None
        vault = cls(keys, who)
        vault.lenient |= anew and not any(path.read_bytes().startswith(MARK) for path in sealed[-1:])
        if file is not None:
            for path in sealed:
                vault.read(path)
            write_whole(remembered, str(file.expanduser().resolve()).encode(), private=True)
        return vault

    def seal(self, body: Buffer, *place: str | int) -> Iterator[Buffer]:
        """A body for its place, in pieces."""
        for name, key in [*self._keys.items()][:1]:
            yield (head := MARK + name + secrets.token_bytes(KEY))
            own, rest = _own(key, head, place), memoryview(body)
            for at in range(0, len(rest) or 1, CHUNK):
                yield seal(own, _number(at, CHUNK, len(rest)), rest[at : at + CHUNK], head)
        if not self._keys:
            yield body

    def open(self, sealed: Buffer, *place: str | int) -> Buffer:
        """What :meth:`seal` sealed for this place; raises DamagedError: it was not, or is no longer what it was; or
        StoreError: it is under another key, or should be sealed and is not."""
        head, where = bytes(sealed[:_HEAD]), "/".join(map(str, place))
        if not head.startswith(MARK):
            if self.lenient:
                return sealed
            remedy = f"If it never was, stop the program and say `hansa {self._who} rekey`: it seals everything"
            raise StoreError(f"{where} is not encrypted, and a storage key was given", remedy=remedy)
        key = self._keys.get(head[len(MARK) : _NAME])
        if key is None:
            what = "with another storage key" if self._keys else "and no storage key was given"
            remedy = f"Start it with the file of its keys, --key-file FILE, or set {VARIABLE}"
            raise StoreError(f"{where} is encrypted, {what}", remedy=remedy)
        own, rest, text = _own(key, head, place), memoryview(sealed)[_HEAD:], BytesIO()
        for at in range(0, len(rest) or 1, CHUNK + TAG):
            part = unseal(own, _number(at, CHUNK + TAG, len(rest)), rest[at : at + CHUNK + TAG], head)
            if part is None:
                remedy = f"Restore the folder from a backup: hansa {self._who} restore"
                raise DamagedError(f"{where} is damaged, or was put in the place of another", remedy=remedy)
            text.write(part)
        return text.getvalue()

    def passing(self, *place: str | int) -> bytes:
        """A key for what only passes a place on the disk, known to this program alone; without keys it is empty."""
        return _own(self._passing, b"", place) if self else b""

    def read(self, path: Path) -> bytes:
        """The bytes of a file, which is bound to its name."""
        return bytes(self.open(path.read_bytes(), path.name))

    def write(self, path: Path, body: Buffer) -> None:
        """Write a file whole, for its owner alone."""
        write_whole(path, b"".join(self.seal(body, path.name)), private=True)


def kept_key(path: Path) -> bytes:
    """The 32 secret bytes of a file; drawn, and written for its owner alone, the first time. Raises StoreError: it
    holds something else."""
    vault = Vault.of(path.parent)
    if not path.exists():
        vault.write(path, secrets.token_bytes(KEY))
    if len(key := vault.read(path)) != KEY:
        remedy = f"Restore the folder from a backup: hansa {vault._who} restore"
        raise DamagedError(f"{path} is damaged: it holds {len(key)} bytes, and a key has {KEY}", remedy=remedy)
    return key


def _own(key: bytes, head: bytes, place: Iterable[str | int]) -> bytes:
    """The key of one body."""
    return derive(key, digest(b"at rest", head, *(str(part).encode() for part in place)), b"storage")


def _number(at: int, step: int, size: int) -> int:
    """What tells the chunk at an offset from all others of its body, and the last from any before it."""
    return (at // step) << 1 | (at + step >= size)
