"""A party's side of an attempt: what it answers, once, and what it refuses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from hansa.crypto import agreement, masks, shares
from hansa.crypto.agreement import KEY, SIGNATURE, TAG, Identity, derive, digest, signed
from hansa.errors import ConsentError, ContributionError, StudyError, TrustError
from hansa.secure.terms import Bound, Envelope, Kept, Out, Phase, Rules, Terms, Work, decode, encode

# The two secrets of a party, in the order of its shares: both open its vector, so one is asked for.
BLIND, MASKING = b"blind", b"masking"
# Bytes that a party deals to a neighbour: commitments to two shares, and the two, sealed.
DEALT = 2 * KEY + 2 * shares.SHARE + TAG


@dataclass(frozen=True)
class Seat(Kept):
    """A party's state in one attempt. It holds secrets: keep it as one keeps a key, and only its last version."""

    run: str
    session: str
    attempt: int
    entropy: bytes  # 32, from which its secrets of this attempt derive; empty once they are erased
    phase: int = Phase.ADVERTISE.value  # of the last request that it took
    heard: tuple[bytes, ...] = ()  # digests of the requests that it took
    answer: bytes = b""  # the payload of its last answer, which is all that is ever sent again
    work: Work | None = None  # what it would give its vector for
    terms: Terms | None = None  # what it signed
    coins: bytes = b""  # the parts by which the graph was drawn
    agreed: bytes = b""  # the secrets behind the seals, 32 bytes a neighbour, until they are open
    shares: bytes = b""  # its neighbours' shares, two of 36 bytes of each
    sent: bool = False  # whether its masked vector was committed
    chosen: bytes = b""  # the survivors it signed or acted on: one set, ever
    ended: Literal["", "summed", "abandoned", "undecided", "unused"] = ""
    # abandoned: no sum of it will ever be. undecided: one may be, if others act. unused: nothing was sent.

    def secret(self, purpose: bytes) -> bytes:
        """A secret of this attempt, 32 bytes."""
        place = f"{self.run!r} {self.session!r} {self.attempt}".encode()
        return derive(self.entropy, digest(b"attempt", place), purpose)


@dataclass(frozen=True)
class Certificate(Kept):
    """That enough of the roster signed one set of survivors: its marks, and a signature or nothing of each."""

    chosen: bytes
    signatures: tuple[bytes, ...]

    def holds(self, terms: Terms) -> bool:
        """Whether T members signed it."""
        said = [i for i, signature in enumerate(self.signatures) if signature]
        fits = len(self.signatures) == len(terms.roster) and len(said) >= terms.numbers.signers
        what = (b"survivors", terms.digest, self.chosen)
        return fits and all(signed(terms.roster[i].identity, self.signatures[i], *what) for i in said)


@dataclass(frozen=True)
class Party:
    """The role of a party. Its steps change nothing; on an error the seat is as it was."""

    name: str
    identity: Identity
    pins: Mapping[str, bytes]  # public keys of those it takes part with, confirmed out of band
    rules: Rules  # what it holds the federation to

    def advertise(self, run: str, session: str, attempt: int, entropy: bytes) -> tuple[Seat, Out]:
        """Take a seat in an attempt of a new number; ``entropy``: 32 bytes of a CSPRNG for it alone."""
        if len(entropy) != KEY:
            raise StudyError("an attempt takes 32 bytes of randomness")
        seat = Seat(run, session, attempt, entropy)
        keys = [agreement.public(seat.secret(purpose)) for purpose in (MASKING, b"sealing")]
        kept = [digest(purpose, seat.secret(purpose)) for purpose in (BLIND, b"coin")]
        seat = replace(seat, answer=b"".join((*keys, *kept)))
        return seat, self._answer(seat)

    def expect(self, seat: Seat, work: Work, earlier: Iterable[Seat] = ()) -> Seat:
        """Say what the attempt is for, before its roster. A ConsentError if in an ``earlier`` seat the same vector,
        without fresh noise, was given to a sum."""
        if any(old.sent and old.ended != "abandoned" for old in earlier):
            what = "this vector is in the sum of an earlier attempt, or may be yet"
            remedy = "Two sums give away their difference. Charge fresh noise, or go to the next round."
            raise ConsentError(what, remedy=remedy, party=self.name, round=work.round)
        return replace(seat, work=work)

    def step(self, seat: Seat, inbox: Sequence[Envelope]) -> tuple[Seat, Out]:
        """Take requests; make the seat durable before the answers leave. The last request, repeated, has the same
        answer. MASK has none but :meth:`commit`'s. A TrustError, or a ContributionError where nothing can be read, if
        an honest coordinator would not ask this."""
        answers: Out = ()
        for e in inbox:
            place = (seat.run, seat.session, seat.attempt, "", self.name)
            if (e.run, e.session, e.attempt, e.sender, e.receiver) != place:
                self._refuse("a request of another attempt, or for another party")
            mark = digest(b"request", b"%d" % e.phase, e.payload)
            if mark not in seat.heard:
                seat = replace(self._taken(seat, e.phase, e.payload), heard=(*seat.heard, mark))
            answers += self._answer(seat) if mark == seat.heard[-1] else ()
        return seat, answers

    def commit(self, seat: Seat, vector: NDArray[Any]) -> tuple[Seat, Out]:
        """Mask ``[d]`` of uint32 or uint64, after MASK; a second call gives the bytes of the first. Charge the ledger
        before, and make the seat durable before its answer leaves."""
        terms = seat.terms
        if seat.phase != Phase.MASK or terms is None:
            raise StudyError("this attempt takes no vector now", party=self.name)
        if seat.sent:
            return seat, self._answer(seat)
        work = terms.work
        if vector.dtype != masks.DTYPES[work.bits] or vector.shape != (work.length,):
            due = f"{work.length} integers modulo 2^{work.bits} were agreed on"
            raise ContributionError(f"{due}, this is {vector.dtype}{list(vector.shape)}", party=self.name)
        bound, me = terms.bound(seat.coins), terms.names.index(self.name)
        around = bound.graph[me].tolist()
        secrets = self._agree(seat, terms, around, MASKING)
        pairs = [(bound.key(secret, MASKING, me, j), me < j) for j, secret in zip(around, secrets, strict=True)]
        masked = vector.copy()
        masks.apply(masked, [(derive(seat.secret(BLIND), bound.digest, BLIND), True), *pairs])
        seat = replace(seat, answer=masked.tobytes(), sent=True)
        return seat, self._answer(seat)

    def _taken(self, seat: Seat, phase: int, said: bytes) -> Seat:
        """The seat after a request that it did not have before."""
        if phase == Phase.CLOSE:
            return _erased(seat, seat.ended or ("undecided" if seat.sent else "unused"))
        if phase != Phase.UNMASK and (seat.ended or phase <= seat.phase):
            self._refuse("a second request of a phase that it answered")
        if phase not in (seat.phase + 1, Phase.SURVIVORS, Phase.UNMASK):
            self._refuse("a request out of turn")
        takes = (self._roster, self._share, self._mask, self._survivors, self._unmask)
        return takes[phase - Phase.ROSTER](seat, said)

    def _roster(self, seat: Seat, said: bytes) -> Seat:
        """Sign the terms, if they are those that it would agree to, and show its coin."""
        terms: Terms = decode(said, Terms)
        place, names = (terms.run, terms.session, terms.attempt), terms.names
        known = [self.pins.get(m.name) == m.identity and len(m.said) == 128 for m in terms.roster]
        strangers = [name for name, pinned in zip(names, known, strict=True) if not pinned]
        own = [m.said for m in terms.roster if m.name == self.name] == [seat.answer]
        for fits, what in (
            (place == (seat.run, seat.session, seat.attempt), "terms of another attempt"),
            (terms.work == seat.work, "terms of other work: another round, model or vector"),
            (terms.rules == self.rules, f"{terms.rules}, where it holds to {self.rules}"),
            (list(names) == sorted(set(names)), "a roster not in order of different names"),
            (not strangers, f"a roster with {strangers}, under keys it does not pin"),
            (len({m.identity for m in terms.roster}) == len(names), "a roster with one identity under two names"),
            (own, "a roster with another advert than its own"),
        ):
            if not fits:
                self._refuse(what)
        try:
            answer = seat.secret(b"coin") + self.identity.sign(b"roster", terms.digest)
        except StudyError as few:
            self._refuse(f"a roster that does not do: {few.message}")
        return replace(seat, phase=Phase.ROSTER.value, terms=terms, answer=answer)

    def _share(self, seat: Seat, said: bytes) -> Seat:
        """Check that all signed the same terms, and deal shares of both secrets to the neighbours."""
        terms, each, coins = self._known(seat), KEY + SIGNATURE, b""
        if len(said) != len(terms.roster) * each:
            self._refuse("a roster that not everybody signed")
        for i, member in enumerate(terms.roster):
            coin, name = said[i * each : i * each + KEY], said[i * each + KEY : (i + 1) * each]
            if not signed(member.identity, name, b"roster", terms.digest):
                self._refuse(f"a roster that {member.name!r} did not sign", member.name)
            if digest(b"coin", coin) != member.advert.coin:
                self._refuse(f"a coin that {member.name!r} did not commit to", member.name)
            coins += coin
        bound, me = terms.bound(coins), terms.names.index(self.name)
        secrets, around = [seat.secret(BLIND), seat.secret(MASKING)], bound.graph[me]
        key = derive(seat.secret(b"shares"), bound.digest, b"shares")
        dealt = shares.split(secrets, around + 1, terms.numbers.threshold, key)
        self._agree(seat, terms, around.tolist(), MASKING)  # before anything is dealt: commit takes them all
        agreed, answer = self._agree(seat, terms, around.tolist(), b"sealing"), b""
        for other, both, secret in zip(around.tolist(), dealt, agreed, strict=True):
            promise = promises(bound, me, other, both.tobytes())
            header, key = self._header(terms, me, other) + promise, bound.key(secret, b"seal", me, other)
            answer += promise + agreement.seal(key, int(me > other), both.tobytes(), header)
        return replace(seat, phase=Phase.SHARE.value, coins=coins, agreed=b"".join(agreed), answer=answer)

    def _agree(self, seat: Seat, terms: Terms, around: Iterable[int], purpose: bytes) -> list[bytes]:
        """The secrets that it has with its neighbours, 32 bytes each."""
        keys = (getattr(terms.roster[other].advert, purpose.decode()) for other in around)
        try:
            return agreement.agree(seat.secret(purpose), keys)
        except TrustError:
            self._refuse("a roster with a key that is none to agree with")

    def _mask(self, seat: Seat, dealt: bytes) -> Seat:
        """Open the neighbours' shares: all of them, or there will be no vector."""
        terms, held = self._known(seat), b""
        bound, me = terms.bound(seat.coins), terms.names.index(self.name)
        around = bound.graph[me].tolist()
        if len(dealt) != len(around) * DEALT:
            self._refuse("shares of not all its neighbours")
        for at, other in enumerate(around):
            parcel, name = dealt[at * DEALT : (at + 1) * DEALT], terms.names[other]
            promise, sealed = parcel[: 2 * KEY], parcel[2 * KEY :]
            key = bound.key(seat.agreed[at * KEY : (at + 1) * KEY], b"seal", me, other)
            header = self._header(terms, other, me) + promise
            if (both := agreement.unseal(key, int(other > me), sealed, header)) is None:
                self._refuse(f"a share that does not open, of {name!r}", name)
            if promises(bound, other, me, both) != promise:
                self._refuse(f"a share that {name!r} dealt is not the one it committed to", name)
            held += both
        return replace(seat, phase=Phase.MASK.value, agreed=b"", shares=held, answer=b"")

    def _survivors(self, seat: Seat, chosen: bytes) -> Seat:
        """Sign the set whose sum will be opened: one, ever. The empty one says that none will be."""
        terms = self._known(seat)
        if self._inside(seat, chosen).any() and not seat.sent:
            self._refuse("a sum before it gave its vector")
        said = self.identity.sign(b"survivors", terms.digest, chosen)
        return replace(seat, phase=Phase.SURVIVORS.value, chosen=chosen, answer=said)

    def _unmask(self, seat: Seat, said: bytes) -> Seat:
        """Give of each neighbour the one secret that the certified set calls for, then forget everything."""
        certificate: Certificate = decode(said, Certificate)
        terms, inside = self._known(seat), self._inside(seat, certificate.chosen)
        if not certificate.holds(terms):
            self._refuse(f"survivors that fewer than {terms.numbers.signers} of the roster signed")
        if not inside.any() and seat.ended != "summed":
            return _erased(seat, "abandoned")
        if seat.ended or not seat.sent or seat.chosen not in (b"", certificate.chosen):
            self._refuse("a second set of survivors in one attempt")
        around = terms.bound(seat.coins).graph[terms.names.index(self.name)]
        held = np.frombuffer(seat.shares, np.uint8).reshape(len(around), 2, shares.SHARE)
        given = np.where(inside[around][:, None], held[:, 0], held[:, 1])
        known = {"chosen": certificate.chosen, "answer": seat.secret(BLIND) + given.tobytes()}
        return _erased(seat, "summed", phase=Phase.UNMASK.value, **known)

    def _inside(self, seat: Seat, chosen: bytes) -> NDArray[np.bool_]:
        """Who is in a set: nobody, or enough and itself."""
        terms = self._known(seat)
        if (inside := terms.inside(chosen)) is None:
            self._refuse("a set of survivors that is none")
        if inside.any() and not inside[terms.names.index(self.name)]:
            self._refuse("a sum that its own vector is not in")
        if 0 < inside.sum() < terms.numbers.survivors:
            self._refuse(f"a sum of {inside.sum()} parties, of fewer than the rules ask for")
        return inside

    def _known(self, seat: Seat) -> Terms:
        return seat.terms or self._refuse("a request before the roster")

    def _header(self, terms: Terms, sender: int, receiver: int) -> bytes:
        place = (terms.run, terms.session, terms.attempt, Phase.SHARE.value)
        return encode(Envelope(*place, terms.names[sender], terms.names[receiver], b""))

    def _answer(self, seat: Seat) -> Out:
        place = (seat.run, seat.session, seat.attempt, seat.phase, self.name, "")
        return (Envelope(*place, seat.answer),) if seat.answer else ()

    def _refuse(self, what: str, *about: str) -> NoReturn:
        remedy = "Nothing was given. Ask the coordinator's operator why."
        error = TrustError(f"the coordinator sent {what}", remedy=remedy, party=self.name)
        error.about = about
        raise error


def promises(bound: Bound, dealer: int, holder: int, both: bytes) -> bytes:
    """Commitments to the two shares that a neighbour is dealt, 64 bytes."""
    place, half = b"%b%d %d " % (bound.digest, dealer, holder), shares.SHARE
    return digest(BLIND, place + both[:half]) + digest(MASKING, place + both[half:])


def _erased(seat: Seat, ended: str, **kept: Any) -> Seat:
    """The seat without its secrets, and without an answer but what is to be kept."""
    gone = {"entropy": b"", "agreed": b"", "shares": b"", "answer": b"", "ended": ended}
    return replace(seat, **({"phase": Phase.CLOSE.value} | gone | kept))
