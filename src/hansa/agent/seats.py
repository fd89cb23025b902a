"""A party's seats in secure sums: what it signed, dealt and gave, of the latest exchange of each run."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.crypto.agreement import Identity
from hansa.database import Drop, Put
from hansa.errors import ConsentError, TrustError
from hansa.secure.party import Party, Seat
from hansa.secure.terms import Envelope, Phase, Rules, Terms, Work, decode, encode, numbered

ATTEMPTS = 1 << 16
"""Attempts at one exchange that can be told apart."""


@dataclass(frozen=True)
class Step:
    """What is said in a phase of a secure sum: the coordinator's request, or the party's answer."""

    run: str
    version: int
    attempt: int
    phase: int
    payload: bytes


class Seats:
    """The seats of a party, from the rows of the table ``seat``; what a step changes is to be durable before
    what it answers leaves.
    """

    def __init__(self, party: str, identity: Identity, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._name, self._identity = party, identity
        self._seats: dict[str, dict[int, Seat]] = {}
        for row in rows:
            self._seats.setdefault(row["run"], {})[row["attempt"]] = decode(row["body"], Seat)
        self._rules: dict[str, Rules] = {}

    def latest(self, run: str) -> Seat | None:
        """The seat in the latest attempt of a run."""
        seats = self._seats.get(run, {})
        return seats[max(seats)] if seats else None

    def ready(self, run: str) -> bool:
        """Whether it knows what to hold a roster to: after a restart not before the work is admitted."""
        seat = self.latest(run)
        return seat is None or seat.phase > Phase.ADVERTISE or run in self._rules

    def given(self, run: str, version: int) -> bool:
        """Whether what this party has for an exchange is in a sum, or may be yet."""
        return any(seat.sent and seat.ended != "abandoned" for seat in self._of(run, version))

    def take(
        self, place: tuple[str, str, int, int], work: Work, rules: Rules, entropy: bytes, fresh: bool
    ) -> list[Put | Drop]:
        """Take a seat, or the same again; what an earlier attempt knew is erased.

        Args:
            place: run, session, version and attempt.
            work: what the vector is given for.
            rules: what the coordinator is held to.
            entropy: 32 bytes of a CSPRNG, used if the seat is new.
            fresh: whether the vector has noise that no other attempt's has.

        Raises:
            TrustError: if the attempt is over, or its number stands for other work.
            ConsentError: if the vector may be in a sum already.
        """
        run, session, version, attempt = place
        number, last = numbered(version, attempt), self.latest(run)
        role = Party(self._name, self._identity, {}, rules)
        if last is not None and last.attempt >= number:
            if (last.attempt, last.session, last.work) != (number, session, work) or last.ended:
                raise TrustError("the coordinator begins an attempt whose number was used", party=self._name)
            self._rules[run] = rules
            return []
        changes = self.close(run, version)
        seat, _ = role.advertise(run, session, number, entropy)
        seat = role.expect(seat, work, () if fresh else self._of(run, version))
        for old in [a for a in self._seats.get(run, {}) if a >> 16 != version]:
            del self._seats[run][old]
            changes.append(Drop("seat", {"run": run, "attempt": old}))
        self._rules[run] = rules
        return [*changes, self._put(seat)]

    def advert(self, run: str, version: int, attempt: int) -> list[Step]:
        """What it advertised for an attempt whose roster it has not seen."""
        seat = self.latest(run)
        open_ = seat is not None and not seat.ended and seat.phase == Phase.ADVERTISE
        if seat is None or not open_ or seat.attempt != numbered(version, attempt):
            return []
        return [Step(run, version, attempt, seat.phase, seat.answer)]

    def hear(self, step: Step, pins: Mapping[str, bytes]) -> tuple[list[Put | Drop], list[Step]]:
        """Take a request; ``pins``: the identities that this party's owner has confirmed, by name.

        Raises:
            HansaError: if an honest coordinator would not ask this; the seat is as it was.
        """
        run, seat = step.run, self.latest(step.run)
        if seat is None or seat.attempt != numbered(step.version, step.attempt):
            raise TrustError("the coordinator speaks of an attempt that is not open", party=self._name)
        pins = {**pins, self._name: self._identity.public}
        if step.phase == Phase.ROSTER:
            roster = decode(step.payload, Terms).roster
            if strangers := [m.name for m in roster if pins.get(m.name) != m.identity]:
                raise ConsentError(
                    f"the identity of {', '.join(map(repr, strangers))} is not confirmed here",
                    party=self._name,
                    remedy="Its owner can compare words by telephone: `hansa agent roster` shows them, and "
                    "`hansa agent confirm NAME WORDS` remembers them",
                )
        rules = seat.terms.rules if seat.terms else self._rules.get(run, Rules())
        asked = Envelope(run, seat.session, seat.attempt, step.phase, "", self._name, step.payload)
        after, said = Party(self._name, self._identity, pins, rules).step(seat, [asked])
        answers = [replace(step, payload=envelope.payload) for envelope in said]
        return ([] if after == seat else [self._put(after)]), answers

    def commit(self, run: str, vector: NDArray[Any]) -> tuple[list[Put | Drop], NDArray[Any]]:
        """Mask a vector, once; what comes of it is kept elsewhere, in the transaction of the changes."""
        seat = self._seats[run][max(self._seats[run])]
        assert seat.terms is not None
        role = Party(self._name, self._identity, {}, seat.terms.rules)
        seat, (said,) = role.commit(seat, vector)
        return [self._put(replace(seat, answer=b""))], np.frombuffer(said.payload, vector.dtype)

    def close(self, run: str, version: int) -> list[Put | Drop]:
        """Erase what is secret in the attempts up to this exchange."""
        seat = self.latest(run)
        if seat is None or seat.ended or seat.attempt >> 16 > version:
            return []
        over = Envelope(run, seat.session, seat.attempt, Phase.CLOSE, "", self._name, b"")
        role = Party(self._name, self._identity, {}, self._rules.pop(run, Rules()))
        return [self._put(role.step(seat, [over])[0])]

    def _of(self, run: str, version: int) -> list[Seat]:
        return [seat for a, seat in self._seats.get(run, {}).items() if a >> 16 == version]

    def _put(self, seat: Seat) -> Put:
        self._seats.setdefault(seat.run, {})[seat.attempt] = seat
        return Put("seat", {"run": seat.run, "attempt": seat.attempt, "body": encode(seat)})
