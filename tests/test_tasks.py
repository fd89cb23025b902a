"""A PyTorch module is a task like any other, but for the code it carries."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import methods, tasks
from hansa.errors import ConsentError, DataError, RunError, StudyError, UsageError
from hansa.federation import Federation
from hansa.task import BUILT_IN, TASKS

NETS = """
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden=8, classes=3):
        super().__init__()
        self.body, self.head = nn.Linear(4, hidden), nn.Linear(hidden, classes)

    def forward(self, x):
        return self.head(self.body(x).tanh())


def convolutional():
    layers = [nn.Unflatten(1, (1, 6)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(144, 3))


class Score(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        return self.out(x)


def absolute(predicted, y):
    return abs(predicted - y)
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A file of a user's own, in a package path."""
    pytest.importorskip("torch")
    (tmp_path / "nets_of_a_user.py").write_text(NETS, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import nets_of_a_user

    yield nets_of_a_user
    del sys.modules["nets_of_a_user"]


def tables(kind: str = "numbers", parties: int = 4) -> dict[str, hs.Table]:
    random = np.random.default_rng(5)
    made = {}
    for i in range(parties):
        y = random.integers(0, 3, 40 + 9 * i)
        if kind == "numbers":
            x = random.normal(size=(len(y), 4)) + 2.0 * np.eye(3, 4)[y]
            made[f"p{i}"] = hs.Table.of({"y": y, **{f"x{j}": x[:, j] for j in range(4)}})
        else:
            x = random.normal(size=(len(y), 6, 6)) + y[:, None, None]
            made[f"p{i}"] = hs.Table({"x": x.astype(np.float32), "y": y})
    return made


def federation(task: Any, **more: Any) -> hs.Federation:
    local = hs.SGD(lr=0.2, batch_size=8)
    return hs.Federation(**{"task": task, "method": methods.FedAvg(local=local), "rounds": 6, **more})


@pytest.mark.parametrize(("kind", "engine"), [("numbers", "stacked"), ("images", "resident")])
def test_a_federation_learns_a_module_and_repeats_to_the_bit(nets: Any, kind: str, engine: str) -> None:
    module = nets.Net if kind == "numbers" else nets.convolutional
    study = federation(hs.tasks.torch(module, metrics=["accuracy"]))
    run, again = (study.run(hs.Local(tables(kind), workers=w)) for w in (1, 3))
    picked = next(event.body for event in run.events if event.kind == "engine")
    assert picked["engine"] == engine
    scores = run.model.score(tables(kind)["p3"])
    assert scores["accuracy"] > 0.8
    assert scores["loss"] < 0.7
    np.testing.assert_array_equal(run.model.parameters, again.model.parameters)
    other = study.run(hs.Local(tables(kind), engine="resident" if engine == "stacked" else "stacked"))
    gap = np.linalg.norm(other.model.parameters - run.model.parameters)
    assert gap < 1e-4 * np.linalg.norm(run.model.parameters)


@pytest.mark.parametrize("method", [methods.Scaffold, methods.FedProx, methods.FedNova])
def test_methods_with_corrections_and_memory_train_modules(nets: Any, method: Any) -> None:
    local = hs.SGD(lr=0.2, batch_size=8)
    for engine in ("stacked", "resident"):
        study = federation(hs.tasks.torch(nets.Net, metrics=["accuracy"]), method=method(local=local))
        run = study.run(hs.Local(tables(), engine=engine))
        assert run.model.score(tables()["p1"])["accuracy"] > 0.8


def test_a_module_comes_as_a_class_a_function_or_itself(nets: Any) -> None:
    wide = hs.tasks.torch(nets.Net, hidden=5)
    assert wide.learner(4).layout.size == 4 * 5 + 5 + 5 * 3 + 3
    assert wide.module == "nets_of_a_user:Net"
    itself = nets.Net()
    task = hs.tasks.torch(itself)
    assert task.module == "nets_of_a_user:Net()"
    random = np.random.default_rng
    one, other = task.learner(4).init(random(0)), task.learner(4).init(random(1))
    assert np.abs(one - other).max() > 0.1
    given = hs.tasks.torch(itself, start="given")
    np.testing.assert_array_equal(given.learner(4).init(random(0)), given.learner(4).flat(itself))
    assert given.source != hs.tasks.torch(nets.Net(), start="given").source


def test_a_federation_with_other_code_is_another_federation(nets: Any) -> None:
    study = federation(hs.tasks.torch(nets.Net, loss="nll", metrics=["accuracy"]))
    assert Federation.from_json(study.to_json()).hash == study.hash
    nets.Net.__doc__ = "the same"
    changed = hs.tasks.torch(nets.convolutional, loss="nll", metrics=["accuracy"])
    assert federation(changed).hash != study.hash
    assert federation(hs.tasks.torch(nets.Net, hidden=9)).hash != federation(hs.tasks.torch(nets.Net)).hash


def test_agents_refuse_it_like_all_code(nets: Any) -> None:
    assert "torch" not in BUILT_IN
    study = federation(hs.tasks.torch(nets.Net))
    assert study.has_code
    with pytest.raises(ConsentError, match="the study brings code"):
        study.require_no_code()


def test_the_model_is_a_safetensors_file_of_the_state_dict(nets: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    task = hs.tasks.torch(nets.Net, metrics=["accuracy"])
    run = federation(task, preprocessing=hs.Moments(standardise=False)).run(hs.Local(tables()))
    path = run.model.save(tmp_path / "model.safetensors")
    net = nets.Net()
    net.load_state_dict(load_file(path))
    table = tables()["p0"]
    x = np.stack([table.column(f"x{j}") for j in range(4)], axis=1).astype(np.float32)
    with torch.no_grad():
        wanted = net(torch.from_numpy(x)).softmax(-1).numpy()
    np.testing.assert_allclose(run.model.predict(table), wanted, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(hs.Model.load(path).predict(table), run.model.predict(table))


def test_a_task_that_is_read_back_elsewhere_needs_its_code(nets: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    task = hs.tasks.torch(nets.Net, loss="mse", metrics=[nets.absolute])
    body = TASKS.spec(task)
    monkeypatch.setattr(tasks, "_LIVE", {})
    read = TASKS.build(body)
    with pytest.raises(StudyError, match=r"code \(nets_of_a_user:Net\), which is not loaded"):
        read.learner(4).layout  # noqa: B018  # the access is the test
    assert read.load().learner(4).layout.size == 4 * 8 + 8 + 8 * 3 + 3
    altered = TASKS.build({**body, "source": "0" * 64})
    with pytest.raises(StudyError, match="is not here what it was where the task was made"):
        altered.load()
    for lost in ("nets_of_a_user:Absent", "no_such_module:Net"):
        with pytest.raises(StudyError, match="cannot be imported here"):
            TASKS.build({**body, "module": lost}).load()


def test_what_lives_in_one_process_says_move_it_to_a_file(nets: Any) -> None:
    class Inner(nets.Net):
        pass

    for module in (Inner, nets.Net(), lambda: nets.Net()):
        with pytest.raises(UsageError, match="lives in the process that made it") as error:
            hs.tasks.torch(module).load()
        assert "Move it to a file" in error.value.remedy


def test_metrics_are_sums_over_rows(nets: Any) -> None:
    import torch

    task = hs.tasks.torch(nets.Score, loss="mse", metrics=["mse", "rmse", "mae", nets.absolute])
    random = np.random.default_rng(0)
    predicted, y = random.normal(size=10).astype(np.float32), random.normal(size=10)
    halves = [task.tally(predicted[s], y[s]) for s in (slice(0, 3), slice(3, 10), slice(0, 0))]
    totals = {name: sum(half[name] for half in halves) for name in halves[0]}
    assert {field.name for field in task.tallies()} == set(totals)
    metrics = task.metrics(totals)
    error = predicted - y
    wanted = {
        "loss": np.square(error).mean(), "mse": np.square(error).mean(), "mae": np.abs(error).mean(),
        "rmse": np.square(error).mean() ** 0.5, "absolute": np.abs(error).mean(),
    }  # fmt: skip
    assert metrics == pytest.approx(wanted, rel=1e-6)
    assert tuple(metrics) == task.metric_names
    assert "mse" in task.lower_is_better

    two = hs.tasks.torch(nets.Score, loss="bce_with_logits", metrics=["accuracy", "auc"])
    p, labels = np.array([0.1, 0.9, 0.8, 0.4]), np.array([0.0, 1.0, 0.0, 1.0])
    metrics = two.metrics(two.tally(p, labels))
    loss = torch.nn.functional.binary_cross_entropy(torch.tensor(p), torch.tensor(labels))
    assert metrics == pytest.approx({"loss": float(loss), "accuracy": 0.5, "auc": 0.75})

    many = hs.tasks.torch(nets.Net, metrics=["accuracy"])
    rows = np.array([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.2, 0.5, 0.3], [0.3, 0.3, 0.4]]])
    metrics = many.metrics(many.tally(rows, np.array([[0, 2], [0, 2]])))
    wanted = {"loss": -np.log([0.7, 0.8, 0.2, 0.4]).mean(), "accuracy": 0.75}
    assert metrics == pytest.approx(wanted)


def test_labels_are_numbered_from_text_or_taken_as_they_are(nets: Any) -> None:
    text = hs.Table.of({"y": ["b", "a", "c"]})
    named = hs.tasks.torch(nets.Net, classes=["a", "b", "c"])
    np.testing.assert_array_equal(named.labels(text), [1, 0, 2])
    plain = hs.tasks.torch(nets.Net)
    with pytest.raises(DataError, match="holds text") as error:
        plain.labels(text)
    assert "classes=" in error.value.remedy
    numbers = plain.labels(hs.Table.of({"y": [0, 2, 1]}))
    assert numbers.dtype == np.int64
    for bad in ([0.0, 1.5, 1.0], [0.0, float("nan"), 1.0]):
        with pytest.raises(DataError, match="row 2"):
            plain.labels(hs.Table.of({"y": bad}))
    tokens = np.zeros((3, 5), np.int32)
    assert plain.labels(hs.Table({"y": tokens})).dtype == np.int32
    half = hs.tasks.torch(nets.Score, loss="mse").labels(hs.Table.of({"y": [0.5, 1.5]}))
    np.testing.assert_array_equal(half, [0.5, 1.5])


def test_arguments_that_cannot_be_are_named(nets: Any) -> None:
    import torch

    for call, problem in (
        (lambda: hs.tasks.torch("resnet18"), "a module was wanted, not str"),
        (lambda: hs.tasks.torch(nets.Net, loss="crossentropy"), "unknown loss 'crossentropy'"),
        (lambda: hs.tasks.torch(nets.Net, metrics=["acuracy"]), "unknown metrics 'acuracy'"),
        (lambda: hs.tasks.torch(nets.Net, loss=3), "a name or a function was wanted, not 3"),
        (lambda: hs.tasks.torch(nets.Net(), hidden=3), "arguments hidden for a module that is already"),
        (lambda: hs.tasks.torch(nets.Net, activation=torch.nn.ReLU), "arguments activation are not all"),
        (lambda: hs.tasks.torch(nets.Net, depth=3).learner(4), "unexpected keyword argument 'depth'"),
        (lambda: hs.tasks.torch(nets.Net, classes=10), "`classes` is the task's own, a list"),
        (lambda: hs.tasks.torch(nets.Net, metrics="accuracy"), "`metrics` is the task's own"),
    ):
        with pytest.raises(StudyError, match=problem):
            call()


def test_a_metric_that_gives_one_number_is_told_to_give_one_per_row(nets: Any) -> None:
    def total(predicted: Any, y: Any) -> Any:
        return np.abs(predicted).sum()

    task = hs.tasks.torch(nets.Net, metrics=[total])
    with pytest.raises(StudyError, match=r"gives \[\] for 2 rows") as error:
        task.tally(np.full((2, 3), 1 / 3), np.array([0, 1]))
    assert "one value per row" in error.value.remedy


def test_a_party_whose_labels_do_not_fit_is_named(nets: Any) -> None:
    parties = tables()
    bad = {name: np.array(values) for name, values in parties["p2"].columns.items()}
    bad["y"][:] = 3.0
    study = federation(hs.tasks.torch(nets.Net), cohort=hs.All(minimum=4))
    with pytest.raises(RunError, match=r"3 of 4 .*\(p2: a label in row 1 is none of 0 to 2"):
        study.run(hs.Local({**parties, "p2": hs.Table(bad)}))


def test_without_pytorch_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "hansa.learners.torch", raising=False)
    task = hs.tasks.torch(lambda: None)
    with pytest.raises(StudyError, match="PyTorch is not installed") as error:
        task.learner(4)
    assert error.value.remedy == "pip install 'hansa[torch]'"
