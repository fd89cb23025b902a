"""What a seed decides: the study, who takes part in it, and how much goes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

import numpy as np

import hansa as hs
from hansa import aggregation as agg
from hansa import keyed, methods
from hansa.agent.policy import Offer
from hansa.coordinator.events import Offered
from hansa.crypto.agreement import Identity, words
from hansa.methods.base import Setup

NAMES = ("aachen", "bremen", "danzig", "köln", "上海")
DATASET = "harvests"
SECRET = bytes(range(32))
ROUNDS = 2

FAULTS = {
    "before": "a process dies before its commit",
    "after": "a process dies after its commit, and before anybody hears of it",
    "between": "a process dies in the middle of telling",
    "idle": "a process dies while nothing happens",
    "full": "a disk is full",
    "slow": "a message, a commit or a piece of work takes long",
    "cut": "a link breaks under a message",
    "ghost": "a message arrives after its link broke",
    "twice": "a message arrives twice",
    "torn": "a body arrives in pieces",
    "partition": "some parties are cut off for a while",
    "clock": "a clock jumps",
    "apart": "what was told at once is read in several messages",
}
RATES = (0.0, 0.0, 0.0, 0.003, 0.01, 0.04)
"""Of a fault, at each moment at which it may happen. Many seeds do without most of them: what goes wrong by itself
would else hide behind what goes wrong all the time."""
SHARE = 1 / 8
"""Of the seeds in which a second coordinator stands by."""
SELDOM = ("ghost", "apart")
"""Those for which there is little occasion."""

HALTS = ("idle", "before", "after", "told")
"""Where a coordinator stands still: at once, before or after it next asks its store, or before what it told leaves."""

CHEATS = ("other", "nan", "weight", "shape", "negative", "unknown", "stale", "damaged", "silent", "babble")


def generator(seed: int, *purpose: str | int) -> random.Random:
    """A generator that depends on nothing but its key, and is quicker than NumPy's for single numbers."""
    return random.Random(int.from_bytes(keyed.key(seed, *purpose)[:16], "little"))


@dataclass(frozen=True)
class Spell:
    """A time in which whoever coordinates is not there, and does not know it.

    Args:
        after: seconds since the study was handed in, or since the last such time began.
        where: it is halted, of `HALTS`.
        cut: whether it is cut off from everybody, and not only still.
        session: seconds after which the database ends its session, so that another one may take over.
        lasts: seconds until it wakes up.
    """

    after: float
    where: str
    cut: bool
    session: float
    lasts: float

    @classmethod
    def some(cls, seed: int) -> tuple[Spell, ...]:
        """None in most seeds, which then have one coordinator."""
        draw = generator(seed, "takeover")
        if draw.random() >= SHARE:
            return ()

        def one() -> Spell:
            after, session, lasts = 10 ** draw.uniform(-2, 0.5), draw.uniform(0.05, 3), 10 ** draw.uniform(-0.5, 1.3)
            return cls(after, draw.choice(HALTS), draw.random() < 0.4, session, lasts)

        return tuple(one() for _ in range(draw.randint(1, 3)))


@dataclass(frozen=True)
class Kind:
    """A kind of study.

    Args:
        parts: of the federation.
        fewest: parties that must be counted, by how many there are.
        budget: of the agents, if they have one.
    """

    parts: Callable[[], dict[str, Any]]
    fewest: Callable[[int], int] = lambda parties: 2
    deadline: float = 8.0
    budget: float | None = None
    parties: tuple[int, ...] = (3, 3, 3, 4, 5)
    late: int = 0  # rounds by which an answer may be late; a round then closes with two answers
    rounds: int = ROUNDS
    repeats: bool = False  # without noise of its own, a vector is given to one sum, and to no other
    hidden: bool = False  # by a secure sum, in which another answer than the true one cannot be seen
    open: bool = False  # to parties that join while it runs

    @property
    def waits(self) -> bool:
        """Whether it waits for everyone, and so ends with the undisturbed bits."""
        return self.fewest(5) == 5


LOCAL = hs.SGD(lr=0.1, batch_size="all")
EQUAL = hs.FedAvg(local=LOCAL, weights="equal")
PRIVATE = hs.FedAvg(
    local=hs.DPSGD(lr=0.1, clip=1.0, noise_multiplier=1.0, rate=1.0, steps=1, batch_size=8), weights="equal"
)
BOUNDED = hs.Contract(columns={n: hs.ColumnRule(type="number", low=-100, high=100) for n in ("a", "b", "y")})
GRID = agg.clip(1.0) >> agg.grid(bits=10)
SUM = agg.secure_sum(threshold=0.6)


KINDS: dict[str, Kind] = {
    "everyone": Kind(lambda: {"method": methods.Scaffold(local=LOCAL)}, lambda n: n, deadline=36000.0),
    "some": Kind(lambda: {"method": methods.Scaffold(local=LOCAL)}),
    "weighted": Kind(lambda: {"method": hs.FedAvg(local=LOCAL)}),
    "first two": Kind(lambda: {"method": hs.FedAvg(local=LOCAL), "cohort": hs.All(minimum=2, deadline=8.0, goal=2)}),
    "late": Kind(
        lambda: {"method": hs.FedAvg(local=LOCAL), "cohort": hs.All(minimum=2, deadline=8.0, goal=2, late=2)},
        late=2,
        rounds=4,
    ),
    "open": Kind(
        lambda: {"method": methods.Scaffold(local=LOCAL), "cohort": hs.All(minimum=2, deadline=8.0, open=True)},
        parties=(2, 3, 3, 4),
        rounds=4,
        open=True,
    ),
    "open and late": Kind(
        lambda: {
            "method": hs.FedAvg(local=LOCAL),
            "cohort": hs.All(minimum=2, deadline=8.0, goal=2, late=2, open=True),
        },
        parties=(3, 3, 4),
        late=2,
        rounds=5,
        open=True,
    ),
    "robust": Kind(lambda: {"method": EQUAL, "aggregation": agg.median()}, lambda n: 3, parties=(4, 4, 5)),
    "noised": Kind(
        lambda: {"method": PRIVATE, "privacy": hs.Privacy(unit="example"), "contract": BOUNDED}, budget=50.0
    ),
    "summed": Kind(
        lambda: {"method": EQUAL, "aggregation": GRID >> SUM}, lambda n: 3, parties=(4, 4, 5), repeats=True, hidden=True
    ),
    "summed and noised": Kind(
        lambda: {"method": EQUAL, "aggregation": GRID >> agg.skellam(noise_multiplier=1.0) >> SUM},
        lambda n: 3,
        parties=(4, 4, 5),
        hidden=True,
    ),
}

OFTEN = (3, 3, 2, 1, 2, 2, 1, 2, 2, 1, 1)
"""How often each is drawn: a secure sum takes several times as long as the others."""


@cache
def tables() -> dict[str, hs.Table]:
    chance = np.random.default_rng(3)
    made = {}
    for name, rows in zip(NAMES, (12, 17, 14, 21, 16), strict=True):
        a, b = chance.normal(size=(2, rows))
        made[name] = hs.Table.of({"a": a, "b": b, "y": 2 * a - b + 1})
    return made


@cache
def offers() -> dict[str, Offer]:
    return {name: Offer(DATASET, table, ("linear-regression",)) for name, table in tables().items()}


@cache
def offered(name: str) -> Offered:
    """What a party says of its table when it dials."""
    offer = offers()[name]
    return Offered(offer.dataset, offer.rows, offer.table.schema(), offer.allow)


IDENTITIES = {name: Identity(name.encode().ljust(32, b"-")) for name in NAMES}
PINS = {name: words(one.public) for name, one in IDENTITIES.items()}


@cache
def entropy(name: str, number: int) -> bytes:
    """A secret of a party, 32 bytes, of those that it draws in a world."""
    return keyed.key(0, "entropy", name, number)


@cache
def federation(kind: str, parties: int) -> hs.Federation:
    of = KINDS[kind]
    fields: dict[str, Any] = {
        "name": DATASET,
        "task": hs.LinearRegression(target="y"),
        "rounds": of.rounds,
        "cohort": hs.All(minimum=of.fewest(parties), deadline=of.deadline),
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0, holdout=0),
        **of.parts(),
    }
    return hs.Federation(**fields)


@cache
def setup(kind: str, parties: int) -> Setup:
    return federation(kind, parties).resolve({name: tables()[name].schema() for name in NAMES[:parties]})


@dataclass(frozen=True)
class Plan:
    """What a seed decides before anything happens."""

    seed: int
    kind: str = ""
    parties: int = 0
    rates: dict[str, float] = field(default_factory=dict)
    calm: float = 0.0  # seconds after which nothing more goes wrong
    inline: int = 1 << 16  # bytes of a blob that lie in the coordinator's database
    cheats: dict[str, str] = field(default_factory=dict)
    leaves: dict[str, float] = field(default_factory=dict)  # when the operator removes a party,
    back: dict[str, float] = field(default_factory=dict)  # and when it joins again
    joins: dict[str, float] = field(default_factory=dict)  # when others are invited
    budget: float | None = None
    spells: tuple[Spell, ...] = ()  # in which it is not there, if a second coordinator is

    @classmethod
    def of(cls, seed: int) -> Plan:
        draw = generator(seed, "plan")
        kind = draw.choices(list(KINDS), OFTEN)[0]
        parties = draw.choice(KINDS[kind].parties)
        rates = {fault: draw.choice(RATES) * (10 if fault in SELDOM else 1) for fault in FAULTS}
        spare = parties - KINDS[kind].fewest(parties)
        odd = draw.sample(NAMES[:parties], draw.randint(0, spare))
        cheats, leaves, back = {}, {}, {}
        for name in odd:
            if draw.random() < 0.6:
                cheats[name] = draw.choice(CHEATS[KINDS[kind].hidden :])
            else:
                leaves[name] = draw.uniform(0, 10)
                if draw.random() < 0.7:
                    back[name] = leaves[name] + draw.uniform(0, 10)
        inline = draw.choice((1 << 16, 1 << 16, 200, -1))
        calm, joins = draw.choice((4.0, 8.0, 25.0)), {}
        if KINDS[kind].open:
            joins = {name: draw.uniform(0, 4) for name in NAMES[parties:] if draw.random() < 0.7}
            leaves |= {name: at + draw.uniform(1, 8) for name, at in joins.items() if draw.random() < 0.3}
            back |= {name: leaves[name] + draw.uniform(0, 8) for name in joins if name in leaves}
        budget, spells = KINDS[kind].budget, Spell.some(seed)
        return cls(seed, kind, parties, rates, calm, inline, cheats, leaves, back, joins, budget, spells)

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES[: self.parties]

    @property
    def federation(self) -> hs.Federation:
        return federation(self.kind, self.parties)

    @property
    def setup(self) -> Setup:
        return setup(self.kind, self.parties)

    @property
    def late(self) -> int:
        return KINDS[self.kind].late

    @cached_property
    def waits(self) -> bool:
        return KINDS[self.kind].waits

    def __str__(self) -> str:
        rates = ", ".join(f"{fault} {rate:g}" for fault, rate in self.rates.items() if rate)
        odd = ", ".join(
            f"{name} {what}" for name, what in {**self.cheats, **dict.fromkeys(self.leaves, "leaves")}.items()
        )
        more = f" and {len(self.joins)} that join" if self.joins else ""
        more += f", two coordinators that stand still {len(self.spells)} times" if self.spells else ""
        return f"{self.kind}, {self.parties} parties{more}; {rates or 'no faults'}; {odd or 'all honest'}"
