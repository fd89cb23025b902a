"""What a model's coefficients are worth: standard errors, tests and confidence intervals, without SciPy."""

import math
from collections.abc import Mapping
from statistics import NormalDist
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
        low, high: the ends of the confidence interval.
    """

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
    """The table of coefficients from a model's facts.

    Args:
        facts: of a `hansa.Model`.
        level: of the confidence intervals, between 0 and 1.

    Raises:
        RunError: if the model was trained by a method that gives no standard errors.
        UsageError: if the level is none.
    """
    if not 0 < level < 1:
        raise UsageError(f"a confidence level of {level}", remedy="Say one between 0 and 1")
    found = facts.get("inference")
    if not found:
        raise RunError(
            "this model has no standard errors",
            remedy='Train it with [method] kind = "irls" or "cox", and let a round be counted',
        )
    degrees = found["degrees"]
    width = quantile(level, degrees)
    rows = []
    for i, name in enumerate(found["names"]):
        coefficient, error = found["coefficients"][i], math.sqrt(found["covariance"][i][i])
        statistic = coefficient / error if error else math.copysign(math.inf, coefficient)
        p, half = tail(statistic, degrees), width * error
        interval = coefficient - half, coefficient + half
        rows.append(Estimate(name, coefficient, error, statistic, p, *interval))
    return rows


def tail(statistic: float, degrees: float | None = None) -> float:
    """The chance of a statistic at least as far from 0: normal, or Student's with these degrees of freedom."""
    if degrees is None:
        return math.erfc(abs(statistic) / math.sqrt(2))
    square = statistic * statistic
    if not math.isfinite(square):
        return 0.0
    return _beta(degrees / 2, 0.5, degrees / (degrees + square), square / (degrees + square))


def quantile(level: float, degrees: float | None = None) -> float:
    """How far from 0 a share ``level`` of the distribution lies: 1.96 for 0.95 and the normal one."""
    normal = -NormalDist().inv_cdf((1 - level) / 2)
    if degrees is None:
        return normal
    low, high = 0.0, max(normal, 1.0)
    while tail(high, degrees) > 1 - level:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if tail(middle, degrees) > 1 - level else (low, middle)
    return high


def _beta(a: float, b: float, x: float, rest: float) -> float:
    """The regularised incomplete beta function I_x(a, b), ``rest = 1 - x``.

    Continued fraction 8.17.22 of the NIST Handbook of Mathematical Functions, by Lentz's method.
    """
    if x > (a + 1) / (a + b + 2):
        return 1 - _beta(b, a, rest, x)
    if x == 0:
        return 0.0
    # Whichever of the two is small is exact, and the logarithm of the other is taken from it.
    logs = (math.log(x), math.log1p(-x)) if x < rest else (math.log1p(-rest), math.log(rest))
    front = math.exp(a * logs[0] + b * logs[1] - _log_beta(a, b)) / a
    c, m = 1.0, 1
    d = fraction = 1 / (1 - (a + b) * x / (a + 1))
    while True:
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d, c = 1 / (1 + term * d), 1 + term / c
            fraction *= c * d
        if abs(c * d - 1) < 1e-15 or m > 100_000:
            return front * fraction
        m += 1


def _log_beta(a: float, b: float) -> float:
    """``log B(a, b)`` where one of the two is 1/2, without the cancellation of two large gammas."""
    large = max(a, b)
    if large < 100:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    ratio = math.log(large) / 2 - 1 / (8 * large) + 1 / (192 * large**3) - 1 / (640 * large**5)
    return math.lgamma(0.5) - ratio
