"""What the command line says of estimates."""

from pathlib import Path

import numpy as np
import pytest

from hansa.data.source import write_csv
from hansa.data.table import Table

STUDY = """\
[task]
kind = "{kind}"
target = "y"
features = ["a", "b"]
{event}
[method]
kind = "{method}"
rounds = {rounds}
[evaluation]
holdout = {holdout}
"""


@pytest.fixture
def simulate(hansa, tmp_path: Path):
    def call(*words, kind="logistic-regression", method="irls", event="", rounds=30, holdout=0.0, more=""):
        random = np.random.default_rng(3)
        a, b = random.normal(size=(2, 90))
        y = (random.random(90) < 1 / (1 + np.exp(-a))).astype(float)
        columns = {"a": a, "b": b, "e": y, "part": np.arange(90) % 3}
        columns["y"] = np.ceil(random.exponential(9, 90)) if event else y
        write_csv(tmp_path / "rows.csv", Table.of(columns))
        study = tmp_path / "study.toml"
        text = STUDY.format(kind=kind, method=method, event=event, rounds=rounds, holdout=holdout)
        study.write_text(text + more, "utf-8")
        return hansa(
            *("simulate", study, "--data", tmp_path / "rows.csv", "--by", "part"),
            *("--output", tmp_path / "runs", *words),
        )

    return call


def test_the_table_of_estimates_is_shown_and_in_the_document(simulate):
    answer = simulate()
    assert "the estimates stand after" in answer.said
    assert "From 90 complete rows, in the columns' units" in answer.said
    assert "(intercept)" in answer.said
    rows = answer.document["estimates"]
    assert [row["name"] for row in rows] == ["(intercept)", "a", "b"]
    assert rows[1]["low"] < rows[1]["coefficient"] < rows[1]["high"]
    assert rows[1]["ratio"] == pytest.approx(np.exp(rows[1]["coefficient"]))


def test_a_linear_model_has_no_ratio(simulate):
    assert simulate(kind="linear-regression").document["estimates"][0]["ratio"] is None


def test_estimates_that_have_not_converged_say_so(simulate):
    assert "The estimates have not converged" in simulate(rounds=2).said


def test_a_method_for_predictions_has_no_estimates(simulate):
    assert simulate(method="fedsgd", rounds=2).document["estimates"] is None


def test_the_hazards_are_shown_and_compared(simulate):
    answer = simulate("--compare", kind="cox-regression", method="cox", event='event = "e"', holdout=0.3)
    assert {row["model"] for row in answer.document["comparison"]} == {"0", "1", "2", "federated", "pooled"}
    assert [row["name"] for row in answer.document["estimates"]] == ["a", "b"]
    assert all(0 < row["concordance"] < 1 for row in answer.document["comparison"])


NOISE = """
[preprocessing]
standardise = false
[contract.columns.a]
type = "number"
low = -5
high = 5
[contract.columns.b]
type = "number"
low = -5
high = 5
[[statistics.stages]]
kind = "gaussian"
noise_multiplier = 0.5
[privacy]
unit = "example"
"""


def test_what_was_counted_is_shown_and_in_the_document(simulate):
    answer = simulate(method="histogram", rounds=1, more=NOISE)
    assert "a: quantiles, with noise" in answer.said
    columns = answer.document["columns"]
    assert set(columns) == {"a", "b"}
    assert columns["a"]["quantiles"]["0.5"] == pytest.approx(0, abs=1)
    assert answer.document["estimates"] is None


def test_counts_without_noise_are_refused(simulate):
    answer = simulate(method="histogram", rounds=1)
    assert answer.status == 2
    assert "counts rows in cells that may hold one" in answer.said
