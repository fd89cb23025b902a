"""A table: named columns of equal length, each of numbers or of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hansa.errors import DataError, did_you_mean

Kind = Literal["number", "text", "array"]


@dataclass(frozen=True)
class ColumnSchema:
    """Name and kind of one column; of an array column, the shape in each row too."""

    name: str
    type: Kind
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Table:
    """Columns in order; never changed after it is made.

    Attributes:
        columns: arrays of shape [rows], read-only. A column of numbers is float64 with NaN for a missing cell; a column
            of text holds ``str``, and ``None`` for a missing cell. Anything else of numbers, ``[rows, ...]``, is a
            column of arrays (images, tokens, labels as integers) and is taken as it is.

    Raises DataError: two columns differ in length, or a column holds neither numbers nor text."""

    columns: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        views: dict[str, NDArray[Any]] = {}
        for name, values in self.columns.items():
            text = values.dtype == object and values.ndim == 1
            if not text and (values.ndim < 1 or values.dtype.kind not in "biuf"):
                what = f"column {name!r} has shape {values.shape} and type {values.dtype}"
                raise DataError(what, remedy="A column holds numbers or text: use Table.of.")
            views[name] = values.view()
            views[name].flags.writeable = False
        lengths = {name: len(values) for name, values in views.items()}
        if len(set(lengths.values())) > 1:
            raise DataError(f"the columns differ in length: {lengths}")
        object.__setattr__(self, "columns", views)

    @classmethod
    def of(cls, columns: Mapping[str, ArrayLike]) -> Table:
        """A table of a copy of anything column-like; bools and integers in one dimension become float64; raises
        DataError: a column mixes numbers and text, or holds something else."""
        return cls({str(name): _column(str(name), values) for name, values in columns.items()})

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()))) if self.columns else 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self.columns)

    def column(self, name: str) -> NDArray[Any]:
        """The values of one column, shape [rows]; raises DataError: there is no such column."""
        if name not in self.columns:
            raise missing_column(name, self.names)
        return self.columns[name]

    def kind(self, name: str) -> Kind:
        """Whether a column holds numbers, text or arrays."""
        values = self.column(name)
        if values.dtype == object:
            return "text"
        return "number" if values.ndim == 1 and values.dtype == np.float64 else "array"

    def take(self, indices: ArrayLike) -> Table:
        """The rows at these positions, or where a mask of shape [rows] is true."""
        rows = np.asarray(indices)
        if rows.size == 0:
            rows = rows.astype(np.intp)
        return Table({name: values[rows] for name, values in self.columns.items()})

    def drop(self, *names: str) -> Table:
        """The table without these columns; raises DataError: there is no such column."""
        for name in names:
            self.column(name)
        return Table({n: values for n, values in self.columns.items() if n not in names})

    def schema(self) -> tuple[ColumnSchema, ...]:
        """Name and kind of every column, in order."""
        return tuple(ColumnSchema(name, self.kind(name), values.shape[1:]) for name, values in self.columns.items())


def missing_column(name: str, names: Sequence[str], error: type[DataError] = DataError) -> DataError:
    """The error for a column that a table lacks: which it has, and the nearest of them."""
    near = did_you_mean(name, names)
    has = ", ".join(map(repr, names)) if names else "none"
    remedy = near if near.startswith("Did") else ""
    return error(f"there is no column {name!r}; the columns are {has}", field=name, remedy=remedy)


def _column(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim > 1 and array.dtype.kind in "biuf":
        return array.copy()
    if array.ndim != 1:
        raise DataError(f"column {name!r} has shape {array.shape}, not [rows]", field=name)
    if array.size == 0 or array.dtype.kind in "biuf":
        return np.array(array, dtype=np.float64)
    # A list is converted anew: NumPy would have turned [1, "a"] into two strings.
    cells = list(values) if isinstance(values, (list, tuple)) else array.tolist()
    present = [cell for cell in cells if not _missing(cell)]
    if all(isinstance(cell, (bool, int, float, np.number, np.bool_)) for cell in present):
        return np.array([np.nan if _missing(cell) else cell for cell in cells], dtype=np.float64)
    column = np.empty(len(cells), dtype=object)
    for row, cell in enumerate(cells):
        if not _missing(cell) and not isinstance(cell, str):
            remedy = "A column holds numbers or text."
            raise DataError(f"column {name!r}, row {row + 1}: {cell!r} among text", field=name, remedy=remedy)
        column[row] = None if _missing(cell) else str(cell)
    return column


def _missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, (float, np.floating)) and bool(np.isnan(cell)))
