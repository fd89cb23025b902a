"""One table divided among parties, for simulations."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from hansa.data.contract import texts
from hansa.data.table import Table
from hansa.errors import DataError
from hansa.keyed import generator

_FEW = 10


def by_column(table: Table, column: str) -> dict[str, Table]:
    """A party for each value of a column, which is then dropped; names sorted, rows in order.

    Raises:
        DataError: there is no such column, or a value is missing (its row is named).
    """
    table.column(column)
    names = texts(table, column)
    for row, name in enumerate(names):
        if name is None:
            raise DataError(
                f"column {column!r}, row {row + 1}: the value that names the party is missing",
                field=column,
            )
    rest = table.drop(column)
    return {name: rest.take(np.flatnonzero(names == name)) for name in sorted(set(names))}


def iid(table: Table, parties: int | Sequence[str], seed: int) -> dict[str, Table]:
    """Rows dealt at random into parts of equal size (or one row less), keyed by the seed.

    Args:
        table: what is divided.
        parties: their names, or how many (``party-1``, ``party-2`` ...).
        seed: the study's.

    Raises:
        DataError: no party, a name twice, or more parties than rows.
    """
    if isinstance(parties, int):
        width = len(str(parties))
        parties = [f"party-{i:0{width}d}" for i in range(1, parties + 1)]
    count = len(parties)
    return _deal(
        table, parties, [(i * table.rows) // count for i in range(1, count)] if count else [], seed
    )


def shares(table: Table, fractions: Mapping[str, float], seed: int) -> dict[str, Table]:
    """Rows dealt at random in given shares, keyed by the seed; every row goes to one party.

    Args:
        table: what is divided.
        fractions: party and its share of the rows; together 1.
        seed: the study's.

    Raises:
        DataError: a share is not positive, they do not add up to 1, or one is less than a row.
    """
    given = np.array(list(fractions.values()), dtype=np.float64)
    if not (given > 0).all() or abs(given.sum() - 1.0) > 1e-6:
        raise DataError(
            f"the shares are {', '.join(f'{v:g}' for v in given)}",
            remedy="Each is positive, and together they are 1.",
        )
    cuts = np.rint(np.cumsum(given)[:-1] * table.rows).astype(int)
    return _deal(table, list(fractions), cuts.tolist(), seed)


def describe(parts: Mapping[str, Table], target: str | None = None) -> str:
    """A printable summary, one line a party: rows, and how the target is spread.

    A target with more than ten values over all parties is summed up by its mean.

    Raises:
        DataError: a party lacks the target column.
    """
    header = ["party", "rows"]
    lines = [[name, str(part.rows)] for name, part in parts.items()]
    if target is not None:
        words = {name: texts(part, target) for name, part in parts.items()}
        values = sorted({word for column in words.values() for word in column if word is not None})
        if len(values) <= _FEW:
            header += [f"{target}={value}" for value in values]
            for line in lines:
                line += [str(int((words[line[0]] == value).sum())) for value in values]
        elif all(part.kind(target) == "number" for part in parts.values()):
            header.append(f"mean of {target}")
            for line in lines:
                line.append(f"{np.nanmean(parts[line[0]].column(target)):.4g}")
        else:
            header.append(f"values of {target}")
            for line in lines:
                line.append(str(len({w for w in words[line[0]] if w is not None})))
    return _aligned([header, *lines])


def _deal(table: Table, names: Sequence[str], cuts: Sequence[int], seed: int) -> dict[str, Table]:
    if not names or len(set(names)) < len(names):
        raise DataError(f"parties need names, each its own: {list(names)}")
    order = generator(seed, "partition").permutation(table.rows)
    parts = [np.sort(part) for part in np.split(order, cuts)]
    if any(len(part) == 0 for part in parts):
        raise DataError(
            f"{table.rows} rows are too few for {len(names)} parties",
            remedy="Every party gets at least one row: name fewer parties, or larger shares.",
        )
    return {name: table.take(part) for name, part in zip(names, parts, strict=True)}


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell + " " * (widths[i] - _width(cell))
            if i == 0
            else " " * (widths[i] - _width(cell)) + cell
            for i, cell in enumerate(line)
        )
        for line in lines
    )


def _width(text: str) -> int:
    """Columns of a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
