"""The contract of a method: it asks, parties work, it applies what arrives.

A method is a set of pure functions with explicit state. It never sees a party's rows: `Method.work` runs at
the party and touches data only through `At`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from blake3 import blake3

from hansa import keyed
from hansa.aggregation.signal import Noised
from hansa.contribution import Array, Ask, Contribution, Field, Json, Total, Values
from hansa.data.population import listed, unlisted
from hansa.data.preprocessing import Encoding
from hansa.data.table import Table
from hansa.errors import ContributionError, HansaError, StudyError
from hansa.learners.base import Affine, Correction, Feed, Learner, sizes
from hansa.learners.optimizer import BATCH_SIZE, SGD, FirstOrder, Optimizer, Private
from hansa.learners.private import by_example, train_privately
from hansa.part import Catalogue, Part
from hansa.privacy.claim import Privacy
from hansa.privacy.noise import Chance, Stream, derived
from hansa.task import Task


@dataclass(frozen=True)
class Setup:
    """What everybody knows before the first ask.

    Args:
        parties: the roster, sorted by name.
        numbers: feature columns that hold numbers.
        categories: feature columns that hold categories, each with its declared values.
        seed: of all public randomness.
        arrays: feature columns that hold an array in each row, with its shape.
        bounds: of each number column, where sums get noise that is scaled to them.
    """

    parties: Sequence[str]
    numbers: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def encoding(self) -> Encoding:
        """Features as they are, before anything is known about their scale."""
        zeros, ones = np.zeros(len(self.numbers)), np.ones(len(self.numbers))
        return self.scaled(zeros, ones)

    def scaled(self, mean: Array, scale: Array) -> Encoding:
        """Features with this mean and scale of the numbers."""
        return Encoding(self.numbers, mean, scale, self.categories, self.arrays)

    def to_json(self) -> dict[str, Json]:
        """A canonical form."""
        return {
            "parties": listed(self.parties),
            "numbers": list(self.numbers),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "seed": self.seed,
            **({"arrays": {n: list(s) for n, s in self.arrays.items()}} if self.arrays else {}),
            **({"bounds": {n: list(b) for n, b in self.bounds.items()}} if self.bounds else {}),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Setup:
        """The inverse of `to_json`."""
        return cls(
            parties=unlisted(body["parties"]),
            numbers=tuple(body["numbers"]),
            categories={name: tuple(values) for name, values in body["categories"].items()},
            seed=body["seed"],
            arrays={name: tuple(shape) for name, shape in body.get("arrays", {}).items()},
            bounds={name: tuple(pair) for name, pair in body.get("bounds", {}).items()},
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

    def step(self, server: FirstOrder, update: Array, **values: Array) -> State:
        """The next round's state: the server's optimiser moves the parameters along ``update``."""
        parameters, moved = server.serve(self.values["parameters"], update, self.values.under("server"))
        kept = {**self.values, **values, **Values(moved).named("server"), "parameters": parameters}
        return replace(self, round=self.round + 1, values=Values(kept))


@dataclass(frozen=True)
class Trained:
    """What local training ended with.

    Args:
        parameters: ``[d]``, or ``[k, d]`` of a stack.
        steps: how many optimiser steps were taken: an int, or ``[k, 1]``, so that it divides parameters.
        slots: state of the optimiser.
    """

    parameters: Array
    steps: Any
    slots: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Answer:
    """What a party's work proposes: a contribution, and what it wants to remember if that is counted.

    Of a stack, every value and the weight have a leading axis ``[k]``.
    """

    contribution: Contribution
    memory: Values = field(default_factory=Values)


class Named(dict[str, Any]):
    """Arrays by name, or by attribute; the learner's own arrays, where `Values` are NumPy's."""

    __getattr__ = dict.__getitem__


@dataclass(frozen=True, eq=False, kw_only=True)
class Work:
    """Parties at work: what they received, what they remember, and the verbs of a method.

    Args:
        round: number of the training round, from 1.
        task: what is learnt.
        setup: among whom, on which columns.
        learner: the model's mathematics.
        received: what the ask brought; the same for all.
        memory: what this method remembers at the parties.
        parties: their names.
        secret: a party's key for noise; empty in simulation, where it comes from the seed of the setup.
        failed: what went wrong, by position; filled by the verbs.
    """

    round: int
    task: Task
    setup: Setup
    learner: Learner
    received: Values
    memory: Values
    parties: tuple[str, ...]
    secret: bytes = b""
    failed: dict[int, HansaError] = field(default_factory=dict)

    alone: ClassVar[bool] = False
    """Whether it is one party by itself, whose arrays have no leading axis."""

    @property
    @abstractmethod
    def all_rows(self) -> Sequence[tuple[Array, Array]]:
        """Each party's training rows: features ``[n, ...]`` and labels ``[n]``."""

    @property
    def examples(self) -> Any:
        """How many rows a party learns from; of a stack, float64 ``[k]``."""
        return sizes(self.all_rows).astype(np.float64)

    def fail(self, position: int, error: HansaError) -> None:
        """The work of the party at this position cannot be done: raise it, or note it for the others' sake."""
        if self.alone:
            raise error
        self.failed.setdefault(position, error)

    def gradient(self, parameters: Array) -> Array:
        """The gradient over all training rows, ``[d]`` or ``[k, d]``."""
        return self._over_all(self.learner.gradient, parameters)

    def clipped(self, parameters: Array, norm: float) -> Array:
        """The sum of the gradients of all training rows, each scaled down to a norm, ``[d]`` or ``[k, d]``."""
        sums = [self.learner.clipped(parameters, x, y, norm) for x, y in self.all_rows]
        return sums[0] if self.alone else np.stack(sums)

    def loss(self, parameters: Array) -> Any:
        """The mean loss over all training rows; of a stack, ``[k]``."""
        return self._over_all(self.learner.loss, parameters)

    def feed(self, local: FirstOrder) -> Feed:
        """The rows in the order of local training, shuffled by (seed, round, party)."""
        size = BATCH_SIZE if local.batch_size is None else local.batch_size
        shuffle = local.shuffle is not False and size != "all"
        keys = np.zeros(len(self.parties), np.uint64)
        if shuffle:
            keys = keyed.keys(self.setup.seed, "batches", self.round, parties=self.parties)
        whole = 0 if size == "all" else size
        return Feed(self.all_rows, keys, local.epochs or 1, batch_size=whole, shuffle=shuffle)

    def train(
        self,
        parameters: Array,
        local: FirstOrder,
        correct: Callable[..., Any] | Affine | None = None,
        beside: Mapping[str, Array] | None = None,
        slots: Mapping[str, Array] | None = None,
    ) -> Trained:
        """Local training: one optimiser step per batch. A party fails whose parameters do not stay finite.

        Args:
            parameters: where it starts, ``[d]``; of a stack ``[k, d]`` or, the same for all, ``[d]``.
            local: the optimiser.
            correct: maps (gradient, parameters), and what is ``beside`` if that is given, to the gradient
                that is used; an `Affine` costs less.
            beside: arrays of each party that the correction needs, ``[d]`` or ``[k, d]``.
            slots: state of the optimiser to start from; fresh if not given.
        """
        lead: Any = None if self.alone else ...  # of what is one party's, or a stack's already
        own = np.asarray if isinstance(local, Private) else self.learner.native
        native = {name: own(v[lead]) for name, v in (beside or {}).items()}

        def corrected(gradient: Any, theta: Any, parties: slice) -> Any:
            assert correct is not None
            assert not isinstance(correct, Affine)
            if beside is None:
                return correct(gradient, theta)
            return correct(gradient, theta, Named({n: v[parties] for n, v in native.items()}))

        hook: Correction | None = corrected if correct is not None else None
        if isinstance(correct, Affine):
            hook = replace(correct, shift=own(correct.shift))
        start = np.asarray(parameters, self.learner.dtype)
        begin = {name: value[lead] for name, value in (slots or {}).items()}
        if isinstance(local, Private):
            steps = np.full(len(self.parties), local.steps)
            rows, whence = self.all_rows, self._chance
            trained, kept = train_privately(self.learner, start, rows, local, hook, begin, whence)
        else:
            feed = self.feed(local)
            steps = feed.steps
            trained, kept = self.learner.train(start, feed, local, hook, begin, not self.alone)
        with np.errstate(over="ignore", invalid="ignore"):
            fine = np.isfinite(np.vecdot(trained, trained))
        for i in np.flatnonzero(~fine).tolist():
            if not np.isfinite(trained[i]).all():
                self.fail(i, diverged(self.parties[i], self.round))
        if self.alone:
            return Trained(trained[0], int(steps[0]), {n: v[0] for n, v in kept.items()})
        return Trained(trained, steps[:, None], kept)

    def _chance(self, position: int) -> Chance:
        """Where the sample and the noise of a party's training come from."""
        party = self.parties[position]
        if not self.secret:
            return keyed.generator(self.setup.seed, "private", self.round, party)
        known = blake3()  # all that the answer depends on: asked otherwise, on other rows, it draws other noise
        x, y = self.all_rows[position]
        for named in (self.received, self.memory, {"x": x, "y": y}):
            for name in sorted(named):
                known.update(name.encode() + b"\0" + np.ascontiguousarray(named[name]).tobytes())
        return Stream(derived(self.secret, "private", self.round, party, known.hexdigest()))

    def _over_all(self, of: Callable[..., Array], parameters: Array) -> Array:
        """A function of parameters and rows over all training rows, ``[k, ...]``."""
        feed = Feed(self.all_rows, np.zeros(len(self.parties), np.uint64))
        parameters = np.asarray(parameters, self.learner.dtype)
        parts = []
        for parties, x, y, weights in feed.stacked(self.learner.takes):
            theta = parameters[parties] if parameters.ndim == 2 else parameters
            parts.append(of(np.broadcast_to(theta, (len(x), theta.shape[-1])), x, y, weights))
        whole: Array = np.concatenate(parts)
        return whole[0] if self.alone else whole


@dataclass(frozen=True, eq=False, kw_only=True)
class At(Work):
    """A party at work.

    Args:
        train_rows: the rows to learn from.
        test_rows: those held out.
        encode: from one of the two to features ``[n, p]`` and labels ``[n]``.
    """

    alone: ClassVar[bool] = True

    train_rows: Table
    test_rows: Table
    encode: Callable[[Table], tuple[Array, Array]]

    @property
    def party(self) -> str:
        """Its name."""
        return self.parties[0]

    @property
    def examples(self) -> int:
        """How many rows the party learns from."""
        return self.train_rows.rows

    @property
    def all_rows(self) -> Sequence[tuple[Array, Array]]:
        """The party's own."""
        return (self.rows(),)

    def rows(self) -> tuple[Array, Array]:
        """Features ``[n, p]`` and labels ``[n]`` of the training rows; a ContributionError if there are none."""
        if not self.train_rows.rows:
            raise no_row(self.party)
        return self.encode(self.train_rows)

    def held_out(self) -> tuple[Array, Array]:
        """Features and labels of the rows held out; there may be none."""
        return self.encode(self.test_rows)


@dataclass(frozen=True, eq=False, kw_only=True)
class Stack(Work):
    """Several parties at work at once; those with more rows come first, and none has no row.

    Args:
        data: each one's features and labels.
    """

    data: Sequence[tuple[Array, Array]]

    @property
    def all_rows(self) -> Sequence[tuple[Array, Array]]:
        """Theirs."""
        return self.data


def no_row(party: str) -> ContributionError:
    """The error of a party that has nothing to learn from."""
    return ContributionError("the party has no row to learn from", party=party)


def diverged(party: str, round: int) -> ContributionError:
    """The error of a party whose local training left the numbers."""
    return ContributionError(
        "training diverged: the parameters are no longer finite",
        party=party,
        round=round,
        remedy="Lower the local learning rate",
    )


Finished: TypeAlias = tuple[dict[str, Array], dict[str, Array]]
"""The declared fields, and the new memory."""


class Method(Part):
    """An algorithm as pure functions with explicit state."""

    stacks: ClassVar[bool] = False
    """Whether `work` takes a `Stack` of parties as well as one party's `At`."""

    personalises: ClassVar[bool] = False
    """Whether a party ends with a model of its own; see `personal`."""

    statistics: ClassVar[bool] = False
    """Whether what it sums goes through the study's ``[statistics]``, and has to be hidden there."""

    exact: ClassVar[bool] = False
    """Whether it needs the sums of all parties as they are: every party in every round, and no stage."""

    def require(self, task: Task) -> None:
        """Refuse (StudyError) a task that it cannot learn, when the federation is built."""

    @abstractmethod
    def init(self, setup: Setup, learner: Learner) -> State:
        """The state before the first ask."""

    def phases(self, start: State, ask: Ask) -> tuple[State, ...]:
        """States like those from which it asks in round 1, of which the last is like those of later rounds.

        A party holds an ask against those that would be made from them, so only shapes matter.

        Args:
            start: the state before the first ask.
            ask: what came, for shapes that the data decide.
        """
        return (start,)

    def noise(self, privacy: Privacy) -> tuple[Noised, ...]:
        """The noise that is in what a party answers, before any stage; of training, that of the optimiser."""
        return ()

    def facts(self, state: State, encoding: Encoding) -> dict[str, Json]:
        """What the model's file tells beside its parameters."""
        return {}

    @abstractmethod
    def ask(self, state: State) -> Ask | None:
        """The next exchange, or None when there is nothing more to ask: the run ends then, and the state's
        fact ``reason`` says why.

        Work name, version, round and cohort are filled in by whoever drives the run.
        """

    @abstractmethod
    def work(self, at: Any) -> Answer:
        """At the party: exactly the declared fields, and what to remember.

        ``at`` is an `At`, or a `Stack` if the method `stacks`.
        """

    def personal(self, at: Any) -> Array:
        """The parameters that a party itself would use, ``[d]``: the global ones, unless it has its own.

        ``at.memory`` holds what training remembered there.
        """
        return np.asarray(at.received["parameters"])

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
    stacks: ClassVar[bool] = True
    reducible: ClassVar[bool] = True
    """Whether a robust reducer of its fields means what it says."""

    @classmethod
    def __pydantic_init_subclass__(cls, **of: Any) -> None:
        """Work of a method's own is for one party, unless the method says that it `stacks`."""
        super().__pydantic_init_subclass__(**of)
        if "work" in cls.__dict__ and "stacks" not in cls.__dict__:
            cls.stacks = False

    server: Optimizer = SGD(lr=1.0)
    weights: Literal["examples", "equal"] = "examples"

    def model_post_init(self, context: Any) -> None:
        """Refuse a server that is told to make passes over rows it does not have."""
        for name in ("epochs", "batch_size", "moments", "shuffle"):
            if getattr(self.server, name) is not None:
                raise StudyError(
                    f"method.server.{name}: the server has no rows to pass over", remedy="Say it in `local`"
                )

    def require(self, task: Task) -> None:
        """Refuse a task whose rows have no gradient of their own."""
        if not task.additive:
            raise StudyError(
                f"the loss of {task.kind} is no mean over rows, so {self.kind} cannot descend it",
                remedy='Write method.kind = "cox"',
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
        fields = self.declared(state.values["parameters"].size)
        send = {k: v for k, v in state.values.items() if not k.startswith("server.")}
        return Ask("", 0, 0, Values(send), fields, through="update")

    def declared(self, size: int) -> tuple[Field, ...]:
        """The fields of a model of that size."""
        return tuple(field.bind(size) for field in self.fields)

    def weight(self, at: At | Stack) -> Any:
        """What the party counts for; of a stack, ``[k]``."""
        return at.examples * 1.0 if self.weights == "examples" else at.examples * 0.0 + 1.0

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The server's optimiser takes one step along the mean update."""
        return state.step(self.server, total.values["update"])


class GradientMethod(UpdateMethod):
    """Methods that train locally with a corrected gradient; FedAvg overrides nothing.

    Args:
        local: the optimiser at a party.
    """

    memory: ClassVar[tuple[str, ...]] = ()
    stacks: ClassVar[bool] = True

    afresh: ClassVar[str] = ""
    """Why it is not clear whose the moments of a local optimiser would be, if a party kept them."""

    local: Optimizer = SGD(lr=0.1)

    def model_post_init(self, context: Any) -> None:
        """Refuse kept moments where nobody could say whose they are."""
        super().model_post_init(context)
        if self.afresh and self.local.moments == "keep":
            said = f'method.local.moments is "keep", but {self.afresh}'
            raise StudyError(said, remedy='Leave it out, or write "reset"')

    def work(self, at: At | Stack) -> Answer:
        """Train with the method's correction; what is left is the method's `finish`."""
        first, keeps = self.begins(at.received), self.local.moments == "keep"
        lead = (len(at.parties),) if isinstance(at, Stack) else ()
        memory = Values(
            {
                name: at.memory.get(name, np.broadcast_to(value, (*lead, *value.shape)))
                for name, value in first.items()
            }
        )
        parameters = at.received["parameters"]
        correct: Callable[..., Any] | Affine | None = self.affine(at.received, memory)
        if type(self).correct is not GradientMethod.correct:
            sent = Named({n: at.learner.native(v) for n, v in at.received.items()})
            correct = lambda g, p, mine: self.correct(g, p, sent, mine)  # noqa: E731
        slots = at.memory.under("local") if keeps else None
        trained = at.train(parameters, self.local, correct, memory, slots)
        values, kept = self.finish(trained.parameters, at.received, memory, trained.steps)
        if keeps:
            kept = {**kept, **Values(trained.slots).named("local")}
        return Answer(Contribution(Values(values), self.weight(at)), Values(kept))

    def noise(self, privacy: Privacy) -> tuple[Noised, ...]:
        """That of a private optimiser; what leaves depends on rows only through training."""
        return by_example(privacy, self.local)

    def begins(self, received: Values) -> Mapping[str, Array]:
        """What a party remembers before its first round, ``[d]`` each: zeros, unless overridden."""
        return {name: np.zeros_like(received["parameters"]) for name in self.memory}

    def affine(self, received: Values, memory: Values) -> Affine | None:
        """The correction of the gradient, if it has this form; it is then faster than `correct`."""
        return None

    def correct(self, gradient: Any, parameters: Any, received: Any, memory: Any) -> Any:
        """The gradient that is used, elementwise on one party or on a stack; it may be changed in place.

        Training is spared it where a method does not override it.
        """
        return gradient

    def finish(self, parameters: Array, received: Values, memory: Values, steps: Any) -> Finished:
        """The declared fields and the new memory, from the trained parameters, which may be changed in place."""
        return {"update": np.subtract(parameters, received["parameters"], out=parameters)}, {}


METHODS: Catalogue[Method] = Catalogue("method", Method)  # type: ignore[type-abstract]
AnyMethod = Annotated[Method, METHODS]
