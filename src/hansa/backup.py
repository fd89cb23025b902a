"""A program's folder as it stood at one moment, in one file with the hash of every member.

The key that a party's noise is drawn under is left out: who comes back from a backup draws another, and no noise twice.
A coordinator, which may share its key with one that stands by, lets its runs go on under new names."""

import json
import os
import re
import secrets
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from blake3 import blake3

from hansa.errors import StoreError
from hansa.files import writing

MANIFEST = "manifest.json"
LEFT_OUT = re.compile(r"\..*|storage-key|serving\.lock|.*(-wal|-shm|-journal|\.part(\.\w+)?|\.damaged-[-0-9]+)")


def backup(folder: Path, archive: Path, about: dict[str, str]) -> dict[str, str]:
    """Write what a program keeps into one tar file, private and whole, whether it runs or not; the hash of each file.
    Raises StoreError: a database is damaged, or busy for a minute; or OSError: the archive cannot be written."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".backup-") as name, writing(archive, private=True) as file:
        frozen, hashes = Path(name), dict[str, str]()
        _freeze(folder, frozen)
        with tarfile.open(fileobj=file, mode="w") as tar:
            for path in sorted(path for path in frozen.rglob("*") if path.is_file()):
                member = path.relative_to(frozen).as_posix()
                hashes[member] = blake3().update_mmap(path).hexdigest()
                tar.add(path, member)
            (frozen / MANIFEST).write_text(json.dumps({**about, "files": hashes}), encoding="utf-8")
            tar.add(frozen / MANIFEST, MANIFEST)
    return hashes


def _unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # else no row speaks any more of what was in it
        raise error


def _freeze(folder: Path, frozen: Path) -> None:
    """Link all files while writers to the databases wait, for milliseconds, and copy the databases as they stood then:
    a file that a row speaks of comes before the row and goes after it."""
    own = folder / "noise.key" if (folder / "agent.db").exists() else None
    with ExitStack() as opened, ExitStack() as held:
        try:
            for path in (databases := sorted(folder.glob("*.db"))):
                holder = held.enter_context(closing(sqlite3.connect(path, timeout=60, isolation_level=None)))
                holder.execute("BEGIN IMMEDIATE")
            readers = [opened.enter_context(closing(sqlite3.connect(path, isolation_level=None))) for path in databases]
            for reader in readers:
                reader.execute("BEGIN").execute("SELECT count(*) FROM sqlite_master").fetchall()
            for path in (Path(at, name) for at, _, names in os.walk(folder, onerror=_unless_gone) for name in names):
                out = any(map(LEFT_OUT.fullmatch, path.relative_to(folder).parts)) or path == own
                if not (out or path.suffix in (".db", ".jsonl")):
                    (to := frozen / path.relative_to(folder)).parent.mkdir(exist_ok=True, parents=True)
                    with suppress(FileNotFoundError):  # no row speaks of it any more, or yet
                        os.link(path, to)
            held.close()
            for path, reader in zip(databases, readers, strict=True):
                with closing(sqlite3.connect(frozen / path.name)) as copy:
                    reader.backup(copy)
        except sqlite3.Error as error:
            remedy = "Its disk needs room for a second one for a moment; `hansa doctor` says whether it is damaged"
            raise StoreError(f"a database of {folder} cannot be copied: {error}", remedy=remedy) from error
    for path in folder.glob("*.jsonl"):  # a record, which grows
        shutil.copyfile(path, frozen / path.name)


@contextmanager
def restored(archive: Path, folder: Path, program: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """What was backed up, every hash checked first, in a folder that takes the place of ``folder`` at the end; and what
    the archive says of itself. Raises StoreError: there is a folder, or the archive is not whole, or another program's.
    """
    if folder.exists():
        raise StoreError(f"the folder {folder} exists already", remedy="Name a new one with --home")
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        said = _unpacked(archive, part, program)
        yield part, said
        part.rename(folder)
    except OSError as error:
        remedy = "Name a backup that can be read, and with --home a folder that is yours, where there is room"
        raise _refused(archive, f"{error.strerror}: {error.filename or folder}", remedy) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _unpacked(archive: Path, part: Path, program: str) -> dict[str, Any]:
    """Write what is in an archive into a folder, every hash checked first; what it says of itself."""
    try:
        with tarfile.open(archive, "r:") as tar:
            members = {member.name: member for member in tar.getmembers()}
            _read(tar, members[MANIFEST], text := BytesIO())
            said: dict[str, Any] = json.loads(text.getvalue())
            del members[MANIFEST]
            found = {name: _read(tar, member) for name, member in members.items()}
            if wrong := [name for name, _ in found.items() ^ said["files"].items()]:
                raise _refused(archive, f"{wrong[0]} is missing, or not what it was")
            other = "agent" if program == "coordinator" else "coordinator"
            if said["program"] != program or f"{other}.db" in members:
                raise _refused(archive, f"it is the {other}'s", f"Say `hansa {other} restore`")
            if any(Path(name).is_absolute() or ".." in name for name in members):
                raise _refused(archive, "a name in it leads out of the folder")
            for name, member in members.items():
                with writing(part / name, private=True) as file:
                    _read(tar, member, file)
            return said
    except (LookupError, AttributeError, TypeError, ValueError, tarfile.TarError) as error:
        raise _refused(archive, f"it is no whole archive of `hansa {program} backup`") from error


def _refused(archive: Path, why: str, remedy: str = "Take another backup, or copy this one again") -> StoreError:
    return StoreError(f"{archive} cannot be restored: {why}", remedy=remedy)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo, to: IO[bytes] | None = None) -> str:
    """The hash of a member, which is copied if it is said where to."""
    file, made = tar.extractfile(member) if member.isfile() else None, blake3()
    while file and (piece := file.read(1 << 20)):
        made.update(piece)
        (to or BytesIO()).write(piece)
    return made.hexdigest()
