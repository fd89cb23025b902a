"""Tasks: which columns, which labels, and refusals that name the row and never quote a cell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.errors import DataError, StudyError
from hansa.task import BINS, TASKS

COLUMNS = ("age", "size [mm]", "size [cm]", "y", "mean radius", "mean area")


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        (("*",), ("age", "size [mm]", "size [cm]", "mean radius", "mean area")),
        (("mean *", "age"), ("age", "mean radius", "mean area")),
        (("size [mm]",), ("size [mm]",)),
        (("size *",), ("size [mm]", "size [cm]")),
        (("ag?",), ("age",)),
    ],
)
def test_features_are_names_and_patterns_in_the_partys_order(
    features: tuple[str, ...], chosen: tuple[str, ...]
) -> None:
    task = hs.LinearRegression(target="y", features=features)
    assert task.select(COLUMNS, "north") == chosen


def test_a_feature_that_is_not_there_is_named() -> None:
    task = hs.LinearRegression(target="y", features=("age", "wieght"))
    with pytest.raises(DataError, match=r"party 'north': no column is named 'wieght'; it has age"):
        task.select(COLUMNS, "north")
    with pytest.raises(StudyError, match="features"):
        hs.Federation(task={"kind": "linear-regression", "target": "y", "features": []})


def labels(task: hs.Task, y: Any) -> list[float]:
    found: list[float] = task.labels(hs.Table.of({"y": y})).tolist()
    return found


def test_labels_are_what_the_learner_wants() -> None:
    assert labels(hs.LinearRegression(target="y"), [1.5, -2]) == [1.5, -2.0]
    assert labels(hs.LogisticRegression(target="y"), [1, 0, 1]) == [1.0, 0.0, 1.0]
    assert labels(hs.LogisticRegression(target="y", positive="M"), ["M", "B"]) == [1.0, 0.0]
    assert labels(hs.SoftmaxRegression(target="y", classes=("c", "a")), ["a", "c"]) == [1, 0]
    assert labels(hs.SoftmaxRegression(target="y", classes=(3, 5)), [5.0, 3.0]) == [1, 0]
    assert labels(hs.SoftmaxRegression(target="y", classes=(3, 5)), ["5", "3"]) == [1, 0]


@pytest.mark.parametrize(
    ("task", "y", "says"),
    [
        (hs.LinearRegression(target="y"), [1.0, None], "the target 'y' is missing in row 2"),
        (hs.LinearRegression(target="y"), [None, "secret"], "must be a number; row 2 holds text"),
        (hs.LogisticRegression(target="y"), [1.0, 0.0, 2.0], "is neither 0 nor 1 in row 3"),
        (hs.LogisticRegression(target="y"), ["secret"], "must be a number; row 1 holds text"),
        (hs.LogisticRegression(target="y", positive="M"), ["M", None], "is missing in row 2"),
        (hs.SoftmaxRegression(target="y", classes=("a", "b")), ["a", "secret"], "in row 2"),
        (hs.SoftmaxRegression(target="y", classes=("a", "b")), [1.0], "['a', 'b'] in row 1"),
        (hs.SoftmaxRegression(target="y", classes=(1, 2)), [1.0, 1.5], "[1, 2] in row 2"),
        (hs.SoftmaxRegression(target="y", classes=(1, 2)), [1.0, None], "is missing in row 2"),
    ],
)
def test_a_label_that_is_none_names_its_row_and_keeps_the_cell_at_home(task: hs.Task, y: list[Any], says: str) -> None:
    with pytest.raises(DataError) as caught:
        labels(task, y)
    assert says in caught.value.message
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("classes", [["a"], ["a", "a"], [1, "1"]])
def test_classes_are_several_and_distinct(classes: list[Any]) -> None:
    with pytest.raises(StudyError, match="classes"):
        TASKS.build({"kind": "softmax-regression", "target": "y", "classes": classes})


@pytest.mark.parametrize(
    "task",
    [
        hs.LinearRegression(target="y"),
        hs.LogisticRegression(target="y"),
        hs.SoftmaxRegression(target="y", classes=("a", "b", "c")),
    ],
)
def test_tallies_are_the_declared_ones_and_metrics_the_named_ones(task: hs.Task) -> None:
    learner = task.learner(2)
    theta, x = np.zeros(learner.layout.size), np.ones((4, 2))
    tallies = task.tally(learner.predict(theta, x), np.array([0, 1, 0, 1]))
    assert {name: array.shape for name, array in tallies.items()} == {
        field.name: field.shape for field in task.tallies()
    }
    assert tuple(task.metrics(tallies)) == task.metric_names
    nobody = task.tally(learner.predict(theta, x[:0]), np.array([], dtype=np.intp))
    assert not any(array.any() for array in nobody.values())


def test_the_histograms_have_as_many_bins_as_declared() -> None:
    histograms = {f.name: f.shape for f in hs.LogisticRegression(target="y").tallies()}
    assert histograms["positives"] == histograms["negatives"] == (BINS,)


def test_counts_are_whole_and_not_negative() -> None:
    task = hs.PoissonRegression(target="y")
    assert labels(task, [0, 3, 1]) == [0.0, 3.0, 1.0]
    for bad in (-1.0, 0.5):
        with pytest.raises(DataError, match="the target 'y' is no count in row 2"):
            labels(task, [1.0, bad])


def test_the_mean_deviance_of_counts_has_its_formula() -> None:
    task = hs.PoissonRegression(target="y")
    y, mu = np.array([0.0, 2.0, 5.0]), np.array([0.5, 2.0, 4.0])
    metrics = task.metrics(task.tally(mu, y))
    assert metrics["deviance"] == pytest.approx(2 * (0.5 + 0 + 5 * np.log(5 / 4) - 1) / 3)
    assert metrics["mae"] == pytest.approx(0.5)
    assert metrics["loss"] == pytest.approx((mu - y * np.log(mu)).mean())
    assert task.lower_is_better == {"loss", "deviance", "mae"}
    far = task.metrics(task.tally(np.array([0.0]), np.array([3.0])))
    assert np.isfinite(list(far.values())).all()


COX = hs.CoxRegression(target="t", event="e")


def test_neither_the_time_nor_the_event_is_a_feature() -> None:
    assert COX.select(("a", "t", "e", "b"), "north") == ("a", "b")
    with pytest.raises(DataError, match=r"party 'north': the event column 'e' is missing"):
        COX.select(("a", "t"), "north")


def test_a_time_is_negative_where_the_event_was_not_seen() -> None:
    table = hs.Table.of({"t": [3.0, 0.0, 0.0], "e": [0.0, 1.0, 0.0]})
    found = COX.labels(table)
    assert found.tolist() == [-3.0, 0.0, -0.0]
    assert np.signbit(found).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("t", "e", "says"),
    [
        ([1.0, -2.0], [1.0, 0.0], "'t' is negative in row 2"),
        ([1.0, 2.0], [1.0, 2.0], "'e' is neither 0 nor 1 in row 2"),
        ([1.0, 2.0], [None, 1.0], "'e' is missing in row 1"),
        ([1.0, None], [1.0, 1.0], "'t' is missing in row 2"),
        ([1.0, 2.0], ["yes", "no"], "'e' must be a number"),
    ],
)
def test_a_time_or_an_event_that_is_none_names_its_column_and_row(t: Any, e: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        COX.labels(hs.Table.of({"t": t, "e": e}))


def test_pairs_that_cannot_be_compared_are_no_concordance() -> None:
    assert COX.metrics(COX.tally(np.array([1.0, 2.0]), np.array([-1.0, -2.0]))) == {"concordance": 0.5}
    assert COX.metrics(COX.tally(np.array([2.0, 1.0]), np.array([1.0, -2.0]))) == {"concordance": 1.0}
