"""One coordinator at a time: epochs, the lock before them, and those who stand by."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from hansa.database import Database, Put
from hansa.errors import StoreError, TrustError, UnreachableError

LOCK = sa.text(
    "SELECT set_config('tcp_keepalives_idle', '5', false), set_config('tcp_keepalives_interval', '2', false), "
    "set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '10000', false), "
    "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), false), "
    "pg_try_advisory_lock(hashtextextended('hansa ' || coalesce(current_schema(), ''), 0))"
)
"""Of a session of PostgreSQL, which soon sees that this machine is gone; whatever it commits is durable."""


class Fenced(Database):
    """A database that the coordinator of the newest epoch alone may change.

    On a server the lock lives as long as its holder's connection: who has it takes the next epoch, and all others stand
    by. A file has no such lock: who starts takes the epoch, and who had it is refused. The ``epoch`` is 0 for who never
    took one, such as a program that copies what nobody serves.
    """

    epoch, _sole, _where = 0, False, ""

    def take(self, holder: str, address: str, keys: str) -> bool:
        """Take the next epoch; False while another one has the lock, behind which this one is now known to stand by.

        Args:
            holder: who this is, for people.
            address: where parties reach it.
            keys: a fingerprint of what coordinators of one database must have in common beside it.

        Raises:
            TrustError: if those before have other keys.
        """
        self._sole = self._sole or self._transaction(self._lock)
        if self._sole:
            self._migrate()
        elif self._revision() != self._head:
            return False
        known = self.rows("epoch")
        if others := [row["holder"] for row in known if row["keys"] not in (None, keys)]:
            remedy = "Restore its backup here, or copy its authority.key, authority.pem, lobby.seed, noise.key and name"
            raise TrustError(f"the database is that of {others[0]}, whose keys this coordinator has not", remedy=remedy)
        row = {"address": address, "at": datetime.now(UTC).isoformat()}
        if self._sole:
            self._where, new = address, {**row, "holder": holder, "keys": keys}
            self.epoch = self._transaction(lambda connection: self._next(connection, new), "refuses to write")
        elif address not in [row["address"] for row in known]:
            self.apply([Put("epoch", row)])
        return self.epoch > 0

    def peers(self) -> list[str]:
        """Where the coordinators are, the active one and those who stand by; none if there was only ever one.

        Raises:
            StoreError: if another one has taken over.
        """
        if self.epoch and not self.rows("epoch", address=self._where, number=self.epoch):
            raise self._over()
        known = [row["address"] for row in self.rows("epoch", "at")]
        return known if len(known) > 1 else []

    def _next(self, connection: sa.Connection, row: dict[str, Any]) -> int:
        """End the newest epoch, whose number becomes negative, and begin the next: compare and swap."""
        epochs = self._metadata.tables["epoch"]
        newest = connection.execute(sa.select(sa.func.max(sa.func.abs(epochs.c.number)))).scalar() or 0
        ends = epochs.update().where(epochs.c.number == newest).values(number=-newest)
        if newest and not connection.execute(ends).rowcount:
            raise self._over()
        if self._sole:  # still: the connection may have been lost
            begins = Put("epoch", {**row, "number": newest + 1})
            connection.execute(self._statement(begins), begins.values)
        return newest + 1 if self._sole else 0

    def _reach(self) -> bool:
        super()._reach()
        with self._connection.begin():
            self._sole = self._lock(self._connection)
            if self.epoch and not self._sole:
                self._fence(self._connection)
                raise UnreachableError("the session before has not ended")
        return self._sole

    def _lock(self, connection: sa.Connection) -> bool:
        return not self.server or bool(connection.execute(LOCK).one()[-1])

    def _fence(self, connection: sa.Connection) -> None:
        """The row of the epoch, set to what it is, is locked until the commit: who ends the epoch waits for it and
        finds all of it, and who comes later finds no such row.
        """
        epochs = self._metadata.tables["epoch"]
        own = epochs.update().where(epochs.c.address == self._where, epochs.c.number == self.epoch)
        if self.epoch and not connection.execute(own.values(number=self.epoch)).rowcount:
            raise self._over()

    def _over(self) -> StoreError:
        remedy = "Started again, this one stands by"
        if not self.server:
            remedy = "Let one coordinator alone use this file; two that stand in for each other need PostgreSQL"
        return StoreError("another coordinator has taken over", remedy=remedy)
