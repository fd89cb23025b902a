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
def test_a_label_that_is_none_names_its_row_and_keeps_the_cell_at_home(
    task: hs.Task, y: list[Any], says: str
) -> None:
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
