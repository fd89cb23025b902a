"""Rows divided among parties, for simulations.

Every way of dividing works on row numbers (``..._rows``), so that it serves arrays of any size;
`hansa.Population.of_rows` makes parties of them. The seed alone decides who gets what. What cannot be divided
so (too few rows, a share that is not positive) is a DataError with a remedy."""

import heapq
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hansa.data.contract import texts
from hansa.data.table import Table
from hansa.errors import DataError
from hansa.keyed import generator

Rows: TypeAlias = NDArray[np.intp]  # numbers of rows from 0, ascending: one party's

_FEW = 10
_LISTED = 8


def by_column(table: Table, column: str) -> dict[str, Table]:
    """A party for each value of a column, which is then dropped; names sorted, rows in order; raises DataError: there
    is no such column, or a value is missing (its row is named)."""
    table.column(column)
    names = texts(table, column)
    for row, name in enumerate(names):
        if name is None:
            what = f"column {column!r}, row {row + 1}: the value that names the party is missing"
            raise DataError(what, field=column)
    rest = table.drop(column)
    return {str(name): rest.take(rows) for name, rows in _alike(names)}


def iid_rows(rows: int, parties: int, seed: int) -> list[Rows]:
    """``rows`` rows dealt at random into parts of equal size, or one row less."""
    _enough(rows, parties)
    return _cut(rows, [(i * rows) // parties for i in range(1, parties)], seed)


def share_rows(rows: int, fractions: Sequence[float], seed: int) -> list[Rows]:
    """``rows`` rows dealt at random in positive shares that add up to 1."""
    given = np.array(fractions, dtype=np.float64)
    if not (given > 0).all() or abs(given.sum() - 1.0) > 1e-6:
        remedy = "Each is positive, and together they are 1."
        raise DataError(f"the shares are {', '.join(f'{v:g}' for v in given)}", remedy=remedy)
    return _cut(rows, np.rint(np.cumsum(given)[:-1] * rows).astype(int).tolist(), seed)


def quantity_rows(rows: int, parties: int, alpha: float, seed: int, minimum: int = 1) -> list[Rows]:
    """Quantity skew: the parties' shares of the rows are one draw from ``Dir(alpha, ..., alpha)`` (Li et al. 2021,
    arXiv 2102.02079, section 4.3). The smaller ``alpha``, the more unequal the sizes."""
    _positive("alpha", alpha)
    _enough(rows, parties, minimum)
    random = generator(seed, "partition", "quantity")
    cuts = np.rint(np.cumsum(random.dirichlet(np.full(parties, alpha)))[:-1] * rows).astype(int)
    return _filled(_cut(rows, cuts.tolist(), seed), minimum, random)


def dirichlet_rows(labels: ArrayLike, parties: int, alpha: float, seed: int, minimum: int = 1) -> list[Rows]:
    """Label skew: the parties' shares of each label are one draw from ``Dir(alpha, ..., alpha)``.

    Yurochkin et al. 2019 (arXiv 1905.12022), as Li et al. 2021 (arXiv 2102.02079) do it: a party
    that has its even share of all rows gets none of the labels to come. Published figures for
    "Dirichlet(0.5)" mostly mean this. A party below the minimum gets rows of the largest ones.

    Args:
        labels: of each row, ``[rows]``, of numbers or of text.
        parties: how many; their sizes differ.
        alpha: the smaller, the fewer labels a party has; 100 is nearly IID.
        seed: the study's.
        minimum: rows that each party has at least."""
    _positive("alpha", alpha)
    groups = [part for _, part in _alike(labels)]
    rows = sum(map(len, groups))
    _enough(rows, parties, minimum)
    if len(groups) > max(_FEW, rows // 2):
        remedy = "Skew the quantity of a target like this one, or deal it out in shards."
        raise DataError(f"{len(groups)} different labels on {rows} rows", remedy=remedy)
    random = generator(seed, "partition", "dirichlet")
    taken = np.zeros((parties, len(groups)), dtype=np.intp)
    for label, group in enumerate(groups):
        # Among those with room: what a Dirichlet draw gives to some, scaled to 1, is one itself.
        room = np.flatnonzero(taken.sum(axis=1) * parties < rows)
        ends = np.cumsum(random.dirichlet(np.full(len(room), alpha))) * len(group)
        ends[-1] = len(group)
        taken[room, label] = np.diff(np.rint(ends).astype(np.intp), prepend=0)
    owners = np.empty(rows, dtype=np.intp)
    for group, counts in zip(groups, taken.T, strict=True):
        owners[random.permutation(group)] = np.repeat(np.arange(parties), counts)
    return _filled([part for _, part in _alike(owners, parties)], minimum, random)


def shard_rows(labels: ArrayLike, parties: int, per_party: int, seed: int) -> list[Rows]:
    """Label skew by shards: rows sorted by label, cut into equal shards, ``per_party`` dealt to each; with two, most
    parties have two digits (McMahan et al. 2017, arXiv 1602.05629, section 3)."""
    order = np.argsort(np.unique(np.asarray(labels), return_inverse=True)[1], kind="stable")
    if per_party < 1:
        raise DataError(f"{per_party} shards for each party", remedy="Say 1 or more")
    _enough(len(order), parties, per_party)
    count = parties * per_party
    cuts = np.split(order, [(i * len(order)) // count for i in range(1, count)])
    dealt = generator(seed, "partition", "shards").permutation(count).reshape(parties, per_party)
    return [np.sort(np.concatenate([cuts[shard] for shard in mine])) for mine in dealt]


def describe(parts: Mapping[str, Table], target: str | None = None) -> list[Sequence[object]]:
    """A summary as a table, its header first, then one line a party: rows, and how the target is spread; of more than
    ten values over all parties, its mean. Of more than ten parties the first are listed, then the least, the median and
    the most of each column. Raises DataError: a party lacks the target column."""
    header = ["party", "rows"]
    columns: list[list[int] | list[float]] = [[part.rows for part in parts.values()]]
    if target is not None:
        words = [texts(part, target) for part in parts.values()]
        values = sorted({word for of in words for word in of if word is not None})
        if len(values) <= _FEW:
            header += [f"{target}={value}" for value in values]
            columns += [[int((of == value).sum()) for of in words] for value in values]
        elif all(part.kind(target) == "number" for part in parts.values()):
            header.append(f"mean of {target}")
            columns.append([float(np.nanmean(part.column(target))) for part in parts.values()])
        else:
            header.append(f"values of {target}")
            columns.append([len(set(of) - {None}) for of in words])
    lines: list[Sequence[object]] = list(zip(parts, *columns, strict=True))
    if len(lines) > _FEW:
        ends = {"least": 0, "median": (len(lines) - 1) // 2, "most": -1}
        summary = [(name, *(sorted(column)[at] for column in columns)) for name, at in ends.items()]
        lines[_LISTED:] = [(f"... {len(lines) - _LISTED} more", *[None] * len(columns)), *summary]
    return [header, *lines]


def _alike(values: ArrayLike, count: int = 0) -> list[tuple[object, Rows]]:
    """Each value with its rows; with ``count``, the values are 0, 1 ... up to it, and may have none."""
    found, place = np.unique(np.asarray(values), return_inverse=True)
    names, place = (range(count), np.asarray(values)) if count else (found, place)
    sizes = np.bincount(place, minlength=len(names))
    return list(zip(names, np.split(np.argsort(place, kind="stable"), np.cumsum(sizes)[:-1]), strict=True))


def _positive(name: str, value: float) -> None:
    if not 0 < value < np.inf:
        raise DataError(f"{name} is {value:g}", remedy="It is a number above 0: 0.5, for example")


def _enough(rows: int, parties: int, each: int = 1) -> None:
    if parties < 1:
        raise DataError(f"{parties} parties", remedy="Say 1 or more")
    if rows < parties * each:
        remedy = f"Every party gets at least {each} of them: name fewer parties"
        raise DataError(f"{rows} rows are too few for {parties} parties", remedy=remedy)


def _cut(rows: int, cuts: Sequence[int], seed: int) -> list[Rows]:
    order = generator(seed, "partition").permutation(rows)
    return [np.sort(part) for part in np.split(order, cuts)]


def _filled(parts: list[Rows], minimum: int, random: np.random.Generator) -> list[Rows]:
    """What the largest parties have too many of goes, row by row, to those below the minimum."""
    short = [i for i, part in enumerate(parts) if len(part) < minimum]
    piles = {i: parts[i].tolist() for i in short}
    largest = [(-len(part), i) for i, part in enumerate(parts)]
    heapq.heapify(largest)
    for i in short:
        while len(piles[i]) < minimum:
            size, giver = largest[0]
            if giver not in piles:
                piles[giver] = random.permutation(parts[giver]).tolist()
            piles[i].append(piles[giver].pop())
            heapq.heapreplace(largest, (size + 1, giver))
    return [np.sort(np.array(piles[i], dtype=np.intp)) if i in piles else part for i, part in enumerate(parts)]
