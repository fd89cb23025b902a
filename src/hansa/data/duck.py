"""DuckDB as a reader: one in-memory connection a read, without downloads and without traces."""

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
_WRITTEN: dict[str, set[type]] = {
    "BOOLEAN": {bool},
    "BIGINT": {int},
    "DOUBLE": {float, int, bool},
    "VARCHAR": {str},
}
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_persistent_secrets": False,
    # Otherwise SQL could name this program's variables, and a large read would leave `.tmp` behind.
    "python_enable_replacements": False,
    "temp_directory": "",
    "preserve_insertion_order": True,
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


def distinct(names: list[str], what: str) -> list[str]:
    """The names of a query's columns; a DataError if two are the same."""
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise DataError(f"{what} has two columns {min(repeated)!r}", remedy="Give each its own name with AS.")
    return names


def read_parquet(path: Path) -> Table:
    """The columns of a Parquet file.

    Raises:
        DataError: it is damaged, or a column is neither of numbers, text nor time.
    """
    with connection(f"{path.name} cannot be read as Parquet") as duck:
        return _typed(duck.read_parquet(literal(path), hive_partitioning=False), path.name)


def read_sql(sql: str) -> Table:
    """What a query over files gives, such as ``SELECT * FROM 'patients.csv'``.

    Raises:
        DataError: DuckDB refuses the query, or a column is neither of numbers, text nor time.
    """
    with connection("the query fails") as duck:
        # Several threads would give the rows of a join in another order every time.
        duck.execute("SET threads = 1").fetchall()
        relation = duck.sql(sql)
        if relation is None:
            raise DataError("the query gives no table", remedy="Write one SELECT.")
        return _typed(relation, "the query")


def fetch(relation: DuckDBPyRelation, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The columns of a relation of DOUBLE and VARCHAR whose columns are called c0, c1 ..."""
    arrays = relation.fetchnumpy()
    return {name: _plain(arrays[f"c{i}"]) for i, name in enumerate(names)}


def write_parquet(path: str | Path, columns: Mapping[str, Sequence[Any] | NDArray[Any]]) -> None:
    """Write columns of int, float, bool or str, ``None`` allowed, as one Parquet file.

    The file appears whole or not at all. A column without values is written as DOUBLE.

    Raises:
        DataError: no columns, unequal lengths, a cell of another type, or a folder that is missing.
    """
    target = Path(path)
    cells = {str(name): _cells(values) for name, values in columns.items()}
    lengths = {name: len(values) for name, values in cells.items()}
    if not cells or len(set(lengths.values())) > 1:
        raise DataError(f"cannot write {target.name}: columns of lengths {lengths}")
    if not target.absolute().parent.is_dir():
        raise DataError(f"cannot write {target.name}: no such folder {str(target.parent)!r}")
    select = ", ".join(
        f"unnest(${i}::{_sql_type(name, values)}[]) AS {quoted(name)}"
        for i, (name, values) in enumerate(cells.items(), 1)
    )
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with connection(f"cannot write {target.name}") as duck:
            made = f"CREATE TABLE written AS SELECT {select}"
            duck.execute(made, list(cells.values())).fetchall()
            duck.table("written").write_parquet(str(partial.absolute()))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _typed(relation: DuckDBPyRelation, what: str) -> Table:
    names = distinct(relation.columns, what)
    casts = [
        f"{_cast(quoted(name), str(kind.id), name)} AS c{i}"
        for i, (name, kind) in enumerate(zip(names, relation.types, strict=True))
    ]
    return Table(fetch(relation.project(", ".join(casts)), names))


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


def _cells(values: Sequence[Any] | NDArray[Any]) -> list[Any]:
    listed = values.tolist() if isinstance(values, np.ndarray) else values
    return [v.item() if isinstance(v, np.generic) else v for v in listed]


def _sql_type(name: str, values: Sequence[Any]) -> str:
    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return "DOUBLE"
    for sql, allowed in _WRITTEN.items():
        if kinds <= allowed:
            return sql
    held = ", ".join(sorted(kind.__name__ for kind in kinds))
    remedy = "Write numbers or text, one of them a column."
    raise DataError(f"column {name!r} holds {held}", remedy=remedy, field=name)
