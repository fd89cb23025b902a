"""Tails and quantiles: closed forms first, then those of `scipy.stats`."""

from __future__ import annotations

import math
from typing import Any

import pytest

import hansa as hs
from hansa.inference import estimates, quantile, tail


def test_students_tail_with_one_degree_of_freedom_is_cauchys() -> None:
    for t in (0.0, 1e-6, 0.3, 1.0, 7.0, 1e6):
        assert tail(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-10)
        assert tail(-t, 1) == tail(t, 1)


def test_students_tail_with_two_degrees_of_freedom_has_a_closed_form() -> None:
    for t in (0.0, 0.01, 0.5, 2.0, 30.0):
        assert tail(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-11)


def test_the_normal_tail_and_quantile_are_the_familiar_ones() -> None:
    assert tail(1.959963984540054) == pytest.approx(0.05, rel=1e-13)
    assert quantile(0.95) == pytest.approx(1.959963984540054, rel=1e-14)
    assert quantile(0.95, 10) == pytest.approx(2.228138851986274, rel=1e-10)  # eleven digits before SciPy 1.15


def test_a_quantile_is_the_inverse_of_the_tail() -> None:
    for degrees in (1, 3, 12, 250.0, 1e4):
        for level in (0.01, 0.5, 0.95, 0.9999):
            assert tail(quantile(level, degrees), degrees) == pytest.approx(1 - level, rel=1e-9)


def test_an_infinite_statistic_leaves_nothing_to_chance() -> None:
    assert tail(math.inf) == tail(-math.inf, 5) == 0.0


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 30, 99, 201, 1000, 100_000])
def test_students_distribution_is_scipys(degrees: int) -> None:
    stats: Any = pytest.importorskip("scipy.stats")
    for t in (1e-6, 0.01, 0.5, 1.0, math.sqrt(3), 2.0, 5.0, 12.0):
        assert tail(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-9)
    for level in (0.5, 0.9, 0.99, 0.999):
        expected = stats.t.ppf((1 + level) / 2, degrees)
        assert quantile(level, degrees) == pytest.approx(expected, rel=1e-9)


def test_an_estimate_has_its_test_its_interval_and_its_ratio() -> None:
    found = {"names": ["x"], "coefficients": [math.log(2)], "covariance": [[0.25]], "degrees": None}
    [row] = estimates({"inference": found}, level=0.95)
    assert (row.name, row.error, row.ratio) == ("x", 0.5, pytest.approx(2.0))
    assert row.statistic == pytest.approx(2 * math.log(2))
    assert row.p == pytest.approx(math.erfc(math.sqrt(2) * math.log(2)))
    assert (row.low + row.high) / 2 == pytest.approx(row.coefficient)
    assert row.high - row.low == pytest.approx(2 * 0.5 * 1.959963984540054)
    [wider] = estimates({"inference": {**found, "degrees": 3}}, level=0.95)
    assert wider.low < row.low
    assert wider.p > row.p


def test_a_level_that_is_none_and_a_model_without_errors_are_refused() -> None:
    with pytest.raises(hs.errors.UsageError, match="between 0 and 1"):
        estimates({}, level=95)
    with pytest.raises(hs.errors.RunError, match=r'no standard errors.*kind = "irls" or "cox"'):
        estimates({"run": "x"})
