"""The models in PyTorch, and a party's local training: for every contender that runs PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.simulation import work as w


def network(name: str) -> nn.Sequential:
    """The softmax of W1, or the CNN of McMahan et al. 2017 (arXiv 1602.05629), 1,663,370 parameters."""
    data = w.Data(name)
    if data.work.data == "W1":
        net = nn.Sequential(nn.Linear(w.PIXELS, w.CLASSES))
    else:
        net = nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 32, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, w.CLASSES),
        )
    with torch.no_grad():
        for parameter, start in zip(net.parameters(), data.start.values(), strict=True):
            parameter.copy_(torch.from_numpy(start))
    return net


def train(net: nn.Module, x: np.ndarray, y: np.ndarray, work: w.Work) -> int:
    """One epoch of plain SGD over a party's rows, in their order; returns how many there are."""
    optimizer = torch.optim.SGD(net.parameters(), lr=work.lr)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    for some, of in zip(inputs.split(work.batch), labels.split(work.batch), strict=True):
        optimizer.zero_grad()
        functional.cross_entropy(net(some), of).backward()
        optimizer.step()
    return len(labels)


def accuracy(net: nn.Module, data: w.Data) -> float:
    """On the test rows."""
    with torch.no_grad():
        scores = torch.cat([net(some) for some in torch.from_numpy(data.test_x).split(500)])
    return w.accuracy(scores.numpy(), data)


def done(version: str, net: nn.Module, data: w.Data) -> None:
    """Tell the runner what came out."""
    w.done(version, [p.detach().numpy() for p in net.parameters()], accuracy(net, data))
