"""What is said in an attempt: envelopes, the terms that everybody must see alike, and what follows from them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from hansa.crypto.agreement import KEY, derive, digest
from hansa.errors import ContributionError, StudyError
from hansa.secure import graph as graphs
from hansa.secure.graph import Adversary


class Phase(IntEnum):
    """The phases of an attempt, in order: each is a request of the coordinator and a party's answer to it."""

    ADVERTISE, ROSTER, SHARE, MASK, SURVIVORS, UNMASK, CLOSE = 1, 2, 3, 4, 5, 6, 7


def numbered(version: int, attempt: int) -> int:
    """One number for an attempt at an exchange of a run; later ones have higher ones."""
    return version << 16 | attempt


class Kept:
    """A frozen dataclass that becomes bytes: JSON without blanks, fields in their order, bytes in base64."""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@dataclass(frozen=True)
class Envelope(Kept):
    """A message of an attempt. No number of an attempt is used twice in a session of the coordinator."""

    run: str
    session: str
    attempt: int
    phase: int
    sender: str  # a party's name; empty for the coordinator, as is the receiver
    receiver: str
    payload: bytes


@dataclass(frozen=True)
class Step:
    """An envelope on its way: a request of the coordinator to a party, or that party's answer."""

    run: str
    version: int  # of the exchange that the attempt is at
    attempt: int  # at that exchange
    phase: int
    payload: bytes

    @classmethod
    def read(cls, said: Any) -> "Step":
        """From a message with the same fields."""
        return cls(said.run, said.version, said.attempt, said.phase, said.payload)

    @property
    def number(self) -> int:
        """Of the attempt; see :func:`numbered`."""
        return numbered(self.version, self.attempt)


Out: TypeAlias = tuple[Envelope, ...]
_adapter: Callable[[type], TypeAdapter[Any]] = cache(TypeAdapter)


def encode(value: Kept) -> bytes:
    """The bytes of a value; equal values have equal bytes."""
    return _adapter(type(value)).dump_json(value)


def decode(data: bytes, kind: type) -> Any:
    """The value of this kind in ``data``; a ContributionError if there is none."""
    try:
        return _adapter(kind).validate_json(data, strict=True)
    except (ValidationError, StudyError):
        raise ContributionError(f"these bytes are no {kind.__name__}") from None


class Numbers(NamedTuple):
    """What follows from the rules for so many parties."""

    degree: int  # k, neighbours with whom a party shares masks and secrets
    threshold: int  # t, shares that open a secret
    signers: int  # T > (n + c) / 2, as two sets would take 2 T signatures of (n - c) + 2 c
    survivors: int  # the fewest parties whose sum is opened


@dataclass(frozen=True)
class Rules(Kept):
    """What a federation assumes, and each party holds it to."""

    corrupt: int = 0  # c, parties that may collude with the coordinator and with each other
    dropout: float = 0.0  # the share of parties that may be lost, from 0 to below 1
    adversary: Adversary = "malicious"  # or it only looks: "curious"
    honest: int = 3  # the fewest honest parties beside itself that a party takes part with
    graph: Literal["auto", "complete", "regular"] = "auto"  # auto: complete up to 100 parties
    bucket: int = 0  # the fewest on the roster of one of several sums, which has fewer than twice as many

    def __post_init__(self) -> None:
        known = self.adversary in ("curious", "malicious")
        if not known or self.corrupt < 0 or self.honest < 1 or not 0 <= self.dropout < 1:
            remedy = "Let corrupt be 0 or more, honest 1 or more, dropout from 0 to below 1."
            raise StudyError(f"{self} cannot be the rules of a secure sum", remedy=remedy)

    def numbers(self, n: int) -> Numbers:
        """What follows for ``n`` parties; a StudyError if so few cannot hold these rules."""
        gone, fewest = graphs.lost(n, self.dropout), self.corrupt + self.honest + 1
        signers, survivors = (n + self.corrupt) // 2 + 1, max(n - gone, fewest)
        if self.bucket and not self.bucket <= n < 2 * self.bucket:
            raise StudyError(f"a bucket of {n} parties where {self.bucket} are due", remedy="Nobody need take part.")
        if survivors > n or signers > n - gone:
            needs = f"needs {survivors} that stay and {signers} that sign"
            lack = f"{gone} may drop out and {self.corrupt} collude"
            remedy = f"Have at least {fewest} parties, and tolerate fewer dropouts."
            raise StudyError(f"a secure sum of {n} parties {needs}; {lack}", remedy=remedy)
        k, t = n - 1, min(n - 1, n - gone)
        if self.graph == "regular" or (self.graph == "auto" and n > 100):
            k, t = graphs.degrees(n, self.corrupt, self.dropout, self.adversary)
        return Numbers(k, t, signers, survivors)


@dataclass(frozen=True)
class Work(Kept):
    """What a party gives its vector for, as it knows it itself."""

    round: int
    model: bytes  # digest of the model, and of whatever else all must have been sent alike
    length: int  # d, entries of the vector
    bits: Literal[32, 64] = 32  # the sum is one of integers modulo 2^bits


class Advert(NamedTuple):
    """What a party advertises, 32 bytes each."""

    masking: bytes  # public key behind the pairwise masks; its private key is shared
    sealing: bytes  # public key behind the sealed shares; its private key never leaves
    blind: bytes  # commitment to the seed of its own mask, which is shared too
    coin: bytes  # commitment to its part in drawing the graph


@dataclass(frozen=True)
class Member(Kept):
    """A party on the roster: its name, its Ed25519 public key, and the four parts of its advert, end to end."""

    name: str
    identity: bytes
    said: bytes

    @cached_property
    def advert(self) -> Advert:
        """The advert; every party checks its length before it signs the roster."""
        return Advert(*(self.said[i : i + KEY] for i in range(0, 4 * KEY, KEY)))


class Bound(NamedTuple):
    """A digest of terms and graph, to which every key is bound, and the graph: neighbours ``[n, k]``."""

    digest: bytes
    graph: NDArray[np.int64]

    def key(self, secret: bytes, purpose: bytes, one: int, other: int) -> bytes:
        """A key of a pair of parties, which no other pair has, from what X25519 gave them."""
        low, high = sorted((one, other))
        return derive(secret, self.digest, b"%s %d %d" % (purpose, low, high))


@dataclass(frozen=True)
class Terms(Kept):
    """What every party signs before it deals a share; the roster is in order of names."""

    run: str
    session: str
    attempt: int
    work: Work
    rules: Rules
    roster: tuple[Member, ...]

    @cached_property
    def numbers(self) -> Numbers:
        """What follows for this roster."""
        return self.rules.numbers(len(self.roster))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parties, in order."""
        return tuple(member.name for member in self.roster)

    @cached_property
    def digest(self) -> bytes:
        """What the roster signs."""
        return digest(b"terms", encode(self), repr(tuple(self.numbers)).encode())

    def bound(self, coins: bytes) -> Bound:
        """The terms with the graph that the parties' coins, 32 bytes each in order, draw."""
        seed = digest(b"graph", self.digest, coins)
        neighbours = graphs.neighbours(len(self.roster), self.numbers.degree, seed)
        return Bound(digest(b"bound", self.digest, seed), neighbours)

    def marks(self, names: Iterable[str]) -> bytes:
        """A set of parties: a byte for each on the roster, 1 if it is in the set."""
        chosen = set(names)
        return bytes(name in chosen for name in self.names)

    def inside(self, marks: bytes) -> NDArray[np.bool_] | None:
        """Who is in a set, ``[n]``; None if these are not marks."""
        fits = len(marks) == len(self.roster) and not marks.strip(b"\0\1")
        return np.frombuffer(marks, bool) if fits else None
