"""From many contributions to one total, in float64, in roster order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hansa.contribution import Algebra, Array, Contribution, Field, Total, Values, check
from hansa.errors import ContributionError


class Reduction:
    """A running sum over contributions that are added in roster order.

    The order fixes the bits; the memory is one float64 copy of the fields, whatever the number of
    parties (a gathered field excepted).

    Args:
        fields: what every contribution holds.
    """

    def __init__(self, fields: Sequence[Field]) -> None:
        self._fields = tuple(fields)
        self._sums = {
            f.name: np.zeros(f.shape or ()) for f in fields if f.algebra is not Algebra.GATHER
        }
        self._gathered: dict[str, list[Array]] = {
            f.name: [] for f in fields if f.algebra is Algebra.GATHER
        }
        self._means = {f.name for f in fields if f.algebra is Algebra.MEAN}
        self._parties: list[str] = []
        self._weight = 0.0

    def add(self, party: str, contribution: Contribution) -> None:
        """Count one party.

        Raises:
            ContributionError: if it is not what was declared; the sums are then as before.
        """
        check(contribution, self._fields)
        sums = {name: self._sum(name, contribution) for name in self._sums}
        self._sums.update(sums)
        for name, gathered in self._gathered.items():
            gathered.append(contribution.values[name])
        self._parties.append(party)
        self._weight += contribution.weight

    def _sum(self, name: str, contribution: Contribution) -> Array:
        """What the sum of a field becomes; finite values may still add up to an infinity."""
        value = contribution.values[name].astype(np.float64)
        with np.errstate(over="ignore"):
            term = contribution.weight * value if name in self._means else value
            total: Array = self._sums[name] + term
        if not np.isfinite(total).all():
            raise ContributionError("with it the sum overflows", field=name)
        return total

    def total(self, population: int) -> Total:
        """The aggregate of those added; without a value if there is none.

        Args:
            population: how many parties take part in the run.
        """
        if not self._parties:
            return Total(Values(), (), population, 0.0)
        values: dict[str, Array] = {}
        for field in self._fields:
            if field.algebra is Algebra.GATHER:
                values[field.name] = np.stack(self._gathered[field.name])
            elif field.algebra is Algebra.MEAN:
                values[field.name] = self._sums[field.name] / self._weight
            else:
                values[field.name] = self._sums[field.name]
        return Total(Values(values), tuple(self._parties), population, self._weight)


def weighted_mean(
    models: Sequence[Mapping[str, Array]], weights: Sequence[float]
) -> dict[str, Array]:
    """The weighted mean of models, name by name: ``sum(w_i x_i) / sum(w_i)`` in float64.

    Args:
        models: one mapping of names to arrays per party; the same names and shapes in all.
        weights: one positive number per model.

    Raises:
        ContributionError: if the lengths, the names or the shapes differ, or a value is not finite.

    >>> weighted_mean([{"w": np.array([1.0])}, {"w": np.array([4.0])}], [2, 1])["w"]
    array([2.])
    """
    if len(models) != len(weights):
        raise ContributionError(f"{len(models)} models and {len(weights)} weights")
    if not models:
        raise ContributionError("no model was given")
    fields = tuple(Field(name, shape=np.shape(value)) for name, value in models[0].items())
    reduction = Reduction(fields)
    for i, (model, weight) in enumerate(zip(models, weights, strict=True)):
        values = Values({name: np.asarray(v, dtype=np.float64) for name, v in model.items()})
        reduction.add(str(i), Contribution(values, float(weight)))
    return dict(reduction.total(len(models)).values)
