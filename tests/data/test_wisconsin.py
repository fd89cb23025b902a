from importlib import resources

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa import study as studies
from hansa.data import wisconsin


def test_the_packaged_table_is_the_published_one():
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    published = datasets.load_breast_cancer()
    table = wisconsin.table()
    assert table.rows == 569
    assert table.names == (*(name.replace(" ", "_") for name in published.feature_names.tolist()), "malignant")
    features = np.column_stack([table.column(name) for name in table.names[:-1]])
    np.testing.assert_array_equal(features, published.data)
    np.testing.assert_array_equal(table.column("malignant"), published.target == 0)
    assert (table.column("malignant") == 1).sum() == 212


def test_source_and_licence_lie_beside_the_table():
    text = resources.files("hansa.data").joinpath("wisconsin", "SOURCE.md").read_text("utf-8")
    assert "10.24432/C5DW2B" in text
    assert "CC BY 4.0" in text


def test_three_hospitals_hold_every_row_once_with_the_documented_skew():
    hospitals = wisconsin.hospitals(seed=3)
    assert list(hospitals) == ["north", "harbour", "river"]
    rows = []
    for name, hospital in hospitals.items():
        labels, split = hospital.column("malignant"), hospital.column("split")
        training = labels[split == "train"]
        held_out = labels[split == "test"]
        assert ((training == 1).sum(), (training == 0).sum()) == wisconsin.TRAINING[name]
        assert ((held_out == 1).sum(), (held_out == 0).sum()) == (41, 78)
        rows += np.column_stack([hospital.column(n) for n in hospital.names[:-1]]).tolist()
    whole = wisconsin.table()
    assert sorted(rows) == sorted(np.column_stack(list(whole.columns.values())).tolist())


def test_the_seed_decides_which_hospital_gets_a_row():
    one, same, other = (wisconsin.hospitals(seed)["north"].column("mean_area") for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()


def test_the_private_study_hides_a_patient_and_costs_at_most_two_points_of_accuracy(tmp_path):
    """Ten seeds; epsilon at most 3 in everybody's eyes, also if a patient's row were learnt from and held out."""
    private, plain = [], []
    for seed in range(10):
        (tmp_path / "study.toml").write_text(wisconsin.study(seed, private=True), "utf-8")
        federation, hospitals = studies.load(tmp_path / "study.toml"), wisconsin.hospitals(seed)
        held_out = [table.take(np.flatnonzero(table.column("split") == "test")) for table in hospitals.values()]
        bare = {"aggregation": agg.Aggregation(), "statistics": agg.Aggregation(), "privacy": hs.Privacy()}
        for study, scores in ((federation, private), (federation.model_copy(update=bare), plain)):
            run = study.run(hs.Local(hospitals))
            scores.append(run.model.score(*held_out)["accuracy"])
        if not seed:
            setup = federation.resolve({name: table.schema() for name, table in hospitals.items()})
            for one in federation.guaranteed(setup).observers:
                assert one.epsilon <= 3.0, one
    assert np.mean(private) >= np.mean(plain) - 0.02
    assert np.mean(plain) > 0.96
