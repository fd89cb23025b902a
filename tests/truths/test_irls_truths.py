"""Federated regression is the pooled one: closed forms first, then statsmodels to eight digits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.inference import Estimate

Columns = dict[str, Any]
CUTS = (0, 17, 90, 240)
"""Three parties of unequal size."""


def parties(columns: Columns) -> dict[str, hs.Table]:
    rows = len(columns["y"])
    cuts = [max(i, cut * rows // CUTS[-1]) for i, cut in enumerate(CUTS)]
    return {
        f"party-{i}": hs.Table.of({n: c[begin:end] for n, c in columns.items()})
        for i, (begin, end) in enumerate(itertools.pairwise(cuts))
    }


def fitted(task: hs.Task, tables: Mapping[str, hs.Table], **parts: Any) -> hs.Run:
    parts = {"evaluation": hs.Evaluate(holdout=0), "cohort": hs.All(minimum=1), **parts}
    return hs.Federation(task=task, method=hs.methods.IRLS(), **parts).run(hs.Local(tables))


def named(run: hs.Run) -> dict[str, Estimate]:
    return {row.name: row for row in run.summary()}


# --- closed forms


def two_groups(y: Any) -> Columns:
    return {"x": np.repeat([0.0, 1.0], len(y) // 2), "y": np.asarray(y, dtype=float)}


def test_a_binary_columns_linear_coefficient_is_the_difference_of_means() -> None:
    y = [1.0, 2.0, 6.0, 4.0, 8.0, 9.0]
    run = fitted(hs.LinearRegression(target="y"), parties(two_groups(y)))
    rows = named(run)
    assert rows["(intercept)"].coefficient == pytest.approx(3.0, rel=1e-12)
    assert rows["x"].coefficient == pytest.approx(4.0, rel=1e-12)
    squares = 14.0 + 14.0  # about each group's mean
    assert rows["x"].error == pytest.approx(math.sqrt(squares / 4 * (1 / 3 + 1 / 3)), rel=1e-12)
    assert run.model.facts["inference"]["degrees"] == 4


def test_a_binary_columns_logistic_coefficient_is_the_log_odds_ratio() -> None:
    y = [0] * 15 + [1] * 5 + [0] * 8 + [1] * 12
    random = np.random.default_rng(0)
    order = random.permutation(40)
    columns = {name: column[order] for name, column in two_groups(y).items()}
    row = named(fitted(hs.LogisticRegression(target="y"), parties(columns)))["x"]
    assert row.coefficient == pytest.approx(math.log(15 * 12 / (5 * 8)), rel=1e-12)
    error = math.sqrt(1 / 15 + 1 / 5 + 1 / 8 + 1 / 12)  # Woolf 1955
    assert row.error == pytest.approx(error, rel=1e-10)
    assert row.ratio == pytest.approx(4.5, rel=1e-12)


def test_a_binary_columns_poisson_coefficient_is_the_log_rate_ratio() -> None:
    y = [2, 0, 1, 3, 4, 2, 5, 7, 6, 3, 9, 8]
    row = named(fitted(hs.PoissonRegression(target="y"), parties(two_groups(y))))["x"]
    assert row.coefficient == pytest.approx(math.log(38 / 12), rel=1e-12)
    assert row.error == pytest.approx(math.sqrt(1 / 38 + 1 / 12), rel=1e-10)


def test_a_perfect_fit_has_no_error_and_ends() -> None:
    x = np.arange(30.0)
    run = fitted(hs.LinearRegression(target="y"), parties({"x": x, "y": 3 - 2 * x}))
    assert run.model.facts["inference"]["converged"]
    assert named(run)["x"].coefficient == pytest.approx(-2.0, rel=1e-12)
    assert named(run)["x"].error < 1e-12


# --- statsmodels


def rows(family: str) -> Columns:
    """Columns of other units and places, so that scaling has something to undo."""
    random = np.random.default_rng(6)
    age, dose, year = (random.normal(50, 10, 240), random.normal(0, 1, 240), random.normal(2000, 5, 240))
    eta = -0.03 * (age - 50) + 0.5 * dose - 0.1 * (year - 2000)
    y = {
        "linear": lambda: eta + random.normal(0, 1, 240) + 3,
        "logistic": lambda: (random.random(240) < 1 / (1 + np.exp(-eta))).astype(float),
        "poisson": lambda: random.poisson(np.exp(eta + 1)).astype(float),
    }[family]()
    return {"age": age, "dose": dose, "year": year, "y": y}


TASKS = {
    "linear": hs.LinearRegression(target="y"),
    "logistic": hs.LogisticRegression(target="y"),
    "poisson": hs.PoissonRegression(target="y"),
}


def reference(family: str, y: Any, design: Any) -> Any:
    sm = pytest.importorskip("statsmodels.api")
    if family == "linear":
        return sm.OLS(y, design).fit()
    kind = {"logistic": sm.families.Binomial(), "poisson": sm.families.Poisson()}[family]
    return sm.GLM(y, design, kind).fit(tol=1e-14, maxiter=100)


def close(found: list[Estimate], fit: Any) -> None:
    """Estimates, errors, statistics and intervals to 1e-8; p-values, which magnify, to as much."""
    low, high = fit.conf_int().T
    expected = (fit.params, fit.bse, fit.tvalues, fit.pvalues, low, high)
    for got, wanted in zip(list(zip(*(row[1:] for row in found), strict=True)), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8, atol=1e-290)


@pytest.mark.parametrize("standardise", [True, False], ids=["standardised", "as it is"])
@pytest.mark.parametrize("family", TASKS)
def test_estimates_errors_and_p_values_are_those_of_statsmodels_on_all_rows(family: str, standardise: bool) -> None:
    columns = rows(family)
    run = fitted(TASKS[family], parties(columns), preprocessing=hs.Moments(standardise=standardise))
    design = np.column_stack([np.ones(240), columns["age"], columns["dose"], columns["year"]])
    fit = reference(family, columns["y"], design)
    found = run.summary()
    assert [row.name for row in found] == ["(intercept)", "age", "dose", "year"]
    close(found, fit)
    facts = run.model.facts["inference"]
    deviance = fit.ssr if family == "linear" else fit.deviance
    assert facts["deviance"] == pytest.approx(deviance, rel=1e-10)
    assert facts["rows"] == 240
    if family == "linear":
        assert facts["dispersion"] == pytest.approx(fit.mse_resid, rel=1e-10)
    else:
        assert facts["pearson"] == pytest.approx(fit.pearson_chi2, rel=1e-8)
    np.testing.assert_allclose(facts["covariance"], fit.cov_params(), rtol=1e-7, atol=1e-300)


@pytest.mark.parametrize("family", TASKS)
def test_how_the_rows_lie_among_the_parties_is_nothing(family: str) -> None:
    columns = rows(family)
    everything = fitted(TASKS[family], {"all": hs.Table.of(columns)}).summary()
    dealt = fitted(TASKS[family], parties(columns)).summary()
    for one, other in zip(everything, dealt, strict=True):
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-9)


def test_a_category_is_measured_against_its_first_and_gaps_leave_the_row_out() -> None:
    columns = rows("logistic")
    ward = np.array(["surgery", "medicine", "outpatients"])[np.arange(240) % 3].astype(object)
    ward[5], age = None, columns["age"].copy()
    age[[7, 100]] = np.nan
    columns = {"age": age, "ward": ward.tolist(), "y": columns["y"]}
    rule = hs.ColumnRule(type="category", categories=("medicine", "outpatients", "surgery"))
    run = fitted(hs.LogisticRegression(target="y"), parties(columns), contract=hs.Contract(columns={"ward": rule}))
    found = run.summary()
    names = ["(intercept)", "age", "ward=outpatients", "ward=surgery"]
    assert [row.name for row in found] == names
    whole = ~np.isnan(age) & (ward != None)  # noqa: E711  # elementwise
    design = np.column_stack([np.ones(240), age, ward == "outpatients", ward == "surgery"])
    fit = reference("logistic", columns["y"][whole], design[whole].astype(float))
    close(found, fit)
    assert run.model.facts["inference"]["rows"] == 237


def test_the_level_of_the_intervals_can_be_chosen() -> None:
    columns = rows("linear")
    run = fitted(TASKS["linear"], parties(columns))
    design = np.column_stack([np.ones(240), columns["age"], columns["dose"], columns["year"]])
    fit = reference("linear", columns["y"], design)
    found = [(row.low, row.high) for row in run.summary(level=0.99)]
    np.testing.assert_allclose(found, fit.conf_int(alpha=0.01), rtol=1e-9)
