"""What happens to the coordinator's machine, and what it leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hansa.contribution import Ask, Json, Total
from hansa.data.table import ColumnSchema
from hansa.database import Drop, Put
from hansa.federation import Federation
from hansa.secure.terms import Step

if TYPE_CHECKING:
    from hansa.coordinator.live import Live
    from hansa.coordinator.store import Spooled

# --- what happens -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Offered:
    """A table that a party offers: its name, size, columns, and the task kinds its owner allows."""

    dataset: str
    rows: int
    columns: tuple[ColumnSchema, ...]
    allow: tuple[str, ...]

    def to_json(self) -> dict[str, Json]:
        """A row of the store."""
        columns: Json = [[c.name, c.type] for c in self.columns]
        return {**vars(self), "columns": columns, "allow": list(self.allow)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Offered:
        """The inverse of `to_json`."""
        columns = tuple(ColumnSchema(name, kind) for name, kind in body["columns"])
        return cls(body["dataset"], body["rows"], columns, tuple(body["allow"]))


@dataclass(frozen=True)
class Unsettled:
    """An answer of which a party has not heard what became, and what the store says of it."""

    run: str
    version: int
    taken: bool = False  # whether it was taken
    applied: int = 0  # how many exchanges of its run were applied at the run's last commit


@dataclass(frozen=True)
class Connected:
    """A party listens, offers tables, and asks what became of its answers."""

    party: str
    offers: tuple[Offered, ...]
    pending: tuple[Unsettled, ...] = ()
    identity: bytes = b""


@dataclass(frozen=True)
class Disconnected:
    """A party no longer listens."""

    party: str


@dataclass(frozen=True)
class Joined:
    """A party was given its first certificate."""

    party: str
    serial: str
    expires: str


@dataclass(frozen=True)
class Renewed:
    """A party was given a new certificate for the one with the serial number ``former``."""

    party: str
    former: str
    serial: str
    expires: str


@dataclass(frozen=True)
class Removed:
    """An operator removed a party."""

    party: str
    reason: str


@dataclass(frozen=True)
class Delivered:
    """A party's answer is here, whole; ``refusal`` if it is not what was declared."""

    ticket: object  # whatever the driver needs to acknowledge it
    party: str
    run: str
    version: int
    attempt: int
    weight: float
    digest: str
    body: bytes | Spooled  # the tensors, for the store; or the file in which they came
    refusal: str = ""


@dataclass(frozen=True)
class Failed:
    """A party could not do its work and says why, and of whom it complains in a secure sum, if of others."""

    ticket: object
    party: str
    run: str
    version: int
    attempt: int
    reason: str
    about: tuple[str, ...] = ()


@dataclass(frozen=True)
class Said:
    """A party's answer in a phase of a secure sum, but for its vector."""

    ticket: object
    party: str
    step: Step


@dataclass(frozen=True)
class Submitted:
    """An operator asks for a run."""

    run: str
    federation: Federation


@dataclass(frozen=True)
class Resumed:
    """An operator asks a run that ended without its result to go on; the driver has loaded it."""

    live: Live


@dataclass(frozen=True)
class Reduced:
    """The sum that `Effects.reduce` asked for."""

    run: str
    version: int
    total: Total
    # parties whose answers could not be added, with the reason
    excluded: Mapping[str, str] = field(default_factory=dict)
    failure: str = ""  # why there is no sum at all; empty if there is one


@dataclass(frozen=True)
class DeadlinePassed:
    """The time of an ask is over, or of a phase of its secure sum; ``moving`` are those whose upload makes progress,
    to whom more was given ``again`` times."""

    run: str
    version: int
    attempt: int
    phase: int = 0
    again: int = 0
    moving: frozenset[str] = field(default=frozenset(), compare=False)


PartyEvent = Connected | Disconnected | Joined | Renewed | Removed | Delivered | Failed | Said
MachineEvent = PartyEvent | Submitted | Resumed | Reduced | DeadlinePassed

# --- what is to be done -------------------------------------------------------------------------


@dataclass(frozen=True)
class WorkNotice:
    """Tell a party about an open ask."""

    run: str
    ask: Ask
    attempt: int
    federation: str


@dataclass(frozen=True)
class SettledNotice:
    """Tell a party what became of its answer."""

    run: str
    version: int
    counted: bool
    reason: str = ""


@dataclass(frozen=True)
class RemovedNotice:
    """Tell a party that it is removed, and close its streams."""

    reason: str


Notice = WorkNotice | SettledNotice | RemovedNotice | Step | tuple[str, ...]
"""A tuple: the addresses of all coordinators, now that they are others."""


@dataclass(frozen=True)
class Blob:
    """Bytes to keep, in the same transaction as the changes."""

    run: str
    version: int
    name: str
    body: Any  # bytes, as `Buffer`s are; the pieces of some, in a list; or `Spooled`


@dataclass
class Effects:
    """What one event leads to."""

    changes: list[Put | Drop] = field(default_factory=list)  # rows, to be committed first
    blobs: list[Blob] = field(default_factory=list)  # kept with them
    notices: list[tuple[str, Notice]] = field(default_factory=list)  # then told to parties that listen
    receipts: list[tuple[object, bool, str]] = field(default_factory=list)  # then acknowledged: ticket, taken, reason
    # then summed: run, version, and the parties in roster order
    reduce: list[tuple[str, int, tuple[str, ...]]] = field(default_factory=list)
    # then waited for: events, and after how many seconds
    alarms: list[tuple[DeadlinePassed, float]] = field(default_factory=list)
    # exchanges whose files may go once the changes are committed
    settled: list[tuple[str, int]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)  # runs that ended

    def extend(self, more: Effects) -> None:
        """Add what a later event leads to."""
        for name, value in vars(more).items():
            if value:
                getattr(self, name).extend(value)
