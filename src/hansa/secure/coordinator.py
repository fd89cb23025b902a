"""The coordinator's side of an attempt: it relays, has one set of survivors signed, and opens that set's sum."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hansa.crypto import masks, shares
from hansa.crypto.agreement import KEY, SIGNATURE, agree, derive, digest, public, signed
from hansa.errors import StudyError, TrustError
from hansa.secure.graph import buckets, edges
from hansa.secure.party import BLIND, DEALT, MASKING, Certificate, promises
from hansa.secure.terms import Envelope, Kept, Out, Phase, Terms, encode

_SAID = KEY + SIGNATURE  # bytes of an answer to ROSTER: a coin and a signature


@dataclass(frozen=True)
class Desk(Kept):
    """The coordinator's state in one attempt; the masked vectors are kept beside it."""

    terms: Terms
    phase: int = 0  # of the requests that are out
    told: bytes = b""  # their payload, but of MASK, where each gets what was dealt to it
    answers: tuple[bytes, ...] = ()  # of this phase, in the roster's order; empty while missing
    coins: bytes = b""  # the parts by which the graph was drawn
    dealt: bytes = b""  # parcels by dealer and neighbour: commitments, and the shares sealed
    chosen: bytes = b""  # the survivors, once they are fixed
    opened: bytes = b""  # 32 of each member: a survivor's seed, the masking key of a lost one
    refused: tuple[str, ...] = ()  # what was wrong with whom, for people to read
    ended: Literal["", "summed", "abandoned", "failed"] = ""  # abandoned: no sum will be, signed

    @cached_property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in the sum; nobody's before that is fixed."""
        chosen = self.chosen or bytes(len(self.terms.names))
        return tuple(n for n, there in zip(self.terms.names, chosen, strict=True) if there)

    def holding(self, names: Iterable[str]) -> "Desk":
        """The desk with vectors that were checked and kept elsewhere; :func:`step` then goes on."""
        there, marked = set(names), zip(self.terms.names, self.answers, strict=True)
        return replace(self, answers=tuple(b"\1" if name in there else got for name, got in marked))

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Whose answers are out; none after the end."""
        asked = set(self.survivors or self.terms.names)
        answers = zip(self.terms.names, self.answers, strict=True)
        return () if self.ended else tuple(n for n, got in answers if not got and n in asked)

    @property
    def ready(self) -> bool:
        """Whether nobody is waited for: all are there, or enough of those who sign a set of survivors."""
        signed = sum(map(bool, self.answers)) >= self.terms.numbers.signers and self.phase == Phase.SURVIVORS
        return signed or not self.missing


def opening(terms: Terms) -> tuple[Desk, Out]:
    """Begin an attempt among parties that advertised; a StudyError if so few cannot hold the rules."""
    if list(terms.names) != sorted(set(terms.names)) or not terms.numbers:
        raise StudyError("a roster is in order of different names")
    desk = _asked(Desk(terms), Phase.ROSTER, encode(terms))
    return desk, requests(desk)


def step(desk: Desk, inbox: Sequence[Envelope]) -> tuple[Desk, Out]:
    """Take answers, and go on once all are there; make the desk durable before the requests leave."""
    desk = taken(desk, inbox)
    return advance(desk) if desk.ready and not desk.ended else (desk, ())


def taken(desk: Desk, inbox: Sequence[Envelope]) -> Desk:
    """Take answers. An answer that is wrong is noted against its sender, who counts as missing. A vector that is taken,
    which shows in ``answers``, is to be durable before the desk is, and never overwritten."""
    terms, waiting = desk.terms, set(desk.missing)
    place = (terms.run, terms.session, terms.attempt, desk.phase, "")
    answers, refused = list(desk.answers), list(desk.refused)
    at = {name: i for i, name in enumerate(terms.names)}
    for e in inbox:
        if (e.run, e.session, e.attempt, e.phase, e.receiver) != place or e.sender not in waiting:
            continue  # late, repeated, or of another attempt
        if wrong := _wrong(desk, at[e.sender], e.payload):
            refused.append(f"{e.sender}: {wrong}")
        else:
            answers[at[e.sender]] = b"\1" if desk.phase == Phase.MASK else e.payload
            waiting.discard(e.sender)
    return replace(desk, answers=tuple(answers), refused=tuple(refused))


def requests(desk: Desk) -> Out:
    """The requests that are out, to those who did not answer; after the end, to everyone, that it is over."""
    terms = desk.terms
    place = (terms.run, terms.session, terms.attempt, desk.phase, "")
    asked, told = set(terms.names if desk.ended else desk.missing), [desk.told] * len(terms.names)
    if desk.phase == Phase.MASK:
        parcels = np.frombuffer(desk.dealt, f"V{DEALT}")
        told = [parcels[row].tobytes() for row in edges(terms.bound(desk.coins).graph)]
    both = zip(terms.names, told, strict=True)
    return tuple(Envelope(*place, name, payload) for name, payload in both if name in asked)


def advance(desk: Desk) -> tuple[Desk, Out]:
    """Go on without those who are missing: all are there, or their time is up. Before the vectors that is the end,
    nothing was given; after them the survivors are fixed, once."""
    terms = desk.terms
    there = [n for n, got in zip(terms.names, desk.answers, strict=True) if got]
    if desk.ended:
        pass
    elif desk.phase <= Phase.SHARE and desk.missing:
        desk = _asked(desk, Phase.CLOSE, ended="failed")
    elif desk.phase == Phase.ROSTER:
        coins = b"".join(answer[:KEY] for answer in desk.answers)
        desk = _asked(desk, Phase.SHARE, b"".join(desk.answers), coins=coins)
    elif desk.phase == Phase.SHARE:
        desk = _asked(desk, Phase.MASK, dealt=b"".join(desk.answers))
    elif desk.phase == Phase.MASK:
        chosen = terms.marks(there if len(there) >= terms.numbers.survivors else ())
        desk = _asked(desk, Phase.SURVIVORS, chosen, chosen=chosen)
    elif desk.phase == Phase.UNMASK:
        desk, opened = _opened(desk)
        desk = _asked(desk, Phase.CLOSE, opened=opened, ended="summed" if opened else "failed")
    elif len(there) < (need := terms.numbers.signers):
        desk = _asked(desk, Phase.CLOSE, ended="failed")
    else:
        first = terms.marks(there[:need])
        said = tuple(got if one else b"" for got, one in zip(desk.answers, first, strict=True))
        certificate = encode(Certificate(desk.chosen, said))
        desk = _asked(desk, Phase.UNMASK, certificate, ended="" if desk.survivors else "abandoned")
    return desk, requests(desk)


LOST = "too few of its bucket were left for a sum"


@dataclass(frozen=True)
class Table(Kept):
    """The desks of an attempt, one for each bucket of its roster, which go from phase to phase together.

    Before the shares of every bucket are dealt, or there will be none of it, nobody is asked for a vector: so long, to
    begin anew costs nothing."""

    desks: tuple[Desk, ...]

    @cached_property
    def open(self) -> tuple[Desk, ...]:
        """Those that have not ended; all in one phase."""
        return tuple(desk for desk in self.desks if not desk.ended)

    @property
    def phase(self) -> int:
        """Of the requests that are out."""
        return self.open[0].phase if self.open else Phase.CLOSE.value

    @property
    def ended(self) -> str:
        """Empty before all have; then ``"summed"`` if one has a sum, or how they failed."""
        ends = {desk.ended for desk in self.desks}
        return next(end for end in ("", "summed", "abandoned", "failed") if end in ends)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parties."""
        return tuple(name for desk in self.desks for name in desk.terms.names)

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose vectors are in a sum, or may be yet."""
        return tuple(name for desk in self.desks if desk.ended in ("", "summed") for name in desk.survivors)

    @property
    def missing(self) -> tuple[str, ...]:
        """Whose answers are waited for."""
        return tuple(name for desk in self.open if not desk.ready for name in desk.missing)

    def holding(self, names: Collection[str]) -> "Table":
        """See `Desk.holding`."""
        return Table(tuple(desk if desk.ended else desk.holding(names) for desk in self.desks))

    def step(self, inbox: Sequence[Envelope]) -> "Table":
        """Take answers, and go on once no bucket waits; see `step`."""
        heard = Table(tuple(taken(desk, inbox) for desk in self.desks))
        return heard.advance() if all(desk.ready for desk in heard.open) else heard

    def advance(self) -> "Table":
        """Go on without those who are missing."""
        return Table(tuple(advance(desk)[0] for desk in self.desks))

    @property
    def requests(self) -> Out:
        """The requests that are out; to those whose bucket has ended, that it has."""
        return tuple(said for desk in self.desks for said in requests(desk))


def seated(terms: Terms) -> Table:
    """Begin an attempt: in buckets, if the rules say so, which follow from all that the roster's members advertised."""
    size = terms.rules.bucket or len(terms.roster) or 1
    parts = buckets(len(terms.roster), size, digest(b"buckets", encode(terms)))
    rosters = (tuple(terms.roster[i] for i in part) for part in parts)
    return Table(tuple(opening(replace(terms, roster=roster))[0] for roster in rosters))


def unfit(said: bytes) -> str:
    """What is wrong with an advert, empty if nothing is."""
    if len(said) != 4 * KEY:
        return "an advert of another length"
    try:
        agree(bytes(KEY), (said[:KEY], said[KEY : 2 * KEY]))
    except TrustError:
        return "an advert with a key of small order"
    return ""


def total(desk: Desk, vector: Callable[[str], bytes | memoryview]) -> NDArray[Any]:
    """The sum of the survivors' vectors, ``[d]``, modulo 2^bits, from each party's payload of MASK; of those it
    holds a few at a time."""
    if desk.ended != "summed":
        raise StudyError(f"this attempt has no sum: it {desk.ended or 'has not ended'}")
    dtype = masks.DTYPES[desk.terms.work.bits]
    out = np.zeros(desk.terms.work.length, dtype)
    for few in range(0, len(desk.survivors), 8):
        given = [np.frombuffer(vector(name), dtype) for name in desk.survivors[few : few + 8]]
        for at in range(0, len(out), masks.BLOCK):
            for one in given:
                out[at : at + masks.BLOCK] += one[at : at + masks.BLOCK]
    masks.apply(out, _left_over(desk))
    return out


def _left_over(desk: Desk) -> Iterator[tuple[bytes, bool]]:
    """The masks that the sum of masked vectors still has, and whether each is to be added to take it off."""
    bound, inside = desk.terms.bound(desk.coins), np.frombuffer(desk.chosen, bool)
    for i, row in enumerate(bound.graph):
        secret = desk.opened[i * KEY : (i + 1) * KEY]
        if inside[i]:
            yield derive(secret, bound.digest, BLIND), False
            continue
        others = row[inside[row]].tolist()
        agreed = agree(secret, (desk.terms.roster[other].advert.masking for other in others))
        for other, shared in zip(others, agreed, strict=True):
            yield bound.key(shared, MASKING, i, other), i < other


def _wrong(desk: Desk, i: int, data: bytes) -> str:
    """What is wrong with an answer, empty if nothing can be seen to be."""
    terms, k = desk.terms, desk.terms.numbers.degree
    lengths = (_SAID, k * DEALT, terms.work.length * terms.work.bits // 8)
    length = (*lengths, SIGNATURE, KEY + k * shares.SHARE)[desk.phase - Phase.ROSTER]
    if len(data) != length:
        return f"an answer of {len(data)} bytes where {length} are due"
    member = terms.roster[i]
    if desk.phase == Phase.SURVIVORS and not signed(member.identity, data, b"survivors", terms.digest, desk.chosen):
        return "a signature on other survivors"
    coin = digest(b"coin", data[:KEY]) == member.advert.coin
    if desk.phase == Phase.ROSTER and not (coin and signed(member.identity, data[KEY:], b"roster", terms.digest)):
        return "another roster signed, or another coin"
    return ""


def _asked(desk: Desk, phase: Phase, told: bytes = b"", **known: Any) -> Desk:
    return replace(desk, phase=phase.value, told=told, answers=(b"",) * len(desk.terms.roster), **known)


def _opened(desk: Desk) -> tuple[Desk, bytes]:
    """One secret of each member, 32 bytes each, and who gave what is none noted; nothing if one stays shut."""
    terms, bound, refused = desk.terms, desk.terms.bound(desk.coins), list(desk.refused)
    k, t = terms.numbers.degree, terms.numbers.threshold
    there = np.array([bool(got) for got in desk.answers])
    dealt = np.frombuffer(desk.dealt, np.uint8).reshape(len(there), k, DEALT)

    @cache  # by dealer and neighbour, once anybody is missing
    def given() -> NDArray[np.uint8]:
        flat = b"".join(got[KEY:] or bytes(k * shares.SHARE) for got in desk.answers)
        return np.frombuffer(flat, np.uint8).reshape(-1, shares.SHARE)[edges(bound.graph)]

    def opened(i: int) -> bytes:
        advert, half, name = terms.roster[i].advert, int(not desk.chosen[i]), terms.names[i]
        row, own = bound.graph[i], desk.answers[i][:KEY]

        def fits(secret: bytes) -> bool:
            return (public(secret) if half else digest(BLIND, secret)) == advert[2 - 2 * half]

        if own and fits(own):
            return own
        refused.extend([f"{name}: a seed that it did not commit to"] if own else [])
        left, held = np.flatnonzero(there[row]), given()[i]
        while len(left) >= t:
            secret = shares.combine(held[left[:t]], row[left[:t]] + 1)
            if secret and fits(secret):
                return secret
            part = slice(half * KEY, half * KEY + KEY)
            both = [promises(bound, i, row[p], held[p].tobytes() * 2)[part] for p in left]
            good = [dealt[i, p, part].tobytes() == b for p, b in zip(left, both, strict=True)]
            said = f"a share of {name!r} that is not the one dealt"
            refused.extend(f"{terms.names[j]}: {said}" for j in row[left[np.invert(good)]])
            if all(good):
                refused.append(f"{name}: shares that open no secret it committed to")
                break
            left = left[good]
        return b""

    secrets = [opened(i) for i in range(len(there))]
    return replace(desk, refused=tuple(refused)), b"".join(secrets) if all(secrets) else b""
