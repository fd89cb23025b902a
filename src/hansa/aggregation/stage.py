"""The contract of a stage, and the chain of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator

from hansa.aggregation.signal import Signal
from hansa.contribution import Contribution, Total, Values
from hansa.part import Catalogue, Part


@dataclass(frozen=True)
class Context:
    """Where in which run a stage works, for keyed randomness and for errors.

    Args:
        seed: the run's seed.
        round: number of the training round.
        version: number of the exchange.
        party: who encodes; empty at the coordinator.
        signal: what the stage was bound to.
    """

    seed: int
    round: int
    version: int
    party: str
    signal: Signal


class Stage(Part):
    """One typed step, forward at the party and back at the coordinator.

    A stage overrides what it needs; one that overrides nothing changes nothing.
    """

    def bind(self, signal: Signal) -> Signal:
        """What it does to the type of the values.

        Raises:
            PipelineError: naming this stage, the reason and a remedy, if it cannot hold.
        """
        return signal

    def announce(self, state: Values) -> Values:
        """What the parties must know this round, from the stage's state at the coordinator."""
        return Values()

    def encode(
        self, contribution: Contribution, announced: Values, memory: Values, context: Context
    ) -> tuple[Contribution, Values]:
        """At the party: the contribution for the next stage, and the party's next memory."""
        return contribution, memory

    def decode(self, total: Total, state: Values, context: Context) -> tuple[Total, Values]:
        """At the coordinator: the total for the stage before, and the stage's next state."""
        return total, state


STAGES: Catalogue[Stage] = Catalogue(
    "aggregation stage", Stage, {"clip": "hansa.aggregation.clip:Clip"}
)
AnyStage = Annotated[
    Stage, PlainValidator(STAGES.build), PlainSerializer(STAGES.spec, return_type=dict[str, Any])
]


class Aggregation(BaseModel):
    """Stages in the order in which a party's contribution passes them; join them with ``>>``.

    The memory and the state of stage number ``i`` are kept under names that begin with ``i``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    stages: tuple[AnyStage, ...] = ()

    def __rshift__(self, after: Aggregation) -> Aggregation:
        return Aggregation(stages=(*self.stages, *after.stages))

    def bind(self, signal: Signal) -> tuple[Signal, ...]:
        """The signal before every stage and, last, after all of them.

        Raises:
            PipelineError: if a stage refuses.
        """
        signals = [signal]
        for stage in self.stages:
            signals.append(stage.bind(signals[-1]))
        return tuple(signals)

    def announce(self, state: Values) -> Values:
        """What all stages announce, each name with its stage's number before it."""
        return _merge([s.announce(state.under(str(i))) for i, s in enumerate(self.stages)])

    def encode(
        self,
        contribution: Contribution,
        announced: Values,
        memory: Values,
        signals: Sequence[Signal],
        context: Context,
    ) -> tuple[Contribution, Values]:
        """Forward through all stages, at the party."""
        memories = []
        for i, stage in enumerate(self.stages):
            contribution, kept = stage.encode(
                contribution,
                announced.under(str(i)),
                memory.under(str(i)),
                replace(context, signal=signals[i]),
            )
            memories.append(kept)
        return contribution, _merge(memories)

    def decode(
        self, total: Total, state: Values, signals: Sequence[Signal], context: Context
    ) -> tuple[Total, Values]:
        """Back through all stages, at the coordinator."""
        states: list[Values] = [Values()] * len(self.stages)
        for i in reversed(range(len(self.stages))):
            total, states[i] = self.stages[i].decode(
                total, state.under(str(i)), replace(context, signal=signals[i])
            )
        return total, _merge(states)


def _merge(parts: Sequence[Values]) -> Values:
    return Values({k: v for i, part in enumerate(parts) for k, v in part.named(str(i)).items()})
