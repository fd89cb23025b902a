"""What the contract suites are run over: a new part adds one line here.

The throw-away ones are written on the published contract alone, to show that it carries them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import (
    QSGD,
    AdaptiveClip,
    CenteredClip,
    Clip,
    GeometricMedian,
    Krum,
    LowRank,
    Median,
    MultiKrum,
    NormBound,
    Quantize,
    RandomK,
    RandomMask,
    Rotate,
    Stage,
    Subsample,
    TopK,
    TrimmedMean,
)
from hansa.aggregation.stage import STAGES, Context
from hansa.backends import Backend
from hansa.contribution import Array, Contributions, Dtype, Values
from hansa.learners import Layout, Learner
from hansa.learners.glm import Linear, Logistic, Softmax
from hansa.methods import IFCA, Ditto, FedBuff, FedNova, FedPer, FedProx, FedRep, Scaffold, UpdateMethod
from hansa.methods.base import METHODS


@dataclass(frozen=True)
class LogCosh(Learner):
    """Robust regression without an intercept: the mean of ``log cosh(x w - y)``."""

    width: int
    dtype: Dtype = "float64"

    @property
    def layout(self) -> Layout:
        return Layout((("coef", (self.width,)),))

    def init(self, random: np.random.Generator) -> Array:
        return random.normal(size=self.width)

    def loss(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        error = self.predict(parameters, x) - y
        losses = np.logaddexp(error, -error) - math.log(2)
        mean: Array = losses.mean(axis=-1) if weights is None else (losses * weights).sum(axis=-1)
        return mean

    def gradient(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        slope = np.tanh(self.predict(parameters, x) - y)
        slope = slope / slope.dtype.type(x.shape[-2]) if weights is None else slope * weights
        gradient: Array = np.matmul(np.swapaxes(x, -1, -2), slope[..., None])[..., 0]
        return gradient

    def predict(self, parameters: Array, x: Array) -> Array:
        predicted: Array = np.matmul(x, parameters[..., None])[..., 0]
        return predicted


class TopEntries(Stage):
    """Send the largest entries, remember the rest (Stich et al. 2018, arXiv 1809.07599)."""

    kind: ClassVar[str] = "top-entries"
    keep: int = 2

    def encode(
        self, stack: Contributions, announced: Values, memory: Values, context: Context
    ) -> tuple[Contributions, Values]:
        values, kept = dict(stack.values), {}
        for name in context.signal.vectors:
            wanted = values[name] + memory.get(name, np.zeros_like(values[name]))
            chosen = np.argsort(-np.abs(wanted), axis=-1, kind="stable")[:, : self.keep]
            sent = np.zeros_like(wanted)
            np.put_along_axis(sent, chosen, np.take_along_axis(wanted, chosen, axis=-1), axis=-1)
            values[name], kept[name] = sent, wanted - sent
        return stack.holding(values), Values(kept)


LEARNERS: dict[str, Learner] = {
    "linear": Linear(3, l2=0.1),
    "logistic": Logistic(3, l2=0.1),
    "softmax": Softmax(3, 4, l2=0.1),
    "log-cosh": LogCosh(3),
}
LOCAL = hs.SGD(lr=0.1, epochs=2, batch_size=8)
METHOD_LIST: dict[str, UpdateMethod] = {
    "fedavg": hs.FedAvg(local=LOCAL, server=hs.SGD(lr=0.9, momentum=0.5)),
    "fedsgd": hs.FedSGD(server=hs.SGD(lr=0.3), weights="equal"),
    "fedsgd clipped": hs.FedSGD(server=hs.SGD(lr=0.3), clip=0.5, batch_size=20, weights="equal"),
    "fedadagrad": hs.FedAvg(local=LOCAL, server=hs.Adagrad(lr=0.1, epsilon=0.1)),
    "fedadam": hs.FedAvg(local=LOCAL, server=hs.Adam(lr=0.1, epsilon=0.1), weights="equal"),
    "fedyogi": hs.FedAvg(local=LOCAL, server=hs.Yogi(lr=0.1, epsilon=0.1)),
    "adam": hs.FedAvg(local=hs.Adam(lr=0.05, batch_size=8)),
    "adamw": hs.FedAvg(local=hs.AdamW(lr=0.05, batch_size=8, moments="keep")),
    "momentum": hs.FedAvg(local=hs.SGD(lr=0.02, momentum=0.8, batch_size=8, moments="keep")),
    "fedprox": FedProx(local=LOCAL, mu=0.1),
    "scaffold": Scaffold(local=LOCAL, server=hs.SGD(lr=0.8, momentum=0.3)),
    "fednova": FedNova(local=LOCAL.model_copy(update={"momentum": 0.5})),
    "ditto": Ditto(local=LOCAL, lam=0.3),
    "fedper": FedPer(local=LOCAL, head=("intercept",)),
    "fedrep": FedRep(local=LOCAL, head=("intercept",), head_epochs=2),
    "ifca": IFCA(local=LOCAL, clusters=3),
    "fedbuff": FedBuff(local=LOCAL, buffer=2),
}
STAGE_LIST: dict[str, Stage] = {
    "clip": Clip(norm=0.5),
    "nothing": Stage(),
    "top-entries": TopEntries(),
    "adaptive-clip": AdaptiveClip(norm=0.5),
    "centered-clip": CenteredClip(radius=2.0),
    "geometric-median": GeometricMedian(),
    "krum": Krum(byzantine=0),
    "low-rank": LowRank(rank=1),
    "median": Median(),
    "multi-krum": MultiKrum(byzantine=0),
    "norm-bound": NormBound(norm=0.5),
    "qsgd": QSGD(bits=4, bucket=4),
    "quantize": Quantize(bits=5),
    "random-k": RandomK(fraction=0.4),
    "random-mask": RandomMask(fraction=0.4),
    "rotate": Rotate(),
    "subsample": Subsample(fraction=0.4),
    "top-k": TopK(fraction=0.4),
    "trimmed-mean": TrimmedMean(fraction=0.4),
}
BACKENDS: dict[str, Callable[[Mapping[str, hs.Table]], Backend]] = {"local": hs.Local}


@pytest.fixture(params=[*LEARNERS, "torch"])
def learner(request: pytest.FixtureRequest) -> Learner:
    if request.param == "torch":
        torch = pytest.importorskip("torch")
        from hansa.learners.torch import Torch

        return Torch(lambda: torch.nn.Linear(3, 1), "bce_with_logits", precision="float64")
    return LEARNERS[request.param]


@pytest.fixture(params=METHOD_LIST)
def method(request: pytest.FixtureRequest) -> UpdateMethod:
    return METHOD_LIST[request.param]


@pytest.fixture(params=STAGE_LIST)
def stage(request: pytest.FixtureRequest) -> Stage:
    return STAGE_LIST[request.param]


@pytest.fixture(params=[*BACKENDS, "ray", "deployed"])
def backend(request: pytest.FixtureRequest) -> Callable[[Mapping[str, hs.Table]], Backend]:
    """The simulated one, actors of a cluster, and a coordinator with real agents (see the conftest above)."""
    known: Callable[[Mapping[str, hs.Table]], Backend] | None = BACKENDS.get(request.param)
    return known or request.getfixturevalue(request.param)


@pytest.fixture
def told(request: pytest.FixtureRequest) -> Callable[[str, str], str]:
    """Which reason the record holds: the party's own words, or all that an agent lets out."""
    discreet = request.node.callspec.params["backend"] == "deployed"
    return lambda words, outside: outside if discreet else words


@pytest.fixture
def scaffold() -> type[Scaffold]:
    return Scaffold


@pytest.fixture
def top_entries() -> type[TopEntries]:
    return TopEntries


@pytest.fixture(autouse=True)
def throw_away_parts_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a program had registered them; forgotten after the test."""
    for catalogue in (METHODS, STAGES):
        known: Any = dict(catalogue._known)
        monkeypatch.setattr(catalogue, "_known", known)
    STAGES.register(TopEntries)


@pytest.fixture(scope="session")
def tables() -> dict[str, hs.Table]:
    """Three parties of unequal size, two numbers with gaps, a binary target."""
    random = np.random.default_rng(11)
    parties = {}
    for shift, (name, size) in enumerate({"north": 24, "harbour": 40, "river": 25}.items()):
        x = random.normal(shift, 2.0, (size, 2))
        y = (x[:, 0] - x[:, 1] + random.normal(0, 1, size) > 0.5).astype(float)
        x[::7, 1] = np.nan
        parties[name] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": y})
    return parties
