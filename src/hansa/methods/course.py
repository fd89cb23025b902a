"""The course of a run: preprocessing, then training rounds with evaluations between them.

A course is itself a method made of methods: one exchange at a time, all state explicit, so that whoever drives
it (a loop on a laptop, a coordinator that may be killed) only carries asks out and arrivals in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict
from pydantic import Field as Limits

from hansa.aggregation.signal import Signal
from hansa.aggregation.stage import Aggregation, Context
from hansa.contribution import Array, Ask, Json, Total, Values, canonical
from hansa.data.preprocessing import Encoding
from hansa.errors import RunError, StudyError, did_you_mean
from hansa.learners.base import Learner
from hansa.methods.base import Answer, At, Method, Setup, State
from hansa.methods.evaluate import Evaluate
from hansa.methods.moments import Moments
from hansa.task import Task
from hansa.wire import tensors

Phase = Literal["moments", "train", "evaluate", "done"]

LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae"})


class Stop(BaseModel):
    """When to stop before the last round.

    Args:
        metric: one of the task's metrics.
        target: stop as soon as it is reached.
        patience: stop when so many evaluations in a row brought nothing better; at least 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    metric: str
    target: float | None = None
    patience: Annotated[int, Limits(ge=1)] | None = None

    def better(self, value: float, than: float) -> bool:
        """Whether ``value`` is better: smaller for losses and errors, else larger."""
        return value < than if self.metric in LOWER_IS_BETTER else value > than


@dataclass(frozen=True, eq=False)
class Progress:
    """Where a run stands; everything that a checkpoint holds.

    Args:
        version: how many exchanges were applied.
        phase: what is asked next.
        states: of each method and of the stages, by name.
        metrics: of the latest evaluation.
        best: best value of the stop rule's metric; ``since``: evaluations since then.
        reason: why the course is done.
    """

    version: int = 0
    phase: Phase = "moments"
    states: Mapping[str, State] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    since: int = 0
    reason: str = ""

    @property
    def round(self) -> int:
        """How many training rounds were applied."""
        return self.states["train"].round

    @property
    def parameters(self) -> Array:
        """The global model, ``[d]``."""
        return self.states["train"].values["parameters"]

    def pack(self, memories: Mapping[str, Values] | None = None) -> bytes:
        """The progress as one safetensors file, with the parties' memories in simulation.

        Equal progress gives equal bytes.
        """
        groups = {f"state {name}": state.values for name, state in self.states.items()}
        groups |= {f"memory {party}": values for party, values in (memories or {}).items()}
        arrays, index = {}, []
        for group, values in sorted(groups.items()):
            for name, array in sorted(values.items()):
                index.append([group, name])
                arrays[str(len(index) - 1)] = array
        facts: dict[str, Json] = {
            "version": self.version,
            "phase": self.phase,
            "states": {
                n: {"round": s.round, "facts": dict(s.facts)} for n, s in self.states.items()
            },
            "metrics": dict(self.metrics),
            "best": self.best,
            "since": self.since,
            "reason": self.reason,
            "index": index,
            "memories": sorted(memories or {}),
        }
        return tensors.write(arrays, {"progress": canonical(facts).decode()})

    @classmethod
    def unpack(cls, data: bytes) -> tuple[Progress, dict[str, Values]]:
        """The inverse of `pack`."""
        facts = json.loads(tensors.metadata(data)["progress"])
        arrays = tensors.read(data)
        groups: dict[str, dict[str, Array]] = {}
        for number, (group, name) in enumerate(facts["index"]):
            groups.setdefault(group, {})[name] = arrays[str(number)]
        states = {
            name: State(body["round"], Values(groups.get(f"state {name}")), body["facts"])
            for name, body in facts["states"].items()
        }
        memories = {p: Values(groups.get(f"memory {p}")) for p in facts["memories"]}
        kept = {k: facts[k] for k in ("version", "phase", "metrics", "best", "since", "reason")}
        return cls(states=states, **kept), memories


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

    @cached_property
    def learner(self) -> Learner:
        """The model for the encoded features.

        Raises:
            StudyError: if there is no feature.
        """
        width = self.setup.encoding.width
        if not width:
            raise StudyError("no feature column is left", remedy="Correct `features` in the study")
        return self.task.learner(width)

    def begin(self) -> Progress:
        """Before the first exchange.

        Raises:
            StudyError: if the stop rule names a metric that the task does not have, or if nothing
                is ever evaluated.
        """
        names = self.task.metric_names
        if self.stop and not self.evaluate.due(self.rounds, last=True):
            raise StudyError(
                "there is a stop rule, and nothing is evaluated",
                remedy="Set evaluation.every and evaluation.holdout, or leave `stop` out",
            )
        if self.stop and self.stop.metric not in names:
            raise StudyError(
                f"stop: the task has no metric {self.stop.metric!r}",
                remedy=did_you_mean(self.stop.metric, names),
            )
        methods: dict[str, Method] = {
            "moments": self.moments,
            "train": self.method,
            "evaluate": self.evaluate,
        }
        states = {name: m.init(self.setup, self.learner) for name, m in methods.items()}
        return self._enter(Progress(states={**states, "stages": State()}), "moments")

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
        if phase != "moments":
            encoding = self.encoding(progress)
            send |= {"encoding.mean": encoding.mean, "encoding.scale": encoding.scale}
        if phase == "evaluate":
            send["parameters"] = progress.parameters
            ask = replace(ask, fields=self.task.tallies())
        if ask.through == "update":
            announced = self.aggregation.announce(progress.states["stages"].values)
            send |= {f"announced.{name}": value for name, value in announced.items()}
        number = progress.round + (phase == "train")
        return replace(ask, work=phase, version=progress.version, round=number, send=Values(send))

    def permits(self, ask: Ask) -> bool:
        """Whether this course itself would ask so: in such a round, the same fields, through the
        same stages.

        A party asks this before it works, since the ask may come from somebody who would like to
        see more, or to have it without the clip.
        """
        if ask.work == "evaluate":
            due = self.evaluate.due(ask.round, last=ask.round == self.rounds)
            known = 0 < ask.round <= self.rounds
            return known and due and (ask.fields, ask.through) == (self.task.tallies(), "plain")
        rounds = {"moments": range(1), "train": range(1, self.rounds + 1)}
        if ask.round not in rounds.get(ask.work, ()):
            return False
        method = self._method(ask.work)
        state = method.init(self.setup, self.learner)
        for _ in range(2):
            wanted = method.ask(state)
            if wanted is None:
                return False
            if (ask.fields, ask.through) == (wanted.fields, wanted.through):
                return True
            if ask.work == "train":
                return False
            state = self.moments.halfway(state)
        return False

    def work(self, ask: Ask, at: At) -> Answer:
        """At the party: the work that the ask names, and its way through the party's side of the stages."""
        announced = _under(at.received, "announced.")
        kept = {
            k: v for k, v in at.received.items() if not k.startswith(("announced.", "encoding."))
        }
        mine = replace(at, received=Values(kept), memory=_under(at.memory, f"{ask.work}."))
        answer = self._method(ask.work).work(mine)
        memory = {f"{ask.work}.{name}": value for name, value in answer.memory.items()}
        if ask.through != "update":
            return replace(answer, memory=Values(memory))
        signals = self.signals(ask)
        contribution, stages = self.aggregation.encode(
            answer.contribution,
            announced,
            _under(at.memory, "stages."),
            signals,
            self._context(ask, at.party, signals[0]),
        )
        memory |= {f"stages.{name}": value for name, value in stages.items()}
        return Answer(contribution, Values(memory))

    def signals(self, ask: Ask) -> tuple[Signal, ...]:
        """What flows between the stages for this ask; the last one is what travels.

        Raises:
            PipelineError: if a stage refuses.
        """
        signal = Signal(ask.fields, weights=getattr(self.method, "weights", "examples"))
        if ask.through == "plain":
            return (signal,)
        return self.aggregation.bind(signal)

    def apply(self, progress: Progress, ask: Ask, total: Total) -> Progress:
        """The progress after an exchange; ``metrics`` are new if it was an evaluation.

        Raises:
            RunError: if the model is no longer finite.
        """
        states = dict(progress.states)
        if ask.through == "update":
            signals = self.signals(ask)
            total, stages = self.aggregation.decode(
                total,
                states["stages"].values,
                signals,
                self._context(ask, "", signals[0]),
            )
            states["stages"] = State(ask.round, stages)
        phase = progress.phase
        with np.errstate(over="ignore", invalid="ignore"):  # said below, once
            states[phase] = self._method(phase).apply(states[phase], ask, total)
        progress = replace(progress, version=progress.version + 1, states=states)
        if phase == "moments":
            return self._enter(progress, "moments")
        if phase == "evaluate":
            if not total.values.get("rows", 1):
                raise RunError(
                    "no party holds out a row, so there is nothing to evaluate on",
                    remedy="Raise evaluation.holdout, or leave evaluation out with every = 0",
                )
            return self._judge(progress, self.task.metrics(total.values))
        if not all(
            math.isfinite(x) for x in (progress.parameters.min(), progress.parameters.max())
        ):
            raise RunError(
                "the model is no longer finite",
                round=ask.round,
                remedy="Lower the learning rates, or add a clip to the aggregation",
            )
        due = self.evaluate.due(progress.round, last=progress.round >= self.rounds)
        return self._enter(progress, "evaluate" if due else "train")

    def encoding(self, progress: Progress) -> Encoding:
        """What turns a table into features, as far as the run knows it."""
        return self.moments.encoding(progress.states["moments"], self.setup)

    def _method(self, name: str) -> Method:
        methods: dict[str, Method] = {
            "moments": self.moments,
            "train": self.method,
            "evaluate": self.evaluate,
        }
        if name not in methods:
            raise StudyError(f"unknown work {name!r}", remedy=did_you_mean(name, methods))
        return methods[name]

    def _enter(self, progress: Progress, phase: Phase) -> Progress:
        """Go on with the phase, or with the next one if it has nothing left to ask."""
        if phase == "moments" and self.moments.ask(progress.states["moments"]) is None:
            phase = "train"
        if phase == "train" and progress.round >= self.rounds:
            return replace(progress, phase="done", reason=f"all {self.rounds} rounds were run")
        return replace(progress, phase=phase)

    def _judge(self, progress: Progress, metrics: Mapping[str, float]) -> Progress:
        progress = replace(progress, metrics=metrics)
        if self.stop is not None:
            stop, value = self.stop, metrics[self.stop.metric]
            improved = progress.best is None or stop.better(value, progress.best)
            progress = replace(
                progress,
                best=value if improved else progress.best,
                since=0 if improved else progress.since + 1,
            )
            if stop.target is not None and not stop.better(stop.target, value):
                reason = f"{stop.metric} reached {value:.4f}, the target is {stop.target:g}"
                return replace(progress, phase="done", reason=reason)
            if stop.patience is not None and progress.since >= stop.patience:
                reason = f"{stop.metric} has not improved for {stop.patience} evaluations"
                return replace(progress, phase="done", reason=reason)
        return self._enter(progress, "train")

    def _context(self, ask: Ask, party: str, signal: Signal) -> Context:
        return Context(self.setup.seed, ask.round, ask.version, party, signal)


def _under(values: Values, prefix: str) -> Values:
    return Values({k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)})
