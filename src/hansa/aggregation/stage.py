"""The contract of a stage, and the chain of them."""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Annotated, ClassVar, Literal, ParamSpec, TypeAlias, cast

import numpy as np

from hansa.aggregation.signal import Signal
from hansa.contribution import Algebra, Array, Contributions, Total, Values
from hansa.errors import PipelineError
from hansa.part import Catalogue, Part, Written

P = ParamSpec("P")
Encoded: TypeAlias = tuple[Contributions, Values]
"""What goes on to the next stage, and what parties are to remember, ``[k, ...]``."""
Decoded: TypeAlias = tuple[Total, Values]  # the total for the stage before, and the stage's next state
Reduced: TypeAlias = tuple[dict[str, Array], Values]  # a value for each field, and the next state


@dataclass(frozen=True)
class Context:
    """Where in which run a stage works, for keyed randomness and for errors."""

    seed: int  # the run's seed
    round: int  # number of the training round
    version: int  # number of the exchange
    parties: tuple[str, ...]  # whose contributions are encoded or opened; empty after the sum
    signal: Signal  # what the stage was bound to
    bound: Signal  # what it made of that
    secret: bytes = b""  # a key of whoever adds noise; empty in simulation, where noise comes from the seed


class Stage(Part):
    """One typed step, forward at the parties and back at the coordinator.

    A stage overrides what it needs; one that overrides nothing changes nothing. At the parties it sees
    stacks ``[k, *shape]``; a party that works alone is a stack of one."""

    protects: ClassVar[bool] = False  # whether it is there to hide something, so that a guarantee is worth reading
    whole_rounds: ClassVar[bool] = False  # whether all that it sums must answer the same ask, and no party twice

    def bind(self, signal: Signal) -> Signal:
        """What it does to the type of the values; a PipelineError with a remedy if it cannot hold."""
        return signal

    def needs(self, signal: Signal, form: Literal["any", "real", "whole"] = "real", vectors: bool = True) -> None:
        """Refuse (PipelineError) a signal without single contributions in that form: real numbers in some form,
        or whole ones that no codec has packed; parameter-like ones, if ``vectors`` are needed."""
        packed = signal.domain != "real" or (vectors and not signal.carriers)
        if signal.view != "party":
            reason, before = "works on single contributions, and only their sum exists here", "sums"
        elif vectors and not signal.vectors:
            reason, before = "has nothing to work on: the method sends no parameter-like field", ""
        elif form != "any" and packed:
            reason, before = "works on real numbers, and these are packed already", "rounds or packs"
        elif form == "whole" and signal.travel is not None:
            reason, before = "works on whole vectors, and these are packed already", "packs"
        else:
            return
        remedy = f"Put {self.kind} before the stage that {before}" if before else f"Leave {self.kind} out"
        raise PipelineError(f"{self.kind} {reason}", remedy=remedy)

    def announce(self, state: Values) -> Values:
        """What the parties must know this round, from the stage's state at the coordinator."""
        return Values()

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        """At the parties: the contributions for the next stage, and the parties' next memory, ``[k, ...]``."""
        return stack, memory

    def open(self, stack: Contributions, announced: Values, context: Context) -> Contributions:
        """At the coordinator, party by party and before the sum: the inverse of a codec's `encode`."""
        return stack

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """At the coordinator: the total for the stage before, and the stage's next state."""
        return total, state


class Reducer(Stage):
    """Robust aggregation in place of the weighted mean; every party counts the same."""

    def bind(self, signal: Signal) -> Signal:
        """Single contributions in, or sums over buckets of them; they are gathered, and no longer summed."""
        if signal.buckets and signal.view == "party":
            what, remedy = f"{self.kind} comes between bucket and its sums", f"Put secure-sum before {self.kind}"
            raise PipelineError(what, remedy=remedy)
        if signal.hidden and signal.view == "sum":
            what = f"{self.kind} compares contributions, and of all parties there is only one sum here"
            raise PipelineError(what, remedy="Put bucket(size=...) before secure-sum, which then makes several")
        self.needs(replace(signal, view="party") if signal.view == "buckets" else signal, "any")
        if not signal.linear:
            raise PipelineError(f"{self.kind} comes after another robust reducer", remedy="Write only one such stage")
        fields = tuple(replace(f, algebra=Algebra.GATHER) if f.name in signal.vectors else f for f in signal.fields)
        return replace(signal, fields=fields, linear=False)

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """What was gathered, reduced; a field that is a sum counts the mean-like value for everybody."""
        if not total.parties:
            return total, state
        summed = {f.name for f in context.signal.fields if f.algebra is Algebra.SUM}
        names = context.signal.vectors
        values, state = self.reduce({name: total.values[name].astype(np.float64) for name in names}, state, context)
        reduced = {n: values[n] * (len(total.parties) if n in summed else 1) for n in names}
        return replace(total, values=Values({**total.values, **reduced})), state

    @abstractmethod
    def reduce(self, arrays: dict[str, Array], state: Values, context: Context) -> Reduced:
        """One value ``[d]`` for each array ``[k, d]`` (float64), and the next state; a RunError if there are too
        few parties for what it promises."""


STAGES: Catalogue[Stage] = Catalogue("aggregation stage", Stage)
AnyStage = Annotated[Stage, STAGES]


class Aggregation(Written):
    """Stages in the order in which a party's contribution passes them; join them with ``>>``. The memory and the state
    of stage number ``i`` are kept under names that begin with ``i``."""

    stages: tuple[AnyStage, ...] = ()

    def __rshift__(self, after: "Aggregation") -> "Aggregation":
        return Aggregation(stages=(*self.stages, *after.stages))

    def bind(self, signal: Signal) -> tuple[Signal, ...]:
        """The signal before every stage and, last, after all of them; a PipelineError if one refuses."""
        signals = [signal]
        for stage in self.stages:
            signals.append(stage.bind(signals[-1]))
        return tuple(signals)

    def announce(self, state: Values) -> Values:
        """What all stages announce, each name with its stage's number before it."""
        return _merge([s.announce(state.under(str(i))) for i, s in enumerate(self.stages)])

    def encode(
        self, stack: Contributions, announced: Values, memory: Values, signals: Sequence[Signal], context: Context
    ) -> Encoded:
        """Forward through all stages, at the parties."""
        memories = []
        for i, stage in enumerate(self.stages):
            own, at = str(i), replace(context, signal=signals[i], bound=signals[i + 1])
            stack, kept = stage.encode(stack, announced.under(own), memory.under(own), at)
            memories.append(kept)
        return stack, _merge(memories)

    @property
    def protects(self) -> bool:
        """Whether a stage is there to hide something."""
        return any(stage.protects for stage in self.stages)

    @property
    def opens(self) -> bool:
        """Whether a stage does something to single contributions at the coordinator."""
        return any(type(stage).open is not Stage.open for stage in self.stages)

    def open(
        self, stack: Contributions, announced: Values, signals: Sequence[Signal], context: Context
    ) -> Contributions:
        """Back through the codecs, at the coordinator, party by party."""
        for i in reversed(range(len(self.stages))):
            at = replace(context, signal=signals[i], bound=signals[i + 1])
            stack = self.stages[i].open(stack, announced.under(str(i)), at)
        return stack

    def decode(self, total: Total, state: Values, signals: Sequence[Signal], context: Context) -> Decoded:
        """Back through all stages, at the coordinator, after the sum."""
        states: list[Values] = [Values()] * len(self.stages)
        for i in reversed(range(len(self.stages))):
            at = replace(context, signal=signals[i], bound=signals[i + 1])
            total, states[i] = self.stages[i].decode(total, state.under(str(i)), at)
        return total, _merge(states)


NO_STAGES = Aggregation()


def chain(stage: Callable[P, Stage]) -> Callable[P, Aggregation]:
    """A stage's public function: it makes a chain of one from the stage's keys; studies may then name the stage."""
    STAGES.register(cast(type[Stage], stage))

    @wraps(stage, updated=())
    def one(*args: P.args, **keys: P.kwargs) -> Aggregation:
        return Aggregation(stages=(stage(*args, **keys),))

    return one


def _merge(parts: Sequence[Values]) -> Values:
    return Values({k: v for i, part in enumerate(parts) for k, v in part.named(str(i)).items()})
