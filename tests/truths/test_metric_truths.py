"""Metrics of the federation, from sums alone, against scikit-learn on the pooled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hansa as hs
from hansa.aggregation import Reduction
from hansa.contribution import Array, Contribution
from hansa.task import BINS

LOGISTIC = hs.LogisticRegression(target="y")


@pytest.fixture(scope="module")
def reference() -> Any:
    """scikit-learn's metrics, where it is installed."""
    return pytest.importorskip("sklearn.metrics")


def federated(task: hs.Task, predicted: Array, y: Array, cuts: Sequence[int] = (3, 40)) -> dict[str, float]:
    """Tallies of three parties, through the reduction, to metrics."""
    reduction = Reduction(task.tallies(), "012")
    parts = zip(np.split(predicted, cuts), np.split(y, cuts), strict=True)
    for party, (some, labels) in enumerate(parts):
        reduction.add(str(party), Contribution(task.tally(some, labels)))
    return task.metrics(reduction.total(3).values)


def tied(scores: Array, y: Array) -> float:
    """The share of pairs of a positive and a negative row that fall into one bin."""
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    positive = np.bincount(bins[y == 1], minlength=BINS)
    negative = np.bincount(bins[y == 0], minlength=BINS)
    return float((positive * negative).sum() / (positive.sum() * negative.sum()))


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 8.0])
def test_auc_is_within_its_bound_of_the_pooled_one(sharpness: float, reference: Any) -> None:
    random = np.random.default_rng(2)
    y = random.integers(0, 2, 500).astype(float)
    scores = 1 / (1 + np.exp(-sharpness * (random.normal(size=500) + y)))
    metrics = federated(LOGISTIC, scores, y)
    assert abs(metrics["auc"] - reference.roc_auc_score(y, scores)) <= tied(scores, y) / 2 + 1e-12
    assert metrics["accuracy"] == pytest.approx(reference.accuracy_score(y, scores >= 0.5), abs=1e-15)
    assert metrics["loss"] == pytest.approx(reference.log_loss(y, scores), rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=2, max_size=60).filter(
        lambda rows: len({label for _, label in rows}) == 2
    )
)
def test_auc_keeps_its_bound_whatever_the_scores(reference: Any, rows: list[tuple[float, bool]]) -> None:
    scores, y = np.array([s for s, _ in rows]), np.array([float(label) for _, label in rows])
    metrics = federated(LOGISTIC, scores, y, cuts=(1,))
    assert abs(metrics["auc"] - reference.roc_auc_score(y, scores)) <= tied(scores, y) / 2 + 1e-12


def test_scores_of_zero_and_one_are_judged_and_not_lost() -> None:
    y, scores = np.array([0.0, 1.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.0, 1.0])
    metrics = federated(LOGISTIC, scores, y, cuts=(2,))
    assert metrics["auc"] == 0.5
    assert metrics["accuracy"] == 0.5
    assert metrics["loss"] == pytest.approx(-np.log(1e-12) / 2, rel=1e-4)


def test_auc_without_one_of_the_classes_is_one_half() -> None:
    assert federated(LOGISTIC, np.array([0.2, 0.9]), np.ones(2), cuts=(1,))["auc"] == 0.5


def test_softmax_metrics_are_those_of_the_pooled_rows(reference: Any) -> None:
    random = np.random.default_rng(4)
    y = random.integers(0, 3, 90)
    raw = np.exp(random.normal(size=(90, 3)) + 2 * np.eye(3)[y])
    probabilities = raw / raw.sum(axis=1, keepdims=True)
    task = hs.SoftmaxRegression(target="y", classes=("a", "b", "c"))
    metrics = federated(task, probabilities, y)
    assert metrics["loss"] == pytest.approx(reference.log_loss(y, probabilities), rel=1e-12)
    assert metrics["accuracy"] == reference.accuracy_score(y, probabilities.argmax(axis=1))


def test_regression_metrics_are_those_of_the_pooled_rows(reference: Any) -> None:
    random = np.random.default_rng(9)
    y = random.normal(30.0, 4.0, 120)
    predicted = y + random.normal(0.5, 1.0, 120)
    metrics = federated(hs.LinearRegression(target="y"), predicted, y)
    mse = float(np.square(predicted - y).mean())
    assert metrics["loss"] == pytest.approx(mse / 2, rel=1e-12)
    assert metrics["rmse"] == pytest.approx(mse**0.5, rel=1e-12)
    assert metrics["mae"] == pytest.approx(reference.mean_absolute_error(y, predicted), rel=1e-12)
    assert metrics["r2"] == pytest.approx(reference.r2_score(y, predicted), rel=1e-9)


def test_r2_of_a_constant_target_is_zero() -> None:
    y = np.full(6, 2.0)
    assert federated(hs.LinearRegression(target="y"), y, y, cuts=(2,))["r2"] == 0.0
