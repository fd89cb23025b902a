"""What an agent remembers."""

from collections.abc import Iterable
from pathlib import Path

import sqlalchemy as sa
from blake3 import blake3

from hansa import tensors
from hansa.agent.ledger import RESTORED, Budget, Ledger
from hansa.crypto.vault import Buffer, Vault
from hansa.database import Database, Drop, Put, columns
from hansa.errors import StoreError
from hansa.files import Spares, mapped, sync_folder, writing
from hansa.privacy.events import EVENTS, Exact
from hansa.secure.terms import Rules

HEAD = "0003"
MIGRATIONS = Path(__file__).parent / "migrations"

metadata = sa.MetaData()
sa.Table("offer", metadata, *columns({"dataset": str}, source=dict, allow=list))
_ANSWER = columns({"run": str, "version": int}, attempt=int, round=int, weight=float, body=bytes, memory=bytes)
sa.Table("answer", metadata, *_ANSWER)
sa.Table("latest", metadata, *columns({"run": str}, federation=str, version=int, digest=str))
sa.Table("charge", metadata, *columns({"number": int}, run=str, version=int, attempt=int, at=str, event=dict))
sa.Table("budget", metadata, *columns({"unit": str}, epsilon=float, delta=float))
sa.Table("memory", metadata, *columns({"run": str}, body=bytes))
sa.Table("seat", metadata, *columns({"run": str, "attempt": int}, body=bytes, rules=bytes))
sa.Table("member", metadata, *columns({"name": str}, identity=bytes | None, words=str | None))
sa.Table("rule", metadata, *columns({"name": str}, value=int))

KEPT = ".kept"
LARGE, APART = 1 << 20, b"\xffapart\n"
"""Bytes from which on a value lies in a file beside the database, and what a row that names the file begins with."""


class AgentStore(Database):
    """The agent's database in its folder, which is made if it is not there."""

    def __init__(self, home: Path) -> None:
        self._large, self._named = home / "large", dict[tuple[str | int, ...], str]()
        self._spares, self._kept = Spares(self._large / ".spare"), (memoryview(b""), b"")
        super().__init__(home / "agent.db", metadata, MIGRATIONS, HEAD, Vault.of(home), home / "party.json")

    def apply(self, changes: Iterable[Put | Drop], *, erase: bool = False) -> None:
        """The same; files that no row names any more go when that is durable."""
        before = {*self._named.values()}
        super().apply(wanted := list(changes), erase=erase)
        dropped = {(change.table, *change.values.values()) for change in wanted if isinstance(change, Drop)}
        self._named = {place: n for place, n in self._named.items() if (place[0], *place[2:]) not in dropped}
        if over := [self._large / name for name in before.difference(self._named.values())]:
            self._spares.give(over)
            if not self._named:
                self._spares.give()

    def _seal(self, body: Buffer, *place: str | int) -> bytes:
        self._named.pop(place, None)
        if len(body) >= LARGE and place[0] in ("answer", "memory"):  # and not the secrets of seats
            name = self._named[place] = self.digest(body).hex()
            if body is not self._kept[0]:
                self.vault.write(self._large / name, body)
            else:
                (self._large / KEPT).replace(self._large / name)
                sync_folder(self._large)
            body = APART + name.encode()
        return super()._seal(body, *place)

    def _opened(self, sealed: bytes, *place: str | int) -> Buffer:
        body = super()._opened(sealed, *place)
        if body[: len(APART)] == APART:
            name = self._named[place] = str(body[len(APART) :], "ascii")
            body = self.vault.read(self._large / name)
            if blake3(body).hexdigest() != name:
                raise StoreError(f"{self._large / name} is damaged", remedy="Restore the folder from a backup")
        return body

    def keep(self, pieces: list[Buffer]) -> Buffer:
        """The pieces of a body, in one; a large one is in a file already, which is its row's as soon as that is
        written, unless all in files is sealed."""
        if self.vault or (size := sum(map(len, pieces))) < LARGE:
            return b"".join(pieces)
        with writing(self._large / KEPT, private=True, spares=self._spares, size=size) as file:
            file.writelines(pieces)
        self._kept = mapped(self._large / KEPT), tensors.digest(*pieces)
        return self._kept[0]

    def digest(self, body: Buffer) -> bytes:
        """BLAKE3 of a body, which is known if it was kept just now."""
        kept, digest = self._kept
        return digest if body is kept else tensors.digest(body)

    def ledger(self) -> Ledger:
        """What was charged, and the budget."""
        row, order = self.row("budget", unit="example"), self.row("rule", name="order")
        budget = Budget(row["epsilon"], row["delta"], order["value"] if order else None) if row else None
        return Ledger(self.rows("charge", order="number"), budget)

    def restored(self, made: str) -> None:
        """Say that this is a backup: its owner is to confirm what it forgot, and it takes no seat again."""
        number = max((row["number"] for row in self.rows("charge", columns=("number",))), default=0) + 1
        mark = {"number": number, "run": made, "version": 0, "attempt": RESTORED, "at": made}
        event = EVENTS.spec(Exact(adjacency="add-remove"))
        self.apply([Drop("seat", {}), Put("charge", {**mark, "event": event})], erase=True)

    def pins(self) -> dict[str, str]:
        """The words of others' identities that the owner confirmed."""
        return {row["name"]: row["words"] for row in self.rows("member") if row["words"]}

    def honest(self) -> int:
        """How many honest parties beside its own an owner asks for in a secure sum."""
        row = self.row("rule", name="honest")
        return row["value"] if row else Rules().honest
