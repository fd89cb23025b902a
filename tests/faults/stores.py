"""Stores for the simulator: one in memory that loses what was not synced, and a guard that fails any of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import sqlalchemy as sa
from blake3 import blake3
from sqlalchemy.util import LRUCache

from hansa import database, tensors
from hansa.agent import store as agent
from hansa.agent.store import AgentStore
from hansa.coordinator import store as coordinator
from hansa.coordinator.epochs import Fenced
from hansa.coordinator.store import CoordinatorStore
from hansa.database import Drop, Put
from hansa.errors import StoreError

Change = Put | Drop
Key = tuple[Any, ...]


class Shape(NamedTuple):
    """A table's columns: an empty row, those of its primary key, those that are never empty, those kept as JSON."""

    empty: dict[str, None]
    primary: tuple[str, ...]
    needed: tuple[str, ...]
    json: tuple[str, ...]


@cache
def _shapes(metadata: sa.MetaData) -> dict[str, Shape]:
    return {
        name: Shape(
            dict.fromkeys(c.name for c in table.columns),
            tuple(c.name for c in table.primary_key),
            tuple(c.name for c in table.columns if not c.nullable),
            tuple(c.name for c in table.columns if isinstance(c.type, sa.JSON)),
        )
        for name, table in metadata.tables.items()
    }


class Disk:
    """What outlives a process: tables and files, and what of them a crash would take back.

    A table is a dictionary of rows by their primary key. ``lost`` undoes, newest first, whatever was written
    since the last `sync`.
    """

    def __init__(self, metadata: sa.MetaData) -> None:
        self.shapes = _shapes(metadata)
        self.tables: dict[str, dict[Key, dict[str, Any]]] = {name: {} for name in self.shapes}
        self.files: dict[tuple[str, int, str, str], bytes] = {}
        self._undo: list[tuple[dict[Key, dict[str, Any]], Key, dict[str, Any] | None]] = []

    def write(self, change: Change) -> None:
        rows, values = self.tables[change.table], change.values
        if isinstance(change, Drop):
            for key in [k for k, row in self.some(change.table, values) if all(row[n] == v for n, v in values.items())]:
                self._undo.append((rows, key, rows.pop(key)))
            return
        shape = self.shapes[change.table]
        if None in map(values.get, shape.needed):
            raise StoreError(f"the database refuses to write: a row of {change.table!r} is not whole")
        key = tuple(map(values.__getitem__, shape.primary))
        before = rows.get(key)
        self._undo.append((rows, key, before))
        rows[key] = {**(before or shape.empty), **values}

    def some(self, table: str, where: Mapping[str, Any]) -> Iterable[tuple[Key, dict[str, Any]]]:
        """Rows among which are all that have these values: one at most, where they say its primary key."""
        if not (rows := self.tables[table]):
            return ()
        key = tuple(map(where.get, self.shapes[table].primary))
        if None in key or list in map(type, key):
            return rows.items()
        return [(key, rows[key])] if key in rows else ()

    @property
    def written(self) -> int:
        """How many writes a crash would take back."""
        return len(self._undo)

    def sync(self) -> None:
        self._undo.clear()

    def crash(self, since: int = 0) -> None:
        """Take back what was written and not synced."""
        while len(self._undo) > since:
            rows, key, row = self._undo.pop()
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row


class Simulated:
    """`hansa.database.Database` in memory, on a `Disk`."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        self._written: list[Change] = []

    def apply(self, changes: Iterable[Change], *, erase: bool = False) -> None:
        changes, since = list(changes), self.disk.written
        self._fence(None)
        try:
            for change in changes:
                self.disk.write(change)
        except StoreError:
            self.disk.crash(since)
            raise
        self._written += changes
        self.sync()

    def _fence(self, connection: Any) -> None:
        pass

    def sync(self) -> None:
        self.disk.sync()

    def durable(self) -> list[Change]:
        """The changes that have become durable since the last call."""
        if self.disk.written:
            return []
        changes, self._written = self._written, []
        return changes

    def rows(
        self,
        table: str,
        order: str | None = None,
        after: tuple[str, int] | None = None,
        limit: int | None = None,
        columns: Sequence[str] = (),
        **where: Any,
    ) -> list[dict[str, Any]]:
        if not (found := [row for _, row in self.disk.some(table, where)]):
            return []
        for name, value in where.items():
            if isinstance(value, list):
                found = [row for row in found if row[name] in value]
            else:
                found = [row for row in found if row[name] == value]
        if after is not None:
            found = [row for row in found if row[after[0]] > after[1]]
        if order is not None:
            found.sort(key=lambda row: row[order])
        copies = [{n: row[n] for n in columns} if columns else row.copy() for row in found[:limit]]
        for name in self.disk.shapes[table].json:
            for row in copies if not columns or name in columns else ():
                row[name] = json.loads(json.dumps(row[name]))
        return copies

    def row(self, table: str, **where: Any) -> dict[str, Any] | None:
        found = self.rows(table, None, None, 1, **where)
        return found[0] if found else None

    def close(self) -> None:
        pass


class SimulatedAgentStore(Simulated):
    """`AgentStore` in memory."""

    ledger, pins, honest = AgentStore.ledger, AgentStore.pins, AgentStore.honest
    keep, digest = staticmethod(b"".join), staticmethod(tensors.digest)

    @staticmethod
    def disk() -> Disk:
        return Disk(agent.metadata)


class SimulatedCoordinatorStore(Simulated):
    """`CoordinatorStore` in memory; files are there from the moment they were renamed into their place.

    Epochs are taken, and held to, by the rule of production. As on a file, who asks for the next one gets it: who may
    ask is the simulator's matter.
    """

    run, vault, maps = CoordinatorStore.run, None, True
    take, peers, _fence, _over = Fenced.take, Fenced.peers, Fenced._fence, Fenced._over
    epoch, _sole, _head = Fenced.epoch, True, None

    @staticmethod
    def disk() -> Disk:
        return Disk(coordinator.metadata)

    def _transaction(self, work: Callable[[Any], Any], *_: str) -> Any:
        return work(None)

    def _migrate(self) -> None:
        """Its tables are there."""

    def _next(self, connection: Any, row: dict[str, str]) -> int:
        newest = max((abs(kept["number"] or 0) for kept in self.disk.tables["epoch"].values()), default=0)
        self._swap(connection, newest, -newest)
        self.disk.write(Put("epoch", {**row, "number": newest + 1}))
        self.sync()
        return newest + 1

    def _swap(self, connection: Any, number: int, becomes: int) -> None:
        there = [kept for kept in self.disk.tables["epoch"].values() if kept["number"] == number] if number else []
        if number and not there:
            raise self._over()
        for kept in there:
            kept["number"] = becomes

    def counted(self) -> list[tuple[str, str, int]]:
        applied: dict[str, int] = {}
        for row in self.rows("blob", columns=("run", "version"), name="checkpoint"):
            applied[row["run"]] = max(row["version"], applied.get(row["run"], 0))
        latest: dict[tuple[str, str], int] = {}
        for row in self.rows("answer", taken=True):
            if row["version"] < applied.get(row["run"], 0):
                place = row["party"], row["run"]
                latest[place] = max(row["version"], latest.get(place, 0))
        return [(*place, version) for place, version in latest.items()]

    def blob(self, run: str, version: int, name: str, body: bytes | list[bytes]) -> Put:
        body = b"".join(body) if isinstance(body, list) else body
        row = {"run": run, "version": version, "name": name, "digest": blake3(body).hexdigest(), "body": None}
        if len(body) <= coordinator.INLINE:
            return Put("blob", {**row, "body": bytes(body)})
        self.disk.files[run, version, name, row["digest"]] = bytes(body)
        return Put("blob", row)

    def read_blob(self, run: str, version: int, name: str) -> bytes:
        row = self.row("blob", run=run, version=version, name=name)
        if row is None:
            raise StoreError(f"the blob {run}/{version}/{name} is missing")
        body: bytes | None = row["body"]
        body = self.disk.files.get((run, version, name, row["digest"])) if body is None else body
        if body is None or blake3(body).hexdigest() != row["digest"]:
            raise StoreError(f"the blob {run}/{version}/{name} is damaged")
        return body

    def laid(self, pieces: Iterable[bytes]) -> bytes:
        return b"".join(pieces)

    def sweep(self, run: str, version: int, last: bool = True) -> None:
        for key in [key for key in self.disk.files if key[:2] == (run, version)]:
            del self.disk.files[key]


class Memory:
    """A machine's disk in memory, on which its store is opened again and again."""

    def __init__(self, kind: type[SimulatedAgentStore] | type[SimulatedCoordinatorStore]) -> None:
        self._kind, self._disk = kind, kind.disk()

    def open(self) -> Any:
        return self._kind(self._disk)

    def crash(self, store: Any) -> None:
        self._disk.crash()


class Folder:
    """A folder with a real SQLite file, which begins as a copy of an empty one."""

    def __init__(self, kind: type[AgentStore] | type[CoordinatorStore], path: Path) -> None:
        self._kind, self._path = kind, path
        name = "agent.db" if kind is AgentStore else "coordinator.db"
        empty = path.parent.parent / f"empty {name}"
        if not empty.exists():
            kind(empty).close()
        path.mkdir(parents=True)
        shutil.copy(empty / name, path / name)

    def open(self) -> Any:
        return self._kind(self._path)

    def crash(self, store: Any) -> None:
        store.close()


@contextmanager
def quickly() -> Iterator[None]:
    """While this is open, what SQLAlchemy works out for one file it knows for all."""
    engine, compiled, dialects = database._engine, LRUCache(500), list[Any]()

    def alike(*given: Any) -> sa.Engine:
        made = engine(*given)
        dialects.append(made.dialect)
        made.dialect, made._compiled_cache = dialects[0], compiled
        return made

    with mock.patch.object(database, "_engine", alike):
        yield


LOOKED_UP = ("row", "rows", "blob", "read_blob", "sweep", "pins", "digest", "keep")
"""What a guard does not stand in the way of, and is asked for most often."""


class Guard:
    """A store whose commits may fail, or be the last thing that its process did.

    Args:
        store: which.
        before: hears of the changes before they are written, and may raise.
        after: hears of those that have become durable, and may raise.
    """

    def __init__(
        self, store: Any, before: Callable[[list[Change]], None], after: Callable[[list[Change]], None]
    ) -> None:
        self._store, self._before, self._after = store, before, after
        self._durable = store.durable if isinstance(store, Simulated) else None
        for name in LOOKED_UP:
            if hasattr(store, name):
                setattr(self, name, getattr(store, name))

    def apply(self, changes: Iterable[Change], **more: Any) -> None:
        changes = list(changes)
        self._before(changes)
        self._store.apply(changes, **more)
        self._after(self._durable() if self._durable else changes)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)
