"""What production works out from its arguments alone is worked out once for all seeds: so a seed takes milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

from hansa import federation, run, tensors
from hansa.agent import desk, ledger, seats
from hansa.contribution import Ask, Values
from hansa.coordinator import inbox, live, machine
from hansa.crypto import agreement, shares
from hansa.federation import Federation
from hansa.methods.base import Setup
from hansa.methods.course import Course, Progress
from hansa.party import Party
from hansa.privacy.events import EVENTS
from hansa.secure import coordinator as secure_coordinator
from hansa.secure import party as secure_party
from hansa.secure import terms as secure_terms
from hansa.secure.terms import Envelope, Rules


class Memo:
    """Remembers results by keys in which things that do not change are told apart by their identity."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}
        self._kept: list[Any] = []

    def __call__(self, key: tuple[Any, ...], make: Callable[[], Any], *kept: Any) -> Any:
        known = self._known.get(key, self)
        if known is self:
            self._kept.append(kept)  # an identity is given again once its owner is gone
            known = self._known[key] = make()
        return known


def _values(values: Values) -> tuple[Any, ...]:
    return tuple((name, value.dtype.str, value.shape, value.tobytes()) for name, value in sorted(values.items()))


@contextmanager
def remembered() -> Iterator[None]:
    """While this is open, pure functions remember, from one time to the next."""
    with ExitStack() as stack:
        for owner, names in _patches().items():
            for name, made in names.items():
                stack.enter_context(mock.patch.object(owner, name, made))
        yield


@cache
def _patches() -> dict[Any, dict[str, Any]]:
    """What stands for what, by its owner and name."""
    memo = Memo()
    from_json, to_json, course = Federation.from_json, Federation.to_json, Federation.course
    begin, asks, apply, permits = Course.begin, Course.ask, Course.apply, Course.permits
    pieces, unpack = Progress.pieces, Progress.unpack
    answer, again, admit = Party.answer, Party.again, desk.admit
    signals = Course.signals
    hashed = Federation.hash.fget

    def answered(party: Party, ask: Ask, memory: Values) -> Any:
        key = "answer", id(party), ask.digest, _values(memory)
        return memo(key, lambda: answer(party, ask, memory), party)

    def applied(self: Course, progress: Progress, ask: Ask, total: Any) -> Progress:
        said = _values(total.values), total.parties, total.population, total.weight, total.buckets
        made: Progress = memo(
            ("apply", id(self), id(progress), ask.digest, said),
            lambda: apply(self, progress, ask, total),
            self,
            progress,
        )
        return made

    def in_pieces(self: Progress, memories: Any = None) -> list[Any]:
        if memories is not None:
            return pieces(self, memories)
        return list(memo(("pieces", id(self)), lambda: pieces(self), self))

    def party_of(name: str, table: Any, of: Course) -> Party:
        made: Party = memo(("party", name, id(table), id(of)), lambda: Party(name, table, of), table, of)
        return made

    build, spec, sign, setup = EVENTS.build, EVENTS.spec, agreement.Identity.sign, Setup.from_json
    agree = agreement.agree
    known = {name: cache(getattr(agreement, name)) for name in ("signed", "derive", "public")}
    agreed = cache(lambda private, peers: agree(private, peers))
    known["agree"] = lambda private, peers: agreed(private, tuple(peers))
    known |= {"seal": cache(agreement.seal), "unseal": cache(agreement.unseal)}
    promises = secure_party.promises
    known["promises"] = lambda of, *what: memo(("promises", of.digest, *what), lambda: promises(of, *what))
    encode, bound, split = secure_terms.encode, secure_terms.Terms.bound, shares.split
    encoded = cache(encode)
    known["encode"] = lambda value: encoded(value) if type(value) in (Rules, Envelope) else encode(value)
    deploy = federation.deployed

    def deployed(of: Federation, setup: Any, secret: bytes, run: str) -> Course:
        made: Course = memo(
            ("deployed", id(of), setup.parties, secret, run), lambda: deploy(of, setup, secret, run), of
        )
        return made

    draw = run.draw

    def drawn(of: Federation, course: Course, ask: Ask) -> Ask:
        made: Ask = memo(
            ("draw", id(of), id(course), id(ask)), lambda: draw(of, course, ask), of, course, ask
        )  # whose digest is known from then on
        return made

    read, opened, refusal = tensors.read, Course.open, inbox.refusal

    def read_once(data: Any, *limit: Any, **named: Any) -> Any:
        if not isinstance(data, bytes):
            return read(data, *limit, **named)
        return dict(memo(("read", data, limit, *named.values()), lambda: read(data, *limit, **named)))

    def refused(body: Any, head: Any, signal: Any) -> str:
        key = "refused", bytes(body), head.digest, head.weight, head.size, id(signal)
        said: str = memo(key, lambda: refusal(body, head, signal), signal)
        return said

    def open_once(self: Course, ask: Ask, stack: Any) -> Any:
        said = _values(stack.values), stack.parties, stack.weights.tobytes()
        made, excluded = memo(("open", id(self), ask.digest, said), lambda: opened(self, ask, stack), self)
        return made, dict(excluded)

    ciphers = (secure_coordinator, secure_party, secure_terms)

    patches: dict[Any, dict[str, Any]] = {
        Federation: {
            "from_json": staticmethod(cache(from_json)),
            "to_json": lambda self: memo(("json", id(self)), lambda: to_json(self), self),
            "hash": property(lambda self: memo(("hash", id(self)), lambda: hashed(self), self)),
            "course": lambda self, setup, secret=b"": memo(
                ("course", id(self), repr(setup), secret), lambda: course(self, setup, secret), self
            ),
        },
        Course: {
            "begin": lambda self: memo(("begin", id(self)), lambda: begin(self), self),
            "ask": lambda self, progress: memo(
                ("ask", id(self), id(progress)), lambda: asks(self, progress), self, progress
            ),
            "permits": lambda self, ask: memo(("permits", id(self), ask.digest), lambda: permits(self, ask), self),
            "signals": lambda self, ask: memo(("signals", id(self), ask.digest), lambda: signals(self, ask), self),
            "apply": applied,
            "open": open_once,
        },
        EVENTS: {
            "build": lambda body: memo(("event", repr(body)), lambda: build(body)),
            "spec": lambda event: dict(memo(("spec", event), lambda: spec(event))),
        },
        Progress: {"pieces": in_pieces, "unpack": staticmethod(cache(unpack))},
        Setup: {"from_json": staticmethod(lambda body: memo(("setup", repr(body)), lambda: setup(body)))},
        agreement.Identity: {"sign": lambda self, *what: memo(("sign", self.public, *what), lambda: sign(self, *what))},
        seats: {"words": cache(agreement.words), "encode": known["encode"]},
        secure_terms.Terms: {
            "bound": lambda self, coins: memo(("bound", self.digest, coins), lambda: bound(self, coins))
        },
        shares: {
            "split": lambda secrets, points, threshold, key: memo(
                ("split", *secrets, points.tobytes(), threshold, key), lambda: split(secrets, points, threshold, key)
            )
        },
        Party: {
            "answer": answered,
            "again": lambda self, attempt: memo(("again", id(self), attempt), lambda: again(self, attempt), self),
        },
        tensors: {"read": read_once},
        inbox: {"refusal": refused},
        live: {"deployed": deployed, "draw": drawn},
        machine: {"deployed": deployed, "draw": drawn},
        ledger: {"less_one": cache(ledger.less_one)},
        desk: {
            "deployed": deployed,
            "Party": party_of,
            "admit": lambda federation, ask, setup, offers, party: memo(
                ("admit", id(federation), ask.digest, id(setup), id(offers[0]), party),
                lambda: admit(federation, ask, setup, offers, party),
                federation,
                setup,
                offers[0],
            ),
        },
    }
    for module in (*ciphers, agreement):
        patches[module] = {name: made for name, made in known.items() if hasattr(module, name)}
    return patches
