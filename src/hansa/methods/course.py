"""The course of a run: preprocessing, then training rounds with evaluations between them.

A course is itself a method made of methods: one exchange at a time, all state explicit, so that whoever drives
it (a loop on a laptop, a coordinator that may be killed) only carries asks out and arrivals in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field as Limits

from hansa import tensors
from hansa.aggregation.signal import ONCE, Among, Schedule, Signal
from hansa.aggregation.stage import NO_STAGES, Aggregation, Context
from hansa.contribution import Algebra, Array, Ask, Contributions, Field, Total, Values, canonical
from hansa.data.preprocessing import Encoding
from hansa.errors import RunError, StudyError, did_you_mean
from hansa.learners.base import Learner
from hansa.methods.base import Answer, Method, Setup, State
from hansa.methods.evaluate import Evaluate
from hansa.methods.moments import Moments
from hansa.methods.work import At, Stack
from hansa.part import Written
from hansa.privacy.claim import PARTY, Privacy
from hansa.privacy.noise import derived
from hansa.task import Task

_LARGE = 1 << 20
_KEPT = ("version", "phase", "best", "since", "reason")  # of a checkpoint, as it is
Phase = Literal["moments", "train", "evaluate", "done"]


class Stop(Written):
    """When to stop before the last round.

    Args:
        metric: one of the task's metrics.
        target: stop as soon as it is reached.
        patience: stop when so many evaluations in a row brought nothing better; at least 1."""

    metric: str
    target: float | None = None
    patience: Annotated[int, Limits(ge=1)] | None = None

    def better(self, value: float, than: float, task: Task) -> bool:
        """Whether ``value`` is better: smaller for the task's losses and errors, else larger."""
        metric = self.metric.removeprefix("own.").partition(".")[0]
        return value < than if metric in task.lower_is_better else value > than


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a run stands; everything that a checkpoint holds."""

    version: int = 0  # how many exchanges were applied
    phase: Phase = "moments"  # what is asked next
    states: Mapping[str, State] = field(default_factory=dict)  # of each method and of the stages, by name
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the latest evaluation
    best: float | None = None  # best value of the stop rule's metric; ``since``: evaluations since then
    since: int = 0
    reason: str = ""  # why the course is done

    @property
    def round(self) -> int:
        """How many training rounds were applied."""
        return self.states["train"].round

    @property
    def parameters(self) -> Array:
        """The global model, ``[d]``."""
        return self.states["train"].values["parameters"]

    def pack(self, memories: Mapping[str, Values] | None = None) -> bytes:
        """The progress as one safetensors file, with the parties' memories in simulation; equal progress, equal
        bytes."""
        return b"".join(self.pieces(memories))

    def pieces(self, memories: Mapping[str, Values] | None = None) -> list[tensors.Buffer]:
        """The same bytes, without a copy of an array."""
        groups = {("state", name): state.values for name, state in self.states.items()}
        groups |= {("memory", party): values for party, values in (memories or {}).items()}
        named = (((*group, name), array) for group, values in groups.items() for name, array in values.items())
        arrays = {canonical(place).decode(): array for place, array in named}
        states = {n: {"round": s.round, "facts": dict(s.facts)} for n, s in self.states.items()}
        facts = {"states": states, "metrics": dict(self.metrics), "memories": sorted(memories or {})}
        facts |= {name: getattr(self, name) for name in _KEPT}
        return tensors.pieces(arrays, {"progress": canonical(facts).decode()})

    @classmethod
    def unpack(cls, data: tensors.Buffer) -> tuple[Progress, dict[str, Values]]:
        """The inverse of `pack`."""
        facts = json.loads(tensors.metadata(data)["progress"])
        groups: dict[tuple[str, str], dict[str, Array]] = {}
        for place, array in tensors.read(data).items():
            group, owner, name = json.loads(place)
            groups.setdefault((group, owner), {})[name] = array
        states = {
            name: State(body["round"], Values(groups.get(("state", name))), body["facts"])
            for name, body in facts["states"].items()
        }
        memories = {p: Values(groups.get(("memory", p))) for p in facts["memories"]}
        return cls(states=states, **{name: facts[name] for name in (*_KEPT, "metrics")}), memories


@dataclass(frozen=True)
class Course:
    """One run of one federation among known parties, as pure functions of its progress."""

    task: Task
    method: Method
    moments: Moments
    evaluate: Evaluate
    aggregation: Aggregation
    rounds: int
    stop: Stop | None
    setup: Setup
    statistics: Aggregation = NO_STAGES
    privacy: Privacy = PARTY
    among: Among | None = None
    period: int = 1
    secret: bytes = b""
    attempt: int = 0  # at a secure sum; 0 for what is not so summed

    @property
    def chance(self) -> bytes:
        """The key that noise comes from; each attempt at a secure sum has one of its own."""
        of_its_own = self.secret and self.attempt
        return derived(self.secret, "attempt", self.attempt) if of_its_own else self.secret

    @cached_property
    def learner(self) -> Learner:
        """The model for the encoded features; a StudyError if there is no feature."""
        width = self.setup.encoding.width
        if not width:
            raise StudyError("no feature column is left", remedy="Correct `features` in the study")
        learner, arrays = self.task.learner(width), list(self.setup.arrays.values())
        alone = len(arrays) == 1 and not self.setup.numbers and not self.setup.categories
        learner.expect(arrays[0] if alone and not self.task.flat else (width,))
        return learner

    @cached_property
    def _bound(self) -> dict[tuple[str, str, tuple[Field, ...]], tuple[Signal, ...]]:
        return {}

    @property
    def methods(self) -> dict[str, Method]:
        """The methods that it is made of, by the name of their work."""
        return {"moments": self.moments, "train": self.method, "evaluate": self.evaluate}

    def begin(self) -> Progress:
        """Before the first exchange; a StudyError if the stop rule names a metric that the task does not have,
        or if nothing is ever evaluated."""
        names = self.evaluate.names(self.task, self.scores_own)
        if self.stop and not self.evaluate.due(self.rounds, last=True):
            remedy = "Set evaluation.every and evaluation.holdout, or leave `stop` out"
            raise StudyError("there is a stop rule, and nothing is evaluated", remedy=remedy)
        if self.stop and self.stop.metric not in names:
            what = f"stop: the task has no metric {self.stop.metric!r}"
            raise StudyError(what, remedy=did_you_mean(self.stop.metric, names))
        states = {name: m.init(self.setup, self.learner) for name, m in self.methods.items()}
        states["train"] = self._stored(states["train"])
        return self._enter(Progress(states={**states, "stages": State()}), "moments")

    @cached_property
    def outline(self) -> Progress:
        """The beginning without the memory of its large arrays: of an ask that is made from it, only shapes matter."""
        progress, states = self.begin(), dict[str, State]()
        for of, state in progress.states.items():
            large = {n: np.broadcast_to(v.dtype.type(0), v.shape) for n, v in state.values.items() if v.nbytes > _LARGE}
            states[of] = replace(state, values=Values({**state.values, **large}))
        return replace(progress, states=states)

    def ask(self, progress: Progress) -> Ask | None:
        """The next exchange, or None when the course is done; the cohort is still to be drawn."""
        phase = progress.phase
        if phase == "done":
            return None
        state = progress.states[phase]
        ask = self._method(phase).ask(state)
        if ask is None:
            raise RunError(f"the method {phase!r} has nothing to ask", round=progress.round)
        send = dict(ask.send)
        if phase == "evaluate":
            send = {"parameters": progress.parameters}
            if self.scores_own:
                training = self.method.ask(progress.states["train"])
                send |= training.send if training is not None else {}
            ask = replace(ask, fields=self.evaluate.fields(self.task, self.scores_own))
        if phase != "moments":
            dtype = self.learner.dtype
            send = {name: value.astype(dtype, copy=False) for name, value in send.items()}
            # A bound on one example's part holds until noise comes: rounding a sum to float32 would exceed it.
            fields = [replace(f, dtype=dtype) if f.like and f.example == math.inf else f for f in ask.fields]
            ask, encoding = replace(ask, fields=tuple(fields)), self.encoding(progress)
            if encoding.numbers:
                send |= {"encoding.mean": encoding.mean, "encoding.scale": encoding.scale}
        if phase != "train" and self.statistics.stages and not self.evaluate.central:
            ask = replace(ask, through="statistics")
        chain, known = self._chain(ask)
        if chain.stages:
            send |= chain.announce(progress.states.get(known, State()).values).named("announced")
        number = progress.round + (phase == "train")
        return replace(ask, work=phase, version=progress.version, round=number, send=Values(send))

    @property
    def scores_own(self) -> bool:
        """Whether evaluations score the parties' own models, too."""
        return self.evaluate.own and self.method.personalises

    def permits(self, ask: Ask) -> bool:
        """Whether this course itself would ask so: under this number, in this round, sending values of these shapes,
        for the same fields through the same stages. A party asks this before it works: the ask may come from who would
        like to see more, such as a sum over rows of its choice, one more answer, or an update without the clip."""
        return any(_alike(ask, own) for own in self._own(ask))

    def _own(self, asked: Ask) -> Iterator[Ask]:
        """The asks that this course makes for that work in that round, but for their values."""
        work, round, start = asked.work, asked.round, self.outline
        sums = self.moments.phases(start.states["moments"], asked)
        if work == "moments" and round == 0:
            for step, state in enumerate(sums):
                yield self._asked_at(start, "moments", step, {"moments": state})
        if not 0 < round <= self.rounds:
            return
        every = self.evaluate.every if self.evaluate.due(self.rounds, last=True) else 0
        *before, state = self.method.phases(start.states["train"], asked)
        version = len(sums) + len(before) + round - 1 + ((round - 1) // every if every else 0)
        state = replace(state, round=round - (work == "train"))
        # Any round may be the last of a method that ends by itself.
        last = round == self.rounds or self.method.exact
        if work == "train":
            yield self._asked_at(start, "train", version, {"train": state})
            for step, earlier in enumerate(before if round == 1 else ()):
                yield self._asked_at(start, "train", len(sums) + step, {"train": earlier})
        elif work == "evaluate" and self.evaluate.due(round, last=last):
            yield self._asked_at(start, "evaluate", version + 1, {"train": state})

    def _asked_at(self, start: Progress, phase: Phase, version: int, states: Mapping[str, State]) -> Ask:
        ask = self.ask(replace(start, version=version, phase=phase, states={**start.states, **states}))
        assert ask is not None
        return ask

    def work(self, ask: Ask, at: At | Stack) -> Answer:
        """At the parties: the work that the ask names, and its way through their side of the stages. A stack's answer
        is a stack; of a party that `Stack.failed` names it says nothing."""
        announced = at.received.under("announced")
        around, scores = ("announced.", "encoding."), ask.work == "evaluate"
        kept = Values({k: v for k, v in at.received.items() if not k.startswith(around)})
        mine = replace(at, received=kept, memory=at.memory.under("train" if scores else ask.work))
        chain, known = self._chain(ask)
        if scores and isinstance(mine, At):
            models = {"": mine.received["parameters"]}
            if self.scores_own:
                models["own."] = self.method.personal(mine)
            answer = self.evaluate.score(mine, models, noised=chain.protects)
        else:
            answer = self._method(ask.work).work(mine)
        memory = answer.memory.named(ask.work)
        if not chain.stages:
            return replace(answer, memory=Values(memory))
        given, signals = answer.contribution, self.signals(ask)
        lead, own = cast(Any, (None, 0) if at.alone else (..., ...))  # one party is a stack of one
        values = Values({name: value[lead] for name, value in given.values.items()})
        before = Values({name: value[lead] for name, value in at.memory.under(known).items()})
        stack = Contributions(at.parties, values, np.atleast_1d(given.weight))
        stack, kept = chain.encode(stack, announced, before, signals, self._context(ask, at.parties, signals))
        leaving = Values({name: value[own] for name, value in stack.values.items()})
        memory |= {name: value[own] for name, value in kept.named(known).items()}
        return Answer(replace(given, values=leaving), Values(memory))

    def open(self, ask: Ask, stack: Contributions) -> tuple[Contributions, dict[str, str]]:
        """At the coordinator: contributions as they arrived, unpacked; and who is not counted, and why."""
        signals = self.signals(ask)
        excluded: dict[str, str] = {}
        chain, _ = self._chain(ask)
        for opened in (False, True):
            faults = signals[-1].faults(stack, opened)
            if faults:
                excluded |= {stack.parties[i]: error.reason for i, error in faults.items()}
                stack = stack.take([i for i in range(len(stack.parties)) if i not in faults])
            if not chain.opens or not stack.parties:
                break
            if not opened:
                context = self._context(ask, stack.parties, signals)
                stack = chain.open(stack, ask.send.under("announced"), signals, context)
        return stack, excluded

    def signals(self, ask: Ask) -> tuple[Signal, ...]:
        """What flows between the stages for this ask, last what travels; raises PipelineError if a stage refuses."""
        if (key := (ask.work, ask.through, ask.fields)) not in self._bound:
            self._bound[key] = self._flow(ask)
        return self._bound[key]

    def _flow(self, ask: Ask) -> tuple[Signal, ...]:
        signal = Signal(
            ask.fields,
            noise=self.method.noise(self.privacy) if ask.through == "update" else (),
            weights=getattr(self.method, "weights", "examples"),
            privacy=self.privacy,
            among=self.among,
            schedule=Schedule(self.rounds, self.period),
        )
        if ask.through == "plain":
            return (signal,)
        if ask.through == "statistics":  # sums, in which all parties count the same
            some = self.evaluate.sample if ask.work == "evaluate" else None
            among = self.among and self.among.all_of(some or len(self.setup.parties))
            signal = replace(signal, weights="equal", schedule=ONCE, among=among)
        return self._chain(ask)[0].bind(signal)

    def opens(self, ask: Ask) -> bool:
        """Whether a single answer has to be whole before it can be counted: a stage opens it, or keeps it."""
        gathers = any(field.algebra is Algebra.GATHER for field in self.signals(ask)[-1].fields)
        return gathers or self._chain(ask)[0].opens

    def _chain(self, ask: Ask) -> tuple[Aggregation, str]:
        """The stages that an answer passes, and under which name their state and memory are kept."""
        if ask.through == "update":
            return self.aggregation, "stages"
        return (self.statistics if ask.through == "statistics" else NO_STAGES), "statistics"

    @cached_property
    def trained(self) -> Signal:
        """What a party makes in a training round, before any stage."""
        start = self.begin()
        return self.signals(self._asked_at(start, "train", 0, {"train": start.states["train"]}))[0]

    def apply(self, progress: Progress, ask: Ask, total: Total) -> Progress:
        """The progress after an exchange; ``metrics`` are new if it was an evaluation; raises RunError if the model is
        no longer finite."""
        states = dict(progress.states)
        chain, known = self._chain(ask)
        if chain.stages:
            signals, before = self.signals(ask), states.get(known, State()).values
            total, stages = chain.decode(total, before, signals, self._context(ask, (), signals))
            states[known] = State(ask.round, stages)
        phase = progress.phase
        with np.errstate(over="ignore", invalid="ignore"):  # said below, once
            if total.values or not ask.fields:
                states[phase] = self._method(phase).apply(states[phase], ask, total)
            else:  # a sample that happened to be empty
                states[phase] = replace(states[phase], round=states[phase].round + 1)
        if phase == "train":
            states[phase] = self._stored(states[phase])
        progress = replace(progress, version=progress.version + 1, states=states)
        if phase == "moments":
            return self._enter(progress, "moments")
        if phase == "evaluate":
            if not np.sum(total.values["rows"]):
                remedy = "Raise evaluation.holdout, or leave evaluation out with every = 0"
                raise RunError("no party holds out a row, so there is nothing to evaluate on", remedy=remedy)
            return self._judge(progress, self.evaluate.metrics(self.task, total.values))
        theta = progress.parameters
        if not (math.isfinite(theta.min()) and math.isfinite(theta.max())):
            remedy = "Lower the learning rates, or add a clip to the aggregation"
            raise RunError("the model is no longer finite", round=ask.round, remedy=remedy)
        last = progress.round >= self.rounds or self.method.ask(states["train"]) is None
        due = progress.round == ask.round and self.evaluate.due(progress.round, last=last)
        return self._enter(progress, "evaluate" if due else "train")

    def _stored(self, state: State) -> State:
        """The state with its parameters as they travel: what parties hold is what the server goes on from."""
        parameters = state.values.get("parameters")
        if parameters is None or parameters.dtype == self.learner.dtype:
            return state
        return replace(state, values=Values({**state.values, "parameters": parameters.astype(self.learner.dtype)}))

    def again(self, progress: Progress) -> Progress:
        """The progress with training to go on, if there are rounds left."""
        return self._enter(replace(progress, phase="train"), "train")

    def encoding(self, progress: Progress) -> Encoding:
        """What turns a table into features, as far as the run knows it."""
        return self.moments.encoding(progress.states["moments"], self.setup)

    def _method(self, name: str) -> Method:
        if name not in self.methods:
            raise StudyError(f"unknown work {name!r}", remedy=did_you_mean(name, self.methods))
        return self.methods[name]

    def _enter(self, progress: Progress, phase: Phase) -> Progress:
        """Go on with the phase, or with the next one if it has nothing left to ask."""
        if phase == "moments" and self.moments.ask(progress.states["moments"]) is None:
            phase = "train"
        if phase == "train" and self.method.ask(progress.states["train"]) is None:
            return replace(progress, phase="done", reason=progress.states["train"].facts["reason"])
        if phase == "train" and progress.round >= self.rounds:
            return replace(progress, phase="done", reason=f"all {self.rounds} rounds were run")
        return replace(progress, phase=phase)

    def _judge(self, progress: Progress, metrics: Mapping[str, float]) -> Progress:
        if not all(map(math.isfinite, metrics.values())):
            raise RunError("the totals of the evaluation make no metrics", round=progress.round)
        progress = replace(progress, metrics=metrics)
        if self.stop is not None:
            stop, value = self.stop, metrics[self.stop.metric]
            better = progress.best is None or stop.better(value, progress.best, self.task)
            found = (value, 0) if better else (progress.best, progress.since + 1)
            progress = replace(progress, best=found[0], since=found[1])
            if stop.target is not None and not stop.better(stop.target, value, self.task):
                reason = f"{stop.metric} reached {value:.4f}, the target is {stop.target:g}"
                return replace(progress, phase="done", reason=reason)
            if stop.patience is not None and progress.since >= stop.patience:
                reason = f"{stop.metric} has not improved for {stop.patience} evaluations"
                return replace(progress, phase="done", reason=reason)
        return self._enter(progress, "train")

    def _context(self, ask: Ask, parties: tuple[str, ...], signals: Sequence[Signal]) -> Context:
        first = signals[0]
        return Context(self.setup.seed, ask.round, ask.version, parties, first, first, self.chance)


def _alike(ask: Ask, own: Ask) -> bool:
    """Whether two asks differ in nothing but finite values and the cohort."""
    said = (ask.work, ask.version, ask.round, ask.fields, ask.through)
    if said != (own.work, own.version, own.round, own.fields, own.through):
        return False
    shapes = {name: (value.shape, value.dtype) for name, value in ask.send.items()}
    if shapes != {name: (value.shape, value.dtype) for name, value in own.send.items()}:
        return False
    return all(math.isfinite(v.min(initial=0)) and math.isfinite(v.max(initial=0)) for v in ask.send.values())
