"""Modules, rows for them, and the loop that everybody writes: what tests of PyTorch share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as nnf

from hansa import keyed
from hansa.learners import SGD, Learner
from hansa.learners.base import Feed
from hansa.learners.optimizer import Adagrad, Adam, AdamW
from hansa.learners.torch import Torch

SIZES = (23, 17, 17, 9, 1)


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
    "adamw": (AdamW(lr=0.01, weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)),
    "adagrad": (Adagrad(lr=0.01), lambda p: torch.optim.Adagrad(p, lr=0.01, eps=1e-8)),
}
