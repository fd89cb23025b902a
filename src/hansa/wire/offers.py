"""What a party offers, as it travels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from hansa.wire import messages as m


class Column(Protocol):
    """A column's name and type."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def type(self) -> str:
        """``number`` or ``text``."""


def described(dataset: str, rows: int, columns: Iterable[Column], allow: Iterable[str]) -> m.Offer:
    """The message that describes an offer: never a value of the table."""
    listed = [m.Column(name=column.name, type=column.type) for column in columns]
    return m.Offer(dataset=dataset, rows=rows, columns=listed, allow=allow)
