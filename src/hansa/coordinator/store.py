"""What a coordinator remembers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from blake3 import blake3

from hansa.database import Database, Put
from hansa.errors import StoreError, StudyError, did_you_mean
from hansa.files import sync_folder, write_whole

INLINE = 1 << 16
"""Blobs up to this size lie in the database, larger ones in files beside it."""

HEAD = "0001"
MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()
sa.Table(
    "party",
    metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("serial", sa.String, nullable=False),
    sa.Column("expires", sa.String, nullable=False),
    sa.Column("offers", sa.JSON, nullable=False),
)
sa.Table(
    "token",
    metadata,
    sa.Column("hash", sa.String, primary_key=True),
    sa.Column("party", sa.String, nullable=False),
    sa.Column("expires", sa.Float, nullable=False),
    sa.Column("used", sa.Boolean, nullable=False),
)
sa.Table(
    "run",
    metadata,
    sa.Column("id", sa.String, primary_key=True),
    sa.Column("federation", sa.LargeBinary),
    sa.Column("setup", sa.JSON),
    sa.Column("status", sa.String),
    sa.Column("reason", sa.String),
    sa.Column("created", sa.String),
    sa.Column("round", sa.Integer),
)
sa.Table(
    "event",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("at", sa.String, nullable=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
)
sa.Table(
    "ask",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer),
    sa.Column("digest", sa.String),
)
sa.Table(
    "answer",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("party", sa.String, primary_key=True),
    sa.Column("attempt", sa.Integer),
    sa.Column("digest", sa.String),
    sa.Column("weight", sa.Float),
    sa.Column("size", sa.Integer),
    sa.Column("taken", sa.Boolean),
    sa.Column("reason", sa.String),
)
sa.Table(
    "blob",
    metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("digest", sa.String, nullable=False),
    sa.Column("body", sa.LargeBinary),
)


class CoordinatorStore(Database):
    """The coordinator's database, and the folder of its large blobs.

    Args:
        home: folder of the coordinator; made if it is not there.
        url: of another database than the SQLite file in that folder.
    """

    def __init__(self, home: Path, url: str = "") -> None:
        super().__init__(url or home / "coordinator.db", metadata, MIGRATIONS, HEAD)
        self._blobs = home / "blobs"

    def run(self, run: str) -> dict[str, Any]:
        """The row of a run.

        Raises:
            StudyError: if there is none of that name.
        """
        row: dict[str, Any] | None = self.row("run", id=run)
        if row is None:
            known = [kept["id"] for kept in self.rows("run", columns=("id",))]
            remedy = did_you_mean(run, known, otherwise="`hansa runs` lists them")
            raise StudyError(f"there is no run {run!r}", remedy=remedy)
        return row

    def blob(self, run: str, version: int, name: str, body: bytes) -> Put:
        """The row of a blob; a large one is written to its file, durably, before this returns."""
        digest = blake3(body).hexdigest()
        row = {"run": run, "version": version, "name": name, "digest": digest, "body": None}
        if len(body) <= INLINE:
            return Put("blob", {**row, "body": body})
        path = self._path(run, version, name)
        write_whole(path, body)
        for folder in (path.parent, path.parent.parent, self._blobs):
            sync_folder(folder)
        return Put("blob", row)

    def read_blob(self, run: str, version: int, name: str) -> bytes:
        """A blob's bytes, checked.

        Raises:
            StoreError: if it is missing or damaged.
        """
        row = self.row("blob", run=run, version=version, name=name)
        if row is None:
            raise StoreError(f"the blob {run}/{version}/{name} is missing")
        path = self._path(run, version, name)
        try:
            body: bytes = row["body"] if row["body"] is not None else path.read_bytes()
        except OSError as error:
            raise StoreError(f"the blob {path} cannot be read: {error}") from error
        if blake3(body).hexdigest() != row["digest"]:
            raise StoreError(
                f"the blob {path if row['body'] is None else path.name} is damaged",
                remedy="Restore the coordinator's folder from a backup",
            )
        return body

    def spool(self, run: str, version: int, party: str) -> Path:
        """Where a party's large answer gathers; `sweep` removes what is left of it."""
        return self._path(run, version, f"spool {party}")

    def sweep(self, run: str, version: int) -> None:
        """Remove the files of an exchange whose rows were dropped, after that was committed."""
        shutil.rmtree(self._blobs / run / str(version), ignore_errors=True)

    def _path(self, run: str, version: int, name: str) -> Path:
        return self._blobs / run / str(version) / blake3(name.encode()).hexdigest()
