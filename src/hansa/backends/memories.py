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


class Memories(Mapping[str, Values]):
    """Each party's memory, by name; what is taken out is a view, and holds until more is settled.

    Args:
        memories: to begin with.
    """

    def __init__(self, memories: Mapping[str, Values] | None = None) -> None:
        self._columns: dict[tuple[str, Any], _Column] = {}
        self._places: dict[str, int] = {}
        self._held: dict[str, dict[str, _Column]] = {}
        self.settle(memories or {})

    def __getitem__(self, party: str) -> Values:
        place = self._places[party]
        return Values({name: column[place] for name, column in self._held[party].items()})

    def __contains__(self, party: object) -> bool:
        return party in self._held

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
            like = (values.shape[1:], values.dtype)
            columns[name] = column = self._columns.setdefault((name, str(like)), _Column(*like))
            column.put(places, values)
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
        self._settled = settled
        self._new = {party: memories for memories in new for party in memories}

    def __getitem__(self, party: str) -> Values:
        if party not in self._new:
            return self._settled[party]
        new = self._new[party][party]
        return Values({**self._settled[party], **new}) if party in self._settled else new

    def __contains__(self, party: object) -> bool:
        return party in self._new or party in self._settled

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._settled), **dict.fromkeys(self._new)})

    def __len__(self) -> int:
        return sum(1 for _ in self)
