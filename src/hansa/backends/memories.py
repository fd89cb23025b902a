"""What simulated parties remember, in memory-mapped files: only those that took part have a place."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import numpy as np

from hansa.contribution import Array, Values


class _Column:
    """One remembered array of many parties, ``[places, *shape]``, in an unnamed file that grows."""

    def __init__(self, like: Array) -> None:
        self._rows: Array = np.empty((0, *like.shape), like.dtype)

    def __getitem__(self, place: int) -> Array:
        row: Array = self._rows[place]
        return row

    def put(self, place: int, value: Array) -> None:
        """Write one party's; there is room for twice as many whenever it runs out."""
        if place >= len(self._rows):
            shape = (max(16, 2 * place), *self._rows.shape[1:])
            with tempfile.TemporaryFile(prefix="hansa-") as file:  # the map outlives it
                file.truncate(max(1, math.prod(shape) * self._rows.dtype.itemsize))
                grown = np.memmap(file, self._rows.dtype, mode="r+", shape=shape)
            grown[: len(self._rows)] = self._rows
            self._rows = np.asarray(grown)  # without the class, whose every view costs
        self._rows[place] = value


class Memories(MutableMapping[str, Values]):
    """Each party's memory, by name; what is taken out is a view, and holds until it is put in anew.

    Args:
        memories: to begin with.
    """

    def __init__(self, memories: Mapping[str, Values] | None = None) -> None:
        self._columns: dict[tuple[str, Any], _Column] = {}
        self._places: dict[str, int] = {}
        self._held: dict[str, tuple[tuple[str, Any], ...]] = {}
        self.update(memories or {})

    def __getitem__(self, party: str) -> Values:
        place = self._places[party]
        return Values({key[0]: self._columns[key][place] for key in self._held[party]})

    def __contains__(self, party: object) -> bool:
        return party in self._held

    def __setitem__(self, party: str, memory: Values) -> None:
        place = self._places.setdefault(party, len(self._places))
        keys = []
        for name, value in memory.items():
            key = (name, (value.shape, value.dtype.str))
            if key not in self._columns:
                self._columns[key] = _Column(value)
            self._columns[key].put(place, value)
            keys.append(key)
        self._held[party] = tuple(keys)

    def __delitem__(self, party: str) -> None:
        del self._held[party]

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class Latest(Mapping[str, Values]):
    """What was remembered last: of those in ``new`` that, of others what was settled before."""

    def __init__(self, new: Mapping[str, Values], settled: Memories) -> None:
        self._new, self._settled = new, settled

    def __getitem__(self, party: str) -> Values:
        return self._new[party] if party in self._new else self._settled[party]

    def __contains__(self, party: object) -> bool:
        return party in self._new or party in self._settled

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._settled), **dict.fromkeys(self._new)})

    def __len__(self) -> int:
        return sum(1 for _ in self)
