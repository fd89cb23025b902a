"""Protocols of several phases: sealed envelopes between roles that do no I/O.

A secure sum or a vertical protocol is a set of roles, one at each party and one at the coordinator. A role
is a pure step from its state and the envelopes it received to its next state and the envelopes it sends;
whoever drives it (a deployed machine, a simulator, a test) carries the envelopes and keeps the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

S = TypeVar("S")


@dataclass(frozen=True)
class Envelope:
    """One message of one attempt of a protocol, opaque to whoever carries it.

    Args:
        run, session, attempt, phase: where in which protocol it belongs; nothing outside is mixed in.
        sender, recipient: names of roles: a party, or ``"coordinator"``.
        payload: sealed bytes.
    """

    run: str
    session: str
    attempt: int
    phase: str
    sender: str
    recipient: str
    payload: bytes


class Role(Protocol[S]):
    """One side of a protocol."""

    def step(self, state: S, inbox: Sequence[Envelope]) -> tuple[S, Sequence[Envelope]]:
        """The next state and what is sent; called once with an empty inbox to begin."""
        ...
