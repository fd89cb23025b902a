"""A whole attempt in one process: every role and every message of the protocol, without a network between."""

import secrets
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from hansa.crypto.agreement import Identity
from hansa.errors import RunError
from hansa.secure import coordinator
from hansa.secure.party import Party
from hansa.secure.terms import Envelope, Member, Phase, Rules, Terms, Work


def summed(
    names: Iterable[str], vectors: Mapping[str, NDArray[np.uint32]], rules: Rules, run: str, attempt: int, model: bytes
) -> NDArray[np.uint32]:
    """The sum modulo 2^32 of parties' vectors ``[d]``, of which the coordinator only ever sees masked ones.

    Args:
        names: of the parties that begin.
        vectors: of those that come as far as sending one.
        rules: what they hold the coordinator to.
        run: its name.
        attempt: no two of a run share a number.
        model: digest of what all were sent, 32 bytes.

    Raises StudyError if so few parties cannot hold the rules; RunError if the attempt ends without a sum."""
    identities = {name: Identity(secrets.token_bytes(32)) for name in sorted(names)}
    pins = {name: identity.public for name, identity in identities.items()}
    parties = {name: Party(name, own, pins, rules) for name, own in identities.items()}
    work = Work(attempt, model, len(next(iter(vectors.values()))))
    seats, members = {}, []
    for name, party in parties.items():
        seat, (said,) = party.advertise(run, "rehearsal", attempt, secrets.token_bytes(32))
        seats[name] = party.expect(seat, work)
        members.append(Member(name, pins[name], said.payload))
    spool: dict[str, bytes] = {}
    desk, asked = coordinator.opening(Terms(run, "rehearsal", attempt, work, rules, tuple(members)))
    while asked and not desk.ended:
        answers: list[Envelope] = []
        for envelope in asked:
            name = envelope.receiver
            if envelope.phase >= Phase.MASK and name not in vectors:
                continue  # lost
            seats[name], answer = parties[name].step(seats[name], [envelope])
            if envelope.phase == Phase.MASK:
                seats[name], answer = parties[name].commit(seats[name], vectors[name])
                spool[name] = answer[0].payload
            answers += answer
        desk, asked = coordinator.step(desk, answers)
        if not asked and not desk.ended:
            desk, asked = coordinator.advance(desk)
    if desk.ended != "summed":
        raise RunError(f"the secure sum ended without one: {desk.ended or 'nobody was asked'}")
    return coordinator.total(desk, spool.__getitem__)
