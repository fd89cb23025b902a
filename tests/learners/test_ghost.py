"""Sums of clipped gradients of a module, without a gradient per row of its large layers."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.errors import StudyError

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as nnf  # noqa: E402

from hansa.learners import ghost  # noqa: E402
from hansa.learners.torch import Torch  # noqa: E402

NORM = 0.7


class Words(nn.Module):
    """A layer that is called twice, padding, and positions that are the same for each row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.at = nn.Embedding(50, 12, padding_idx=0), nn.Embedding(6, 12)
        self.norm, self.mix = nn.LayerNorm(12), nn.Conv1d(12, 12, 3, padding="same")
        self.wide, self.twice, self.out = nn.Linear(12, 40), nn.Linear(40, 40), nn.Linear(40, 4)

    def forward(self, x: Any) -> Any:
        x = self.norm(self.embed(x) + self.at(torch.arange(x.shape[1])))
        x = torch.relu(self.wide(self.mix(x.mT).mT))
        return self.out(self.twice(torch.relu(self.twice(x)))).mean(1)


class Pictures(nn.Module):
    def __init__(self, norm: Any = nn.Identity) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(1, 8, 3, stride=2), norm(), nn.Linear(72, 4)

    def forward(self, x: Any) -> Any:
        return self.out(torch.relu(self.norm(self.conv(x[:, None]))).flatten(1))


class Mixed(nn.Module):
    """Rows that would see each other in a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        return self.layer(x * (1 + x.abs().mean(0)))


class Tied(nn.Module):
    """A weight that is used without its layer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.bias = nn.Embedding(4, 80), nn.Parameter(torch.ones(4))

    def forward(self, x: Any) -> Any:
        return nnf.linear(self.embed(x).mean(1), self.embed.weight, self.bias)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(50, 5), nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        return self.out(self.lstm(self.embed(x))[0][:, -1])


class Cancels(nn.Module):
    """The gradient is what two steps differ by."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8, bias=False)

    def forward(self, x: Any) -> Any:
        out = self.layer(x.reshape(len(x), 2, -1))
        return 1e9 * (out[:, :1, 0] - out[:, 1:, 0])


class Both(nn.Module):
    """A weight that is used without its layer where a row says so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(6, 20), nn.Linear(20, 4)

    def forward(self, x: Any) -> Any:
        other = 30 * nnf.linear(x, self.layer.weight).flip(-1)
        return self.out(torch.where(x[:, :1] > 5, other, self.layer(x)))


class Patched(nn.Module):
    """A linear layer that does more than one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(6, 20), nn.Linear(20, 4)
        self.layer.forward = self.bent

    def bent(self, x: Any) -> Any:
        return nnf.linear(x, self.layer.weight).abs() + self.layer.bias

    def forward(self, x: Any) -> Any:
        return self.out(self.layer(x))


class Counts(nn.Module):
    """Tokens weigh the less, the more often they stand in the row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(50, 12, scale_grad_by_freq=True), nn.Linear(12, 4)

    def forward(self, x: Any) -> Any:
        return self.out(self.embed(x // 10).mean(1))


class Writes(nn.Module):
    """Rows change the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Any) -> Any:
        with torch.no_grad():
            self.layer.weight[0] += x[0]
        return self.layer(x)


def flat() -> Any:
    return nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 40, bias=False), nn.Tanh(), nn.Linear(40, 4))


def dropping() -> Any:
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5), nn.Linear(8, 4))


def grouped() -> Any:
    return Pictures(lambda: nn.GroupNorm(2, 8))


QUICK = (flat, grouped, Words, Mixed)
SLOW = {
    Recurrent: "lstm",
    Tied: "a weight does more",
    Both: "a weight does more",
    Patched: "a weight does more",
    Counts: "a weight does more",
    dropping: "random",
}
WORDS = (Words, Recurrent, Tied, Counts)


def rows(build: Any, n: int = 71) -> tuple[Any, Any]:
    random = np.random.default_rng(5)
    y = random.integers(0, 4, n)
    if build in WORDS:
        return random.integers(0, 4 if build is Tied else 50, (n, 6)), y
    x = random.normal(size=(n, 8, 8) if build in (Pictures, grouped) else (n, 6))
    return (x * random.exponential(3.0, size=(n, *[1] * (x.ndim - 1)))).astype(np.float32), y


def start(learner: Torch) -> Any:
    return learner.init(np.random.default_rng(1)).astype(learner.dtype)


def by_row(learner: Torch, theta: Any, x: Any, y: Any, norm: float = NORM) -> Any:
    """The plain loop over rows."""
    module, at, total = learner.build().to(learner.type), 0, np.zeros(len(theta))
    with torch.no_grad():
        for leaf in module.parameters():
            leaf.copy_(torch.from_numpy(theta[at : at + leaf.numel()]).view_as(leaf))
            at += leaf.numel()
    for i in range(len(y)):
        out = module(learner.features(x[i : i + 1]))
        slopes = torch.autograd.grad(nnf.cross_entropy(out, learner.labels(y[i : i + 1])), module.parameters())
        gradient = torch.cat([slope.flatten() for slope in slopes]).double().numpy()
        total += gradient * min(1.0, norm / float(np.linalg.norm(gradient)))
    return total


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("build", QUICK)
def test_the_sum_is_that_of_each_row_by_itself(build: Any, precision: Any) -> None:
    learner, (x, y) = Torch(build, precision=precision), rows(build)
    theta, exact = start(learner), {"float32": 1e-5, "float64": 1e-10}[precision]
    for norm in (NORM, 1e3):
        expected = by_row(learner, theta, x, y, norm)
        found = learner.clipped(theta, x, y, norm)
        assert learner.by_row == ""
        assert found.dtype == np.float64
        assert np.linalg.norm(found - expected) <= exact * np.linalg.norm(expected)
        assert np.linalg.norm(found) <= norm * len(y)


@pytest.mark.parametrize("build", SLOW)
def test_what_it_cannot_do_is_done_row_by_row_and_said(build: Any, caplog: Any) -> None:
    learner, (x, y) = Torch(build), rows(build, 9)
    theta = start(learner)
    found = [learner.clipped(theta, x, y, NORM) for _ in range(2)]
    assert SLOW[build] in str(learner.by_row)
    assert [SLOW[build] in record.message for record in caplog.records] == [True]
    assert np.array_equal(*found)
    if build is not dropping:
        np.testing.assert_allclose(found[0], by_row(learner, theta, x, y), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("build", QUICK)
def test_one_row_moves_the_sum_by_the_clip_at_most_and_nearly_so(build: Any) -> None:
    learner, (x, y) = Torch(build), rows(build)
    theta, moved = start(learner), []
    for n in (0, 1, 31, 32, 33, 70):
        for scale in (1,) if build in WORDS else (1e-3, 1.0, -30.0, 1e15, 1e35, np.inf, np.nan):
            row = x[n : n + 1] * (1 if build in WORDS else np.float32(scale))
            without = learner.clipped(theta, x[:n], y[:n], NORM)
            beside = learner.clipped(theta, np.concatenate([row, x[:n]]), np.append(y[n], y[:n]), NORM)
            moved.append(float(np.linalg.norm(beside - without)))
            assert moved[-1] == pytest.approx(
                np.linalg.norm(learner.clipped(theta, row, y[n : n + 1], NORM)), rel=1e-9, abs=1e-11
            )
    assert max(moved) <= NORM * (1 + 1e-9)
    assert max(moved) > 0.9 * NORM


def test_where_a_row_s_place_moves_its_last_bits_rows_are_clipped_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    factors = ghost._factors

    def misplaced(*given: Any) -> Any:
        left, right = factors(*given)
        return left, right * (1 + 1e-7 * (torch.arange(len(right)) >= 16))[:, None, None]

    monkeypatch.setattr(ghost, "_factors", misplaced)
    learner, (x, y) = Torch(flat), rows(flat, 9)
    theta = start(learner)
    np.testing.assert_array_equal(learner.clipped(theta, x, y, NORM), by_row(learner, theta, x, y))
    assert "rounds a row by its place" in caplog.text


def test_a_row_without_a_gradient_adds_nothing() -> None:
    for build in (flat, grouped, Mixed):
        learner, (x, y) = Torch(build), rows(build, 40)
        theta, broken = start(learner), x.copy()
        broken[3], broken[35] = np.nan, np.inf
        fine = np.delete(np.arange(40), [3, 35])
        found = learner.clipped(theta, broken, y, NORM)
        np.testing.assert_allclose(found, learner.clipped(theta, x[fine], y[fine], NORM), rtol=1e-12, atol=1e-12)
        assert not learner.clipped(theta, broken[[3, 35]], y[:2], NORM).any()


def test_an_infinite_gradient_adds_nothing() -> None:
    """Its outputs are finite."""
    learner = Torch(lambda: nn.Linear(2, 1, bias=False), loss="mse")
    theta, x = np.full(2, 1.5, np.float32), np.array([[1, 2], [1e38, 1e38], [2, 1]], np.float32)
    found = learner.clipped(theta, x, np.zeros(3), NORM)
    assert learner.by_row == ""
    np.testing.assert_array_equal(found, learner.clipped(theta, x[[0, 2]], np.zeros(2), NORM))
    assert found.any()


def test_what_a_norm_loses_to_rounding_does_not_break_the_bound() -> None:
    learner, random = Torch(Cancels, loss=lambda out, y: out[:, 0]), np.random.default_rng(2)
    theta = start(learner)
    for _ in range(40):
        half = random.normal(size=(1, 6)).astype(np.float32)
        x = np.hstack([half, np.nextafter(half, np.float32(9))])
        found = ghost.clipped(learner, theta, x, np.zeros(1), NORM)
        assert 0 < np.linalg.norm(found) <= NORM * (1 + 1e-9)


@pytest.mark.parametrize("build", QUICK)
def test_it_repeats_its_bits_and_leaves_the_module_as_it_was(build: Any) -> None:
    learner, (x, y) = Torch(build), rows(build)
    theta, before = start(learner), copy.deepcopy(learner.template)
    said = learner.predict(theta, x)
    sums = [learner.clipped(theta, x, y, NORM) for _ in range(3)]
    assert all(np.array_equal(sums[0], other) for other in sums)
    assert np.array_equal(said, learner.predict(theta, x))
    assert learner.template.training == before.training
    for name, value in before.state_dict().items():
        assert torch.equal(value, learner.template.state_dict()[name])
    for resident in learner.idle:
        assert not any(part._forward_hooks for part in resident.module.modules())
    assert not learner.clipped(theta, x[:0], y[:0], NORM).any()


def test_batch_norm_has_no_rows_of_its_own() -> None:
    def norm() -> Any:
        return nn.BatchNorm2d(8)

    with pytest.raises(StudyError, match="running statistics"):
        Torch(lambda: Pictures(norm))
    learner, (x, y) = Torch(lambda: Pictures(norm), buffers="average"), rows(Pictures, 5)
    with pytest.raises(StudyError, match="no gradient to send"):
        learner.clipped(start(learner), x, y, NORM)


def test_threads_and_engines_give_the_same_bits() -> None:
    random = np.random.default_rng(3)
    tables = {f"p{i}": hs.Table({"x": rows(flat, n)[0], "y": random.integers(0, 4, n)}) for i, n in enumerate((9, 40))}
    local = hs.DPSGD(lr=0.1, clip=1.0, noise_multiplier=1.0, rate=0.5, steps=3, batch_size=20)
    federation = hs.Federation(
        task=hs.tasks.torch(flat),
        method=hs.FedAvg(local=local, weights="equal"),
        rounds=2,
        privacy=hs.Privacy(unit="example"),
    )
    ways: list[Any] = [("stacked", 1), ("stacked", 2), ("resident", 2)]
    ends = [federation.run(hs.Local(tables, engine=e, workers=w)).parameters for e, w in ways]
    assert all(np.array_equal(ends[0], other) for other in ends[1:])


def test_no_row_decides_how_the_others_are_clipped() -> None:
    """Some rows use the weight another way: whether they come first, or at all, changes nothing."""
    x, y = rows(Both, 40)
    x[:] = np.clip(x, -4, 4)
    x[2:, 0] = 6
    row, whole = x[2:3].copy(), Torch(Both)
    theta = start(whole)
    few = whole.clipped(theta, x, y, NORM)
    assert np.linalg.norm(few - by_row(whole, theta, x, y)) <= 1e-5 * np.linalg.norm(few)
    for first in (row, np.full_like(row, np.nan), np.zeros_like(row)):
        learner = Torch(Both)
        more = learner.clipped(theta, np.concatenate([first, x]), np.append(1, y), NORM)
        assert np.linalg.norm(more - few) <= NORM * (1 + 1e-9)
        assert learner.by_row == whole.by_row != ""


def test_a_module_that_changes_its_weights_changes_neither_the_start_nor_other_rows() -> None:
    learner, (x, y) = Torch(Writes), rows(Writes, 9)
    theta = start(learner)
    before = theta.copy()
    found = learner.clipped(theta, x, y, NORM)
    assert np.array_equal(theta, before)
    alone = sum(learner.clipped(theta, x[i : i + 1], y[i : i + 1], NORM) for i in range(9))
    np.testing.assert_allclose(found, alone, rtol=1e-12, atol=1e-12)


def test_an_embedding_that_rescales_what_it_is_asked_for_is_refused() -> None:
    for kind in (nn.Embedding, nn.EmbeddingBag):
        module = nn.Sequential(kind(50, 4, max_norm=1.0), nn.Flatten())
        learner = Torch(partial(copy.deepcopy, module), loss="mse")
        with pytest.raises(StudyError, match="max_norm"):
            learner.clipped(start(learner), np.zeros((2, 1), np.int64), np.zeros((2, 4)), NORM)
