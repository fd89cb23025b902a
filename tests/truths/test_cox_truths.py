"""Federated Cox regression is the pooled one: a closed form, a published one and statsmodels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import hansa as hs

TASK = hs.CoxRegression(target="months", event="died")
CUTS = (0, 40, 120, 200)


def fitted(tables: Mapping[str, hs.Table], ties: str = "efron", **parts: Any) -> hs.Run:
    method = hs.methods.Cox(ties=ties, grid=parts.pop("grid", None))
    parts = {"evaluation": hs.Evaluate(holdout=0), "cohort": hs.All(minimum=1), **parts}
    return hs.Federation(task=TASK, method=method, **parts).run(hs.Local(tables))


def test_three_patients_have_a_closed_form() -> None:
    """L = r / (2 r + 1) * 1 / (1 + r), with r = exp(b), is greatest at r = 1 / sqrt(2)."""
    tables = {
        "a": hs.Table.of({"x": [1.0], "months": [1.0], "died": [1.0]}),
        "b": hs.Table.of({"x": [0.0, 1.0], "months": [2.0, 3.0], "died": [1.0, 1.0]}),
    }
    [row] = fitted(tables, preprocessing=hs.Moments(standardise=False)).summary()
    assert row.coefficient == pytest.approx(-math.log(2) / 2, rel=1e-12)
    r = math.sqrt(0.5)
    information = 2 * r / (2 * r + 1) ** 2 + r / (1 + r) ** 2
    assert row.error == pytest.approx(1 / math.sqrt(information), rel=1e-10)


TREATED = "6 6 6 6+ 7 9+ 10 10+ 11+ 13 16 17+ 19+ 20+ 22 23 25+ 32+ 32+ 34+ 35+"
CONTROL = "1 1 2 2 3 4 4 5 5 8 8 8 8 11 11 12 12 15 17 22 23"


def leukaemia() -> dict[str, hs.Table]:
    """Weeks of remission (Freireich et al. 1963; Gehan 1965), dealt out to three hospitals."""
    times = [*TREATED.split(), *CONTROL.split()]
    columns: dict[str, Any] = {
        "control": np.repeat([0.0, 1.0], 21),
        "months": np.array([float(time.rstrip("+")) for time in times]),
        "died": np.array([float(not time.endswith("+")) for time in times]),
    }
    return {f"hospital {i}": hs.Table.of({name: column[i::3] for name, column in columns.items()}) for i in range(3)}


@pytest.mark.parametrize(("ties", "coefficient", "error"), [("efron", 1.5721, 0.4124), ("breslow", 1.5092, 0.4096)])
def test_the_leukaemia_trial_gives_the_published_hazard_ratio(ties: str, coefficient: float, error: float) -> None:
    """As in R's survival (Therneau and Grambsch 2000), four digits."""
    [row] = fitted(leukaemia(), ties).summary()
    assert row.coefficient == pytest.approx(coefficient, abs=6e-5)
    assert row.error == pytest.approx(error, abs=6e-5)


def survivors(step: float) -> dict[str, Any]:
    """200 rows; the coarser the step of the times, the more of them tie."""
    random = np.random.default_rng(1)
    age, dose = random.normal(50, 10, 200), random.normal(0, 1, 200)
    arm = random.integers(0, 2, 200).astype(float)
    eta = -0.03 * (age - 50) + 0.5 * dose - 0.4 * arm
    event, censored = random.exponential(np.exp(-eta) * 20), random.exponential(30, 200)
    times = np.minimum(event, censored)
    times = np.ceil(times / step) * step if step else times
    died = (event <= censored).astype(float)
    return {"age": age, "dose": dose, "arm": arm, "months": times, "died": died}


def parties(columns: Mapping[str, Any]) -> dict[str, hs.Table]:
    return {
        f"party-{i}": hs.Table.of({n: c[begin:end] for n, c in columns.items()})
        for i, (begin, end) in enumerate(itertools.pairwise(CUTS))
    }


@pytest.mark.parametrize("standardise", [True, False], ids=["standardised", "as it is"])
@pytest.mark.parametrize("step", [0.0, 1.0, 7.0], ids=["no ties", "some", "many"])
@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_estimates_errors_and_p_values_are_those_of_statsmodels_on_all_rows(
    ties: str, step: float, standardise: bool
) -> None:
    sm = pytest.importorskip("statsmodels.api")
    columns = survivors(step)
    x = np.column_stack([columns[name] for name in ("age", "dose", "arm")])
    model = sm.PHReg(columns["months"], x, status=columns["died"], ties=ties)
    fit = model.fit(method="newton", tol=1e-13)
    run = fitted(parties(columns), ties, preprocessing=hs.Moments(standardise=standardise))
    found = run.summary()
    assert [row.name for row in found] == ["age", "dose", "arm"]
    low, high = fit.conf_int().T
    expected = (fit.params, fit.bse, fit.tvalues, fit.pvalues, low, high)
    for got, wanted in zip(list(zip(*(row[1:] for row in found), strict=True)), expected, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-8)
    facts = run.model.facts["inference"]
    assert facts["deviance"] == pytest.approx(-2 * fit.llf, rel=1e-12)
    assert (facts["rows"], facts["events"]) == (200, int(columns["died"].sum()))


def test_the_baseline_is_breslows_step_function() -> None:
    """Sums of deaths over the hazards at risk, in plain loops over the pooled rows."""
    columns = survivors(1.0)
    run = fitted(parties(columns), "breslow", preprocessing=hs.Moments(standardise=False))
    theta = run.parameters
    hazard = np.exp(np.column_stack([columns[n] for n in ("age", "dose", "arm")]) @ theta)
    times, died = columns["months"], columns["died"]
    expected, total = [], 0.0
    for time in np.unique(times[died == 1]):
        total += ((times == time) & (died == 1)).sum() / hazard[times >= time].sum()
        expected.append(total)
    baseline = run.model.facts["inference"]["baseline"]
    assert baseline["times"] == np.unique(times[died == 1]).tolist()
    np.testing.assert_allclose(baseline["hazard"], expected, rtol=1e-7)


def test_how_the_rows_lie_among_the_parties_is_nothing() -> None:
    columns = survivors(1.0)
    everything = fitted({"all": hs.Table.of(columns)}).summary()
    for one, other in zip(everything, fitted(parties(columns)).summary(), strict=True):
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-9)


def test_a_grid_is_the_exact_fit_to_rounded_times() -> None:
    rounded = fitted(parties(survivors(7.0))).summary()
    for one, other in zip(rounded, fitted(parties(survivors(0.0)), grid=7.0).summary(), strict=True):
        np.testing.assert_allclose(one[1:], other[1:], rtol=1e-12)


def test_concordance_is_the_share_of_a_partys_pairs_in_order() -> None:
    """Every pair counted in plain loops (Harrell 1982)."""
    columns = survivors(7.0)
    score = np.round(columns["dose"], 1)  # with ties
    y = np.where(columns["died"] == 1, columns["months"], -columns["months"])
    time, event = columns["months"], columns["died"] == 1
    pairs = ordered = tied = 0
    for i in np.flatnonzero(event):
        for j in range(len(time)):
            if time[j] > time[i] or (time[j] == time[i] and not event[j]):
                pairs += 1
                ordered += score[i] > score[j]
                tied += score[i] == score[j]
    totals = TASK.tally(score, y)
    assert (totals.pairs, totals.ordered, totals.tied) == (pairs, ordered, tied)
    assert TASK.metrics(totals) == {"concordance": (ordered + tied / 2) / pairs}
