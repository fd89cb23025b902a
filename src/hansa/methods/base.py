"""The contract of a method: it asks, parties work, it applies what arrives.

A method is a set of pure functions with explicit state. It never sees a party's rows: `Method.work` runs at
the party and touches data only through `At`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np

from hansa import keyed
from hansa.aggregation.signal import Noised
from hansa.contribution import Array, Ask, Contribution, Field, Json, Total, Values
from hansa.data.population import listed, unlisted
from hansa.data.preprocessing import Encoding
from hansa.errors import StudyError
from hansa.learners.base import Affine, Learner
from hansa.learners.optimizer import SGD, FirstOrder, Optimizer
from hansa.learners.private import by_example
from hansa.memory import lent
from hansa.methods.work import At, Named, Stack
from hansa.part import Catalogue, Part
from hansa.privacy.claim import Privacy
from hansa.task import Task

_OF_COLUMNS = {"categories", "arrays", "bounds"}
_PIECE = 1 << 16  # parameters that the server's optimiser moves at once


@dataclass(frozen=True)
class Setup:
    """What everybody knows before the first ask."""

    parties: Sequence[str]  # the roster, sorted by name
    numbers: tuple[str, ...]  # feature columns that hold numbers
    # feature columns that hold categories, each with its declared values
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    seed: int = 0  # of all public randomness
    # feature columns that hold an array in each row, with its shape
    arrays: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    # of each number column, there may be none, where sums pass stages; None where they do not
    bounds: Mapping[str, tuple[float, float]] | None = None

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
        body = {**vars(self), "parties": listed(self.parties), "numbers": list(self.numbers)}
        for name in _OF_COLUMNS & {name for name, value in body.items() if value is not None}:
            body[name] = {column: list(values) for column, values in body[name].items()}
        return {name: value for name, value in body.items() if value is not None and (value or name != "arrays")}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Setup:
        """The inverse of `to_json`."""
        known = {**body, "parties": unlisted(body["parties"]), "numbers": tuple(body["numbers"])}
        for name in known.keys() & _OF_COLUMNS:
            known[name] = {column: tuple(values) for column, values in body[name].items()}
        return cls(**known)


@dataclass(frozen=True, eq=False)
class State:
    """What a method knows between exchanges; all of it is checkpointed."""

    round: int = 0  # how many training rounds were applied
    values: Values = field(default_factory=Values)  # arrays, such as ``parameters``
    facts: Mapping[str, Json] = field(default_factory=dict)  # the rest, as JSON values

    def step(self, server: FirstOrder, update: Array, **values: Array) -> State:
        """The next round's state: the server's optimiser moves the parameters along ``update``, some at a time:
        what is in between stays in the cache."""
        before, slots = self.values["parameters"], self.values.under("server")
        parameters, moved = np.frombuffer(lent(before.nbytes), before.dtype), dict[str, Array]()
        for at in range(0, before.size, _PIECE):
            part = slice(at, at + _PIECE)
            few = {name: slot[part] if slot.shape == before.shape else slot for name, slot in slots.items()}
            parameters[part], after = server.serve(before[part], update[part], few)
            for name, slot in after.items():
                if slot.shape == before[part].shape:
                    moved.setdefault(name, np.empty(before.shape, slot.dtype))[part] = slot
                else:  # the same for all
                    moved[name] = slot
        kept = {**self.values, **values, **Values(moved).named("server"), "parameters": parameters}
        return replace(self, round=self.round + 1, values=Values(kept))


@dataclass(frozen=True, eq=False)
class Answer:
    """What a party's work proposes: a contribution, and what it wants to remember if that is counted. Of a stack, every
    value and the weight have a leading axis ``[k]``."""

    contribution: Contribution
    memory: Values = field(default_factory=Values)


Finished: TypeAlias = tuple[dict[str, Array], dict[str, Array]]  # the declared fields, and the new memory


class Method(Part):
    """An algorithm as pure functions with explicit state."""

    stacks: ClassVar[bool] = False  # whether `work` takes a `Stack` of parties as well as one party's `At`

    personalises: ClassVar[bool] = False  # whether a party ends with a model of its own; see `personal`

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
        """States like those from which it asks in round 1, of which the last is like those of later rounds. A party
        holds an ask against those that would be made from them, so only shapes matter.

        Args:
            start: the state before the first ask.
            ask: what came, for shapes that the data decide."""
        return (start,)

    def noise(self, privacy: Privacy) -> tuple[Noised, ...]:
        """The noise that is in what a party answers, before any stage; of training, that of the optimiser."""
        return ()

    def facts(self, state: State, encoding: Encoding) -> dict[str, Json]:
        """What the model's file tells beside its parameters."""
        return {}

    @abstractmethod
    def ask(self, state: State) -> Ask | None:
        """The next exchange, or None when there is nothing more to ask: the run ends then, and the state's fact
        ``reason`` says why. Work name, version, round and cohort are filled in by whoever drives the run."""

    @abstractmethod
    def work(self, at: Any) -> Answer:
        """At the party: the declared fields, and what to remember; ``at`` is an `At`, or a `Stack` if it `stacks`."""

    def personal(self, at: Any) -> Array:
        """The parameters that a party itself would use, ``[d]``: the global ones, unless it has its own; ``at.memory``
        holds what training remembered there."""
        return np.asarray(at.received["parameters"])

    @abstractmethod
    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The state after an exchange."""


class UpdateMethod(Method):
    """Methods whose parties send an update that the server's optimiser applies.

    Args:
        server: the optimiser that applies the aggregated update.
        weights: a party counts by its ``"examples"``, or ``"equal"``."""

    fields: ClassVar[tuple[Field, ...]] = (Field("update", like="parameters"),)
    stacks: ClassVar[bool] = True
    reducible: ClassVar[bool] = True  # whether a robust reducer of its fields means what it says

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
                what = f"method.server.{name}: the server has no rows to pass over"
                raise StudyError(what, remedy="Say it in `local`")

    def require(self, task: Task) -> None:
        """Refuse a task whose rows have no gradient of their own."""
        if not task.additive:
            what = f"the loss of {task.kind} is no mean over rows, so {self.kind} cannot descend it"
            raise StudyError(what, remedy='Write method.kind = "cox"')

    def init(self, setup: Setup, learner: Learner) -> State:
        """Initial weights keyed by the seed, and what `more` adds."""
        parameters = np.asarray(learner.init(keyed.generator(setup.seed, "init")), dtype=np.float64)
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
        return state.step(self.server, total.values["update"])


class GradientMethod(UpdateMethod):
    """Methods that train locally, by the optimiser ``local``, with a corrected gradient; FedAvg overrides nothing."""

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
            {name: at.memory.get(name, np.broadcast_to(value, (*lead, *value.shape))) for name, value in first.items()}
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
        """The gradient that is used, elementwise on one party or on a stack; it may be changed in place. Training is
        spared it where a method does not override it."""
        return gradient

    def finish(self, parameters: Array, received: Values, memory: Values, steps: Any) -> Finished:
        """The declared fields and the new memory, from the trained parameters, which may be changed in place."""
        return {"update": np.subtract(parameters, received["parameters"], out=parameters)}, {}


METHODS: Catalogue[Method] = Catalogue("method", Method)  # type: ignore[type-abstract]
AnyMethod = Annotated[Method, METHODS]
