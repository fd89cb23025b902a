"""What a coordinator remembers."""

import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from blake3 import blake3

from hansa.coordinator.epochs import Fenced
from hansa.crypto.vault import DamagedError, Vault
from hansa.database import Put, columns
from hansa.errors import StoreError, StudyError, did_you_mean
from hansa.files import mapped, set_aside, sync_folder, unload, writing
from hansa.wire.tensors import Buffer

INLINE = 1 << 16
"""Blobs up to this size lie in the database, larger ones in files beside it."""

HEAD = "0003"
MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()
sa.Table(
    "party", metadata, *columns({"name": str}, state=str, serial=str, expires=str, offers=list, identity=bytes | None)
)
sa.Table("token", metadata, *columns({"hash": str}, party=str, expires=float, used=bool))
sa.Table(
    "run",
    metadata,
    *columns(
        {"id": str},
        federation=bytes | None,
        setup=dict | None,
        status=str | None,
        reason=str | None,
        created=str | None,
        round=int | None,
    ),
)
sa.Table("event", metadata, *columns({"run": str, "seq": int}, at=str, kind=str, body=dict))
sa.Table("ask", metadata, *columns({"run": str, "version": int}, attempt=int | None, digest=str | None))
sa.Table(
    "answer",
    metadata,
    *columns(
        {"run": str, "version": int, "party": str},
        attempt=int | None,
        digest=str | None,
        weight=float | None,
        size=int | None,
        taken=bool | None,
        reason=str | None,
    ),
)
sa.Table("blob", metadata, *columns({"run": str, "version": int, "name": str}, digest=str, body=bytes | None))
sa.Table("epoch", metadata, *columns({"address": str}, number=int | None, holder=str | None, keys=str | None, at=str))


@dataclass(frozen=True)
class Spooled:
    """A large body that arrived in a file beside those of the blobs: whole, checked and on the disk."""

    path: Path
    size: int
    digest: str

    def __len__(self) -> int:
        return self.size

    def discard(self, _: object = None) -> None:
        """Remove the file, if it did not become a blob's."""
        self.path.unlink(missing_ok=True)


class CoordinatorStore(Fenced):
    """The coordinator's database, and the folder of its large blobs.

    It is the SQLite file in the coordinator's folder, which is made, unless a ``url`` names another.
    """

    def __init__(self, home: Path, url: str = "") -> None:
        super().__init__(
            url or home / "coordinator.db", metadata, MIGRATIONS, HEAD, Vault.of(home), home / "address.json"
        )
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

    def counted(self) -> list[tuple[str, str, int]]:
        """Each party with each run that counted answers of it, and the exchange of the latest."""
        query = sa.text(
            "SELECT a.party, a.run, max(a.version) FROM answer a JOIN blob b ON b.run = a.run "
            "WHERE a.taken AND b.name = 'checkpoint' AND a.version < b.version GROUP BY a.party, a.run"
        )
        return self._transaction(lambda connection: [(*row,) for row in connection.execute(query)])

    def blob(self, run: str, version: int, name: str, body: Buffer | Spooled) -> Put:
        """The row of a blob; a large one is written to its file, durably, before this returns, and one that is in
        a file becomes the blob's.
        """
        digest = body.digest if isinstance(body, Spooled) else blake3(body).hexdigest()
        row = {"run": run, "version": version, "name": name, "digest": digest, "body": None}
        path = self._path(run, version, f"{name} {digest}")  # until the row is there, what was is to be found
        if isinstance(body, Spooled):
            body.path.replace(path)
        elif len(body) <= INLINE:
            return Put("blob", {**row, "body": bytes(body)})
        else:
            with writing(path, private=True) as file:
                file.writelines(self.vault.seal(body, "blob", run, version, name))
        for folder in (path.parent, path.parent.parent, self._blobs):
            sync_folder(folder)
        return Put("blob", row)

    def read_blob(self, run: str, version: int, name: str) -> Buffer:
        """A blob's bytes, checked; those of a file are mapped, unless they are sealed.

        Raises:
            StoreError: if it is missing or damaged.
        """
        row = self.row("blob", run=run, version=version, name=name)
        if row is None:
            raise StoreError(f"the blob {run}/{version}/{name} is missing")
        path = self._path(run, version, f"{name} {row['digest']}")
        try:
            inline: bytes | None = row["body"]
            body = self.vault.open(mapped(path), "blob", run, version, name) if inline is None else inline
            whole = blake3(body).hexdigest() == row["digest"]
            unload(body)
        except OSError as error:
            raise StoreError(f"the blob {path} cannot be read: {error}") from error
        except DamagedError:
            whole = False
        if not whole:
            kept = f", and was set aside as {set_aside(path).name}" if row["body"] is None else ""
            remedy = "Restore the folder from a backup: hansa coordinator restore"
            raise StoreError(f"the blob {path} is damaged{kept}", remedy=remedy)
        return body

    def rekey(self) -> None:
        """Seal everything anew, blobs in files, too."""
        super().rekey()
        for row in self.rows("blob", columns=("run", "version", "name"), body=None):
            self.apply([self.blob(**row, body=self.read_blob(**row))])

    def spool(self, run: str, version: int, party: str) -> Path:
        """Where a party's large answer gathers; `sweep` removes what is left of it."""
        return self._path(run, version, f"spool {party}")

    def spooled(self, path: Path, size: int, digest: str) -> bytes | Spooled:
        """A body that is whole in its spool, which nobody adds to any more: in its file, if that is as a blob's."""
        if size > INLINE and not self.vault:
            return Spooled(path.replace(f"{path}.{secrets.token_hex(4)}"), size, digest)
        body = path.read_bytes()
        path.unlink()
        return body

    def sweep(self, run: str, version: int) -> None:
        """Remove the files of an exchange whose rows were dropped, after that was committed."""
        shutil.rmtree(self._blobs / run / str(version), ignore_errors=True)

    def _path(self, run: str, version: int, name: str) -> Path:
        return self._blobs / run / str(version) / blake3(name.encode()).hexdigest()
