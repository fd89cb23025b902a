"""What every party's table must be: columns, types, units, ranges, categories, rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from hansa.data.table import Table, missing_column
from hansa.errors import ContractError, did_you_mean
from hansa.part import Written

TO_NUMBERS = "declare the column's categories in the study's [contract], or leave it out of `features`"
OTHER = "other"  # what rare and undeclared categories are counted as; no category may be declared by this name


class ColumnRule(Written):
    """What one column must be.

    Attributes:
        type: ``number``; ``integer``, a number without a fraction; ``category``; or ``text``.
        unit: of numbers, such as ``mm``: documentation that all parties read, not checked.
        low: least number allowed.
        high: greatest number allowed.
        categories: the texts allowed in a ``category`` column.
        missing: whether cells may be missing."""

    type: Literal["number", "integer", "category", "text"]
    unit: str = ""
    low: float | None = None
    high: float | None = None
    categories: tuple[str, ...] = ()
    missing: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> ColumnRule:
        if (self.type == "category") != bool(self.categories):
            raise ValueError("`categories` are declared for type 'category', and only there")
        if len(set(self.categories)) < len(self.categories) or OTHER in self.categories:
            raise ValueError(f"`categories` are distinct, and none is {OTHER!r}")
        if self.type not in ("number", "integer") and (self.low, self.high) != (None, None):
            raise ValueError("`low` and `high` are for numbers")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError("`low` is greater than `high`")
        return self


class Contract(Written):
    """What a table must be; columns that it does not name are not looked at."""

    columns: Mapping[str, ColumnRule] = Field(default_factory=dict)
    minimum_rows: int = Field(default=1, ge=1)


def check(table: Table, contract: Contract) -> None:
    """Check a table against a contract; raises ContractError naming column and row (the first is row 1) of the first
    breach. A message may quote one cell, so it is for the table's owner; it must not leave the party."""
    for name, rule in contract.columns.items():
        _check_column(table, name, rule)
    if table.rows < contract.minimum_rows:
        raise ContractError(f"the table has {table.rows} rows, and the contract asks for {contract.minimum_rows}")


def numbers(table: Table, name: str) -> NDArray[np.float64]:
    """A column as numbers, shape [rows], NaN where missing; text that spells numbers is converted; raises
    ContractError: there is no such column, or a cell is text (its row and value are named)."""
    values = _values(table, name)
    if table.kind(name) == "number":
        return values
    converted = np.full(table.rows, np.nan)
    for row, value in enumerate(values):
        if value is None:
            continue
        try:
            converted[row] = float(value)
        except ValueError:
            comma = value.count(",") == 1 and value.replace(",", "").strip(" +-").isdecimal()
            remedy = "Write decimals with a point." if comma else ""
            raise _breach(name, row, f"{value!r} is text, and the column holds numbers", remedy) from None
    return converted


def texts(table: Table, name: str) -> NDArray[np.object_]:
    """A column as text, shape [rows], ``None`` where missing; 1.0 becomes ``"1"``, 0.5 ``"0.5"``; raises ContractError:
    there is no such column."""
    values = _values(table, name)
    if table.kind(name) == "text":
        return values
    spelt = np.empty(table.rows, dtype=object)
    for row, value in enumerate(values.tolist()):
        spelt[row] = None if value != value else repr(value).removesuffix(".0")
    return spelt


def count_categories(
    values: Sequence[str | None] | NDArray[Any], categories: Sequence[str], minimum: int = 10
) -> NDArray[np.float64]:
    """Count the texts of a column, [rows], so that a rare category does not leave the party by its name.

    A declared category with fewer than ``minimum`` rows here counts 0 under its name, and its rows are counted as
    `OTHER`; so are the rows whose value is not declared. Missing values (``None``) are not counted at all. The count of
    `OTHER` itself may be small: it says that rare rows exist, not what they are.

    Returns:
        float64 of shape [len(categories) + 1], in declared order, the last being `OTHER`; the sum is the
        number of rows that are not missing."""
    position = {category: i for i, category in enumerate(categories)}
    counts = np.zeros(len(categories) + 1)
    for value in values:
        if value is not None:
            counts[position.get(value, -1)] += 1.0
    rare = counts[:-1] < minimum
    counts[-1] += counts[:-1][rare].sum()
    counts[:-1][rare] = 0.0
    return counts


def _values(table: Table, name: str) -> NDArray[Any]:
    if name not in table.columns:
        raise missing_column(name, table.names, ContractError)
    return table.columns[name]


def _check_column(table: Table, name: str, rule: ColumnRule) -> None:
    if rule.type in ("number", "integer"):
        values = numbers(table, name)
        absent = np.isnan(values)
        for wrong, why in (
            (np.isinf(values), "is not finite"),
            ((values != np.trunc(values)) & (rule.type == "integer"), "is not an integer"),
            (values < (-np.inf if rule.low is None else rule.low), f"is below {rule.low}"),
            (values > (np.inf if rule.high is None else rule.high), f"is above {rule.high}"),
        ):
            if (wrong & ~absent).any():
                row = int((wrong & ~absent).argmax())
                unit = f" {rule.unit}" if rule.unit else ""
                raise _breach(name, row, f"{values[row]:g}{unit} {why}")
    else:
        words = texts(table, name)
        absent = np.array([word is None for word in words], dtype=bool)
        for row, word in enumerate(words):
            if rule.type == "category" and word is not None and word not in rule.categories:
                near = did_you_mean(word, rule.categories)
                raise _breach(name, row, f"{word!r} is not a category of the contract", near)
    if not rule.missing and absent.any():
        raise _breach(name, int(absent.argmax()), "the value is missing")


def _breach(name: str, row: int, why: str, remedy: str = "") -> ContractError:
    return ContractError(f"column {name!r}, row {row + 1}: {why}", remedy=remedy, field=name)
