"""A clip that follows a quantile of the norms (Andrew, Thakkar, McMahan and Ramaswamy 2021, arXiv 1905.03871)."""

import math
from dataclasses import replace
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.signal import Signal, joint_norms
from hansa.aggregation.stage import Context, Decoded, Encoded, Stage
from hansa.contribution import Contributions, Field, Total, Values
from hansa.errors import ConsentError, PipelineError

INSIDE = Field("inside", shape=(), low=-0.5, high=0.5, example=1.0)
"""Half one if the norm was within the clip, else minus that: around 0 a sum moves half as far as by 0 or 1."""
_LOGS = -69, 69  # of the smallest and the largest clip


class AdaptiveClip(Stage):
    """``x / max(C, |x|)``, all parameter-like fields jointly; the coordinator announces ``C`` for the round.

    After the sum that is multiplied by ``C``: lengths of later stages are in units of it, and stand still while
    it moves, ``C <- C exp(-lr (b - quantile))``; ``b`` is the fraction with ``|x| <= C``, with noise.

    Args:
        norm: the clip of round 1.
        quantile: the share of norms that is to be within the clip.
        lr: of the geometric steps.
        portion: of what the noise protects (the square of one over its multiplier), spent on the fraction: its
            noise multiplier is ``z / sqrt(portion)``, and the vectors' ``z / sqrt(1 - portion)`` (theorem 1)."""

    kind: ClassVar[str] = "adaptive-clip"
    whole_rounds: ClassVar[bool] = True
    norm: Annotated[float, Limits(ge=1e-29, le=1e29)] = 0.1
    quantile: Annotated[float, Limits(ge=0, le=1)] = 0.5
    lr: Annotated[float, Limits(gt=0, le=10)] = 0.2
    portion: Annotated[float, Limits(gt=0, lt=1)] = 0.01

    def bind(self, signal: Signal) -> Signal:
        """Real, single contributions in; a norm of 1 and one more field out."""
        self.needs(signal)
        if any(field.name == INSIDE.name for field in signal.wire):
            said = f"{self.kind}: there is a field named {INSIDE.name!r} already"
            raise PipelineError(said, remedy="Write only one such stage")
        fields = (replace(f, example=math.inf) if f.like else f for f in signal.fields)
        travel, portions = signal.travel and (*signal.travel, INSIDE), (*signal.portions, (INSIDE.name, self.portion))
        return replace(signal, fields=(*fields, INSIDE), travel=travel, norm=1.0, portions=portions)

    def announce(self, state: Values) -> Values:
        return Values({"norm": state.get("norm", np.asarray(self.norm))})

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        """Scaled, and whether within the clip; a ConsentError if that is not positive and finite."""
        clip = float(announced["norm"])
        if not 0 < clip < math.inf:
            said = f"a clip of {clip:g} is announced, where it has to be positive and finite"
            raise ConsentError(said, round=context.round, remedy="Ask the coordinator's operator what it runs")
        names, values = context.signal.carriers, dict(stack.values)
        norms = joint_norms([values[name] for name in names])
        factors = 1 / np.clip(norms, max(clip, 1e-30), None)
        with np.errstate(over="ignore", invalid="ignore"):  # of what the check refuses
            for name in names:
                x = values[name]
                values[name] = (x * factors.reshape(-1, *[1] * (x.ndim - 1))).astype(x.dtype)
        values[INSIDE.name] = np.where(norms <= clip, INSIDE.high, INSIDE.low)
        return stack.holding(values), memory

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """In the vectors' own unit again, and the clip of the next round."""
        values, clip = dict(total.values), float(self.announce(state)["norm"])
        if INSIDE.name not in values:  # nobody came
            return total, state
        fraction = float(values.pop(INSIDE.name)) + INSIDE.high
        values |= {name: values[name] * clip for name in context.signal.vectors}
        after = np.clip(math.log(clip) + self.lr * (self.quantile - fraction), *_LOGS)
        return replace(total, values=Values(values)), Values({"norm": np.exp(after)})
