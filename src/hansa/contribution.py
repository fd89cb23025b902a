"""What leaves a party: named, declared, bounded arrays and nothing else.

A method declares `Field`s. A party answers an `Ask` with a `Contribution` whose fields are exactly the declared ones;
`check` is what both sides call before they send and before they believe. Parameter-like values are flat vectors in the
learner's layout, so that a method's arithmetic, a clip, a codec or a mask is the same for every model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from hansa import tensors
from hansa.errors import ContributionError, StudyError

Array: TypeAlias = NDArray[Any]
Json: TypeAlias = Any  # a JSON value. A recursive alias would ask for casts wherever a list or dict is built

Dtype = Literal["float64", "float32", "uint8", "uint16", "uint32", "int8", "int32"]

WEIGHT_LIMIT = float(2**40)  # no party has more examples than this; a larger weight is absurd and is refused

VALUE_LIMIT = float(2**900)  # nor a larger value: no sum of as many of them, times their weights, overflows


class Algebra(StrEnum):
    """How the parties' values of one field become the value that the method gets."""

    SUM = "sum"
    MEAN = "mean"  # weighted by the contributions' weights
    GATHER = "gather"  # stacked in the order of the roster, shape ``[parties, *shape]``


class Values(Mapping[str, Array]):
    """An immutable mapping of names to read-only arrays; ``values.update`` is ``values["update"]``."""

    __slots__ = ("_arrays",)
    _arrays: dict[str, Array]

    def __init__(self, arrays: Mapping[str, Array] | None = None) -> None:
        views = {name: np.asarray(array).view() for name, array in (arrays or {}).items()}
        for view in views.values():
            view.setflags(write=False)
        object.__setattr__(self, "_arrays", views)

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getattr__(self, name: str) -> Array:
        if name.startswith("_"):  # a copy asks for its own attributes before it has any
            raise AttributeError(name)
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no value named {name!r}; there are {sorted(self)}") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("Values do not change")

    def __reduce__(self) -> tuple[type[Values], tuple[dict[str, Array]]]:
        return Values, (self._arrays,)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {value.dtype}{list(value.shape)}" for name, value in self.items())
        return f"Values({shapes})"

    def under(self, prefix: str) -> Values:
        """Those whose names begin with ``prefix``, without it; the inverse of `named`."""
        if not self._arrays:
            return self
        begin = f"{prefix}."
        return Values({k.removeprefix(begin): v for k, v in self.items() if k.startswith(begin)})

    def named(self, prefix: str) -> dict[str, Array]:
        """All of them, with ``prefix`` and a dot before each name."""
        return {f"{prefix}.{name}": value for name, value in self.items()}

    @property
    def nbytes(self) -> int:
        """The size of all arrays, in bytes."""
        return sum(array.nbytes for array in self.values())


class Rows(Mapping[str, Values]):
    """What the parties of a stack remember, by name: arrays ``[k, *shape]``, whose row ``i`` is that of party ``i``."""

    def __init__(self, parties: Sequence[str], arrays: Mapping[str, Array]) -> None:
        self.parties, self.arrays = parties, arrays
        self._places = {party: place for place, party in enumerate(parties)}

    def __getitem__(self, party: str) -> Values:
        place = self._places[party]
        return Values({name: array[place] for name, array in self.arrays.items()})

    def __iter__(self) -> Iterator[str]:
        return iter(self.parties)

    def __len__(self) -> int:
        return len(self.parties)


@dataclass(frozen=True)
class Field:
    """One declared value that may leave a party.

    Args:
        name: how methods call it.
        like: ``"parameters"`` if its shape is the model's; `Field.bind` then fills in ``shape``.
        shape: its shape, once known.
        dtype: ``"float64"`` or ``"float32"``, or an integer type if a codec made it.
        algebra: how the parties' values become one.
        low, high: the declared range of every entry; the contribution is refused outside it.
        example: what one example adds to it at most, in L2 norm; infinite if there is no bound.
        secrecy: ``"party"`` if one party's value says something about its data (nearly always),
            ``"public"`` if it may be seen by everyone."""

    name: str
    like: Literal["", "parameters"] = ""
    shape: tuple[int, ...] | None = None
    dtype: Dtype = "float64"
    algebra: Algebra = Algebra.MEAN
    low: float = -math.inf
    high: float = math.inf
    example: float = math.inf
    secrecy: Literal["party", "public"] = "party"

    def bind(self, size: int, dtype: Dtype = "float64") -> Field:
        """The field with its shape known, for a model of ``size`` parameters of that type."""
        if self.like == "parameters":
            return replace(self, shape=self.shape or (size,), dtype=dtype)
        if self.shape is None:
            remedy = 'Declare shape=(...) or like="parameters"'
            raise StudyError(f"field {self.name!r} has neither a shape nor likeness", remedy=remedy)
        return self

    @property
    def size(self) -> int:
        """How many numbers it has, once its shape is known."""
        return math.prod(self.shape or ())

    def to_json(self) -> dict[str, Json]:
        """A canonical form: infinities are left out."""
        body = {**vars(self), "shape": list(self.shape or ()), "algebra": self.algebra.value}
        return {key: value for key, value in body.items() if value not in (math.inf, -math.inf)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Field:
        """The inverse of `to_json`."""
        return cls(**{**body, "shape": tuple(body["shape"]), "algebra": Algebra(body["algebra"])})


@dataclass(frozen=True, eq=False)
class Contribution:
    """What one party answers to one ask: an array for every declared field, and what it counts for in a mean, above
    0."""

    values: Values
    weight: float = 1.0


@dataclass(frozen=True, eq=False)
class Contributions:
    """What several parties answer to one ask: a stack."""

    parties: tuple[str, ...] = ()  # their names; nobody's unless said
    values: Values = field(default_factory=Values)  # one array ``[parties, *shape]`` for every declared field
    weights: Array = field(default_factory=lambda: np.empty(0))  # what each counts for, float64 ``[parties]``

    @classmethod
    def of(cls, party: str, contribution: Contribution) -> Contributions:
        """A stack of one, without a copy."""
        values = Values({name: value[None] for name, value in contribution.values.items()})
        return cls((party,), values, np.asarray([contribution.weight], dtype=np.float64))

    def one(self, position: int) -> Contribution:
        """One party's, without a copy."""
        values = Values({name: value[position] for name, value in self.values.items()})
        return Contribution(values, float(self.weights[position]))

    def take(self, positions: Sequence[int]) -> Contributions:
        """Those of the parties at these positions."""
        chosen = np.asarray(positions, dtype=np.intp)
        values = Values({name: value[chosen] for name, value in self.values.items()})
        return Contributions(tuple(self.parties[i] for i in positions), values, self.weights[chosen])

    def holding(self, values: Mapping[str, Array]) -> Contributions:
        """The same parties and weights with other values."""
        return replace(self, values=Values(values))


@dataclass(frozen=True, eq=False)
class Total:
    """What the method gets: the parties' contributions, aggregated."""

    values: Values  # one array for every declared field
    parties: tuple[str, ...]  # names of the parties that were counted, in roster order
    population: int  # how many parties take part in the run, counted this time or not
    weight: float  # sum of the weights of the counted
    buckets: tuple[tuple[str, ...], ...] = ()  # who of them was summed with whom, if that was seen of several sums


_PLAIN = ("work", "version", "round", "through")  # what JSON says of an ask as it is


@dataclass(frozen=True)
class Ask:
    """One logical exchange: what is sent to the parties, and what may come back. Asks are hashable by content
    (`digest`), so that a repeated ask is known as the same one."""

    work: str  # name of the work that a party does, a key of the federation's methods
    version: int  # how many exchanges were applied before this one; it numbers the asks of a run
    round: int  # number of the training round it belongs to, from 1; 0 before the first
    send: Values  # what the parties receive
    fields: tuple[Field, ...]  # what they may answer, shapes bound
    # which of the federation's chains the answer goes through: ``"update"`` for the study's aggregation,
    # ``"statistics"`` for its statistics, ``"plain"`` for none
    through: Literal["update", "plain", "statistics"] = "plain"
    parties: tuple[str, ...] = ()  # who is asked, in roster order; empty until the cohort has been drawn
    among: int = 0  # of an open study: how many of its roster, which only grows, took part in the run by then

    @property
    def place(self) -> dict[str, Json]:
        """Which exchange of its run it is, as events say it."""
        return {"version": self.version, "work": self.work, "round": self.round}

    def header(self) -> dict[str, Json]:
        """Everything but the arrays, as canonical JSON values."""
        parts = {"fields": [declared.to_json() for declared in self.fields], "parties": list(self.parties)}
        plain = (*_PLAIN, "among") if self.among else _PLAIN
        return {name: getattr(self, name) for name in plain} | parts

    @classmethod
    def from_header(cls, header: Mapping[str, Any], send: Values, sent: bytes = b"") -> Ask:
        """The inverse of `header`, with the arrays beside it, and what they hashed to on their way if that is known."""
        fields = tuple(Field.from_json(body) for body in header["fields"])
        plain = {name: header[name] for name in (*_PLAIN, "among") if name in header}
        ask = cls(**plain, send=send, fields=fields, parties=tuple(header["parties"]))
        vars(ask).update({"sent": sent} if sent else {})
        return ask

    @cached_property
    def sent(self) -> bytes:
        """BLAKE3 of the arrays as they travel."""
        return tensors.digest(*tensors.pieces(self.send))

    @cached_property
    def digest(self) -> str:
        """BLAKE3 over the header, and what the arrays hash to."""
        return tensors.digest(canonical(self.header()), self.sent).hex()

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ask) and self.digest == other.digest


@dataclass(frozen=True, eq=False)
class Arrival:
    """What came back for one ask."""

    ask: Ask  # the ask it answers
    total: Total  # the aggregate of those that were counted
    excluded: Mapping[str, str] = field(default_factory=dict)  # party names with the reason why they were not counted
    metrics: Mapping[str, float] = field(default_factory=dict)  # what the exchange cost: bytes each way, seconds
    # of the counted, who answered an earlier round's ask, and how many rounds earlier
    lags: Mapping[str, int] = field(default_factory=dict)


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode


def canonical(body: Json | Mapping[str, Json]) -> bytes:
    """JSON with sorted keys, no spaces, UTF-8: one value, one string of bytes; a ValueError for NaN or infinity."""
    return _CANONICAL(body).encode()


def check(contribution: Contribution, fields: tuple[Field, ...]) -> None:
    """Refuse a contribution that is not what was declared; raises ContributionError with the field and the reason:
    missing or extra field, another shape (broadcastable ones too), another dtype, NaN, infinity or an absurd value,
    outside the range, a weight that is zero, negative, not finite or absurd."""
    names = {declared.name for declared in fields}
    if extra := sorted(set(contribution.values) - names):
        raise ContributionError("this field was not declared", field=extra[0])
    for declared in fields:
        if declared.name not in contribution.values:
            raise ContributionError("this declared field is missing", field=declared.name)
        _check_array(contribution.values[declared.name], declared)
    weight = contribution.weight
    if not math.isfinite(weight) or weight <= 0:
        raise ContributionError(f"the weight is {weight}; it must be positive and finite")
    if weight > WEIGHT_LIMIT:
        raise ContributionError(f"the weight {weight:g} is absurd; the limit is {WEIGHT_LIMIT:g}")


_PART = 1 << 18  # numbers that stay in the cache while both their ends are looked for


def _check_array(array: Array, declared: Field) -> None:
    if array.shape != declared.shape:
        what = f"shape {list(array.shape)} where {list(declared.shape or ())} was declared"
        raise ContributionError(what, field=declared.name)
    if array.dtype != np.dtype(declared.dtype):
        raise ContributionError(f"dtype {array.dtype} where {declared.dtype} was declared", field=declared.name)
    flat = array.reshape(-1)
    parts = (flat[at : at + _PART] for at in range(0, flat.size or 1, _PART))
    ends = [abs(float(end)) for part in parts for end in (part.min(initial=0), part.max(initial=0))]
    if not all(end <= VALUE_LIMIT for end in ends):  # NaN, if there is one, is not
        if np.isfinite(array).all():
            raise ContributionError(f"the value {max(ends):g} is absurd", field=declared.name)
        bad = "NaN" if np.isnan(array).any() else "an infinity"
        raise ContributionError(f"there is {bad} in it", field=declared.name)
    below = array.size and declared.low > -math.inf and array.min() < declared.low
    if below or (array.size and declared.high < math.inf and array.max() > declared.high):
        span = f"values from {array.min():g} to {array.max():g}"
        what = f"{span} where {declared.low:g} to {declared.high:g} was declared"
        raise ContributionError(what, field=declared.name)
