"""A protocol of two phases fits the roles: masks are committed to, then revealed, in any order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from blake3 import blake3

from hansa.roles import Envelope, Role

RING = 2**32
COORDINATOR = "coordinator"


@dataclass(frozen=True)
class Masking:
    """One party's state: commitments it has seen, seeds it was shown."""

    commitments: dict[str, bytes] = field(default_factory=dict)
    seeds: dict[str, bytes] = field(default_factory=dict)
    sent: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Masked:
    """A party: commits to a seed, reveals it once it has seen all commitments, sends a masked value.

    The mask of a pair is drawn from both seeds; the one first in the roster adds, the other takes away.
    """

    name: str
    roster: tuple[str, ...]
    seed: bytes
    value: int

    def step(self, state: Masking, inbox: Sequence[Envelope]) -> tuple[Masking, Sequence[Envelope]]:
        commitments, seeds = dict(state.commitments), dict(state.seeds)
        for envelope in inbox:
            kept = commitments if envelope.phase == "commit" else seeds
            kept.setdefault(envelope.sender, envelope.payload)
        outbox: list[Envelope] = []
        sent = set(state.sent)
        others = [name for name in self.roster if name != self.name]
        if "commit" not in sent:
            outbox += [self._envelope("commit", o, blake3(self.seed).digest()) for o in others]
            sent.add("commit")
        if "reveal" not in sent and commitments.keys() >= set(others):
            outbox += [self._envelope("reveal", other, self.seed) for other in others]
            sent.add("reveal")
        if "masked" not in sent and "reveal" in sent and seeds.keys() >= set(others):
            for other in others:
                if blake3(seeds[other]).digest() != commitments[other]:
                    raise ValueError(f"{other} revealed another seed than it committed to")
            masked = (self.value + sum(self._mask(o, seeds[o]) for o in others)) % RING
            outbox.append(self._envelope("masked", COORDINATOR, masked.to_bytes(4, "big")))
            sent.add("masked")
        return Masking(commitments, seeds, frozenset(sent)), outbox

    def _mask(self, other: str, seed: bytes) -> int:
        first, second = (self.seed, seed) if self.name < other else (seed, self.seed)
        mask = int.from_bytes(blake3(first + second).digest()[:4], "big")
        return mask if self.name < other else -mask

    def _envelope(self, phase: str, recipient: str, payload: bytes) -> Envelope:
        return Envelope("run-1", "sum", 1, phase, self.name, recipient, payload)


@dataclass(frozen=True)
class Collected:
    """The coordinator's state: masked values, and their sum once all are there."""

    masked: dict[str, int] = field(default_factory=dict)
    total: int | None = None


@dataclass(frozen=True)
class Summing:
    """The coordinator: adds up what it cannot read one by one."""

    roster: tuple[str, ...]

    def step(
        self, state: Collected, inbox: Sequence[Envelope]
    ) -> tuple[Collected, Sequence[Envelope]]:
        masked = dict(state.masked)
        for envelope in inbox:
            masked[envelope.sender] = int.from_bytes(envelope.payload, "big")
        complete = masked.keys() == set(self.roster)
        return Collected(masked, sum(masked.values()) % RING if complete else None), ()


VALUES = {"harbour": 7, "north": 11, "river": 2**31, "south": 0}


def seed_of(name: str) -> bytes:
    return blake3(name.encode()).digest()


def carry(parties: Sequence[Masked], order: random.Random) -> tuple[Collected, list[Envelope]]:
    """Deliver envelopes one at a time, in a random order, some of them twice."""
    coordinator: Role[Collected] = Summing(tuple(party.name for party in parties))
    roles: dict[str, Role[Masking]] = {party.name: party for party in parties}
    states = {name: Masking() for name in roles}
    collected, seen, under_way = Collected(), list[Envelope](), list[Envelope]()
    for name, role in roles.items():
        states[name], outbox = role.step(states[name], ())
        under_way += outbox
    while under_way:
        envelope = under_way.pop(order.randrange(len(under_way)))
        seen.append(envelope)
        if order.random() < 0.2:
            under_way.append(envelope)
        if envelope.recipient == COORDINATOR:
            collected, outbox = coordinator.step(collected, [envelope])
        else:
            name = envelope.recipient
            states[name], outbox = roles[name].step(states[name], [envelope])
        under_way += outbox
    return collected, seen


def cast() -> list[Masked]:
    roster = tuple(VALUES)
    return [Masked(name, roster, seed_of(name), value) for name, value in VALUES.items()]


@pytest.mark.parametrize("order", range(20))
def test_the_sum_is_the_same_in_whatever_order_and_how_often_envelopes_arrive(order: int) -> None:
    collected, seen = carry(cast(), random.Random(order))
    assert collected.total == sum(VALUES.values())
    first_reveal = {e.sender: i for i, e in reversed(list(enumerate(seen))) if e.phase == "reveal"}
    for party, i in first_reveal.items():
        committed = {e.sender for e in seen[:i] if e.phase == "commit" and e.recipient == party}
        assert committed == VALUES.keys() - {party}


def test_one_masked_value_says_nothing_about_the_value_under_it() -> None:
    collected, _ = carry(cast(), random.Random(1))
    assert all(collected.masked[name] != value for name, value in VALUES.items())


def test_who_reveals_another_seed_than_it_committed_to_is_caught() -> None:
    liar = cast()[1]

    @dataclass(frozen=True)
    class Liar(Masked):
        def step(
            self, state: Masking, inbox: Sequence[Envelope]
        ) -> tuple[Masking, Sequence[Envelope]]:
            after, outbox = super().step(state, inbox)
            lies = [replace(e, payload=bytes(32)) if e.phase == "reveal" else e for e in outbox]
            return after, lies

    parties = cast()
    parties[1] = Liar(liar.name, liar.roster, liar.seed, liar.value)
    with pytest.raises(ValueError, match="north revealed another seed"):
        carry(parties, random.Random(0))


def test_envelopes_of_one_place_are_equal_and_those_of_another_attempt_are_not() -> None:
    one = Envelope("run-1", "sum", 1, "commit", "north", "river", b"x")
    assert one == Envelope("run-1", "sum", 1, "commit", "north", "river", b"x")
    assert len({one, replace(one, attempt=2), replace(one, phase="reveal")}) == 3
