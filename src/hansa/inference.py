"""What a model's coefficients are worth: standard errors, tests and confidence intervals."""

import math
from collections.abc import Mapping
from typing import NamedTuple

from hansa.contribution import Json
from hansa.errors import RunError, UsageError


class Estimate(NamedTuple):
    """One coefficient, in the units of its column.

    Attributes:
        name: the column, ``column=category`` (against the first declared category), or ``(intercept)``.
        coefficient: the estimate; ``error``: its standard error.
        statistic: ``coefficient / error``: Student's t for a linear model, else z.
        p: of the two-sided test that the coefficient is 0.
        low, high: the ends of the confidence interval."""

    name: str
    coefficient: float
    error: float
    statistic: float
    p: float
    low: float
    high: float

    @property
    def ratio(self) -> float:
        """``exp(coefficient)``: the odds, rate or hazard ratio of one unit more."""
        return math.exp(min(self.coefficient, 700.0))


def estimates(facts: Mapping[str, Json], level: float = 0.95) -> list[Estimate]:
    """The table of coefficients from a model's facts, with confidence intervals of a level between 0 and 1. Raises
    RunError if the model was trained by a method that gives no standard errors; UsageError if the level is none."""
    if not 0 < level < 1:
        raise UsageError(f"a confidence level of {level}", remedy="Say one between 0 and 1")
    found = facts.get("inference")
    if not found:
        remedy = 'Train it with [method] kind = "irls" or "cox", and let a round be counted'
        raise RunError("this model has no standard errors", remedy=remedy)
    degrees = found["degrees"]
    width, rows = quantile(level, degrees), []
    for i, name in enumerate(found["names"]):
        coefficient, error = found["coefficients"][i], math.sqrt(found["covariance"][i][i])
        statistic = coefficient / error if error else math.copysign(math.inf, coefficient)
        p, half = tail(statistic, degrees), width * error
        interval = coefficient - half, coefficient + half
        rows.append(Estimate(name, coefficient, error, statistic, p, *interval))
    return rows


def tail(statistic: float, degrees: float | None = None) -> float:
    """The chance of a statistic at least as far from 0: normal, or Student's with these degrees of freedom."""
    from scipy.special import ndtr, stdtr

    far = -abs(statistic)
    return float(2 * (ndtr(far) if degrees is None else stdtr(degrees, far)))


def quantile(level: float, degrees: float | None = None) -> float:
    """How far from 0 a share ``level`` of the distribution lies: 1.96 for 0.95 and the normal one."""
    from scipy.special import ndtri, stdtrit

    rest = (1 - level) / 2
    return float(-(ndtri(rest) if degrees is None else stdtrit(degrees, rest)))
