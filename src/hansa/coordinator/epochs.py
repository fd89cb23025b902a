"""One coordinator at a time: a lock, epochs, and those who stand by."""

from functools import cached_property

import sqlalchemy as sa

from hansa.database import Database, Put
from hansa.errors import StoreError, TrustError, UnreachableError

LOCK = sa.text(
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false), "
    "set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '10000', false), "
    "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false), "
    "pg_try_advisory_lock(hashtextextended('hansa ' || coalesce(current_schema(), ''), 0))"
)
"""Of a session on PostgreSQL, which ends soon after this machine is gone, and commits durably."""


class Fenced(Database):
    """A database that the coordinator of the newest epoch alone may change; ``epoch`` is 0 for who took none.

    On a server, who has the lock takes the next epoch, and all others stand by. On a file, who starts takes it."""

    epoch, _sole = 0, False

    def take(self, holder: str, address: str, keys: str) -> bool:
        """Take the next epoch; False while another one has the lock, behind which this one stands by. ``holder`` says
        who this is to people, and ``keys`` is a fingerprint of what all coordinators of one database keep beside it;
        TrustError if those before kept something else."""
        self._sole = self._sole or self._transaction(self._lock)
        if self._sole:
            self._migrate()
        elif self._revision() != self._head:
            return False
        known = self.rows("epoch")
        if others := [row["holder"] for row in known if row["keys"] not in (None, keys)]:
            remedy = "Restore its backup here, or copy its authority.key, authority.pem, lobby.seed, noise.key and name"
            raise TrustError(f"the database is that of {others[0]}, whose keys this coordinator has not", remedy=remedy)
        if self._sole:
            row = {"address": address, "holder": holder, "keys": keys}
            self.epoch = self._transaction(lambda connection: self._next(connection, row), "refuses to write")
        elif address not in [row["address"] for row in known]:
            self.apply([Put("epoch", {"address": address})])
        return self.epoch > 0

    def peers(self) -> list[str]:
        """Where coordinators are, at work or standing by, if they are several; StoreError if another took over."""
        known = {row["address"]: row["number"] for row in self.rows("epoch", "address")}
        if self.epoch and self.epoch not in known.values():
            raise self._over()
        return [*known] if len(known) > 1 else []

    def _next(self, connection: sa.Connection, row: dict[str, str]) -> int:
        """End the newest epoch, whose number becomes negative, and begin the next: compare and swap."""
        numbers = sa.select(sa.func.max(sa.func.abs(self._metadata.tables["epoch"].c.number)))
        newest: int = connection.execute(numbers).scalar() or 0
        self._swap(connection, newest, -newest)
        if self._sole:  # still: the connection may have been lost
            self._execute(connection, Put("epoch", {**row, "number": newest + 1}))
        return newest + 1 if self._sole else 0

    def _reach(self) -> bool:
        again = "_connection" in vars(self)
        super()._reach()
        if again and not self.epoch:
            self.stopping.wait(5.0)  # who was at work tries every 4 s, and comes first
        with self._connection.begin():
            self._sole = self._lock(self._connection)
            if self.epoch and not self._sole:
                self._fence(self._connection)
                raise UnreachableError("the session before has not ended")
        return self._sole

    def _lock(self, connection: sa.Connection) -> bool:
        return not self.server or bool(connection.execute(LOCK).one()[-1])

    def _fence(self, connection: sa.Connection) -> None:
        """Its row, changed into what it is, is locked until the commit: who ends the epoch waits for that and finds
        all of it, and who comes later finds no such row."""
        self._swap(connection, self.epoch, self.epoch)

    def _swap(self, connection: sa.Connection, number: int, becomes: int) -> None:
        if number and not connection.execute(self._swapping, {"old": number, "new": becomes}).rowcount:
            raise self._over()

    @cached_property
    def _swapping(self) -> sa.Update:
        epochs = self._metadata.tables["epoch"]
        return epochs.update().where(epochs.c.number == sa.bindparam("old")).values(number=sa.bindparam("new"))

    def _over(self) -> StoreError:
        remedy = "Started again it stands by, or on SQLite takes over in turn: let one alone use a file"
        return StoreError("another coordinator has taken over", remedy=remedy)
