"""A hall of parties and a coordinator for tests of the secure sum; a network and disks that fail on purpose."""

from collections import Counter, deque
from types import SimpleNamespace

import numpy as np

from hansa.crypto.agreement import Identity, digest
from hansa.crypto.shares import SHARE
from hansa.errors import HansaError
from hansa.secure import coordinator
from hansa.secure.coordinator import Desk
from hansa.secure.party import BLIND, DEALT, MASKING, Party, Seat, promises
from hansa.secure.terms import Envelope, Member, Phase, Rules, Terms, Work, decode, encode


class Hall:
    """Parties that advertised for an attempt, and the coordinator's desk, as the attempt opens."""

    def __init__(self, n=5, rules=None, *, length=7, bits=32, seed=0, attempt=1, run="run"):
        self.rules = rules or Rules(corrupt=0, dropout=0.2, honest=3)
        draw = np.random.default_rng(seed)
        self.names = [f"party {i:03d}" for i in range(n)]
        self.identities = {name: Identity(draw.bytes(32)) for name in self.names}
        self.pins = {name: own.public for name, own in self.identities.items()}
        self.parties = {name: Party(name, self.identities[name], self.pins, self.rules) for name in self.names}
        self.work = Work(1, b"m" * 32, length, bits)
        top = np.iinfo(f"u{bits // 8}").max
        self.vectors = {name: draw.integers(0, top, length, f"u{bits // 8}", endpoint=True) for name in self.names}
        self.seats, adverts = {}, {}
        for name, party in self.parties.items():
            seat, (said,) = party.advertise(run, "session", attempt, draw.bytes(32))
            self.seats[name], adverts[name] = party.expect(seat, self.work), said.payload
        members = tuple(Member(name, self.pins[name], adverts[name]) for name in self.names)
        self.terms = Terms(run, "session", attempt, self.work, self.rules, members)
        self.desk, self.out = coordinator.opening(self.terms)
        self.spool = {}

    def answer(self, name, envelope):
        """A party's answer to one request; its vector where it is asked for one."""
        party = self.parties[name]
        self.seats[name], said = party.step(self.seats[name], [envelope])
        if envelope.phase == Phase.MASK:
            self.seats[name], said = party.commit(self.seats[name], self.vectors[name])
            self.spool[name] = said[0].payload
        return said

    def turn(self, silent=()):
        """One phase: everybody but the silent is asked and answers."""
        phase, inbox = self.desk.phase, []
        for envelope in self.out:
            if envelope.receiver not in silent:
                inbox += self.answer(envelope.receiver, envelope)
        self.desk, self.out = coordinator.step(self.desk, inbox)
        if self.desk.phase == phase and not self.desk.ended:
            self.desk, self.out = coordinator.advance(self.desk)

    def until(self, phase, silent=()):
        """Turn until the requests of a phase are out."""
        while self.desk.phase < phase and not self.desk.ended:
            self.turn(silent)
        return self

    def request(self, name):
        """What one party is asked now."""
        return next(envelope for envelope in self.out if envelope.receiver == name)

    def say(self, name, phase, payload, **other):
        """A request of a coordinator that says what it likes."""
        place = {"run": self.terms.run, "session": "session", "attempt": self.terms.attempt}
        return Envelope(**(place | {"phase": int(phase), "sender": "", "receiver": name, "payload": payload} | other))

    def plain(self, names):
        """The plain sum of some parties' vectors, modulo the ring."""
        return sum(
            (self.vectors[name] for name in names), np.zeros(self.work.length, self.vectors[self.names[0]].dtype)
        )

    def total(self):
        return coordinator.total(self.desk, self.spool.__getitem__)


class Faults(Hall):
    """The same over a network that loses, repeats and delays, between machines that crash.

    ``plan`` maps the number of an event, which is the delivery of a message, to what happens at it:

    - ``drop``, ``twice``, ``late``: the network loses it, delivers it twice, or after everything that waits;
    - ``before``: the receiver crashes before its state is durable; ``after``: when it is, but nothing was sent;
    - ``between``: the coordinator crashes when a vector is durable and its desk is not;
    - ``lose``: the receiver is gone for good (of the coordinator: as ``after``).

    Memory is lost at every crash: a machine goes on from the bytes on its disk.
    """

    def __init__(self, plan, **hall):
        super().__init__(**hall)
        self.plan, self.events, self.dead = plan, 0, set()
        self.disk = {name: encode(seat) for name, seat in self.seats.items()}
        self.disk[""] = encode(self.desk)
        self.charged, self.heard, self.late = Counter(), [], deque()
        self.waiting = deque(self.out)
        self.pick = lambda waiting: waiting.popleft()

    def play(self):
        """Until the attempt has ended for everybody who is left."""
        for _ in range(6):  # patience: a deadline is passed with what is there
            while self.waiting or self.late:
                self.deliver(self.pick(self.waiting) if self.waiting else self.late.popleft())
            self.waiting += coordinator.requests(decode(self.disk[""], Desk))
            while self.waiting or self.late:
                self.deliver(self.pick(self.waiting) if self.waiting else self.late.popleft())
            desk = decode(self.disk[""], Desk)
            if desk.ended:
                break
            desk, out = coordinator.advance(desk)
            self.disk[""] = encode(desk)
            self.waiting += out
        self.desk = decode(self.disk[""], Desk)
        self.seats = {name: decode(self.disk[name], Seat) for name in self.names}
        return self

    def deliver(self, envelope):
        fault, self.events = self.plan.get(self.events, ""), self.events + 1
        if fault == "late":
            self.late.append(envelope)
        if fault in ("late", "drop") or envelope.receiver in self.dead:
            return
        for _ in range(2 if fault == "twice" else 1):
            (self.to_party if envelope.receiver else self.to_coordinator)(envelope, fault)
        if fault == "lose" and envelope.receiver:
            self.dead.add(envelope.receiver)

    def to_coordinator(self, envelope, fault):
        desk = decode(self.disk[""], Desk)
        self.heard.append(envelope)
        i = self.names.index(envelope.sender)
        if envelope.phase == desk.phase == Phase.MASK and not desk.answers[i]:
            self.spool[envelope.sender] = envelope.payload
        desk, out = coordinator.step(desk, [envelope])
        if fault not in ("before", "between"):
            self.disk[""] = encode(desk)
            self.waiting += out if fault not in ("after", "lose") else ()

    def to_party(self, envelope, fault):
        name = envelope.receiver
        party, seat = self.parties[name], decode(self.disk[name], Seat)
        try:
            seat, out = party.step(seat, [envelope])
        except HansaError:
            assert seat.ended  # nobody refuses an honest coordinator, but for what is over
            return
        if fault == "before":
            return
        self.disk[name] = encode(seat)
        if seat.phase == Phase.MASK and not seat.sent:
            self.charged[name] = 1
            seat, out = party.commit(seat, self.vectors[name])
            if fault != "between":
                self.disk[name] = encode(seat)
        elif seat.phase == Phase.MASK and envelope.phase == Phase.MASK:
            seat, out = party.commit(seat, self.vectors[name])
        if fault not in ("after", "between", "lose"):
            for said in out:
                if said.phase == Phase.MASK:
                    assert self.charged[name]
                    assert self.spool.get(name, said.payload) == said.payload
            self.waiting += out


def revealed(hall, answers):
    """Of each party, how many shares of its blinding seed and of its masking key a coordinator has learnt."""
    desk, bound = hall.desk, hall.terms.bound(hall.desk.coins)
    found = {name: {BLIND: set(), MASKING: set()} for name in hall.names}
    k = hall.terms.numbers.degree
    for said in answers:
        if said.phase != Phase.UNMASK:
            continue
        holder = hall.names.index(said.sender)
        assert digest(b"blind", said.payload[:32]) == hall.terms.roster[holder].advert.blind
        found[said.sender][BLIND] |= set(range(hall.terms.numbers.threshold))
        for place, dealer in enumerate(bound.graph[holder]):
            share = said.payload[32 + place * SHARE :][:SHARE]
            at = (dealer * k + int(np.searchsorted(bound.graph[dealer], holder))) * DEALT
            kinds = [
                kind
                for half, kind in enumerate((BLIND, MASKING))
                if promises(bound, int(dealer), holder, share * 2)[half * 32 :][:32]
                == desk.dealt[at + half * 32 :][:32]
            ]
            assert len(kinds) == 1
            found[hall.names[dealer]][kinds[0]].add(holder)
    return found


def check(hall):
    """The promises of an attempt, after :meth:`Faults.play`."""
    desk, seats = hall.desk, hall.seats
    assert desk.ended in ("summed", "abandoned", "failed")
    if desk.ended == "summed":
        assert np.array_equal(hall.total(), hall.plain(desk.survivors))
        assert len(desk.survivors) >= hall.terms.numbers.survivors
    for phase in (Phase.MASK, Phase.SURVIVORS, Phase.UNMASK):  # what was committed is all that is ever said
        said = {(e.sender, e.payload) for e in hall.heard if e.phase == phase}
        assert len({sender for sender, _ in said}) == len(said)
    t = hall.terms.numbers.threshold
    if desk.dealt:
        for name, kinds in revealed(hall, hall.heard).items():
            assert min(len(kinds[BLIND]), len(kinds[MASKING])) < t, name
            assert not (kinds[BLIND] and kinds[MASKING]), name
    ends = {seat.ended for seat in seats.values()}
    assert not {"summed", "abandoned"} <= ends
    for name, seat in seats.items():
        assert seat.ended != "summed" or seat.chosen == desk.chosen
        assert not seat.ended or not (seat.entropy or seat.agreed or seat.shares), name
        assert not seat.sent or hall.charged[name]
        if seat.ended == "unused":
            assert name not in hall.spool


HELPERS = SimpleNamespace(Hall=Hall, Faults=Faults, revealed=revealed, check=check)
