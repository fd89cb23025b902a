"""What is known about the values between two stages."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hansa.contribution import WEIGHT_LIMIT, Array, Contribution, Contributions, Field, check
from hansa.errors import ContributionError
from hansa.privacy.claim import PARTY, Privacy
from hansa.privacy.events import Event
from hansa.secure.terms import Rules


def joint_norms(arrays: Sequence[Array]) -> Array:
    """The L2 norms ``[k]`` of all entries of each party, of arrays ``[k, ...]``, in float64 and without overflow."""
    flat = [array.reshape(len(array), -1) for array in arrays]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        norms: Array = np.sqrt(np.asarray(sum(_squared(rows) for rows in flat)))
    single = any(rows.dtype == np.float32 for rows in flat)
    low, high = (1e-13, 1e15) if single else (1e-140, 1e140)
    for i in np.flatnonzero(~((norms > low) & (norms < high))):  # squares left the range
        largest = max(float(np.abs(rows[i]).max(initial=0.0)) for rows in flat)
        if largest and math.isfinite(largest):
            parts = (rows[i].astype(np.float64) / largest for rows in flat)
            norms[i] = largest * math.sqrt(sum(float(np.square(part).sum()) for part in parts))
    return norms


def _squared(rows: Array) -> Array:
    """Sums of squares ``[k]`` of rows ``[k, d]`` in float64; of float32, in runs so short that their own sums
    do not lose what 1e-6 of the norm would notice."""
    if rows.dtype != np.float32:
        rows = rows.astype(np.float64, copy=False)
        return np.asarray(np.vecdot(rows, rows))
    whole = rows.shape[1] // _RUN * _RUN
    runs, rest = rows[:, :whole].reshape(len(rows), -1, _RUN), rows[:, whole:].astype(np.float64)
    return np.asarray(np.vecdot(runs, runs).sum(axis=1, dtype=np.float64) + np.vecdot(rest, rest))


_RUN = 512


@dataclass(frozen=True)
class Among:
    """How many parties are in one sum: public numbers."""

    most: int  # at most
    expected: float  # the denominator of a mean behind a claim
    honest: int  # at least so many that keep to the protocol, and whose shares of noise count
    colluding: int = 0  # as many as may collude

    def all_of(self, parties: int) -> "Among":
        """The same where so many are asked, whoever is drawn for training."""
        return replace(self, most=parties, expected=float(parties))


@dataclass(frozen=True)
class Buckets:
    """How the parties of a round are dealt into several sums."""

    size: int  # of one at least; it is never twice as large
    stay: int  # as many of ``size`` must stay to the end, or a bucket's sum is not opened
    most: float = math.inf  # in a round
    least: int = 1  # sums without which a round fails

    def rules(self, whole: Rules) -> Rules:
        """What parties hold a bucket's sum to, from what they would hold the sum of all to."""
        stay, size = self.stay, self.size
        return replace(whole, dropout=1 - stay / size, honest=stay - whole.corrupt - 1, bucket=size)


@dataclass(frozen=True)
class Schedule:
    """How often something is summed, at most; a party's sums lie ``period`` apart, or a multiple of that."""

    rounds: int = 1
    period: int = 1


ONCE = Schedule()


@dataclass(frozen=True)
class Noised:
    """Noise that a stage adds."""

    # at each ``"party"``, in ``"shares"`` that count together, or at the ``"coordinator"``
    where: Literal["party", "shares", "coordinator"]
    event: Event  # what its release costs once, without sampling; a matrix mechanism's, what all of them cost
    stage: str  # the kind of the stage


@dataclass(frozen=True)
class Signal:
    """The type of what flows through a pipeline; a stage maps one to the next or refuses.

    Args:
        fields: the declared fields, shapes bound.
        view: ``"party"`` while single contributions exist, ``"sum"`` once only their sum does, ``"buckets"`` once
            only sums over buckets of parties do.
        domain: ``"real"``, ``"integer"``, or the modulus of an integer ring.
        norm: bound on the joint L2 norm of the parameter-like fields of one party; infinite if none.
        weights: ``"examples"`` if a party's weight depends on its data, ``"equal"`` if it is public.
        linear: whether the aggregate is still a linear function of the contributions.
        noise: what stages add.
        travel: what travels in place of the fields once a codec has packed them; see `wire`.
        mixed: the stage after which an entry of a vector is no longer the same parameter at every party.
        privacy: what is to be protected.
        among: how many parties are in one sum; None while that is not known.
        apart: on the grid, bound on the L2 norm of what one unit adds, whose ``norm`` is a party's.
        reach: on the grid, how large a sum with noise may be, but for a negligible chance; 0 without noise.
        hidden: whether nobody, the coordinator included, sees a single contribution.
        portions: fields that take a part of their own of what noise protects; the others share the rest evenly.
        schedule: how often this is summed.
        buckets: how parties are dealt into several sums, if they are; ``among`` is then of one."""

    fields: tuple[Field, ...]
    view: Literal["party", "buckets", "sum"] = "party"
    domain: Literal["real", "integer"] | int = "real"
    norm: float = math.inf
    weights: Literal["examples", "equal"] = "examples"
    linear: bool = True
    noise: tuple[Noised, ...] = ()
    travel: tuple[Field, ...] | None = None
    mixed: str = ""
    privacy: Privacy = PARTY
    among: Among | None = None
    apart: float = math.inf
    reach: float = 0.0
    hidden: bool = False
    portions: tuple[tuple[str, float], ...] = ()
    schedule: Schedule = ONCE
    buckets: Buckets | None = None

    @property
    def wire(self) -> tuple[Field, ...]:
        """The fields in the form in which they travel."""
        return self.fields if self.travel is None else self.travel

    @property
    def carriers(self) -> tuple[str, ...]:
        """Names of the parameter-like fields in that form; together they have the norm of the vectors."""
        return tuple(field.name for field in self.wire if field.like == "parameters")

    @property
    def nbytes(self) -> int:
        """The bytes of one party's values as they travel."""
        return sum(np.dtype(f.dtype).itemsize * f.size for f in self.wire)

    def check(self, contribution: Contribution, opened: bool = False) -> None:
        """Refuse what arrives, or is about to leave, if it breaks what its party's stages promise; a
        ContributionError if it is not what was declared, if its joint norm is above the bound, or if its weight
        is not 1 where all count the same. The same of what a codec has ``opened``."""
        check(contribution, self.fields if opened else self.wire)
        weight = contribution.weight
        if self.weights == "equal" and weight != 1:
            raise ContributionError(f"the weight is {weight:g} where all count the same")
        if self.vectors and math.isfinite(self.norm) and (opened or self.travel is None):
            norm = joint_norms([contribution.values[name][None] for name in self.vectors])[0]
            if norm > self.norm * (1 + self._rounding):
                raise ContributionError(f"the norm is {norm:g} where at most {self.norm:g} is allowed")

    def faults(self, stack: Contributions, opened: bool = False) -> dict[int, ContributionError]:
        """What `check` would refuse, by position in the stack; most of a stack is found to be fine at once."""
        fields = self.fields if opened else self.wire
        fine = np.full(len(stack.parties), set(stack.values) == {f.name for f in fields})
        fine &= (stack.weights == 1) if self.weights == "equal" else True
        fine &= (stack.weights > 0) & (stack.weights <= WEIGHT_LIMIT)
        for declared in fields if fine.any() else ():
            fine &= _surely_fine(stack.values[declared.name], declared)
        if self.vectors and math.isfinite(self.norm) and (opened or self.travel is None) and fine.any():
            fine &= joint_norms([stack.values[name] for name in self.vectors]) <= self.norm * (1 + self._rounding)
        faults = {}
        for position in np.flatnonzero(~fine).tolist():
            try:
                self.check(stack.one(position), opened)
            except ContributionError as error:
                faults[position] = error
        return faults

    @property
    def _rounding(self) -> float:
        """A party's rounding is not ours."""
        single = any(f.dtype == "float32" for f in self.fields if f.like == "parameters")
        return 1e-6 if single else 1e-9

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the parameter-like fields, which stages treat jointly."""
        return tuple(field.name for field in self.fields if field.like == "parameters")


def _surely_fine(values: Array, declared: Field) -> Array | bool:
    """Which of a stack's values, ``[k, *shape]``, need no closer look."""
    if values.shape[1:] != declared.shape or values.dtype != declared.dtype:
        return False
    if not values.size:
        return True
    flat = values.reshape(len(values), -1)
    fine: Array | bool = True
    if values.dtype.kind == "f":  # a NaN, an infinity, or a huge entry makes the square no number
        with np.errstate(over="ignore", invalid="ignore"):
            fine = np.isfinite(np.vecdot(flat, flat))
    if values.dtype.kind == "u" and declared.low <= 0 and declared.high >= np.iinfo(values.dtype).max:
        return True  # nothing else can be said in this dtype
    if math.isfinite(declared.low):
        fine = fine & (flat.min(axis=1) >= declared.low)
    if math.isfinite(declared.high):
        fine = fine & (flat.max(axis=1) <= declared.high)
    return fine
