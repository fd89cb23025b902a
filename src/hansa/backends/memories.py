"""What simulated parties remember, in memory-mapped files: only those that took part have a place."""

import math
import mmap
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from hansa.contribution import Array, Rows, Values

_SMALL = 1 << 27  # bytes


class _Column:
    """One remembered array of many parties, ``[places, *shape]``, in an unnamed file that grows."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._rows: Array = np.empty((0, *shape), dtype)

    def __getitem__(self, place: int) -> Array:
        row: Array = self._rows[place]
        return row

    def put(self, places: Sequence[int], values: Array) -> None:
        """Write some parties'; there is room for four times as many whenever it runs out."""
        if (highest := max(places)) >= len(self._rows):
            shape = (max(256, 4 * highest), *self._rows.shape[1:])
            with tempfile.TemporaryFile(prefix="hansa-") as file:  # the map outlives it
                size = max(1, math.prod(shape) * self._rows.dtype.itemsize)
                file.truncate(size)
                # A small one gets its pages at once, where that can be had: page by page takes longer.
                whole = size < _SMALL and hasattr(mmap, "MAP_POPULATE")
                flags = {"flags": mmap.MAP_SHARED | mmap.MAP_POPULATE} if whole else {}
                mapped = mmap.mmap(file.fileno(), size, **flags)
            grown = np.frombuffer(mapped, self._rows.dtype, math.prod(shape)).reshape(shape)
            grown[: len(self._rows)] = self._rows
            self._rows = grown
        self._rows[places] = values

    def take(self, places: Array, out: Array) -> None:
        """Read some parties'; anything where the place is negative."""
        self._rows.take(places, axis=0, out=out, mode="clip")


def _like(value: Array) -> tuple[tuple[int, ...], Any]:
    return value.shape, value.dtype


class Memories(Mapping[str, Values]):
    """Each party's memory, by name, ``memories`` to begin with; what is taken out is a view, until more is settled."""

    def __init__(self, memories: Mapping[str, Values] | None = None) -> None:
        self._columns: dict[tuple[str, Any], _Column] = {}
        self._places: dict[str, int] = {}
        self._held: dict[str, dict[str, _Column]] = {}
        self._even = True  # whether all remember under the same names
        self.settle(memories or {})

    def __getitem__(self, party: str) -> Values:
        place = self._places[party]
        return Values({name: column[place] for name, column in self._held[party].items()})

    def __contains__(self, party: object) -> bool:
        return party in self._held

    def stack(self, parties: Sequence[str], begins: Mapping[str, Array]) -> dict[str, Array] | None:
        """What these remember or begin with, ``[k, ...]``, if it is all under the names of ``begins``."""
        if not self._even or any((name, _like(value)) not in self._columns for name, value in begins.items()):
            return None
        if len(self._columns) != len(begins):
            return None
        places = np.array([self._places.get(party, -1) for party in parties])
        stack = {}
        for name, value in begins.items():
            stack[name] = rows = np.empty((len(parties), *value.shape), value.dtype)
            self._columns[name, _like(value)].take(places, rows)
            rows[places < 0] = value
        return stack

    def settle(self, memories: Mapping[str, Values]) -> None:
        """Keep what these parties remember from now on, beside what they remember under other names."""
        if not isinstance(memories, Rows):
            for party, memory in memories.items():
                self.settle(Rows((party,), {name: value[None] for name, value in memory.items()}))
            return
        if not memories.parties:
            return
        columns = {}
        places = [self._places.setdefault(name, len(self._places)) for name in memories.parties]
        for name, values in memories.arrays.items():
            like = _like(values[0])
            columns[name] = column = self._columns.setdefault((name, like), _Column(*like))
            column.put(places, values)
        self._even = self._even and len(columns) == len(self._columns)
        for party in memories.parties:
            held = self._held.get(party)
            self._held[party] = columns if held is None else {**held, **columns}

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Latest(Mapping[str, Values]):
    """What was remembered last: in front what is new, behind it what was settled before."""

    def __init__(self, new: Sequence[Mapping[str, Values]], settled: Memories) -> None:
        self._settled, self._new = settled, {party: memories for memories in new for party in memories}

    def __getitem__(self, party: str) -> Values:
        if party not in self._new:
            return self._settled[party]
        new = self._new[party][party]
        return Values({**self._settled[party], **new}) if party in self._settled else new

    def stack(self, parties: Sequence[str], begins: Mapping[str, Array]) -> dict[str, Array] | None:
        """What these remember or begin with, ``[k, ...]``, if it is all under the names of ``begins``."""
        latest = {place: self._new[name][name] for place, name in enumerate(parties) if name in self._new}
        stack = self._settled.stack(parties, begins)
        if stack is None or any(new.keys() != begins.keys() for new in latest.values()):
            return None
        for place, new in latest.items():
            for name, value in new.items():
                stack[name][place] = value
        return stack

    def __contains__(self, party: object) -> bool:
        return party in self._new or party in self._settled

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._settled), **dict.fromkeys(self._new)})

    def __len__(self) -> int:
        return sum(1 for _ in self)
