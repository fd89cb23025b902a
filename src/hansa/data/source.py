"""Where a table comes from, and how it is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import model_validator

from hansa.data.database import read_database
from hansa.data.delimited import MISSING, read_csv, write_csv
from hansa.data.duck import read_parquet, write_parquet
from hansa.data.table import Table
from hansa.errors import DataError, did_you_mean
from hansa.part import Written

__all__ = ["MISSING", "Source", "read", "write_csv", "write_parquet"]

_WAYS_OUT = {
    (".xlsx", ".xls", ".xlsm", ".ods"): "Save the sheet as CSV (UTF-8) and give that file.",
    (".gz", ".zip", ".bz2", ".xz", ".zst"): "Unpack it and give the file inside.",
}


class Source(Written):
    """One place a table is read from: a file, or a query to a database.

    Attributes:
        path: a CSV or Parquet file.
        encoding: of the CSV file, any that Python knows.
        sql: a query.
        url: the database that runs it, as an SQLAlchemy URL."""

    path: str | None = None
    encoding: str = "utf-8"
    sql: str | None = None
    url: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if (self.path is None) == (self.sql is None) or (self.url is None) != (self.sql is None):
            raise ValueError("a source is either a `path`, or a query: `url` and `sql`")
        return self

    @classmethod
    def parse(cls, text: str, encoding: str = "utf-8") -> Source:
        """A source from one word of the command line: ``FILE``, which has an encoding, or ``URL#SELECT ...``; raises
        DataError: nothing is named, or a URL comes without its query."""
        if not text.strip():
            raise DataError("no file is named", remedy="Write NAME=FILE.")
        if "://" not in text.partition("#")[0]:
            return cls(path=text, encoding=encoding)
        url, _, sql = text.partition("#")
        if not sql.strip():
            remedy = "Write it after the address: 'sqlite:///a.db#SELECT * FROM patients'."
            raise DataError("a database needs a query", remedy=remedy)
        return cls(url=url, sql=sql)


def read(source: Source | str | Path) -> Table:
    """Read a table; text is taken as on the command line (`Source.parse`); raises DataError: nothing there, not
    readable, empty, or a cell is infinite; it says where."""
    if not isinstance(source, Source):
        source = Source.parse(source) if isinstance(source, str) else Source(path=str(source))
    if source.path is not None:
        path = _existing(Path(source.path))
        what = path.name
        table = read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else read_csv(path, source.encoding)
    else:
        what, table = "the query's result", read_database(source.url or "", source.sql or "")
    if table.rows == 0:
        raise DataError(f"{what} is an empty table", remedy="It needs at least one row.")
    for name, values in table.columns.items():
        if table.kind(name) == "number" and np.isinf(values).any():
            row = int(np.isinf(values).argmax())
            what = f"{what}, column {name!r}, row {row + 1}: {values[row]} is not a finite number"
            raise DataError(what, field=name, remedy="Leave the cell empty if the value is missing.")
    return table


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{str(path)!r} is a folder", remedy="Give one CSV or Parquet file.")
    if not path.is_file():
        folder = path.absolute().parent
        remedy = f"There is no folder {str(folder)!r} either."
        if folder.is_dir():
            names = [entry.name for entry in folder.iterdir() if entry.is_file()]
            remedy = did_you_mean(path.name, names, otherwise=f"It was looked for in {str(folder)!r}.")
        raise DataError(f"no such file: {path}", remedy=remedy)
    for endings, way_out in _WAYS_OUT.items():
        if path.suffix.lower() in endings:
            raise DataError(f"{path.name} is not a CSV or Parquet file", remedy=way_out)
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path} cannot be opened: {error.strerror}") from error
    return path
