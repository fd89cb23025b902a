"""Rows read off updates: of a dense layer by division, of a small network by descent."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa import audit
from hansa.errors import StudyError
from hansa.learners.base import Layout
from hansa.learners.glm import Softmax

LONG = os.environ.get("HANSA_LONG") == "1"
SIDE = 8


def images(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noise from 0 to 1, the hardest of all images to guess, and a class for each."""
    random = np.random.default_rng(seed)
    return random.random((rows, SIDE * SIDE)), random.integers(0, 4, rows)


def bare(task: hs.Task | None = None, **keys: Any) -> audit.Bare:
    x, y = images(60)
    tables = {name: hs.Table({"x": x[i::3], "y": y[i::3].astype(float)}) for i, name in enumerate("abc")}
    known: dict[str, Any] = {
        "task": task or hs.SoftmaxRegression(target="y", classes=(0, 1, 2, 3)),
        "method": hs.FedAvg(local=hs.SGD(lr=0.1, epochs=3), weights="equal"),
        "preprocessing": hs.Moments(standardise=False),
    }
    return audit.Bare.of(hs.Federation(**{**known, **keys}), tables)


def test_quality_is_in_decibels() -> None:
    assert audit.psnr(np.full(5, 0.1), np.zeros(5)) == pytest.approx(20)
    assert audit.psnr(np.full(5, 1.0), np.zeros(5), 10.0) == pytest.approx(20)
    assert audit.psnr(np.zeros(5), np.zeros(5)) == 400


def test_a_row_is_its_weight_gradient_over_its_bias_gradient() -> None:
    model, (x, y) = Softmax(64, 4), images(3)
    theta = np.random.default_rng(1).normal(size=model.layout.size)
    for i in range(3):
        gradient = model.gradient(theta, x[i : i + 1], y[i : i + 1])
        assert audit.psnr(audit.inverted(model.layout, gradient, 64), x[i]) > 250
    mixed = audit.inverted(model.layout, model.gradient(theta, x, y), 64)
    eta = x @ theta[:256].reshape(4, 64).T + theta[256:]
    residual = np.exp(eta) / np.exp(eta).sum(axis=1, keepdims=True) - np.eye(4)[y]
    unit = np.abs(residual.mean(axis=0)).argmax()
    shares = residual[:, unit] / residual[:, unit].sum()
    np.testing.assert_allclose(mixed, shares @ x, rtol=1e-9)
    assert not audit.inverted(model.layout, np.zeros(theta.size), 64).any()


def test_without_a_dense_layer_there_is_nothing_to_divide() -> None:
    layout = Layout((("conv", (2, 1, 3, 3)), ("bias", (2,))))
    with pytest.raises(StudyError, match="no dense layer"):
        audit.inverted(layout, np.ones(20), 64)


@pytest.mark.parametrize("method", [hs.FedAvg(local=hs.SGD(lr=0.1, epochs=3)), hs.FedSGD()])
def test_an_unprotected_row_is_read(method: Any) -> None:
    read = audit.read_rows(bare(method=method))
    assert read["unprotected"] > 100
    assert read["coordinator"] > 100
    assert read["blind"] == pytest.approx(10.8, abs=1)  # a uniform number has a variance of 1/12


PRIVATE = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=1.0, rate=0.2, steps=5, batch_size=5)
PROTECTED: dict[str, dict[str, Any]] = {
    "example": {"method": hs.FedAvg(local=PRIVATE, weights="equal"), "privacy": hs.Privacy(unit="example")},
    "local": {"aggregation": agg.clip(1.0) >> agg.local_gaussian(noise_multiplier=1.0)},
    "laplace": {"aggregation": agg.clip(1.0) >> agg.local_laplace(noise_multiplier=1.0)},
    "shares": {
        "aggregation": agg.clip(1.0)
        >> agg.rotate()
        >> agg.grid(bits=12)
        >> agg.skellam(noise_multiplier=1.0)
        >> agg.secure_sum()
    },
}


@pytest.mark.parametrize("kind", PROTECTED)
def test_behind_noise_nobody_reads_it(kind: str) -> None:
    read = audit.read_rows(bare(**PROTECTED[kind]), victims=30)
    assert read["unprotected"] > 100
    assert read["coordinator"] < 10
    assert read["public"] < 10


def test_noise_at_the_coordinator_does_not_keep_the_coordinator_out() -> None:
    chain = agg.clip(1.0) >> agg.gaussian(noise_multiplier=1.0)
    read = audit.read_rows(bare(aggregation=chain), victims=30)
    assert read["coordinator"] > 100
    assert read["public"] < 10


def test_a_module_that_begins_with_a_dense_layer_is_read() -> None:
    torch = pytest.importorskip("torch")

    def net() -> Any:
        return torch.nn.Sequential(torch.nn.Linear(SIDE * SIDE, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))

    task = hs.tasks.torch(net, loss="cross_entropy", target="y")
    method = hs.FedAvg(local=hs.SGD(lr=1.0, batch_size=1), weights="equal")
    audited = bare(task, method=method)
    assert audit.read_rows(audited)["coordinator"] > 100
    chain = agg.clip(1.0) >> agg.local_gaussian(noise_multiplier=1.0)
    assert audit.read_rows(bare(task, method=method, aggregation=chain))["coordinator"] < 10
    with pytest.raises(StudyError, match="canaries are features"):
        audit.one_run(audited)


@pytest.mark.skipif(not LONG, reason="HANSA_LONG=1 (`make attack`)")
def test_an_image_is_read_off_a_convolutional_network_by_descent() -> None:
    """Geiping et al. 2020, arXiv 2003.14053: a smooth image whose gradient has the same direction."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 5, padding=2, stride=2),
        torch.nn.Sigmoid(),
        torch.nn.Conv2d(8, 8, 5, padding=2, stride=1),
        torch.nn.Sigmoid(),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 64, 4),
    ).double()
    for p in net.parameters():
        torch.nn.init.uniform_(p, -0.5, 0.5)
    grid = torch.linspace(-1, 1, 16, dtype=torch.float64)
    image = (((grid[:, None] - 0.2) ** 2 + grid**2) < 0.4).double()[None, None] * 0.8 + 0.1
    label = torch.tensor([2])

    def gradient(picture: Any) -> Any:
        loss = torch.nn.functional.cross_entropy(net(picture), label)
        parts = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def read(seen: Any) -> float:
        guess = torch.full_like(image, 0.5).requires_grad_()
        descent = torch.optim.Adam([guess], lr=0.05)
        for _ in range(1500):
            descent.zero_grad()
            away = 1 - torch.nn.functional.cosine_similarity(gradient(guess), seen, dim=0)
            rough = guess.diff(dim=2).abs().mean() + guess.diff(dim=3).abs().mean()
            (away + 1e-4 * rough).backward()
            descent.step()
            with torch.no_grad():
                guess.clamp_(0, 1)
        return audit.psnr(guess.detach().numpy(), image.numpy())

    seen = gradient(image).detach()
    noise = torch.randn(seen.shape, dtype=seen.dtype)
    assert read(seen) > 20
    assert read(seen / seen.norm() + noise) < 10  # clip(1.0) >> local_gaussian(1.0)
