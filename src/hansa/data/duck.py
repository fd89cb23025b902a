"""DuckDB reads and writes files: one in-memory connection each, without downloads and without traces."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hansa.data.table import Table
from hansa.errors import DataError

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

_NUMBERS = frozenset(
    ["boolean", "float", "double", "decimal", "null", "sqlnull"]
    + [f"{u}{size}" for u in ("", "u") for size in ["tinyint", "smallint", "integer", "bigint", "hugeint"]]
)
OTHER_TYPE = "Select numbers, text or times; leave the column out or cast it."
_TEXTS = frozenset(["varchar", "enum", "uuid", "time"])
_MOMENTS = ("date", "timestamp")
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "temp_directory": "",  # a large read would leave `.tmp` behind
}


@contextmanager
def connection(what: str) -> Iterator[DuckDBPyConnection]:
    """A fresh in-memory connection; what DuckDB refuses becomes a DataError that names ``what``."""
    import duckdb

    opened = duckdb.connect(":memory:", config=_SETTINGS)
    try:
        opened.execute("SET TimeZone = 'UTC'").fetchall()
        yield opened
    except duckdb.Error as error:
        raise DataError(f"{what}: {first_line(error)}") from error
    finally:
        opened.close()


def first_line(error: Exception) -> str:
    """The first line of a database's message: the rest quotes data or lists settings."""
    return str(error).strip().partition("\n")[0].rstrip(". ")


def literal(path: Path) -> str:
    """A path in which DuckDB expands no wildcard."""
    return glob.escape(str(path.absolute()))


def quoted(name: str) -> str:
    """A text in double quotes, as an SQL identifier or a cell of a CSV file."""
    return '"' + name.replace('"', '""') + '"'


def read_parquet(path: Path) -> Table:
    """The columns of a Parquet file; raises DataError if it is damaged, or holds what is no number, text or time."""
    with connection(f"{path.name} cannot be read as Parquet") as duck:
        relation = duck.read_parquet(literal(path), hive_partitioning=False)
        types = zip(relation.columns, relation.types, strict=True)
        casts = [f"{_cast(quoted(name), str(kind.id), name)} AS c{i}" for i, (name, kind) in enumerate(types)]
        return Table(fetch(relation.project(", ".join(casts)), relation.columns))


def fetch(relation: DuckDBPyRelation, names: Sequence[str], first: int = 0) -> dict[str, NDArray[Any]]:
    """The columns of a relation of DOUBLE and VARCHAR whose columns are called c0, c1 ..., from the ``first`` on."""
    arrays = relation.fetchnumpy()
    return {name: _plain(arrays[f"c{i}"]) for i, name in enumerate(names, first)}


def write_parquet(path: str | Path, columns: Mapping[str, Sequence[float | None]]) -> None:
    """Write columns of numbers, ``None`` allowed, as one Parquet file, which appears whole or not at all.

    Args:
        path: of the file.
        columns: of one length each; those of nothing but integers stay integers.

    Raises DataError: the file cannot be written."""
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    kinds = ("BIGINT" if all(isinstance(v, int) for v in values) else "DOUBLE" for values in columns.values())
    select = (f"unnest(${i}::{k}[]) AS {quoted(n)}" for i, (n, k) in enumerate(zip(columns, kinds, strict=True), 1))
    cells = [[v if v is None or isinstance(v, int) else float(v) for v in vs] for vs in columns.values()]
    try:
        with connection(f"cannot write {target.name}") as duck:
            duck.execute(f"CREATE TABLE written AS SELECT {', '.join(select)}", cells).fetchall()
            duck.table("written").write_parquet(str(partial.absolute()))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _cast(column: str, kind: str, name: str) -> str:
    if kind in _NUMBERS:
        return f"CAST({column} AS DOUBLE)"
    if kind in _TEXTS:
        return f"CAST({column} AS VARCHAR)"
    if kind.startswith(_MOMENTS):
        return f"replace(CAST({column} AS VARCHAR), ' ', 'T')"
    raise DataError(f"column {name!r} is of type {kind}", remedy=OTHER_TYPE, field=name)


def _plain(array: NDArray[Any]) -> NDArray[Any]:
    if array.dtype == np.float64:
        return np.ma.filled(array, np.nan)
    text = np.array(np.ma.getdata(array), dtype=object)
    text[np.ma.getmaskarray(array)] = None
    return text
