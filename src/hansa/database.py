"""One way to open a database: durable, migrated, and refused if it is not what it should be.

Coordinator and agent keep their state in SQLite (WAL, ``synchronous=FULL``: a commit that returned is on the
disk) or in whatever database a URL names, through SQLAlchemy Core and alembic. A store is written by rows:
`Put` and `Drop` say what changes, and all of one transition are one transaction."""

import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import sqlite

from hansa.crypto.vault import Buffer, Vault
from hansa.errors import StoreError, UnreachableError, UsageError
from hansa.files import set_aside

LOG = structlog.get_logger("hansa.database")

T = TypeVar("T")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Put:
    """Insert a row, or update the row with the same primary key in the columns that are given."""

    table: str
    values: Row


@dataclass(frozen=True)
class Drop:
    """Delete the rows whose columns have these values."""

    table: str
    values: Row


CHECKED = 1 << 28  # bytes up to which a SQLite file is looked over when it is opened; a second or so for each gigabyte

_RESTORE = "Restore its folder from a backup: `hansa coordinator restore` or `hansa agent restore`"

_TYPES: Mapping[Any, Any] = {
    bool: sa.Boolean,
    int: sa.Integer,
    float: sa.Float,
    str: sa.String,
    bytes: sa.LargeBinary,
    dict: sa.JSON,
    list: sa.JSON,
}


def columns(key: Mapping[str, type], **others: Any) -> Iterator[sa.Column[Any]]:
    """The columns of a table, from Python's types: those of its primary key, then the others.

    A column of ``str | None`` may be empty; ``dict`` and ``list`` are kept as JSON."""
    for name, kind in key.items():
        yield sa.Column(name, _TYPES[kind], primary_key=True)
    for name, kind in others.items():
        yield sa.Column(name, _TYPES[(get_args(kind) or (kind,))[0]], nullable=bool(get_args(kind)))


class Database:
    """A migrated database of known tables, at the path of a SQLite file or a SQLAlchemy URL.

    ``migrations`` is the folder of alembic's scripts that build the tables, ``head`` the newest revision there. What is
    bytes is sealed by the ``vault``. Where the file ``begun`` exists, SQLite's is there, and not empty. Threads take
    turns, a transaction each; its owner sets ``stopping`` to end a wait for a server."""

    def __init__(
        self,
        url: str | Path,
        metadata: sa.MetaData,
        migrations: Path,
        head: str,
        vault: Vault | None = None,
        begun: Path | None = None,
    ) -> None:
        self.vault = vault or Vault()
        binary = {t.name: [c.name for c in t.c if isinstance(c.type, sa.LargeBinary)] for t in metadata.sorted_tables}
        self._binary = {table: names for table, names in binary.items() if names}
        self._metadata, self._migrations, self._head = metadata, migrations, head
        self._engine, self.stopping, self._turn = _engine(url, begun), threading.Event(), threading.RLock()
        self.server = self._engine.dialect.name != "sqlite"
        self._statement: Callable[..., Any] = cache(self._stated)
        try:
            self._require_whole()
            if self._reach():
                self._migrate()
        except (StoreError, sa.exc.DBAPIError) as error:
            Database.close(self)  # what more a subclass would release is not there yet
            if isinstance(error, StoreError):
                raise
            if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise _damaged(Path(self._engine.url.database or ""), str(error.orig)) from error
            what = f"the database {self._engine.url!r} cannot be opened: {_said(error)}"
            look = "Check its permissions and the disk, or a server's URL (HANSA_DATABASE)"
            raise StoreError(what, remedy=f"{look}, or restore it from a backup") from error

    def apply(self, changes: Iterable[Put | Drop], *, erase: bool = False) -> None:
        """All changes in one transaction; when this returns they are durable. To ``erase`` leaves nothing of what they
        replace in SQLite's file or journal. Raises StoreError if the database refuses; nothing was changed then."""
        wanted = list(changes)

        def write(connection: sa.Connection) -> None:
            self._fence(connection)
            for change in wanted:
                self._execute(connection, change)

        self._transaction(write, "refuses to write", "Check its free space, and that it may be written")
        if erase and not self.server:
            self._transaction(lambda connection: connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").all())

    def rows(
        self,
        table: str,
        order: str | None = None,
        after: tuple[str, int] | None = None,
        limit: int | None = None,
        columns: Sequence[str] = (),
        **where: Any,
    ) -> list[dict[str, Any]]:
        """Rows of a table whose columns have the values of ``where``, a list meaning any of them: all columns or some,
        sorted by the column ``order``, ``limit`` at most; ``after`` is a column and the number that it must exceed."""
        of = self._metadata.tables[table].c
        query = sa.select(*(of[name] for name in columns) if columns else of)
        for name, value in where.items():
            same = of[name].in_(value) if isinstance(value, list) else of[name] == value
            query = query.where(same)
        if after is not None:
            query = query.where(of[after[0]] > after[1])
        if order is not None:
            query = query.order_by(of[order])
        query = query.limit(limit)
        found = self._transaction(lambda connection: connection.execute(query).mappings().all())
        return [self._with(self._opened, table, dict(row)) for row in found]

    def row(self, table: str, **where: Any) -> dict[str, Any] | None:
        """The one row, or None."""
        found = self.rows(table, **where)
        return found[0] if found else None

    def close(self) -> None:
        """Release the file."""
        with self._turn:
            if "_connection" in vars(self):
                self._connection.close()
        self._engine.dispose()

    def rekey(self) -> None:
        """Seal everything anew, under the first key of the vault; what was there leaves nothing behind."""
        self.apply([Put(name, row) for name in self._binary for row in self.rows(name)], erase=True)

    def _seal(self, body: Buffer, *place: str | int) -> bytes:
        return b"".join(self.vault.seal(body, *place))

    def _opened(self, sealed: bytes, *place: str | int) -> Buffer:
        return self.vault.open(sealed, *place)

    def _with(self, done: Callable[..., Buffer], table: str, row: Row) -> dict[str, Any]:
        """A row, and its bytes as ``done`` makes them of themselves and their place: table, column and key."""
        there = [name for name in self._binary.get(table, ()) if row.get(name) is not None]
        key = [row[column.name] for column in self._metadata.tables[table].primary_key] if there else []
        return {**row, **{name: done(row[name], table, name, *key) for name in there}}

    def _require_whole(self) -> None:
        """Look over a file of moderate size, before anything is read from it."""
        path = Path(self._engine.url.database or "")
        if not self.server and path.stat().st_size <= CHECKED:
            with self._engine.connect() as connection:
                found = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
            if found != "ok":
                raise _damaged(path, str(found))

    def _reach(self) -> bool:
        """Connect; whether the tables may be made and changed over this connection."""
        self._connection = self._engine.connect()
        return True

    def _fence(self, connection: sa.Connection) -> None:
        """Refuse a transaction that is to write, before its first row."""

    def _transaction(self, work: Callable[[sa.Connection], T], fails: str = "cannot be read", way: str = _RESTORE) -> T:
        """Do it in a transaction; once more if the connection to a server breaks, for a minute in which it is tried.

        Whether a transaction came through whose connection broke is unknown, and need not be known: `_reach` goes on
        when the session before has ended, and `_fence` lets nobody else write in between. So all its rows are there
        or none, none is newer, and to put or drop the same rows again leaves what it would have left."""
        pauses, lost = iter((0.1, 0.2, 0.5, 1, 2, *[4] * 14)), False
        with self._turn:  # also while the connection is made anew
            while True:
                try:
                    if lost:
                        self._reach()
                    with self._connection.begin():
                        return work(self._connection)
                except (sa.exc.DBAPIError, UnreachableError, ValueError) as error:  # or what should be JSON
                    lost = lost or getattr(error, "connection_invalidated", False)
                    what, pause = f"the database {self._engine.url!r} {fails}: {_said(error)}", next(pauses, None)
                    if not lost or pause is None or self.stopping.wait(pause):
                        way = "Start it when the server is there: it goes on at the last commit" if lost else way
                        raise StoreError(what, remedy=way) from error
                    self._connection.close()
                    LOG.warning("waiting for the database", reason=what)

    def _execute(self, connection: sa.Connection, change: Put | Drop) -> None:
        row = self._with(self._seal, change.table, change.values)
        connection.execute(self._statement(type(change), change.table, *row), row)

    def _stated(self, kind: type[Put | Drop], table: str, *columns: str) -> Any:
        """The statement of changes of a kind to these columns; it is made once."""
        of, insert = self._metadata.tables[table], sqlite.insert
        values: Any = {name: sa.bindparam(name, type_=of.c[name].type) for name in columns}
        if kind is Drop:
            return sa.delete(of).where(*(of.c[name] == value for name, value in values.items()))
        if self.server:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        statement, primary = insert(of).values(values), [column.name for column in of.primary_key]
        kept = {name: statement.excluded[name] for name in columns if name not in primary}
        if not kept:
            return statement.on_conflict_do_nothing()
        return statement.on_conflict_do_update(index_elements=primary, set_=kept)

    def _migrate(self) -> None:
        """Make its tables, or bring them up to date."""
        revision = self._revision()
        if revision is None:
            self._begin()
        elif revision != self._head:
            upgrade(self._engine, self._migrations)

    def _begin(self) -> None:
        """Make the tables of an empty database as the newest migration would leave them.

        A test holds the two equal; alembic, a quarter of a second to import, is for older ones."""
        versions = sa.Table("alembic_version", sa.MetaData(), sa.Column("version_num", sa.String(32), primary_key=True))
        with self._engine.begin() as connection:
            self._metadata.create_all(connection)
            versions.create(connection, checkfirst=True)
            connection.execute(versions.insert().values(version_num=self._head))

    def _revision(self) -> str | None:
        def read(connection: sa.Connection) -> str | None:
            there = sa.inspect(connection).has_table("alembic_version")
            return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() if there else None

        return self._transaction(read)


def upgrade(engine: sa.Engine, migrations: Path) -> None:
    """Run the migrations that a database has not seen yet, in one transaction; StoreError if a newer Hansa wrote it."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError

    steps = {"fn": lambda revision, _: ScriptDirectory(str(migrations))._upgrade_revs("head", revision)}
    try:
        with engine.begin() as link, Operations.context(MigrationContext.configure(link, opts=steps)) as made:
            made.migration_context.run_migrations()
    except CommandError as error:
        what = f"the database has a revision that this version of Hansa does not know: {error}"
        raise StoreError(what, remedy="Update Hansa to the version that wrote it") from None


def _damaged(path: Path, why: str) -> StoreError:
    """The error of a damaged file, which is set aside with its journals."""
    kept, *_ = [set_aside(path.with_name(path.name + end)) for end in ("", "-wal", "-shm")]
    return StoreError(f"the database {path} is damaged ({why}); it was set aside as {kept.name}", remedy=_RESTORE)


def _engine(url: str | Path, begun: Path | None) -> sa.Engine:
    if isinstance(url, str) and "://" in url:
        try:
            address = sa.make_url(url)
            if address.drivername == "postgresql":
                alive = {"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3}
                given = {**alive, "tcp_user_timeout": 10_000, "connect_timeout": 5}  # a machine that is gone is silent
                address = address.set(drivername="postgresql+psycopg")
                return sa.create_engine(address, poolclass=sa.NullPool, connect_args=given)
            if address.drivername != "sqlite" or not (url := address.database or ""):
                raise ValueError
        except ModuleNotFoundError as error:
            what = f"a database on PostgreSQL needs the package {error.name!r}"
            raise StoreError(what, remedy="pip install 'hansa[postgres]'") from None
        except (sa.exc.ArgumentError, ValueError):
            remedy = "Write postgresql://USER@HOST/NAME, or sqlite:////FOLDER/FILE"
            raise UsageError("the database has an address that Hansa cannot use", remedy=remedy) from None
    path = Path(url)
    path.parent.mkdir(0o700, parents=True, exist_ok=True)
    if not path.exists() and (aside := sorted(path.parent.glob(f"{path.name}.damaged-*"))):
        raise StoreError(f"the database {path} was damaged, and set aside as {aside[-1].name}", remedy=_RESTORE)
    old = begun is not None and begun.exists()
    if old and not path.exists():
        remedy = f"{_RESTORE}; a coordinator's that is on a server is named with --database"
        raise StoreError(f"the database {path} is missing, and {begun} says that this is no new folder", remedy=remedy)
    if old and path.is_file() and not path.stat().st_size:
        raise _damaged(path, "it is empty")
    # SQLite gives its journals the mode of the file, and would make the file readable for all.
    with suppress(OSError):  # what is wrong with it, SQLite says better
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), connect_args={"check_same_thread": False})

    @sa.event.listens_for(engine, "connect")
    def durable(connection: Any, _: object) -> None:
        said = "journal_mode=WAL synchronous=FULL fullfsync=ON busy_timeout=5000 secure_delete=ON"
        for pragma in said.split():
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _said(error: Exception) -> str:
    """What a database says of an error, on one line."""
    return " ".join(str(getattr(error, "orig", error)).split())
