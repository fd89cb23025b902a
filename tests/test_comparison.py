"""What federating is worth, on the demo's own study and hospitals."""

import numpy as np
import pytest

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
