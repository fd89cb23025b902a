"""Every training method against a twin of it in plain loops: one party, one batch, one step at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import hansa as hs
from hansa.learners import Layout, Learner
from hansa.learners.glm import Logistic
from hansa.methods import IFCA, Ditto, FedNova, FedPer, FedProx, FedRep, GradientMethod, Scaffold, Setup

Floats = NDArray[np.float64]
Rows = tuple[Floats, Floats]
Correct = Callable[[Floats, Floats], Floats]

LR, EPOCHS, BATCH = 0.3, 2, 4
LOCAL = hs.SGD(lr=LR, epochs=EPOCHS, batch_size=BATCH, shuffle=False)
ROUNDS, SIZES, DIMENSIONS = 6, {"a": 9, "b": 4, "c": 14, "d": 6}, 4


@pytest.fixture(scope="module")
def parties() -> dict[str, Rows]:
    """Four parties of unequal size that disagree; three features, a binary target."""
    random, found = np.random.default_rng(8), {}
    for shift, (name, size) in enumerate(SIZES.items()):
        x = random.normal(0.3 * shift, 1.0, (size, 3))
        score = x @ random.normal(1.0, 2.0, 3) + random.normal(0, 0.5, size)
        found[name] = (x, (score > 0).astype(float))
    return found


def gradient(theta: Floats, rows: Rows) -> Floats:
    """Of the mean log loss of logistic regression, row by row."""
    total = np.zeros(DIMENSIONS)
    for x, y in zip(*rows, strict=True):
        wrong = 1 / (1 + math.exp(-(x @ theta[:3] + theta[3]))) - y
        total += wrong * np.append(x, 1.0)
    return total / len(rows[1])


def loss(theta: Floats, rows: Rows) -> float:
    """The mean log loss."""
    total = 0.0
    for x, y in zip(*rows, strict=True):
        score = x @ theta[:3] + theta[3]
        total += math.log1p(math.exp(score)) - y * score
    return total / len(rows[1])


def train(
    theta: Floats, rows: Rows, correct: Correct = lambda g, p: g, epochs: int = EPOCHS, momentum: float = 0.0
) -> tuple[Floats, int]:
    """SGD on batches in the party's own order."""
    steps, velocity = 0, np.zeros(DIMENSIONS)
    for _ in range(epochs):
        for start in range(0, len(rows[1]), BATCH):
            batch = rows[0][start : start + BATCH], rows[1][start : start + BATCH]
            velocity = momentum * velocity - correct(gradient(theta, batch), theta)
            theta = theta + LR * velocity
            steps += 1
    return theta, steps


class Twin:
    """A method in plain loops. What a party remembers is ``own``; who takes part is given."""

    def __init__(self, parties: dict[str, Rows], equal: bool = False) -> None:
        self.parties, self.theta = parties, np.zeros(DIMENSIONS)
        self.weights = {p: 1.0 if equal else float(len(rows[1])) for p, rows in parties.items()}
        self.own: dict[str, Floats] = {}

    def mean(self, values: dict[str, Any]) -> Any:
        weight = sum(self.weights[party] for party in values)
        return sum(self.weights[party] * value for party, value in values.items()) / weight

    def round(self, cohort: Sequence[str]) -> None:
        trained = {p: train(self.theta, self.parties[p])[0] for p in cohort}
        self.theta = self.theta + self.mean({p: t - self.theta for p, t in trained.items()})


class OfFedAdam(Twin):
    """Reddi et al. 2021, algorithm 2."""

    m, v = np.zeros(DIMENSIONS), np.full(DIMENSIONS, 0.01**2)

    def round(self, cohort: Sequence[str]) -> None:
        before = self.theta
        super().round(cohort)
        delta = self.theta - before
        self.m = 0.9 * self.m + 0.1 * delta
        self.v = 0.99 * self.v + 0.01 * delta**2
        self.theta = before + 0.1 * self.m / (np.sqrt(self.v) + 0.01)


class OfFedProx(Twin):
    def round(self, cohort: Sequence[str]) -> None:
        centre = self.theta
        pull: Correct = lambda g, p: g + 0.4 * (p - centre)  # noqa: E731
        trained = {p: train(centre, self.parties[p], pull)[0] for p in cohort}
        self.theta = centre + self.mean({p: t - centre for p, t in trained.items()})


class OfScaffold(Twin):
    """Karimireddy et al. 2020, algorithm 1, option II; the weighted form keeps the sum of w_i c_i."""

    total, c = np.zeros(DIMENSIONS), np.zeros(DIMENSIONS)
    counted = weight = 0.0

    def round(self, cohort: Sequence[str]) -> None:
        theta, c, updates = self.theta, self.c, {}
        for p in cohort:
            mine = self.own.get(p, np.zeros(DIMENSIONS))
            shift = c - mine
            end, steps = train(theta, self.parties[p], lambda g, _, shift=shift: g + shift)
            self.own[p] = mine - c + (theta - end) / (steps * LR)
            self.total = self.total + self.weights[p] * (self.own[p] - mine)
            updates[p] = end - theta
            self.counted, self.weight = self.counted + 1, self.weight + self.weights[p]
        self.theta = theta + self.mean(updates)
        self.c = self.total / (len(self.parties) * self.weight / self.counted)


class OfFedNova(Twin):
    """Wang et al. 2020, with the a_i of momentum written out step by step."""

    momentum = 0.0

    def round(self, cohort: Sequence[str]) -> None:
        directions, sizes = {}, {}
        for p in cohort:
            end, steps = train(self.theta, self.parties[p], momentum=self.momentum)
            sizes[p] = sum(sum(self.momentum**j for j in range(steps - step)) for step in range(steps))
            directions[p] = (end - self.theta) / sizes[p]
        self.theta = self.theta + self.mean(sizes) * self.mean(directions)


class OfFedNovaWithMomentum(OfFedNova):
    momentum = 0.7


class OfDitto(Twin):
    def round(self, cohort: Sequence[str]) -> None:
        centre = self.theta
        pull: Correct = lambda g, p: g + 0.5 * (p - centre)  # noqa: E731
        for p in cohort:
            self.own[p] = train(self.own.get(p, centre), self.parties[p], pull)[0]
        super().round(cohort)


class OfFedPer(Twin):
    """The second and the fourth number are the head."""

    head = np.array([False, True, False, True])

    def one(self, start: Floats, rows: Rows) -> tuple[Floats, Floats]:
        end, _ = train(start, rows)
        return end, end

    def round(self, cohort: Sequence[str]) -> None:
        updates = {}
        for p in cohort:
            start = np.where(self.head, self.own.get(p, self.theta), self.theta)
            body, self.own[p] = self.one(start, self.parties[p])
            updates[p] = np.where(self.head, 0.0, body - self.theta)
        self.theta = self.theta + self.mean(updates)


class OfFedRep(OfFedPer):
    def one(self, start: Floats, rows: Rows) -> tuple[Floats, Floats]:
        first, _ = train(start, rows, lambda g, _: g * self.head, epochs=3)
        end, _ = train(first, rows, lambda g, _: g * ~self.head)
        return end, first


class OfIfca(Twin):
    models: list[Floats]

    def round(self, cohort: Sequence[str]) -> None:
        chosen: dict[str, int] = {}
        for p in cohort:
            losses = [loss(model, self.parties[p]) for model in self.models]
            chosen[p] = losses.index(min(losses))
        after, weights = list(self.models), [0.0] * len(self.models)
        for j, model in enumerate(self.models):
            if mine := [p for p in cohort if chosen[p] == j]:
                after[j] = self.mean({p: train(model, self.parties[p])[0] for p in mine})
                weights[j] = sum(self.weights[p] for p in mine)
        self.models, self.theta = after, after[weights.index(max(weights))]


CASES: dict[str, tuple[GradientMethod, type[Twin], str]] = {
    "fedavg": (hs.FedAvg(local=LOCAL), Twin, ""),
    "fedavg, equal": (hs.FedAvg(local=LOCAL, weights="equal"), Twin, ""),
    "fedadam": (hs.FedAvg(local=LOCAL, server=hs.Adam(lr=0.1, epsilon=0.01)), OfFedAdam, ""),
    "fedprox": (FedProx(local=LOCAL, mu=0.4), OfFedProx, ""),
    "scaffold": (Scaffold(local=LOCAL), OfScaffold, "control"),
    "scaffold, equal": (Scaffold(local=LOCAL, weights="equal"), OfScaffold, "control"),
    "fednova": (FedNova(local=LOCAL), OfFedNova, ""),
    "fednova, momentum": (
        FedNova(local=LOCAL.model_copy(update={"momentum": 0.7}), weights="equal"),
        OfFedNovaWithMomentum,
        "",
    ),
    "ditto": (Ditto(local=LOCAL, lam=0.5), OfDitto, "personal"),
    "fedper": (FedPer(local=LOCAL, head=("two", "*ur")), OfFedPer, "head"),
    "fedrep": (FedRep(local=LOCAL, head=("two", "four"), head_epochs=3), OfFedRep, "head"),
    "ifca": (IFCA(local=LOCAL, clusters=3, spread=0.5), OfIfca, ""),
}


class FourNumbers(Logistic):
    """Logistic regression whose parameters are four arrays with a name each."""

    @property
    def layout(self) -> Layout:
        return Layout(tuple((name, ()) for name in ("one", "two", "three", "four")))


class Task(hs.LogisticRegression):
    def learner(self, width: int) -> Learner:
        return FourNumbers(width)


@pytest.mark.parametrize("name", CASES)
def test_a_twin_in_plain_loops_agrees(name: str, parties: dict[str, Rows]) -> None:
    method, make, memory = CASES[name]
    federation = hs.Federation(
        task=Task(target="y"),
        method=method,
        rounds=ROUNDS,
        cohort=hs.Fixed(size=3),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(holdout=0),
    )
    tables = {p: hs.Table.of({"u": x[:, 0], "v": x[:, 1], "w": x[:, 2], "y": y}) for p, (x, y) in parties.items()}
    run = federation.run(hs.Local(tables))
    cohorts = [event.body["parties"] for event in run.events if event.kind == "asked"]
    assert len(cohorts) == ROUNDS
    assert len({party for cohort in cohorts for party in cohort}) == 4
    twin = make(parties, equal=method.weights == "equal")
    if isinstance(twin, OfIfca):
        setup = Setup(tuple(sorted(parties)), ("u", "v", "w"), seed=federation.seed)
        twin.models = list(method.init(setup, FourNumbers(3)).values["models"])
    for cohort in cohorts:
        twin.round(cohort)
    np.testing.assert_allclose(run.parameters, twin.theta, rtol=1e-10, atol=1e-12)
    if isinstance(twin, OfIfca):
        assert run.progress is not None
        models = run.progress.states["train"].values["models"]
        np.testing.assert_allclose(models, twin.models, rtol=1e-10, atol=1e-12)
    if memory:
        assert run.memories.keys() == twin.own.keys()
        for party, own in twin.own.items():
            kept = own[twin.head] if isinstance(twin, OfFedPer) else own
            found = run.memories[party][f"train.{memory}"]
            np.testing.assert_allclose(found, kept, rtol=1e-10, atol=1e-12)
