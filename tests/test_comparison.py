"""What federating is worth, on the demo's own study and hospitals."""

import numpy as np
import pytest

import hansa as hs
from hansa import Local, study
from hansa.cli.demo import STUDY
from hansa.comparison import compare
from hansa.data import wisconsin


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Accuracy and log loss of each model, over ten seeds; simulated, so with the bits of a demo."""
    folder = tmp_path_factory.mktemp("seeds")
    gathered = {}
    for seed in range(10):
        path = folder / f"{seed}.toml"
        path.write_text(STUDY.format(seed=seed), "utf-8")
        federation, hospitals = study.load(path), wisconsin.hospitals(seed)
        model = federation.run(Local(hospitals)).model
        for scored in compare(federation, hospitals, model):
            both = (scored.metrics["accuracy"], scored.metrics["loss"])
            gathered.setdefault(scored.name, []).append(both)
    return {name: np.mean(values, axis=0) for name, values in gathered.items()}


def test_over_ten_seeds_the_federated_model_beats_each_hospital_alone(scores):
    accuracy, loss = scores["federated"]
    alone = {name: both for name, both in scores.items() if name not in ("federated", "pooled")}
    assert len(alone) == 3
    for name, (own_accuracy, own_loss) in alone.items():
        assert accuracy > own_accuracy, name
        assert loss < own_loss, name


def test_over_ten_seeds_the_federated_model_comes_near_the_pooled_one(scores):
    accuracy, loss = scores["federated"]
    pooled_accuracy, pooled_loss = scores["pooled"]
    assert accuracy > pooled_accuracy - 0.01
    assert loss < pooled_loss + 0.02


def test_nothing_held_out_is_nothing_to_compare_on():
    federation = hs.Federation(
        task=hs.LogisticRegression(target="malignant"),
        rounds=1,
        evaluation=hs.Evaluate(split="split"),
    )
    hospitals = wisconsin.hospitals(0)
    model = federation.run(Local(hospitals)).model
    held = federation.model_copy(update={"evaluation": hs.Evaluate(holdout=0)})
    tables = {name: table.drop("split") for name, table in hospitals.items()}
    with pytest.raises(hs.errors.StudyError, match="no row is held out"):
        compare(held, tables, model)


def test_a_party_that_can_estimate_nothing_alone_is_shown_without_metrics():
    """Its one column tells its labels apart; among all rows there is an estimate."""
    x = np.linspace(-1, 1, 40)
    noisy = (np.sin(40 * x) > -x).astype(float)
    parties = {
        "clear": hs.Table.of({"x": x, "y": (x > 0.1).astype(float)}),
        "noisy": hs.Table.of({"x": x, "y": noisy}),
    }
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), method=hs.methods.IRLS())
    scored = {s.name: s for s in compare(federation, parties, federation.run(Local(parties)).model)}
    assert np.isnan(scored["clear"].metrics["loss"])
    assert scored["noisy"].metrics["accuracy"] > 0.5
    assert scored["federated"].metrics["loss"] < 0.7
    # The sums of the federation are those of the pooled rows, so the models are the same.
    assert scored["federated"].metrics["loss"] == pytest.approx(scored["pooled"].metrics["loss"])
