"""A party's seats in secure sums: what it signed, dealt and gave, of the latest exchange of each run."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hansa.crypto.agreement import KEY, Identity, words
from hansa.database import Drop, Put
from hansa.errors import ConsentError, TrustError
from hansa.secure.party import Party, Seat
from hansa.secure.terms import Envelope, Out, Phase, Rules, Step, Terms, Work, decode, encode

ATTEMPTS = 1 << 16  # attempts at one exchange that can be told apart

Changes = list[Put | Drop]


class Seats:
    """The seats of a party, from the rows of the table ``seat``. The changes that a step makes are to be durable before
    its answers leave; it raises a HansaError, and changes nothing, where an honest coordinator would not have asked it.
    """

    def __init__(self, party: str, identity: Identity, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self._name, self._identity = party, identity
        self._seats: dict[str, dict[int, Seat]] = {}
        self._rules: dict[str, Rules] = {}
        for row in rows:
            self._seats.setdefault(row["run"], {})[row["attempt"]] = decode(row["body"], Seat)
            self._rules[row["run"]] = decode(row["rules"], Rules)

    def latest(self, run: str) -> Seat | None:
        """The seat in the latest attempt of a run."""
        seats = self._seats.get(run, {})
        return seats[max(seats)] if seats else None

    @property
    def unsettled(self) -> set[tuple[str, int]]:
        """The runs and exchanges of which secrets are kept here."""
        latest = ((run, self.latest(run)) for run in self._seats)
        return {(run, seat.attempt >> 16) for run, seat in latest if seat and (seat.answer or not seat.ended)}

    def closed(self, run: str, version: int) -> bool:
        """Whether an exchange gets no more vectors: one is in a sum, or may be, whatever the coordinator says."""
        return self.given(run, version) and self._rules[run].adversary != "curious"

    def given(self, run: str, version: int) -> bool:
        """Whether what this party has for an exchange is in a sum, or may be yet."""
        return any(seat.sent and seat.ended != "abandoned" for seat in self._of(run, version))

    def take(self, place: Step, session: str, work: Work, rules: Rules, fresh: bool) -> Changes:
        """Take a seat, or the same again; what earlier attempts knew is erased.

        Args:
            place: the attempt; as payload 32 bytes of a CSPRNG for it, if the seat is new.
            session: the federation's hash.
            work: what the vector is given for.
            rules: what the coordinator is held to.
            fresh: whether the vector has noise that no other attempt's has. That helps with a coordinator that is
                no worse than curious: what it says has failed, it has not opened."""
        run, last = place.run, self.latest(place.run)
        if last is not None and last.attempt >= place.number:
            if (last.attempt, last.session, last.work) != (place.number, session, work) or last.ended:
                raise TrustError("the coordinator begins an attempt whose number was used", party=self._name)
            return []
        changes, role = self.close(run, place.version), Party(self._name, self._identity, {}, rules)
        seat, _ = role.advertise(run, session, place.number, place.payload)
        earlier = () if fresh and rules.adversary == "curious" else self._of(run, place.version)
        seat = role.expect(seat, work, earlier)
        for old in [a for a in self._seats.get(run, {}) if a >> 16 != place.version]:
            del self._seats[run][old]
            changes.append(Drop("seat", {"run": run, "attempt": old}))
        self._rules[run] = rules
        return [*changes, self._put(seat)]

    def advert(self, place: Step) -> list[Step]:
        """What it advertised for an attempt whose roster it has not seen."""
        seat = self.latest(place.run)
        if seat is None or seat.ended or (seat.attempt, seat.phase) != (place.number, Phase.ADVERTISE):
            return []
        return [replace(place, phase=seat.phase, payload=seat.answer)]

    def hear(self, step: Step, pins: Mapping[str, str]) -> tuple[Changes, list[Step]]:
        """Take a request; ``pins``: the words of the identities that its owner has confirmed, by name."""
        seat = self.latest(step.run)
        if seat is None or seat.attempt != step.number:
            raise TrustError("the coordinator speaks of an attempt that is not open", party=self._name)
        known = {}
        if step.phase == Phase.ROSTER and seat.phase == Phase.ADVERTISE:
            known = {one.name: one.identity for one in decode(step.payload, Terms).roster}
            said = {**pins, self._name: words(self._identity.public)}
            if strangers := [name for name, key in known.items() if said.get(name) != words(key)]:
                what = f"the identity of {', '.join(map(repr, strangers))} is not confirmed here"
                way = "by telephone, and then say `hansa agent confirm NAME WORDS`"
                remedy = f"Its owner can compare the words of `hansa agent status` {way}"
                error = ConsentError(what, party=self._name, remedy=remedy)
                error.about = tuple(strangers)
                raise error
        after, out = self._step(seat, step.phase, step.payload, known)
        answers = [replace(step, payload=envelope.payload) for envelope in out]
        return ([] if after == seat else [self._put(after)]), answers

    def commit(self, seat: Seat, vector: NDArray[Any]) -> tuple[Changes, NDArray[Any]]:
        """Mask a vector, once; what comes of it is kept elsewhere, in the transaction of the changes."""
        seat, (said,) = Party(self._name, self._identity, {}, self._rules[seat.run]).commit(seat, vector)
        return [self._put(replace(seat, answer=b""))], np.frombuffer(said.payload, vector.dtype)

    def close(self, run: str, version: int) -> Changes:
        """Erase what is secret in the attempts up to this exchange."""
        seat = self.latest(run)
        if seat is None or (seat.ended and not seat.answer) or seat.attempt >> 16 > version:
            return []
        return [self._put(self._step(seat, Phase.CLOSE, b"", {})[0])]

    def _step(self, seat: Seat, phase: int, payload: bytes, pins: Mapping[str, bytes]) -> tuple[Seat, Out]:
        asked = Envelope(seat.run, seat.session, seat.attempt, phase, "", self._name, payload)
        return Party(self._name, self._identity, pins, self._rules[seat.run]).step(seat, [asked])

    def _of(self, run: str, version: int) -> list[Seat]:
        return [seat for a, seat in self._seats.get(run, {}).items() if a >> 16 == version]

    def _put(self, seat: Seat) -> Put:
        self._seats.setdefault(seat.run, {})[seat.attempt] = seat
        body, rules = encode(seat), encode(self._rules[seat.run])
        return Put("seat", {"run": seat.run, "attempt": seat.attempt, "body": body, "rules": rules})


def seen(step: Step, names: Collection[str], pins: Mapping[str, str]) -> Changes:
    """Identities in a roster that was refused, to be shown to the owner: of those whom the ask names (``names``),
    and none in the place of one that was confirmed."""
    shown = [one for one in decode(step.payload, Terms).roster if one.name in names and one.name not in pins]
    fit = (one for one in shown if len(one.name) <= 200 and len(one.identity) == KEY)
    return [Put("member", {"name": one.name, "identity": one.identity}) for one in fit]
