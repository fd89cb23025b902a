"""A PyTorch module trains as PyTorch would train it, whichever engine does it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hansa import keyed
from hansa.errors import DataError, RunError, StudyError, UsageError
from hansa.learners import SGD, Learner
from hansa.learners.base import Feed
from hansa.learners.glm import Linear, Logistic, Softmax
from hansa.learners.optimizer import Adagrad, Adam, AdamW

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as nnf  # noqa: E402

from hansa.learners.torch import Torch  # noqa: E402

SIZES = (23, 17, 17, 9, 1)
EXACT = {"float32": 1e-5, "float64": 1e-10}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Small matrices; and the cores may be busy with other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mlp() -> Any:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


class Pictures(nn.Module):
    def __init__(self, norm: Any = nn.Identity) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm, self.top = norm(), nn.Conv2d(6, 5, 3, padding=1)
        self.out = nn.Linear(5 * 16, 4)

    def forward(self, x: Any) -> Any:
        x = nnf.max_pool2d(torch.relu(self.norm(self.conv(x[:, None]))), 2)
        return self.out(torch.relu(self.top(x)).flatten(1))


class Characters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(4, 5), nn.LSTM(5, 6, batch_first=True)
        self.out = nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(self.embed(x))[0])


def rows(n: int, kind: str, random: np.random.Generator) -> tuple[Any, Any]:
    if kind == "text":
        text = random.integers(0, 4, (n, 6))
        return text[:, :-1], text[:, 1:]
    y = random.integers(0, 4, n)
    x = random.normal(size=(n, 8, 8) if kind == "image" else (n, 6))
    return x.astype(np.float32), y


def feed(kind: str = "flat", sizes: tuple[int, ...] = SIZES, **how: Any) -> Feed:
    random = np.random.default_rng(3)
    keys = keyed.keys(0, "batches", 1, parties=[f"p{i}" for i in range(len(sizes))])
    return Feed([rows(n, kind, random) for n in sizes], keys, **{"batch_size": 5, "epochs": 2, **how})


def alone(whole: Feed, i: int) -> Feed:
    return Feed([whole.rows[i]], whole.keys[i : i + 1], whole.epochs, whole.batch_size, whole.shuffle)


def start(learner: Learner) -> Any:
    return learner.init(keyed.generator(0, "init")).astype(learner.dtype)


def loaded(learner: Torch, theta: Any) -> Any:
    """A module of PyTorch's own with these parameters."""
    module = learner.build().to(torch.float64 if learner.dtype == "float64" else torch.float32)
    leaves = learner.layout.split(np.array(theta))
    module.load_state_dict({n: torch.from_numpy(np.array(v)) for n, v in leaves.items()}, strict=False)
    return module


def naive(learner: Torch, theta: Any, whole: Feed, i: int, make: Any, loss: Any = None) -> Any:
    """The plain loop that everybody writes."""
    module = loaded(learner, theta)
    optimizer = make(module.parameters())
    for x, y in whole.batches(i):
        optimizer.zero_grad()
        x = torch.from_numpy(x.astype(learner.dtype) if x.dtype.kind == "f" else x)
        out = module(x)
        if loss is None:
            value = nnf.cross_entropy(out.flatten(0, -2), torch.from_numpy(y).flatten())
        else:
            value = loss(out, torch.from_numpy(y.astype(learner.dtype)))
        value.backward()
        optimizer.step()
    return learner.flat(module)


OPTIMIZERS = {
    "sgd": (SGD(lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (SGD(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adam": (Adam(lr=0.01), lambda p: torch.optim.Adam(p, lr=0.01)),
    "adamw": (
        AdamW(lr=0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)
    ),
    "adagrad": (Adagrad(lr=0.01), lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-8)),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_both_engines_are_the_loop_that_everybody_writes(name: str, precision: Any) -> None:
    local, make = OPTIMIZERS[name]
    learner = Torch(mlp, precision=precision)
    whole, theta = feed(), start(learner)
    stacked, slots = learner.train(theta, whole, local)
    resident, alike = learner.train(theta, whole, local, stacked=False)
    twin = np.stack([naive(learner, theta, whole, i, make) for i in range(len(SIZES))])
    exact = EXACT[precision] * (1 if name in ("sgd", "momentum") else 20)
    for trained in (stacked, resident):
        assert trained.dtype == learner.dtype
        assert np.linalg.norm(trained - twin) <= exact * np.linalg.norm(twin)
    assert np.abs(stacked - theta).max() > 0.01
    assert slots.keys() == alike.keys()
    for key in slots:
        np.testing.assert_allclose(slots[key], alike[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("local", [OPTIMIZERS["sgd"], OPTIMIZERS["momentum"]], ids=["sgd", "momentum"])
@pytest.mark.parametrize(("build", "kind"), [(Pictures, "image"), (Characters, "text")])
def test_networks_train_as_pytorch_trains_them(build: Any, kind: str, local: Any) -> None:
    learner = Torch(build, precision="float64")
    whole, theta = feed(kind), start(learner)
    trained, _ = learner.train(theta, whole, local[0], stacked=False)
    twin = np.stack([naive(learner, theta, whole, i, local[1]) for i in range(len(SIZES))])
    assert np.linalg.norm(trained - twin) <= 1e-10 * np.linalg.norm(twin)


def test_pictures_are_stacked_on_demand_and_agree() -> None:
    learner = Torch(Pictures, precision="float64")
    whole, theta = feed("image"), start(learner)
    learner.expect((8, 8))
    assert learner.prefers == ("resident", "convolutions are faster one party at a time")
    assert learner.unstackable == ""
    stacked, _ = learner.train(theta, whole, SGD(lr=0.1))
    resident, _ = learner.train(theta, whole, SGD(lr=0.1), stacked=False)
    assert np.linalg.norm(stacked - resident) <= 1e-10 * np.linalg.norm(resident)


def test_a_correction_sees_gradients_and_parameters_of_its_parties_in_both_engines() -> None:
    learner = Torch(mlp, precision="float64")
    whole, theta = feed(), start(learner)
    pulls = np.linspace(0.0, 0.4, len(SIZES))[:, None]

    def correct(gradient: Any, parameters: Any, parties: slice) -> Any:
        assert gradient.shape == parameters.shape
        return gradient + learner.native(pulls)[parties] * (parameters - learner.native(theta))

    stacked, _ = learner.train(theta, whole, SGD(lr=0.1), correct)
    for i in range(len(SIZES)):
        part = slice(i, i + 1)
        one, _ = learner.train(
            theta, alone(whole, i), SGD(lr=0.1),
            lambda g, p, _, part=part: correct(g, p, part), stacked=False,
        )  # fmt: skip
        np.testing.assert_allclose(one[0], stacked[i], rtol=1e-10, atol=1e-12)
    free, _ = learner.train(theta, whole, SGD(lr=0.1))
    np.testing.assert_allclose(free[0], stacked[0], rtol=1e-10)
    assert np.abs(free[-1] - stacked[-1]).max() > 1e-4


def test_kept_moments_go_on_where_they_stopped() -> None:
    learner = Torch(mlp, precision="float64")
    whole, theta, local = feed(epochs=1, shuffle=False), start(learner), Adam(lr=0.01)
    twice, _ = learner.train(theta, feed(epochs=2, shuffle=False), local)
    for stacked in (True, False):
        half, slots = learner.train(theta, whole, local, stacked=stacked)
        rest, _ = learner.train(half, whole, local, slots=slots, stacked=stacked)
        np.testing.assert_allclose(rest, twice, rtol=1e-9)


@pytest.mark.parametrize("stacked", [True, False])
def test_the_bits_do_not_depend_on_threads_nor_on_whose_rows_lie_beside(stacked: bool) -> None:
    learner = Torch(mlp)
    whole, theta = feed(), start(learner)
    together, _ = learner.train(theta, whole, SGD(lr=0.1), stacked=stacked)
    torch.set_num_threads(2)
    with ThreadPoolExecutor(3) as pool:
        apart = pool.map(
            lambda i: learner.train(theta, alone(whole, i), SGD(lr=0.1), stacked=stacked)[0][0], range(len(SIZES))
        )
        np.testing.assert_array_equal(together, np.stack(list(apart)))
    assert torch.get_num_threads() == 2


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


def test_dropout_repeats_with_the_party_and_goes_resident() -> None:
    def build() -> Any:
        return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))

    learner = Torch(build)
    learner.expect((6,))
    assert learner.prefers == ("resident", "the module draws at random in training (dropout)")
    assert not learner.threads
    whole, theta = feed(), start(learner)
    state = torch.random.get_rng_state()
    first, _ = learner.train(theta, whole, SGD(lr=0.1))
    torch.manual_seed(99)
    again, _ = Torch(build).train(theta, whole, SGD(lr=0.1))
    np.testing.assert_array_equal(first, again)
    for i in (3, 1):
        np.testing.assert_array_equal(first[i], learner.train(theta, alone(whole, i), SGD(lr=0.1))[0][0])
    other = Feed(whole.rows, whole.keys + np.uint64(1), 2, 5, shuffle=False)
    unkeyed = Feed(whole.rows, whole.keys, 2, 5, shuffle=False)
    assert np.abs(
        learner.train(theta, other, SGD(lr=0.1))[0] - learner.train(theta, unkeyed, SGD(lr=0.1))[0]
    ).max() > 1e-3  # fmt: skip
    torch.random.set_rng_state(state)
    x, y = whole.rows[0]
    assert learner.loss(theta, x, y) == learner.loss(theta, x, y)
    np.testing.assert_array_equal(learner.gradient(theta, x, y), learner.gradient(theta, x, y))


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


class Positions(nn.Module):
    """A constant buffer, a frozen parameter, a tied one and a counter, if it is wanted."""

    def __init__(self, counts: bool = False) -> None:
        super().__init__()
        self.register_buffer("position", torch.arange(6.0))
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Parameter(torch.full((6,), 2.0), requires_grad=False)
        self.counts = counts

    def forward(self, x: Any) -> Any:
        if self.counts and self.training:
            self.position += 1
        return self.second(torch.tanh(self.first(x * self.frozen + self.position)))[:, :4]


def test_constants_and_frozen_parameters_stay_and_tied_ones_are_one() -> None:
    learner = Torch(Positions, precision="float64")
    assert [name for name, _ in learner.layout.leaves] == ["first.weight", "first.bias", "second.bias"]
    whole, theta = feed(), start(learner)
    for stacked in (True, False):
        trained, _ = learner.train(theta, whole, SGD(lr=0.1), stacked=stacked)
        twin = naive(learner, theta, whole, 0, OPTIMIZERS["sgd"][1])
        np.testing.assert_allclose(trained[0], twin, rtol=1e-9, atol=1e-12)


def test_large_linear_layers_are_stepped_without_forming_their_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hansa.learners.resident.LARGE", 10)
    formed = torch.autograd.grad
    seen: list[int] = []

    def grad(mean: Any, leaves: Any, **how: Any) -> Any:
        slopes = formed(mean, leaves, **how)
        seen.append(sum(slope is None for slope in slopes))
        return slopes

    monkeypatch.setattr(torch.autograd, "grad", grad)
    for build, kind in ((mlp, "flat"), (Positions, "flat"), (Characters, "text")):
        learner = Torch(build, precision="float64")
        whole, theta = feed(kind), start(learner)
        trained, _ = learner.train(theta, whole, SGD(lr=0.1), stacked=False)
        assert max(seen) > 0
        seen.clear()
        twin = naive(learner, theta, whole, 0, OPTIMIZERS["sgd"][1])
        np.testing.assert_allclose(trained[0], twin, rtol=1e-9, atol=1e-12)
        stacked, _ = learner.train(theta, whole, SGD(lr=0.1))
        np.testing.assert_allclose(stacked, trained, rtol=1e-9, atol=1e-12)


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


def test_memory_that_runs_out_says_what_to_lower() -> None:
    class Greedy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 4)

        def forward(self, x: Any) -> Any:
            if len(x) > 2:
                torch.empty(1 << 50)
            return self.out(x)

    learner = Torch(Greedy)
    with pytest.raises(RunError, match="out of memory") as error:
        learner.train(start(learner), feed(), SGD(lr=0.1), stacked=False)
    assert "Lower local.batch_size" in error.value.remedy


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_what_the_cpu_gives() -> None:
    learner = Torch(mlp, precision="float64")
    whole, theta = feed(), start(learner)
    wanted, _ = learner.train(theta, whole, Adam(lr=0.01))
    learner.on("cuda")
    for stacked in (True, False):
        np.testing.assert_allclose(learner.train(theta, whole, Adam(lr=0.01), stacked=stacked)[0], wanted, rtol=1e-8)
