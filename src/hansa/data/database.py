"""Tables from databases, through SQLAlchemy Core."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hansa.data.duck import OTHER_TYPE, first_line
from hansa.data.table import Table
from hansa.errors import DataError

if TYPE_CHECKING:
    from sqlalchemy.engine import URL


def read_database(url: str, sql: str) -> Table:
    """What a query gives, run in a transaction that is rolled back.

    Args:
        url: an SQLAlchemy URL, such as ``sqlite:///patients.db`` or ``postgresql://user@host/name``.
        sql: one SELECT.

    Raises DataError: the database cannot be reached, refuses the query, or gives a column that is neither of numbers,
    text nor time. No message repeats the URL's password."""
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError

    address = _address(url)
    shown = address.render_as_string(hide_password=True)
    try:
        engine = create_engine(address)
    except ModuleNotFoundError as error:
        remedy = "Install the driver of that database, for example 'psycopg[binary]'."
        raise DataError(f"{shown} needs the package {error.name!r}", remedy=remedy) from error
    except SQLAlchemyError as error:
        raise DataError(f"{shown}: {first_line(error)}") from error
    try:
        with engine.connect() as connection:
            # A colon in the query is never a parameter of ours.
            result = connection.execute(text(sql.replace(":", "\\:")))
            if not result.returns_rows:
                raise DataError("the query gives no table", remedy="Write one SELECT.")
            names, rows = list(result.keys()), result.fetchall()
    except SQLAlchemyError as error:
        raise DataError(f"{shown}: {first_line(getattr(error, 'orig', None) or error)}") from error
    finally:
        engine.dispose()
    if repeated := {name for name in names if names.count(name) > 1}:
        raise DataError(f"the query has two columns {min(repeated)!r}", remedy="Give each its own name with AS.")
    cells = list(zip(*rows, strict=True)) if rows else [()] * len(names)
    return Table({name: _column(name, column) for name, column in zip(names, cells, strict=True)})


def _address(url: str) -> URL:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        address = make_url(url)
    except ArgumentError as error:
        remedy = "Write it as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME."
        raise DataError("the database's address is not a URL", remedy=remedy) from error
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    file = address.database or ""
    # SQLite would create a file that is not there.
    in_memory = file in ("", ":memory:") or file.startswith("file:")
    if address.drivername.startswith("sqlite") and not in_memory and not Path(file).is_file():
        raise DataError(f"no such database file: {file}")
    return address


def _column(name: str, cells: Sequence[Any]) -> NDArray[Any]:
    present = [cell for cell in cells if cell is not None]
    if all(isinstance(cell, (bool, int, float, Decimal)) for cell in present):
        return np.array([np.nan if cell is None else float(cell) for cell in cells], np.float64)
    column = np.empty(len(cells), dtype=object)
    for row, cell in enumerate(cells):
        column[row] = None if cell is None else _text(name, row, cell)
    return column


def _text(name: str, row: int, cell: object) -> str:
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    if isinstance(cell, (bytes, bytearray, memoryview, list, dict)):
        raise DataError(f"column {name!r}, row {row + 1} holds {type(cell).__name__}", remedy=OTHER_TYPE, field=name)
    return str(cell)
