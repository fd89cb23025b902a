"""Noise: on the sum at the coordinator, or on each contribution before it leaves its party.

In simulation it is drawn from the run's seed, so that it repeats, on other rows too, and is worth as much as the
seed is secret and one run's. A coordinator or an agent draws it as integers from a key of its own, and from what
it is put on: the same numbers get the same noise however often they are sent, other numbers other noise."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import numpy as np
from blake3 import blake3
from pydantic import Field as Limits

from hansa import keyed
from hansa.aggregation.signal import Noised, Signal
from hansa.aggregation.stage import Context, Decoded, Encoded, Reduced, Stage
from hansa.contribution import Algebra, Array, Contributions, Total, Values
from hansa.errors import PipelineError
from hansa.privacy import events, noise

_ABSURD = 2.0**40  # a bound that is none: it is there to refuse nonsense


@dataclass(frozen=True)
class Group:
    """Fields that one unit moves by a bounded L2 norm, jointly."""

    names: tuple[str, ...]  # of the fields
    bound: float  # on the norm of what one unit adds to them
    size: int  # how many numbers they have
    portion: float = 1.0  # of what noise protects, spent on them: of the square of one over its multiplier


def groups(signal: Signal, kind: str) -> tuple[Group, ...]:
    """What one unit adds to a sum, at most; a PipelineError if that has no bound."""
    whole, sizes = signal.privacy.unit == "party", {f.name: f.size for f in signal.fields}
    found = []
    if signal.vectors:
        examples = [f.example for f in signal.fields if f.like == "parameters"]
        bound = signal.norm if whole else min(2 * signal.norm, math.hypot(*examples))
        found.append(Group(signal.vectors, bound, sum(sizes[n] for n in signal.vectors)))
    for field in signal.fields:
        if field.like != "parameters":
            largest = max(abs(field.low), abs(field.high)) * math.sqrt(sizes[field.name])
            found.append(Group((field.name,), largest if whole else field.example, sizes[field.name]))
    gathered = any(f.algebra is Algebra.GATHER for f in signal.fields)
    unbounded = [", ".join(group.names) for group in found if not group.bound < _ABSURD]
    reason = ""
    if not signal.linear or gathered:
        reason = "needs a sum, and what comes is robust or gathered: one party moves it without a bound"
        remedy = "Leave the robust reducer out, or the noise"
    elif signal.weights != "equal":
        reason = "needs a public weight of each party, and they weigh by their examples"
        remedy = 'Say method.weights = "equal"'
    elif unbounded:
        reason = f"needs a bound on what one {signal.privacy.unit} adds, and {'; '.join(unbounded)} has none"
        by_example = 'Say privacy.unit = "party", or clip each example\'s gradient, without a codec'
        remedy = f"Put clip(norm) before {kind}" if whole else by_example
    if reason:
        raise PipelineError(f"{kind} {reason}", remedy=remedy)
    own = dict(signal.portions)
    rest = (1 - sum(own.values())) / max(1, len(found) - len(own))
    return tuple(replace(group, portion=own.get(group.names[0], rest)) for group in found)


class Noise(Stage):
    """What mechanisms share.

    Args:
        noise_multiplier: the standard deviation of the noise (Laplace: its scale) over what one unit adds at
            most. Fields of different bounds are scaled to the same before, and so share it."""

    protects: ClassVar[bool] = True
    noise_multiplier: Annotated[float, Limits(ge=1e-3)]

    def spread(self, signal: Signal) -> dict[str, float]:
        """Standard deviation, or scale, of the noise on each field."""
        found = groups(signal, self.kind)
        spread = self.multiplier(signal, sum(group.size for group in found))
        return {name: spread * group.bound / math.sqrt(group.portion) for group in found for name in group.names}

    def multiplier(self, signal: Signal, size: int) -> float:
        """With which the rounding of so many numbers is paid for, too."""
        return noise.grown(self.noise_multiplier, size)


class Gaussian(Noise):
    """Normal noise on the sum, at the coordinator (Dwork et al. 2006; central differential privacy).

    It hides a unit from whoever sees only the models: not from the coordinator. The mean is over the expected
    number of parties, since how many came says something, too."""

    kind: ClassVar[str] = "gaussian"

    def bind(self, signal: Signal) -> Signal:
        """Bounded contributions in; behind it there are only sums."""
        if signal.linear:  # else `groups` says what is wrong
            self.needs(signal, "any", vectors=False)
        groups(signal, self.kind)
        event = self.release(signal, noise.FAILURE * sum(f.size for f in signal.fields))
        return replace(signal, view="sum", noise=(*signal.noise, Noised("coordinator", event, self.kind)))

    def release(self, signal: Signal, failure: float) -> events.Event:
        """The event of one round, whose noise strays with that chance."""
        return events.Gaussian(
            adjacency=signal.privacy.adjacency, noise_multiplier=self.noise_multiplier, failure=failure
        )

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """Noise on each sum, which is then divided by the expected number."""
        signal = context.signal
        expected = signal.among.expected if signal.among else max(1.0, total.weight)
        sums = {}
        for field in signal.fields:
            value = total.values.get(field.name, np.zeros(field.shape or ()))
            sums[field.name] = value * total.weight if field.algebra is Algebra.MEAN else value
        noised, state = self.added(sums, state, context)
        means = {f.name for f in signal.fields if f.algebra is Algebra.MEAN}
        values = {n: v / expected if n in means else v for n, v in noised.items()}
        return replace(total, values=Values(values), weight=expected), state

    def added(self, sums: Mapping[str, Array], state: Values, context: Context) -> Reduced:
        """The sums with noise, and the next state."""
        return _noised(sums, self.spread(context.signal), context, self.kind), state


class LocalGaussian(Noise):
    """Normal noise on each contribution, at its party (local differential privacy): against everybody."""

    kind: ClassVar[str] = "local-gaussian"
    event: ClassVar[type[events.Gaussian] | type[events.Laplace]] = events.Gaussian

    def bind(self, signal: Signal) -> Signal:
        """Bounded real contributions in; noisy ones out, whose norm nobody can check."""
        self.needs(signal, "whole", vectors=False)
        groups(signal, self.kind)
        failure = noise.FAILURE * sum(f.size for f in signal.fields)
        event = self.event(adjacency=signal.privacy.adjacency, noise_multiplier=self.noise_multiplier, failure=failure)
        fields = tuple(replace(f, low=-math.inf, high=math.inf) for f in signal.fields)
        noised = (*signal.noise, Noised("party", event, self.kind))
        return replace(signal, fields=fields, norm=math.inf, noise=noised)

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        spread, rows = self.spread(context.signal), []
        for i, party in enumerate(stack.parties):
            own = {name: value[i] for name, value in stack.values.items()}
            rows.append(_noised(own, spread, context, self.kind, party))
        values = {
            name: np.stack([row[name] for row in rows]).astype(value.dtype) for name, value in stack.values.items()
        }
        return stack.holding(values), memory


class LocalLaplace(LocalGaussian):
    """Laplace noise on each contribution, at its party: pure epsilon. Its scale is the L1 norm of what a unit
    adds, at most ``sqrt(d)`` times the L2 norm, times the noise multiplier (the scale is sensitivity / epsilon)."""

    kind: ClassVar[str] = "local-laplace"
    event = events.Laplace

    def spread(self, signal: Signal) -> dict[str, float]:
        found = groups(signal, self.kind)
        scale = noise.grown(self.noise_multiplier, sum(group.size for group in found) ** 2)  # in L1
        return {
            name: scale * math.sqrt(group.size) * group.bound / group.portion for group in found for name in group.names
        }


def _noised(
    values: Mapping[str, Array], spread: Mapping[str, float], context: Context, kind: str, party: str = ""
) -> dict[str, Array]:
    """The values with noise of that spread on each."""
    laplace, drawn = kind == LocalLaplace.kind, chance(context, kind, party, values)
    return {n: noise.noised(values[n], spread[n], drawn, laplace) for n in sorted(values)}


def chance(context: Context, kind: str, party: str, values: Mapping[str, Array]) -> noise.Chance:
    """Where a stage's noise or rounding of these values comes from: the seed, or the secret and the values."""
    if not context.secret:
        return keyed.generator(context.seed, "noise", kind, context.version, party)
    digest = blake3()
    for name in sorted(values):
        digest.update(name.encode() + b"\0" + np.ascontiguousarray(values[name]).tobytes())
    purpose = (kind, context.version, party, digest.hexdigest())
    return noise.Stream(noise.derived(context.secret, *purpose))
