"""A PyTorch module is a model like any other: its parameters, its loss, what it refuses and which engine it gets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hansa import keyed
from hansa.errors import DataError, StudyError, UsageError
from hansa.learners import SGD
from hansa.learners.base import Feed
from hansa.learners.glm import Linear, Logistic, Softmax

torch = pytest.importorskip("torch")
from tests.learners.modules import OPTIMIZERS, Characters, Pictures, Positions, Torch, feed, loaded, mlp, naive, start  # noqa: E402

nn, nnf = torch.nn, torch.nn.functional


@pytest.mark.parametrize(
    ("glm", "loss", "outputs"),
    [(Linear(6), "mse", 1), (Logistic(6), "bce_with_logits", 1), (Softmax(6, 4), "cross_entropy", 4)],
    ids=["linear", "logistic", "softmax"],
)
def test_a_glm_in_pytorch_is_the_glm(glm: Any, loss: str, outputs: int) -> None:
    learner = Torch(lambda: nn.Linear(6, outputs), loss, precision="float64")
    whole = feed()
    y_of = {"mse": lambda x, y: x[:, 0] + y, "bce_with_logits": lambda x, y: (y > 1) * 1.0}.get(loss)
    if y_of:
        whole = Feed([(x, y_of(x, y)) for x, y in whole.rows], whole.keys, 2, 5)
    double = 2.0 if loss == "mse" else 1.0  # the GLM's loss is half the squared error
    theirs, _ = glm.train(np.zeros(glm.layout.size), whole, SGD(lr=0.1 * double))
    ours, _ = learner.train(np.zeros(learner.layout.size), whole, SGD(lr=0.1))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    x, y = whole.rows[0]
    np.testing.assert_allclose(learner.predict(ours[0], x), glm.predict(theirs[0], x), rtol=1e-9)
    np.testing.assert_allclose(learner.loss(ours[0], x, y), glm.loss(theirs[0], x, y) * double)


@pytest.mark.parametrize("loss", ["l1", "smooth_l1", "mse"])
def test_losses_by_name_are_pytorchs(loss: str) -> None:
    learner = Torch(lambda: nn.Linear(6, 1), loss, precision="float64")
    whole = Feed([(x, x[:, 1] * 2.0) for x, _ in feed().rows], feed().keys, 2, 5)
    theta = start(learner)
    function = getattr(nnf, f"{loss}_loss")
    twin = naive(learner, theta, whole, 0, OPTIMIZERS["sgd"][1], lambda out, y: function(out[:, 0], y))
    for stacked in (True, False):
        trained, _ = learner.train(theta, whole, SGD(lr=0.1), stacked=stacked)
        np.testing.assert_allclose(trained[0], twin, rtol=1e-9, atol=1e-12)
    x, y = whole.rows[0]
    predicted = learner.predict(twin, x)
    assert predicted.shape == (len(y),)
    np.testing.assert_allclose(learner.row_losses(predicted, y).mean(), learner.loss(twin, x, y))


def test_a_loss_per_row_is_stacked_and_one_number_is_not() -> None:
    per_row = Torch(mlp, lambda out, y: nnf.cross_entropy(out, y, reduction="none"))
    per_batch = Torch(mlp, lambda out, y: nnf.cross_entropy(out, y))
    named = Torch(mlp)
    whole, theta = feed(), start(named)
    wanted, _ = named.train(theta, whole, SGD(lr=0.1))
    for learner in (per_row, per_batch):
        learner.expect((6,))
        trained, _ = learner.train(theta, whole, SGD(lr=0.1))
        np.testing.assert_allclose(trained, wanted, rtol=1e-4, atol=1e-6)
    assert per_row.prefers[0] == "stacked"
    assert per_batch.prefers == ("resident", "the loss gives one number for a batch, not one per row")


def test_classes_may_stand_where_pytorch_puts_them() -> None:
    class Turned(Characters):
        def forward(self, x: Any) -> Any:
            return super().forward(x).movedim(-1, 1)

    ours, turned = Torch(Characters), Torch(Turned)
    whole, theta = feed("text"), start(ours)
    one, _ = ours.train(theta, whole, SGD(lr=0.1), stacked=False)
    other, _ = turned.train(theta, whole, SGD(lr=0.1), stacked=False)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    x, y = whole.rows[0]
    assert ours.predict(one[0], x).shape == (*y.shape, 4)
    np.testing.assert_allclose(ours.predict(one[0], x), turned.predict(one[0], x), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_attention_that_drops_is_known_to_draw(rate: float) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=4, dropout=rate)
    layer.dropout1 = layer.dropout2 = layer.dropout = nn.Identity()
    assert Torch(lambda: layer).draws == (rate > 0)


def normed() -> Any:
    return Pictures(lambda: nn.BatchNorm2d(6))


def test_batchnorm_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(StudyError, match="BatchNorm2d 'norm' keeps running statistics") as error:
        Torch(normed)
    assert "GroupNorm or LayerNorm" in error.value.remedy
    Torch(lambda: Pictures(lambda: nn.GroupNorm(2, 6)))
    Torch(lambda: Pictures(lambda: nn.BatchNorm2d(6, track_running_stats=False)))


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_averaged_statistics_are_part_of_the_vector_and_move_as_pytorch_moves_them(name: str) -> None:
    local, make = OPTIMIZERS[name]
    learner = Torch(normed, precision="float64", buffers="average")
    names = [name for name, _ in learner.layout.leaves]
    assert names[-2:] == ["norm.running_mean", "norm.running_var"]
    assert not any("num_batches" in name for name in names)
    learner.expect((8, 8))
    assert "BatchNorm" in learner.unstackable
    whole, theta = feed("image", (23, 17, 9)), start(learner)
    assert set(learner.layout.split(theta)["norm.running_var"]) == {1.0}
    trained, _ = learner.train(theta, whole, local)
    twin = np.stack([naive(learner, theta, whole, i, make) for i in range(3)])
    assert np.linalg.norm(trained - twin) <= 1e-9 * np.linalg.norm(twin)
    assert np.abs(learner.layout.split(trained)["norm.running_mean"]).min() > 1e-4
    x, _ = whole.rows[0]
    module = loaded(learner, trained[0]).eval()
    with torch.no_grad():
        wanted = module(torch.from_numpy(x.astype(float))).softmax(-1).numpy()
    np.testing.assert_allclose(learner.predict(trained[0], x), wanted, rtol=1e-9)
    with pytest.raises(StudyError, match="no gradient to send"):
        learner.gradient(theta, *whole.rows[0])


def test_local_statistics_are_those_of_the_rows_at_hand() -> None:
    learner = Torch(normed, precision="float64", buffers="local")
    assert not any("running" in name for name, _ in learner.layout.leaves)
    whole, theta = feed("image", (23,)), start(learner)
    trained, _ = learner.train(theta, whole, SGD(lr=0.1))
    x, y = whole.rows[0]
    module = loaded(learner, trained[0]).train()
    wanted = module(torch.from_numpy(x.astype(float))).softmax(-1).detach().numpy()
    np.testing.assert_allclose(learner.predict(trained[0], x), wanted, rtol=1e-9)
    np.testing.assert_allclose(learner.loss(trained[0], x, y), -np.log(wanted[range(23), y]).mean())


def test_a_buffer_that_training_changes_is_refused() -> None:
    learner = Torch(lambda: Positions(counts=True))
    with pytest.raises(StudyError, match="changes its buffer 'position' in training"):
        learner.train(start(learner), feed(), SGD(lr=0.1))


def test_rows_that_look_at_each_other_are_not_stacked() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 4)

        def forward(self, x: Any) -> Any:
            return self.out(x - x.mean(0))

    learner = Torch(Centred)
    learner.expect((6,))
    assert learner.prefers == ("resident", "a row's output depends on the rows beside it")


def test_a_module_that_torch_func_cannot_stack_falls_back_and_says_so() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 4)

        def forward(self, x: Any) -> Any:
            return self.out(x) if float(self.out.bias.sum().detach()) < 1e9 else self.out(-x)

    learner = Torch(Branching, precision="float64")
    learner.expect((6,))
    assert learner.prefers[0] == "resident"
    assert learner.prefers[1].startswith("torch.func cannot stack it: ")
    whole, theta = feed(), start(learner)
    trained, _ = learner.train(theta, whole, SGD(lr=0.1))
    np.testing.assert_allclose(trained[0], naive(learner, theta, whole, 0, OPTIMIZERS["sgd"][1]), rtol=1e-9, atol=1e-12)


def test_gradient_and_loss_count_rows_by_their_weights() -> None:
    learner = Torch(mlp, precision="float64")
    theta = np.stack([start(learner)] * 2)
    (x, y), _, (more, labels), *_ = feed(sizes=(7, 1, 7)).rows
    x, y = np.stack([x, more]), np.stack([y, labels])
    weights = np.array([[0.5, 0.25, 0.25, 0, 0, 0, 0], [1 / 7] * 7])
    for function in (learner.loss, learner.gradient):
        first = [function(theta[0], x[0][i : i + 1], y[0][i : i + 1]) for i in range(3)]
        wanted = 0.5 * first[0] + 0.25 * first[1] + 0.25 * first[2]
        both = function(theta, x, y, weights)
        np.testing.assert_allclose(both[0], wanted, rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(both[1], function(theta[1], x[1], y[1]), rtol=1e-10)


def test_weights_come_from_the_key_or_from_the_module() -> None:
    learner, given = Torch(mlp), Torch(mlp, given=True)
    one, other = (learner.init(keyed.generator(seed, "init")) for seed in (0, 1))
    torch.manual_seed(7)
    np.testing.assert_array_equal(one, learner.init(keyed.generator(0, "init")))
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_array_equal(given.init(keyed.generator(0, "init")), given.flat(given.template))


def test_the_layout_is_the_state_dict() -> None:
    learner = Torch(Pictures)
    theta = start(learner)
    module = loaded(learner, theta)
    assert [name for name, _ in learner.layout.leaves] == list(module.state_dict())
    np.testing.assert_array_equal(learner.flat(module), theta)
    np.testing.assert_array_equal(learner.layout.join(learner.layout.split(theta)), theta)


def test_bfloat16_is_used_where_it_is_faster_and_stays_close(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Torch(mlp, precision="bfloat16")
    whole, theta = feed(), start(learner)
    exact, _ = Torch(mlp).train(theta, whole, SGD(lr=0.1), stacked=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert "in float32, as this CPU has no AMX" in learner.prefers[1]
    np.testing.assert_array_equal(learner.train(theta, whole, SGD(lr=0.1), stacked=False)[0], exact)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert learner.prefers[1].endswith("in bfloat16")
    for stacked in (True, False):
        rough, _ = learner.train(theta, whole, SGD(lr=0.1), stacked=stacked)
        assert rough.dtype == np.float32
        assert 1e-5 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 0.02


@pytest.mark.parametrize(
    ("build", "problem"),
    [
        (lambda: 3, "what was to be a module is int"),
        (lambda: nn.Sequential(nn.LazyLinear(4)), "lazy layers"),
        (lambda: nn.ReLU(), "no parameter to learn"),
    ],
)
def test_what_is_no_module_to_learn_is_refused(build: Any, problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        Torch(build)


def test_wrong_shapes_and_labels_are_named() -> None:
    learner, whole = Torch(mlp), feed()
    theta = start(learner)
    (x, y), *_ = whole.rows
    bad = y.copy()
    bad[4] = 4
    with pytest.raises(DataError, match="label in row 5 is none of 0 to 3: the module has 4"):
        learner.train(theta, Feed([(x, bad)], whole.keys[:1]), SGD(lr=0.1))
    with pytest.raises(StudyError, match=r"cannot take rows of shape \[5\] and type float32: Runtime"):
        learner.train(theta, Feed([(x[:, :5], y)], whole.keys[:1]), SGD(lr=0.1))
    with pytest.raises(StudyError, match=r"outputs of shape \[4\] a row with labels of shape \[3\]"):
        learner.train(theta, Feed([(x, np.zeros((len(x), 3)))], whole.keys[:1]), SGD(lr=0.1))
    odd = Torch(lambda: nn.Sequential(nn.Linear(6, 4), nn.Flatten(0)))
    with pytest.raises(StudyError, match=r"the module gives \[4\] for 1 rows"):
        odd.train(start(odd), whole, SGD(lr=0.1))
    with pytest.raises(UsageError, match="does not reach the device 'nowhere'"):
        learner.on("nowhere")
