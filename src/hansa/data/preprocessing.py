"""From a table to the matrix of features that a model sees."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.data.contract import numbers, texts
from hansa.data.table import Table
from hansa.errors import DataError


@dataclass(frozen=True, eq=False)
class Encoding:
    """How columns become features: numbers standardised, categories one-hot.

    A number x becomes (x - mean) / scale, and 0 where it is missing: the mean. A category becomes one feature a
    declared value, in declared order; a missing or undeclared one is 0 in all. Raises DataError: shapes differ, a mean
    or scale is not finite, a scale is negative, a column or a category is named twice.

    Attributes:
        numbers: names of the number columns.
        mean: float64 of shape [len(numbers)].
        scale: float64 of shape [len(numbers)]; a scale of 0 (a constant column) is taken as 1.
        categories: names of the category columns, and the values of each.
        arrays: names of the array columns, and their shapes; they are taken as they are."""

    numbers: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    categories: Mapping[str, tuple[str, ...]]
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mean, scale = np.array(self.mean, dtype=np.float64), np.array(self.scale, dtype=np.float64)
        if mean.shape != (len(self.numbers),) or scale.shape != mean.shape:
            what = f"{len(self.numbers)} number columns, means of shape {mean.shape}, scales of shape {scale.shape}"
            raise DataError(what)
        if not (np.isfinite(mean).all() and np.isfinite(scale).all() and (scale >= 0).all()):
            raise DataError("a mean or a scale is not a finite number, or a scale is negative")
        for names in ((*self.numbers, *self.categories, *self.arrays), *self.categories.values()):
            if len(set(names)) < len(names):
                raise DataError(f"a name occurs twice: {', '.join(names)}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "scale", np.where(scale == 0.0, 1.0, scale))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features: the numbers, then ``column=category``, then ``array[0]`` ..."""
        one_hot = (f"{name}={v}" for name, values in self.categories.items() for v in values)
        sizes = {name: math.prod(shape) for name, shape in self.arrays.items()}
        entries = (f"{name}[{i}]" for name, size in sizes.items() for i in range(size))
        return (*self.numbers, *one_hot, *entries)

    @property
    def width(self) -> int:
        """Number of features."""
        arrays = sum(math.prod(shape) for shape in self.arrays.values())
        return len(self.numbers) + sum(map(len, self.categories.values())) + arrays

    def features(self, table: Table) -> NDArray[Any]:
        """What a model sees of every row: a single array column as it is, ``[rows, *shape]``, or `matrix`."""
        if len(self.arrays) == 1 and not self.numbers and not self.categories:
            return table.column(next(iter(self.arrays)))
        return self.matrix(table)

    def matrix(self, table: Table) -> NDArray[np.float64]:
        """The features of every row, float64 of shape [rows, width]; raises ContractError: a column is missing, or a
        number column holds text (row and value named)."""
        features = np.zeros((table.rows, self.width))
        for i, name in enumerate(self.numbers):
            standard = (numbers(table, name) - self.mean[i]) / self.scale[i]
            features[:, i] = np.where(np.isnan(standard), 0.0, standard)
        at = len(self.numbers)
        for name, values in self.categories.items():
            words = texts(table, name)
            for value in values:
                features[:, at] = words == value
                at += 1
        for name, shape in self.arrays.items():
            width = math.prod(shape)
            features[:, at : at + width] = table.column(name).reshape(table.rows, width)
            at += width
        return features

    def to_json(self) -> str:
        """The encoding as one line of JSON; `from_json` gives back the same bits."""
        fields: dict[str, Any] = {"numbers": self.numbers, "mean": self.mean.tolist(), "scale": self.scale.tolist()}
        fields["categories"] = {name: list(values) for name, values in self.categories.items()}
        if self.arrays:
            fields["arrays"] = {name: list(shape) for name, shape in self.arrays.items()}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Encoding:
        """The encoding that `to_json` wrote; raises DataError: the text is something else."""
        try:
            fields = json.loads(text)
            return cls(
                tuple(map(str, fields["numbers"])),
                np.array(fields["mean"], dtype=np.float64),
                np.array(fields["scale"], dtype=np.float64),
                {str(n): tuple(map(str, values)) for n, values in fields["categories"].items()},
                {str(n): tuple(map(int, s)) for n, s in fields.get("arrays", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"this is not an encoding: {error}", remedy="The model's file is damaged.") from error
