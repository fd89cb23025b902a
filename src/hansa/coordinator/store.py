"""What a coordinator remembers."""

import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from blake3 import blake3

from hansa import tensors
from hansa.coordinator.bucket import Bucket
from hansa.coordinator.epochs import Fenced
from hansa.crypto.vault import DamagedError, Vault
from hansa.database import Put, columns
from hansa.errors import StoreError, StudyError, UsageError, did_you_mean
from hansa.files import Spares, mapped, set_aside, sync_folder, unload, writing
from hansa.tensors import Buffer
from hansa.wire import chunks

INLINE = chunks.INLINE  # blobs up to this size lie in the database, larger ones in files beside it

_RESTORE = "Restore the folder from a backup: hansa coordinator restore"

HEAD = "0003"
MIGRATIONS = Path(__file__).parent / "migrations"

MAY = str | None
metadata = sa.MetaData()
sa.Table(
    "party", metadata, *columns({"name": str}, state=str, serial=str, expires=str, offers=list, identity=bytes | None)
)
sa.Table("token", metadata, *columns({"hash": str}, party=str, expires=float, used=bool))
sa.Table(
    "run",
    metadata,
    *columns(
        {"id": str}, federation=bytes | None, setup=dict | None, status=MAY, reason=MAY, created=MAY, round=int | None
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
        digest=MAY,
        weight=float | None,
        size=int | None,
        taken=bool | None,
        reason=MAY,
    ),
)
sa.Table("blob", metadata, *columns({"run": str, "version": int, "name": str}, digest=str, body=bytes | None))
sa.Table("epoch", metadata, *columns({"address": str}, number=int | None, holder=str | None, keys=str | None))


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

    It is the SQLite file in the coordinator's folder, which is made, unless a ``url`` names another. They lie in that
    folder, or in ``file:///FOLDER``, or both there and in ``s3://BUCKET/PREFIX``, as ``blobs`` says; or, if a server is
    all that is named, in the database."""

    _ready = False

    def __init__(self, home: Path, url: str = "", blobs: str = "") -> None:
        kind, _, rest = blobs.partition("://")
        if blobs and not (rest and kind == "s3") and not (rest.startswith("/") and kind == "file"):
            raise UsageError(f"blobs cannot be kept at {blobs!r}", remedy="Write s3://BUCKET/PREFIX or file:///FOLDER")
        self._bucket = Bucket(blobs, lambda seconds: self.stopping.wait(seconds)) if kind == "s3" else None
        super().__init__(
            url or home / "coordinator.db", metadata, MIGRATIONS, HEAD, Vault.of(home), home / "address.json"
        )
        self._blobs = Path(rest) if kind == "file" else home / "blobs"
        self._shared, self._inline = self.server or bool(blobs), 1 << 30 if self.server and not blobs else INLINE
        self.spares = Spares(self._blobs / ".spare")
        self._renamed = set[Path]()  # folders in which a name is not durable yet
        self.maps = self._inline == INLINE and not self.vault  # large blobs, when they are read

    def take(self, *who: str) -> bool:
        """As `Fenced.take`; StoreError if what coordinators share of the large blobs is not where this one looks."""
        if self._bucket and not self._ready:
            self._bucket.drop("-")
        self._ready, taken = True, super().take(*who)
        for row in self.rows("blob", columns=("run", "version", "name"), limit=1, body=None) if taken else ():
            if self._shared:
                self.read_blob(**row)
        return taken

    def run(self, run: str) -> dict[str, Any]:
        """The row of a run.

        Raises StudyError if there is none of that name."""
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

    def blob(self, run: str, version: int, name: str, body: Buffer | list[Buffer] | Spooled) -> Put:
        """The row of a blob, or of the pieces of one; a large one is written to its file before this returns, and one
        that is in a file becomes the blob's: durably, as soon as the row is."""
        spooled = body if isinstance(body, Spooled) else None
        if spooled and spooled.size <= self._inline:
            body, spooled = spooled.path.read_bytes(), None
        pieces: list[Buffer] = body if isinstance(body, list) else [] if isinstance(body, Spooled) else [body]
        digest = spooled.digest if spooled else tensors.digest(*pieces).hex()
        row = {"run": run, "version": version, "name": name, "digest": digest, "body": None}
        path = self._path(run, version, f"{name} {digest}")  # until the row is there, what was is to be found
        if spooled:
            spooled.path.replace(path)
        elif (size := sum(map(len, pieces))) <= self._inline:
            return Put("blob", {**row, "body": b"".join(pieces)})
        else:
            sealed = self.vault.seal(b"".join(pieces), "blob", run, version, name) if self.vault else pieces
            with writing(path, private=True, spares=self.spares, size=size) as file:  # no spares where all is sealed
                file.writelines(sealed)
        self._renamed |= {path.parent, path.parent.parent, self._blobs}
        if self._bucket:
            self._bucket.put(path)
        return Put("blob", row)

    def _fence(self, connection: sa.Connection) -> None:
        """Before a row is there, the file that it names is; of several in a folder, all at once."""
        while self._renamed:
            sync_folder(self._renamed.pop())
        super()._fence(connection)

    def read_blob(self, run: str, version: int, name: str) -> Buffer:
        """A blob's bytes, checked; those of a file are mapped, unless they are sealed.

        Raises StoreError if it is missing or damaged."""
        row = self.row("blob", run=run, version=version, name=name)
        if row is None:
            raise StoreError(f"the blob {run}/{version}/{name} is missing")
        path = self._path(run, version, f"{name} {row['digest']}")
        try:
            inline: bytes | None = row["body"]
            if inline is None and self._bucket and not path.exists():
                self._bucket.get(path)
            body = self.vault.open(mapped(path), "blob", run, version, name) if inline is None else inline
            whole = blake3(body, max_threads=blake3.AUTO).hexdigest() == row["digest"]
            unload(body)
        except OSError as error:
            aside = ": it was damaged, and set aside" if [*path.parent.glob(f"{path.name}.damaged-*")] else f": {error}"
            remedy = f"{_RESTORE}; or start with the same --blobs as ever"
            raise StoreError(f"the blob {path} cannot be read{aside}", remedy=remedy) from error
        except DamagedError:
            whole = False
        if not whole:
            kept = f", and was set aside as {set_aside(path).name}" if row["body"] is None else ""
            remedy = _RESTORE
            raise StoreError(f"the blob {path} is damaged{kept}", remedy=remedy)
        return body

    def laid(self, pieces: Iterable[Any]) -> Buffer:
        """Large bytes that nobody will look for: in a file (`Spares.laid`), unless all in files is sealed."""
        return b"".join(pieces) if self.vault else self.spares.laid(pieces)

    def close(self) -> None:
        """Release the file, and what is spare."""
        self.spares.give()
        super().close()

    def rekey(self) -> None:
        """Seal everything anew, blobs in files, too."""
        super().rekey()
        for row in self.rows("blob", columns=("run", "version", "name"), body=None):
            self.apply([self.blob(**row, body=self.read_blob(**row))])

    def spool(self, run: str, version: int, party: str) -> Path:
        """Where a party's large answer gathers; `sweep` removes what is left of it."""
        return self._path(run, version, f"spool {party}").with_suffix(".part")

    def spooled(self, path: Path, size: int, digest: str) -> Spooled:
        """A body that is whole in its spool, in a file of its own from now on."""
        return Spooled(path.replace(path.with_name(f"{path.stem}.{secrets.token_hex(4)}.part")), size, digest)

    def sweep(self, run: str, version: int, last: bool = True) -> None:
        """Remove the files of an exchange whose rows were dropped, after that was committed; what comes next is written
        over large ones, if answers are among them, and there is a next after the ``last``."""
        if self._bucket:
            self._bucket.drop(f"{run}/{version}")
        folder = self._blobs / run / str(version)
        over = [] if last or self.vault else [path for path in folder.glob("*") if path.suffix in ("", ".answer")]
        if last or any(path.suffix for path in over):
            self.spares.give(over)
        shutil.rmtree(folder, ignore_errors=True)

    def _path(self, run: str, version: int, name: str) -> Path:
        path = self._blobs / run / str(version) / blake3(name.encode()).hexdigest()
        return path.with_suffix(".answer" if name.startswith("answer") else "")
