"""Modules train as PyTorch would train them, whichever engine does it, on whatever threads and device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from hansa.errors import RunError
from hansa.learners import SGD
from hansa.learners.base import Feed
from hansa.learners.optimizer import Adam

torch = pytest.importorskip("torch")
from tests.learners.modules import (  # noqa: E402
    OPTIMIZERS,
    SIZES,
    Characters,
    Pictures,
    Positions,
    Torch,
    alone,
    feed,
    mlp,
    naive,
    start,
)

nn = torch.nn
EXACT = {"float32": 1e-5, "float64": 1e-10}


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
            theta, alone(whole, i), SGD(lr=0.1), lambda g, p, _, part=part: correct(g, p, part), stacked=False
        )
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
    assert (
        np.abs(learner.train(theta, other, SGD(lr=0.1))[0] - learner.train(theta, unkeyed, SGD(lr=0.1))[0]).max() > 1e-3
    )
    torch.random.set_rng_state(state)
    x, y = whole.rows[0]
    assert learner.loss(theta, x, y) == learner.loss(theta, x, y)
    np.testing.assert_array_equal(learner.gradient(theta, x, y), learner.gradient(theta, x, y))


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
