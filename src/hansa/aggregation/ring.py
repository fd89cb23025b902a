"""Integers that add up: a public grid, noise in shares on it, and sums of which nobody sees a part.

``clip >> rotate >> grid >> skellam >> secure_sum`` is the distributed mechanism of Agarwal, Kairouz and Liu 2021
(arXiv 2110.04995), and with ``discrete_gaussian`` that of Kairouz, Liu and Steinke 2021 (arXiv 2102.06387)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.noise import chance, groups
from hansa.aggregation.signal import Buckets, Noised, Signal
from hansa.aggregation.stage import Context, Decoded, Encoded, Stage
from hansa.contribution import Algebra, Array, Ask, Contributions, Field, Total, Values
from hansa.errors import PipelineError
from hansa.privacy import events, mechanisms, noise
from hansa.secure.terms import Work

BETA = math.exp(-0.5)  # the chance with which rounding is drawn again; it buys a smaller norm
OVERFLOW = 2.0**-40
"""The chance that noise takes any sum of a round out of the ring: it is then wrong, and no less private."""


class Grid(Stage):
    """Round each field onto a public grid, up or down at random, so that the mean error is 0.

    A field, or all parameter-like ones together, is divided by the bound on what one party adds, so that its
    norm is at most 1, and the step is ``2^-bits``. Rounding makes the norm larger; it is drawn again while it
    exceeds a bound that it stays below with chance ``1 - exp(-1/2)`` at least, and noise is calibrated to that.
    Where examples are protected, the bound is on what one of them adds, and a party has several.

    Args:
        bits: the step is one over this power of two.
        examples: so many may be in one party's sums, if examples are protected; more are scaled down."""

    kind: ClassVar[str] = "grid"
    whole_rounds: ClassVar[bool] = True  # its whole numbers cannot count in part, as late ones would
    bits: Annotated[int, Limits(ge=1, le=24)] = 16
    examples: Annotated[int, Limits(ge=1)] | None = None

    def bind(self, signal: Signal) -> Signal:
        """Bounded real fields in, integers that are summed out."""
        self.needs(signal, "whole", vectors=False)
        found = groups(signal, self.kind)
        size = sum(group.size for group in found)
        one = 2**self.bits / math.sqrt(max(group.portion for group in found))
        if signal.privacy.unit == "party":
            l2 = apart = mechanisms.rounded_norms(one, size, BETA)[0]
        elif self.examples is None:
            remedy = "Say grid(examples=...), above the number of rows of any party"
            raise PipelineError(f"{self.kind} does not know how many examples a party may sum", remedy=remedy)
        else:  # a party's sums, and how far one more example takes them, with the same roundings
            l2 = self.examples * one + math.sqrt(size)
            apart = mechanisms.rounded_norms(one, size, 0)[0]
        fields = tuple(_integer(f, math.ceil(l2), "int32") for f in signal.fields)
        return replace(signal, fields=fields, norm=l2, apart=apart, domain="integer")

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        """Round, party by party."""
        rows = []
        for i, party in enumerate(stack.parties):
            own = {name: value[i].astype(np.float64) for name, value in stack.values.items()}
            rows.append(self._rounded(own, party, context))
        return stack.holding({n: np.stack([row[n] for row in rows]) for n in rows[0]}), memory

    def _rounded(self, own: dict[str, Array], party: str, context: Context) -> dict[str, Array]:
        steps = self._steps(context.signal)
        if self.examples is not None:
            for group in groups(context.signal, self.kind):
                length = math.hypot(*(float(np.linalg.norm(own[name])) for name in group.names))
                factor = min(1.0, self.examples * group.bound / max(length, group.bound))
                own |= {name: own[name] * factor for name in group.names}
        drawing = chance(context, self.kind, party, own)
        for _ in range(1000):
            rounded, square = {}, 0.0
            for name in sorted(own):
                exact = own[name] / steps[name]
                drawn = np.floor(exact + noise.uniform(drawing, exact.shape))
                square += float(np.square(drawn).sum())
                rounded[name] = drawn
            if not square > context.bound.norm**2:  # a NaN passes, and is refused by the check
                break
        with np.errstate(invalid="ignore"):
            return {name: value.astype(np.int32) for name, value in rounded.items()}

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """The sums in their own unit; means are over the expected number of parties."""
        signal, steps = context.signal, self._steps(context.signal)
        expected = signal.among.expected if signal.among else max(1.0, total.weight)
        values = {}
        for field in signal.fields:
            summed = total.values.get(field.name, np.zeros(field.shape or ())) * steps[field.name]
            values[field.name] = summed / expected if field.algebra is Algebra.MEAN else summed
        return replace(total, values=Values(values), weight=expected), state

    def _steps(self, signal: Signal) -> dict[str, float]:
        found = groups(signal, self.kind)
        most = max(group.portion for group in found)
        return {n: g.bound * math.sqrt(most / g.portion) / 2**self.bits for g in found for n in g.names}


class Shares(Stage):
    """Integer noise, of which each party adds its share; those of the honest ones that surely stay to the end
    are enough for the claim.

    Args:
        noise_multiplier: standard deviation of the noise of the honest over what one unit adds at most."""

    event: ClassVar[type[events.Skellam]]
    protects: ClassVar[bool] = True
    noise_multiplier: Annotated[float, Limits(ge=1e-3)]

    def bind(self, signal: Signal) -> Signal:
        """Integers in and out; their norm is no longer bounded, but very likely."""
        if signal.domain != "integer" or signal.view != "party":
            remedy = f"Put grid(bits) before {self.kind}"
            raise PipelineError(f"{self.kind} adds integers, and what comes is not on a grid", remedy=remedy)
        if signal.noise:
            raise PipelineError(f"{self.kind} comes after other noise", remedy="Write one of them")
        size = sum(f.size for f in signal.fields)
        honest = signal.among.honest if signal.among else 1
        if honest < 1:
            remedy = "Raise cohort.minimum above adversary.colluding"
            raise PipelineError(f"{self.kind}: no party's noise is sure to count", remedy=remedy)
        variance, l2, failure = self.variance(signal), signal.apart, min(0.5, noise.FAILURE * size * honest)
        l1, near = l2 * min(math.sqrt(size), l2), signal.privacy.adjacency
        more: dict[str, Any] = {"shares": honest, "dimension": size, "failure": failure}
        event = self.event(adjacency=near, variance=variance, l2=l2, l1=l1, **more)
        most = signal.among.most if signal.among else 1
        tail = math.sqrt(2 * most * variance * math.log(2 * size / OVERFLOW))
        fields = tuple(_integer(f, 2**31 - 1, "int32") for f in signal.fields)
        noised = (*signal.noise, Noised("shares", event, self.kind))
        return replace(signal, fields=fields, norm=math.inf, reach=most * signal.norm + tail, noise=noised)

    def variance(self, signal: Signal) -> float:
        """Of one share."""
        honest = signal.among.honest if signal.among else 1
        return (self.noise_multiplier * signal.apart) ** 2 / honest

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        variance = self.variance(context.signal)
        values = {name: value.astype(np.int64) for name, value in stack.values.items()}
        for i, party in enumerate(stack.parties):
            drawing = chance(context, self.kind, party, {n: v[i] for n, v in values.items()})
            for name in sorted(values):
                values[name][i] += self._drawn(variance, values[name][i].shape, drawing)
        # What leaves the ring comes in again at its other end, which the sum does anyway: no claim suffers.
        return stack.holding({name: v.astype(np.int32) for name, v in values.items()}), memory

    def _drawn(self, variance: float, shape: Any, drawing: noise.Chance) -> Array:
        count = math.prod(shape)
        if not isinstance(drawing, noise.Stream):
            if self.kind == "skellam":
                pair = drawing.poisson(variance / 2, (2, count))
                return np.asarray(pair[0] - pair[1]).reshape(shape)
            drawing = noise.Stream(drawing.bytes(32))
        skellam = self.kind == "skellam"
        table = noise.skellam(variance) if skellam else noise.discrete_gaussian(math.sqrt(variance))
        return table.draw(drawing, count).reshape(shape)


class Skellam(Shares):
    """The difference of two Poisson variables: sums of shares are of the same kind (Agarwal et al. 2021)."""

    kind: ClassVar[str] = "skellam"
    event = events.Skellam


class DiscreteGaussian(Shares):
    """Normal noise on the integers: sums of shares are nearly so (Kairouz, Liu and Steinke 2021)."""

    kind: ClassVar[str] = "discrete-gaussian"
    event = events.DiscreteGaussian


class Bucket(Stage):
    """Deal the parties of a round into buckets, so that `SecureSum` makes a sum of each, for robust stages after it.

    The coordinator sees what a bucket adds up to. A party that cheats spoils one bucket, wherever it is dealt.

    Args:
        size: parties in a bucket at least; it is never twice as large, and no two differ by more than one.
        minimum: as many of ``size`` must stay to the end, or the bucket is left out; all if None."""

    kind: ClassVar[str] = "bucket"
    whole_rounds: ClassVar[bool] = True
    size: Annotated[int, Limits(ge=2)]
    minimum: Annotated[int, Limits(ge=2)] | None = None

    def bind(self, signal: Signal) -> Signal:
        self.needs(signal, "any", vectors=False)
        size, stay, among, what = self.size, self.minimum or self.size, signal.among, ""
        colluding = among.colluding if among else 0
        fewest = max((size + colluding) // 2 + 1, colluding + 2)  # enough to sign, and two who hide each other
        if signal.buckets or not signal.linear:
            what, remedy = "comes after another one, or after a robust stage", "Leave it out"
        elif shares := [noised.stage for noised in signal.noise if noised.where == "shares"]:
            what, remedy = f"comes after {shares[0]}, whose noise is for one sum", f"Put bucket before {shares[0]}"
        elif not fewest <= stay <= size:
            what = f"opens a sum of {stay} of {size} parties, of whom {colluding} may collude"
            remedy = f"Let minimum be {fewest} or more, and size no smaller"
        if what:
            raise PipelineError(f"{self.kind} {what}", remedy=remedy)
        buckets = Buckets(size, stay, among.most // size if among else math.inf, 2 * colluding + 1)
        one = among and replace(among, most=min(among.most, 2 * size - 1), honest=stay - colluding)
        return replace(signal, buckets=buckets, among=one)


class SecureSum(Stage):
    """Only the sum leaves the parties: numbers modulo ``2^32`` under masks that cancel (Bonawitz et al. 2017).

    A simulation computes the same sum without the masks.

    Args:
        threshold: share of the cohort without which a round fails, above one half."""

    kind: ClassVar[str] = "secure-sum"
    protects: ClassVar[bool] = True
    whole_rounds: ClassVar[bool] = True
    threshold: Annotated[float, Limits(gt=0.5, le=1)] = 0.7

    def bind(self, signal: Signal) -> Signal:
        """Bounded integers in; behind it there are only sums, modulo ``2^32``."""
        if signal.domain != "integer" or signal.view != "party":
            what = f"{self.kind} adds whole numbers under masks, and what comes is not on a grid"
            raise PipelineError(what, remedy=f"Put clip(norm) >> grid(bits) before {self.kind}")
        most = signal.among.most if signal.among else 1
        largest = signal.reach or most * signal.norm
        if largest >= 2**31:
            remedy = f"Lower the grid's bits by {max(1, math.ceil(math.log2(largest / 2**31)))}, or the noise"
            what = f"the sum of {most} parties may be as large as {largest:.3g}, and the ring ends at 2^31"
            raise PipelineError(f"{self.kind}: {what}", remedy=remedy)
        fields = tuple(_integer(f, 2**32 - 1, "uint32") for f in signal.fields)
        view: Any = "buckets" if signal.buckets else "sum"
        return replace(signal, fields=fields, norm=math.inf, view=view, domain=2**32, hidden=True)

    def encode(self, stack: Contributions, announced: Values, memory: Values, context: Context) -> Encoded:
        return stack.holding({n: v.view(np.uint32) for n, v in stack.values.items()}), memory

    def decode(self, total: Total, state: Values, context: Context) -> Decoded:
        """Out of it: from ``[0, 2^32)`` to ``[-2^31, 2^31)``."""
        if context.signal.buckets:  # `pooled` has done so, bucket by bucket
            return total, state
        return replace(total, values=Values({n: _signed(summed) for n, summed in total.values.items()})), state


def sitting(ask: Ask, signal: Signal) -> Work:
    """What a party gives its vector for: this ask, whose answer the hidden ``signal`` declares."""
    length = sum(field.size for field in signal.fields)
    return Work(ask.round, bytes.fromhex(ask.digest), length)


def masked(work: Work) -> Signal:
    """What travels of a party's answer to it: one vector under masks."""
    field = Field("masked", shape=(work.length,), dtype="uint32", algebra=Algebra.SUM, low=0.0, high=2**32 - 1)
    return Signal((field,), weights="equal")


def joined(values: Mapping[str, Array], fields: Sequence[Field]) -> Array:
    """The declared fields as one vector, ``[d]``."""
    return np.concatenate([values[field.name].reshape(-1) for field in fields])


def parted(vector: Array, fields: Sequence[Field]) -> Values:
    """The inverse of `joined`, of a sum, in float64."""
    cuts = np.cumsum([field.size for field in fields])[:-1]
    parts = zip(fields, np.split(vector.astype(np.float64), cuts), strict=True)
    return Values({field.name: part.reshape(field.shape or ()) for field, part in parts})


def pooled(sums: Mapping[tuple[str, ...], Values], signal: Signal, ask: Ask, population: int) -> Total:
    """What sums under masks, by who is in each, make together: of buckets the mean of each for a robust stage that
    gathers them, ``[buckets, d]``, and else their sum."""
    inside, values = {name for names in sums for name in names}, {}
    parties = tuple(name for name in ask.parties if name in inside)
    for field in signal.fields if sums else ():
        each = [_signed(own[field.name]) for own in sums.values()]
        means = [value / len(names) for value, names in zip(each, sums, strict=True)]
        values[field.name] = np.stack(means) if field.algebra is Algebra.GATHER else np.sum(each, axis=0)
    return Total(Values(values), parties, population, float(len(parties)), tuple(sums) if signal.buckets else ())


def _signed(summed: Array) -> Array:
    residue = np.asarray(summed).astype(np.int64) % 2**32
    return np.where(residue >= 2**31, residue - 2**32, residue).astype(np.float64)


def _integer(field: Field, most: int, dtype: Any) -> Field:
    low = 0.0 if dtype == "uint32" else -float(most)
    return replace(field, dtype=dtype, algebra=Algebra.SUM, low=low, high=float(most))
