"""The contract of a method: it asks, parties work, it applies what arrives.

A method is a set of pure functions with explicit state. It never sees a party's rows: `Method.work` runs at
the party and touches data only through `At`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import PlainSerializer, PlainValidator

from hansa import keyed
from hansa.contribution import Array, Ask, Contribution, Field, Json, Total, Values
from hansa.data.preprocessing import Encoding
from hansa.data.table import Table
from hansa.errors import ContributionError, StudyError
from hansa.learners.base import Learner
from hansa.learners.optimizer import BATCH_SIZE, SGD, Optimizer
from hansa.part import Catalogue, Part
from hansa.task import Task


@dataclass(frozen=True)
class Setup:
    """What everybody knows before the first ask.

    Args:
        parties: the roster, sorted by name.
        numbers: feature columns that hold numbers.
        categories: feature columns that hold categories, each with its declared values.
        seed: of all public randomness.
    """

    parties: tuple[str, ...]
    numbers: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0

    @property
    def encoding(self) -> Encoding:
        """Features as they are, before anything is known about their scale."""
        return Encoding.identity(self.numbers, self.categories)

    def to_json(self) -> dict[str, Json]:
        """A canonical form."""
        return {
            "parties": list(self.parties),
            "numbers": list(self.numbers),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "seed": self.seed,
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Setup:
        """The inverse of `to_json`."""
        return cls(
            parties=tuple(body["parties"]),
            numbers=tuple(body["numbers"]),
            categories={name: tuple(values) for name, values in body["categories"].items()},
            seed=body["seed"],
        )


@dataclass(frozen=True, eq=False)
class State:
    """What a method knows between exchanges; all of it is checkpointed.

    Args:
        round: how many training rounds were applied.
        values: arrays, such as ``parameters``.
        facts: the rest, as JSON values.
    """

    round: int = 0
    values: Values = field(default_factory=Values)
    facts: Mapping[str, Json] = field(default_factory=dict)

    def step(self, server: SGD, update: Array, **values: Array) -> State:
        """The next round's state: the server's optimiser moves the parameters along ``update``."""
        slots = Values({k[7:]: v for k, v in self.values.items() if k.startswith("server.")})
        parameters, slots = server.step(self.values["parameters"], update, slots)
        kept = {f"server.{name}": value for name, value in slots.items()}
        return replace(
            self,
            round=self.round + 1,
            values=Values({**self.values, **values, **kept, "parameters": parameters}),
        )


@dataclass(frozen=True)
class Trained:
    """What local training ended with.

    Args:
        parameters: ``[d]``.
        steps: how many optimiser steps were taken.
    """

    parameters: Array
    steps: int


@dataclass(frozen=True, eq=False)
class Answer:
    """What a party's work proposes: a contribution, and what it wants to remember if that is counted."""

    contribution: Contribution
    memory: Values = field(default_factory=Values)


Correction = Callable[[Array, Array], Array]


@dataclass(frozen=True, eq=False)
class At:
    """A party at work: its rows, what it received, what it remembers.

    Args:
        party: its name.
        round: number of the training round, from 1.
        seed: of the run's public randomness.
        task: what is learnt.
        setup: among whom, on which columns.
        learner: the model's mathematics.
        received: what the ask brought.
        memory: what this method remembers at this party.
        train_rows: the rows to learn from.
        test_rows: those held out.
        encode: from one of the two to features ``[n, p]`` and labels ``[n]``.
    """

    party: str
    round: int
    seed: int
    task: Task
    setup: Setup
    learner: Learner
    received: Values
    memory: Values
    train_rows: Table
    test_rows: Table
    encode: Callable[[Table], tuple[Array, Array]]

    @property
    def examples(self) -> int:
        """How many rows the party learns from."""
        return self.train_rows.rows

    def rows(self) -> tuple[Array, Array]:
        """Features ``[n, p]`` and labels ``[n]`` of the training rows.

        Raises:
            ContributionError: if there are none.
        """
        if not self.train_rows.rows:
            raise ContributionError("the party has no row to learn from", party=self.party)
        return self.encode(self.train_rows)

    def held_out(self) -> tuple[Array, Array]:
        """Features and labels of the rows held out; there may be none."""
        return self.encode(self.test_rows)

    def gradient(self, parameters: Array) -> Array:
        """The gradient over all training rows, ``[d]``."""
        return self.learner.gradient(parameters, *self.rows())

    def loss(self, parameters: Array) -> float:
        """The mean loss over all training rows."""
        return float(self.learner.loss(parameters, *self.rows()))

    def batches(self, local: SGD) -> Iterator[tuple[Array, Array]]:
        """Mini-batches for ``local.epochs`` passes, shuffled by (seed, round, party)."""
        x, y = self.rows()
        epochs = local.epochs or 1
        size = local.batch_size or BATCH_SIZE
        if size == "all" or size >= len(y):
            for _ in range(epochs):
                yield x, y
            return
        random = keyed.generator(self.seed, "batches", self.round, self.party)
        for _ in range(epochs):
            order = random.permutation(len(y))
            for start in range(0, len(y), size):
                chosen = order[start : start + size]
                yield x[chosen], y[chosen]

    def train(self, parameters: Array, local: SGD, correct: Correction | None = None) -> Trained:
        """Local training: one optimiser step per batch, from a fresh optimiser.

        Args:
            parameters: where it starts, ``[d]``.
            local: the optimiser.
            correct: maps (gradient, parameters) to the gradient that is used.
        """
        slots, steps = Values(), 0
        for x, y in self.batches(local):
            gradient = self.learner.gradient(parameters, x, y)
            if correct is not None:
                gradient = correct(gradient, parameters)
            parameters, slots = local.step(parameters, -gradient, slots)
            steps += 1
        if not np.isfinite(parameters).all():
            raise ContributionError(
                "training diverged: the parameters are no longer finite",
                party=self.party,
                round=self.round,
                remedy="Lower the local learning rate",
            )
        return Trained(parameters, steps)


class Method(Part):
    """An algorithm as pure functions with explicit state."""

    @abstractmethod
    def init(self, setup: Setup, learner: Learner) -> State:
        """The state before the first ask."""

    @abstractmethod
    def ask(self, state: State) -> Ask | None:
        """The next exchange, or None when there is nothing more to ask.

        Work name, version, round and cohort are filled in by whoever drives the run.
        """

    @abstractmethod
    def work(self, at: At) -> Answer:
        """At the party: exactly the declared fields, and what to remember."""

    @abstractmethod
    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The state after an exchange."""


class UpdateMethod(Method):
    """Methods whose parties send an update that the server's optimiser applies.

    Args:
        server: the optimiser that applies the aggregated update.
        weights: a party counts by its ``"examples"``, or ``"equal"``.
    """

    fields: ClassVar[tuple[Field, ...]] = (Field("update", like="parameters"),)

    server: Optimizer = SGD(lr=1.0)
    weights: Literal["examples", "equal"] = "examples"

    def model_post_init(self, context: Any) -> None:
        """Refuse a server that is told to make passes over rows it does not have."""
        for name in ("epochs", "batch_size"):
            if getattr(self.server, name) is not None:
                raise StudyError(
                    f"method.server.{name}: the server has no rows to pass over",
                    remedy="Say it in `local`",
                )

    def init(self, setup: Setup, learner: Learner) -> State:
        """Initial weights keyed by the seed, and what `more` adds."""
        random = keyed.generator(setup.seed, "init")
        parameters = np.asarray(learner.init(random), dtype=np.float64)
        return State(values=Values({"parameters": parameters, **self.more(parameters)}))

    def more(self, parameters: Array) -> dict[str, Array]:
        """State beside the parameters, such as a control variate."""
        return {}

    def ask(self, state: State) -> Ask:
        """Everything but the server's own slots is sent; the declared fields come back."""
        size = state.values["parameters"].size
        send = {k: v for k, v in state.values.items() if not k.startswith("server.")}
        fields = tuple(declared.bind(size) for declared in self.fields)
        return Ask("", 0, 0, Values(send), fields, through="update")

    def weight(self, at: At) -> float:
        """What the party counts for."""
        return float(at.examples) if self.weights == "examples" else 1.0

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The server's optimiser takes one step along the mean update."""
        return state.step(self.server, total.values["update"])


class GradientMethod(UpdateMethod):
    """Methods that train locally with a corrected gradient; FedAvg overrides nothing.

    Args:
        local: the optimiser at a party.
    """

    memory: ClassVar[tuple[str, ...]] = ()

    local: Optimizer = SGD(lr=0.1)

    def work(self, at: At) -> Answer:
        """Train with the method's correction; what is left is the method's `finish`."""
        memory = self.remembered(at)
        parameters = at.received["parameters"]
        trained = at.train(
            parameters, self.local, lambda g, p: self.correct(g, p, at.received, memory)
        )
        values, kept = self.finish(trained.parameters, at.received, memory, trained.steps)
        return Answer(Contribution(Values(values), self.weight(at)), Values(kept))

    def remembered(self, at: At) -> Values:
        """The declared memory, zeros like the parameters the first time."""
        zero = np.zeros_like(at.received["parameters"])
        return Values({name: at.memory.get(name, zero) for name in self.memory})

    def correct(
        self, gradient: Array, parameters: Array, received: Values, memory: Values
    ) -> Array:
        """The gradient that is used, elementwise on one party or on a stack."""
        return gradient

    def finish(
        self, parameters: Array, received: Values, memory: Values, steps: int
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The declared fields and the new memory, from the trained parameters."""
        return {"update": parameters - received["parameters"]}, {}


METHODS: Catalogue[Method] = Catalogue(
    "method",
    Method,  # type: ignore[type-abstract]  # only instances are asked for
    {"fedavg": "hansa.methods.fedavg:FedAvg", "fedsgd": "hansa.methods.fedsgd:FedSGD"},
)
AnyMethod = Annotated[
    Method, PlainValidator(METHODS.build), PlainSerializer(METHODS.spec, return_type=dict[str, Any])
]
