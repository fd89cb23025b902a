"""Very many parties: rows of an index over shared, memory-mapped columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hansa.data.table import Table
from hansa.errors import DataError


@dataclass(frozen=True)
class Numbered(Sequence[str]):
    """The names ``party-0001``, ``party-0002`` ... of so many parties, in order, made when asked for."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: Any) -> Any:
        chosen = range(self.size)[at]
        if isinstance(chosen, range):
            return tuple(map(self.__getitem__, chosen))
        return f"party-{chosen + 1:0{len(str(self.size))}d}"

    def index(self, name: Any, start: int = 0, stop: int | None = None) -> int:
        """Where a name stands; a ValueError if nobody is called so."""
        digits = str(name)[len("party-") :]
        at = int(digits) - 1 if digits.isdecimal() else -1
        if not 0 <= at < self.size or self[at] != name:
            raise ValueError(f"no party is called {name!r}")
        return at

    def __contains__(self, name: object) -> bool:
        try:
            return self.index(name) >= 0
        except ValueError:
            return False


def listed(names: Sequence[str]) -> Any:
    """The names of a roster as JSON; the inverse of `unlisted`."""
    return asdict(names) if isinstance(names, Numbered) else list(names)


def unlisted(body: Any) -> Sequence[str]:
    """The names of a roster from JSON."""
    return Numbered(**body) if isinstance(body, Mapping) else tuple(body)


class Population(Mapping[str, Table]):
    """Parties as ranges of rows of one table; a party's own table is a view of it, made when asked for.

    Args:
        columns: a table, or arrays by name: one-dimensional float64 is a column of numbers, anything else of
            numbers (``[rows, 28, 28]``, say, memory-mapped or not) an array in each row.
        starts: the first row of each party, ``[parties]``. Parties may share rows.
        stops: the row after its last one.

    Raises DataError if the ranges do not lie within the table, or there is no party."""

    def __init__(self, columns: Table | Mapping[str, NDArray[Any]], starts: ArrayLike, stops: ArrayLike) -> None:
        self.table = columns if isinstance(columns, Table) else Table(columns)
        self.starts, self.stops = np.asarray(starts, np.int64), np.asarray(stops, np.int64)
        if self.starts.shape != self.stops.shape or self.starts.ndim != 1 or not self.starts.size:
            what = f"{self.starts.shape} first and {self.stops.shape} last rows make no parties"
            raise DataError(what, remedy="Give the first row of each party, and the row after its last one")
        if (self.starts < 0).any() or (self.stops > self.table.rows).any():
            raise DataError(f"a party's rows lie outside the table of {self.table.rows} rows")
        if (short := np.flatnonzero(self.stops < self.starts)).size:
            raise DataError(f"party {short[0] + 1} ends before it begins")
        self.names = Numbered(len(self.starts))

    @classmethod
    def of_sizes(cls, columns: Table | Mapping[str, NDArray[Any]], sizes: ArrayLike) -> Population:
        """Parties that lie one after the other, with so many rows each."""
        stops = np.cumsum(np.asarray(sizes, np.int64))
        return cls(columns, np.concatenate([[0], stops[:-1]]), stops)

    @classmethod
    def of_rows(cls, columns: Table | Mapping[str, NDArray[Any]], rows: Sequence[NDArray[Any]]) -> Population:
        """Parties that hold these row numbers each, as a partitioner gives them; the table is copied once."""
        table = columns if isinstance(columns, Table) else Table(columns)
        return cls.of_sizes(table.take(np.concatenate(list(rows))), [len(own) for own in rows])

    def range(self, name: str) -> slice:
        """A party's rows; a DataError if there is no such party."""
        starts, stops = self.ranges([name])
        return slice(int(starts[0]), int(stops[0]))

    def ranges(self, names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first row of each of these parties, and the row after its last one, ``[k]`` each; raises DataError if
        there is no such party."""
        try:
            at = [self.names.index(name) for name in names]
        except ValueError as error:
            raise DataError(str(error)) from None
        return self.starts[at], self.stops[at]

    def __getitem__(self, name: str) -> Table:
        rows = self.range(name)
        return Table({column: values[rows] for column, values in self.table.columns.items()})

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.starts)
