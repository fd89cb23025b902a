"""What federating is worth, on the demo's own study and hospitals."""

import numpy as np
import pytest

import hansa as hs
from hansa import Local, study
from hansa.comparison import compare, cross_matrix
from hansa.data import wisconsin

pytestmark = pytest.mark.untraced


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Accuracy and log loss of each model, over ten seeds; simulated, so with the bits of a demo."""
    folder = tmp_path_factory.mktemp("seeds")
    gathered = {}
    for seed in range(10):
        path = folder / f"{seed}.toml"
        path.write_text(wisconsin.study(seed), "utf-8")
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
        task=hs.LogisticRegression(target="malignant"), rounds=1, evaluation=hs.Evaluate(split="split")
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
    parties = {"clear": hs.Table.of({"x": x, "y": (x > 0.1).astype(float)}), "noisy": hs.Table.of({"x": x, "y": noisy})}
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), method=hs.methods.IRLS())
    scored = {s.name: s for s in compare(federation, parties, federation.run(Local(parties)).model)}
    assert np.isnan(scored["clear"].metrics["loss"])
    assert scored["noisy"].metrics["accuracy"] > 0.5
    assert scored["federated"].metrics["loss"] < 0.7
    # The sums of the federation are those of the pooled rows, so the models are the same.
    assert scored["federated"].metrics["loss"] == pytest.approx(scored["pooled"].metrics["loss"])


@pytest.fixture(scope="module")
def opposites():
    """Two parties whose labels are each other's opposite, and one that is like the first."""
    random, parties = np.random.default_rng(0), {}
    for name, sign in (("first", 1), ("opposite", -1), ("second", 1)):
        x = random.normal(size=200)
        parties[name] = hs.Table.of({"x": x, "y": (sign * x > 0).astype(float)})
    return parties


@pytest.mark.parametrize(
    "method",
    [
        hs.methods.Ditto(local=hs.SGD(lr=0.5, epochs=5), lam=0.0),
        hs.methods.FedPer(local=hs.SGD(lr=0.5, epochs=5), head=("coef",)),
        hs.methods.IFCA(local=hs.SGD(lr=0.5, epochs=5), clusters=2, spread=1.0),
    ],
    ids=lambda method: method.kind,
)
def test_a_model_of_ones_own_is_right_at_home_and_wrong_where_labels_are_opposite(method, opposites):
    task = hs.LogisticRegression(target="y")
    run = hs.Federation(task=task, method=method, rounds=20).run(Local(opposites))
    crossed = cross_matrix(run, opposites)
    assert crossed.parties == ("first", "opposite", "second")
    alike = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]])
    np.testing.assert_allclose(crossed.own, alike, atol=0.1)
    # Nobody's model is right for all, and each party's own is at least as good as the shared one.
    assert crossed.shared.min() < 0.6
    assert (np.diag(crossed.own) >= crossed.shared - 0.02).all()


def test_before_personalisation_the_matrix_says_what_the_run_said(opposites):
    task, ditto = hs.LogisticRegression(target="y"), hs.methods.Ditto(local=hs.SGD(lr=0.5))
    federation = hs.Federation(task=task, method=ditto, rounds=2, evaluation=hs.Evaluate(own=True))
    run = federation.run(Local(opposites))
    crossed, said = cross_matrix(run, opposites, "loss"), run.metrics()[-1]
    assert crossed.shared.mean() == pytest.approx(said["loss"])  # parties are of one size
    assert np.diag(crossed.own).mean() == pytest.approx(said["own.loss"])


def test_what_has_no_matrix_is_refused(opposites):
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), rounds=1)
    run = federation.run(Local(opposites))
    with pytest.raises(hs.errors.StudyError, match="no party has a model and rows of its own: fedavg"):
        cross_matrix(run, opposites)
    own = federation.model_copy(update={"method": hs.methods.Ditto(local=hs.SGD(lr=0.1))})
    with pytest.raises(hs.errors.StudyError, match="no metric 'acuracy'"):
        cross_matrix(own.run(Local(opposites)), opposites, "acuracy")
