"""CSV files: their encoding, header and delimiter found out here, their cells read by DuckDB."""

from __future__ import annotations

import codecs
import csv
import re
import tempfile
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hansa.data.duck import connection, fetch, first_line, literal, quoted
from hansa.data.table import Table
from hansa.errors import DataError

if TYPE_CHECKING:
    from duckdb import CSVLineTerminator, DuckDBPyRelation

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "?")
"""Cells that mean "missing", after spaces around them are taken away."""

# A decimal comma is often as even as a delimiter; a tab or a semicolon hardly ever is.
_DELIMITERS = ("\t", ";", ",")
_SAMPLE = 20
_CHUNK = 1 << 20
_AT_ONCE = 200  # columns: what DuckDB takes to plan a query grows with their square


class _Layout(NamedTuple):
    """How a file is laid out: the header's names, its delimiter, and its line end."""

    names: tuple[str, ...]
    delimiter: str
    line_end: CSVLineTerminator | None


def read_csv(path: Path, encoding: str = "utf-8") -> Table:
    """The columns of a CSV file with a header; comma, semicolon and tab are told apart. A column is one of numbers if
    each of its cells that is not `MISSING` is a number.

    Raises DataError: bytes that are not of this encoding, a header with an empty or repeated name, a line with more or
    fewer cells than the header, a quote without its end."""
    import duckdb

    with tempfile.TemporaryDirectory(prefix="hansa-") as folder:
        file = _as_utf8(path, encoding, Path(folder))
        layout = _layout(file, path.name)
        with connection(f"{path.name} cannot be read") as duck:
            cells = [f"c{i}" for i in range(len(layout.names))]
            try:
                duck.read_csv(
                    literal(file),
                    header=True,
                    auto_detect=False,
                    columns=dict.fromkeys(cells, "VARCHAR"),
                    sep=layout.delimiter,
                    quotechar='"',
                    escapechar='"',
                    lineterminator=layout.line_end,
                    compression="none",
                    hive_partitioning=False,
                ).create("cells")
            except duckdb.Error as error:
                raise _fault(file, path.name, layout, error) from error
            columns: dict[str, Any] = {}
            for at in range(0, len(cells), _AT_ONCE):
                some = slice(at, at + _AT_ONCE)
                columns |= fetch(_typed(duck.table("cells"), cells[some]), layout.names[some], at)
            return Table(columns)


def write_csv(path: str | Path, table: Table) -> None:
    """Write a table as CSV in UTF-8 with a header, RFC 4180; text in quotes, missing cells empty. `read` gives back the
    same table, but for text that looks like a number or like one of `MISSING`."""
    # A line of nothing would be a blank line, not a row.
    missing = "" if len(table.names) > 1 else '""'
    columns = [
        [missing if cell is None else quoted(cell) for cell in values]
        if table.kind(name) == "text"
        else [missing if v != v else repr(v).removesuffix(".0") for v in values.tolist()]
        for name, values in table.columns.items()
    ]
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        for row in (map(quoted, table.names), *zip(*columns, strict=True)):
            file.write(",".join(row) + "\r\n")


def _as_utf8(path: Path, encoding: str, folder: Path) -> Path:
    """The file itself if it is UTF-8, else a copy of it in UTF-8; every byte is checked."""
    copy = folder / "table.csv"
    try:
        source = path.open(encoding=encoding, newline="")
    except LookupError as error:
        remedy = "Use one that Python knows: 'utf-8', 'utf-16', 'gb18030', 'latin-1' ..."
        raise DataError(f"there is no encoding {encoding!r}", remedy=remedy) from error
    same = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig", "ascii")
    with source, copy.open("w", encoding="utf-8", newline="") as target:
        try:
            for text in iter(partial(source.read, _CHUNK), ""):
                if "\0" in text:
                    raise _undecodable(path, encoding, path.read_bytes().find(b"\0"))
                target.write("" if same else text)
        except UnicodeDecodeError as error:
            # The decoder's own object starts with what it kept of the bytes before.
            at = source.buffer.tell() - len(error.object) + error.start  # type: ignore[attr-defined]
            raise _undecodable(path, encoding, at) from error
        except UnicodeError as error:  # UTF-16 without a byte order mark
            raise _undecodable(path, encoding, 0) from error
    return path if same else copy


def _undecodable(path: Path, encoding: str, at: int) -> DataError:
    with path.open("rb") as source:
        start = source.read(2)
    remedy = "Set encoding to the file's own, for example 'gb18030', 'utf-16-le' or 'latin-1'."
    marked = start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    if marked and not encoding.lower().startswith("utf-16"):
        remedy = "It starts like UTF-16: set encoding = 'utf-16'."
    return DataError(f"{path.name} is not text in {encoding} (at byte {at})", remedy=remedy)


def _layout(file: Path, name: str) -> _Layout:
    """The header's cells, under a delimiter that divides the first records evenly."""
    with file.open(encoding="utf-8-sig", newline="") as lines:
        if not lines.readline().strip():
            if not any(line.strip() for line in lines):
                raise DataError(f"{name} is an empty table", remedy="It needs a header and rows.")
            # Versions of DuckDB differ in which row they take for the header then, and lose rows.
            raise DataError(f"{name} starts with a blank line", remedy="Its first line is the header.")
    samples = {delimiter: _sample(file, delimiter) for delimiter in _DELIMITERS}
    widths = {d: [len(row) for row in rows] for d, (rows, _) in samples.items()}
    even = (d for d in _DELIMITERS if widths[d][0] > 1 and len(set(widths[d])) == 1)
    delimiter = next(even, max(reversed(_DELIMITERS), key=lambda d: widths[d][0]))
    rows, ending = samples[delimiter]
    names = tuple(cell.strip() for cell in rows[0])
    for position, column in enumerate(names, 1):
        if not column:
            what = f"{name}: column {position} has no name in the header"
            raise DataError(what, remedy="Name it, or leave the column out.")
        if names.count(column) > 1:
            raise DataError(f"{name}: the header names {column!r} twice", remedy="Give each its own name.")
    return _Layout(names, delimiter, ending)


def _sample(file: Path, delimiter: str) -> tuple[list[list[str]], CSVLineTerminator | None]:
    """The first records, and how the header's line ends (None: a lone carriage return)."""
    from duckdb import CSVLineTerminator

    rows: list[list[str]] = []
    header = 0
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            for row in reader:
                header = header or reader.line_num
                rows += [row] if row else []
                if len(rows) == _SAMPLE:
                    break
        except csv.Error:
            # Not even, then; the header may still be told by this delimiter.
            rows = [*(rows or [[""]]), []]
        lines.seek(0)
        *_, last = islice(lines, header or 1)
    # DuckDB is told, or else it would take a line end inside a quoted name for the file's.
    if last.endswith("\r\n"):
        return rows, CSVLineTerminator.CARRIAGE_RETURN_LINE_FEED
    return rows, None if last.endswith("\r") else CSVLineTerminator.LINE_FEED


def _fault(file: Path, name: str, layout: _Layout, error: Exception) -> DataError:
    """What is wrong with a file that DuckDB refused, told by its line."""
    width = len(layout.names)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader, line = csv.reader(lines, delimiter=layout.delimiter, strict=True), 1
        try:
            for row in reader:
                if row and len(row) != width:
                    what = f"{len(row)} cells, where the header has {width}"
                    remedy = "Put quotes around a cell that holds the delimiter."
                    return DataError(f"{name}, line {line}: {what}", remedy=remedy)
                line = reader.line_num + 1
        except csv.Error as fault:
            remedy = "A cell in quotes ends with a quote; a quote inside it is written twice."
            return DataError(f"{name}, line {line}: {fault}", remedy=remedy)
    remedy = "Its line ends may be mixed: save it anew as CSV."
    return DataError(f"{name} cannot be read: {first_line(error)}", remedy=remedy)


def _typed(cells: DuckDBPyRelation, names: Sequence[str]) -> DuckDBPyRelation:
    """Columns of numbers cast to DOUBLE, missing cells made NULL, rows as they lie in the file."""
    # A pattern, for DuckDB turns a long list of words into a hash join, which shuffles the rows.
    words = "|".join(map(re.escape, MISSING))
    present = {c: f"NOT regexp_full_match(coalesce(trim({c}), ''), '{words}')" for c in names}
    numeric = (f"bool_and(TRY_CAST({c} AS DOUBLE) IS NOT NULL OR NOT {present[c]})" for c in names)
    kinds = cells.aggregate(", ".join(numeric)).fetchall()[0]
    typed = (
        f"CASE WHEN {present[c]} THEN {f'CAST({c} AS DOUBLE)' if number else c} END AS {c}"
        for c, number in zip(names, kinds, strict=True)
    )
    # Only an ORDER BY promises an order: without it, it is the plan's to choose.
    return cells.project(", ".join((*typed, "rowid AS position"))).order("position")
