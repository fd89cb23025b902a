"""Feed the parsers of what strangers send with bytes that nobody meant.

``make fuzz`` runs atheris (libFuzzer), guided by the branches that an input takes, over each target. What it
finds is written to ``tests/tools/found/TARGET-...``, and the tests replay that, with the seeds and some hundred
mutations of them. Whatever is wrong with an input must be said by one of `EXPECTED`.

    python tools/fuzz.py [TARGET ...] [--runs 100000]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

with contextlib.ExitStack() as _stack:
    if __name__ == "__main__" and "--one" in sys.argv:  # only here: it takes a while
        import atheris

        _stack.enter_context(atheris.instrument_imports(include=["hansa", "tomllib", "json"]))
    from google.protobuf.message import DecodeError

    from hansa.contribution import Ask, Values, canonical
    from hansa.coordinator import hello, inbox
    from hansa.crypto.agreement import Identity
    from hansa.crypto.token import Token
    from hansa.errors import HansaError
    from hansa.federation import Federation
    from hansa.methods.base import Setup
    from hansa.secure import coordinator, party, terms
    from hansa.study import from_mapping
    from hansa.wire import chunks, tensors
    from hansa.wire import messages as m

FOUND = Path(__file__).resolve().parents[1] / "tests" / "tools" / "found"
EXPECTED = (HansaError,)
STUDY = """
[study]
name = "tumours"
[task]
kind = "logistic-regression"
target = "malignant"
features = ["area", "texture"]
[method]
kind = "fedavg"
rounds = 5
weights = "equal"
local = { lr = 0.1 }
[[aggregation.stages]]
kind = "clip"
norm = 1.0
[contract.columns.area]
type = "number"
low = 0
high = 3000
[preprocessing]
standardise = false
[privacy]
unit = "party"
"""


@dataclass(frozen=True)
class Target:
    """A parser, and inputs from which to begin."""

    parse: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


def _tensors(data: bytes) -> None:
    arrays = tensors.read(data, limit=1 << 20)
    again = tensors.read(tensors.write(arrays))
    assert {n: a.shape for n, a in again.items()} == {n: a.shape for n, a in arrays.items()}
    assert all(a.tobytes() == again[n].tobytes() for n, a in arrays.items())
    tensors.metadata(data)


def _ask(data: bytes) -> None:
    """As an agent takes it: whatever is wrong is an excuse there, but it must come back soon, and small."""
    with contextlib.suppress(DecodeError, ValueError, KeyError, TypeError):
        for work in m.Notice.FromString(data).work:
            Ask.from_header(json.loads(work.ask), Values(tensors.read(work.tensors))).digest  # noqa: B018


def _hello(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        hello.connected("a", m.Hello.FromString(data))


def _upload(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        head = m.UploadPart.FromString(data).head
        signal = study()[1]
        assert isinstance(inbox.too_large(signal, head.size) or inbox.refusal(head.data, head, signal), str)


def _chunks(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        receiver = chunks.Receiver(100, chunks.digest(bytes(100)))
        receiver.accept(m.Chunk.FromString(data))
        receiver.finish()


def _federation(data: bytes) -> None:
    federation = Federation.from_json(data)
    assert Federation.from_json(federation.to_json()) == federation


def _setup(data: bytes) -> None:
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # of a coordinator; an excuse
        Setup.from_json(json.loads(data)).encoding  # noqa: B018


def _study(data: bytes) -> None:
    with contextlib.suppress(UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
        body = tomllib.loads(data.decode())
        if "files" not in str(body):  # those of this machine are nobody's input
            from_mapping(body, Path(tempfile.gettempdir()) / "nothing is here")


def _tables(data: bytes) -> None:
    """The tables of a study file, as JSON, which is changed in its places."""
    body = _json(data)
    if isinstance(body, dict) and "files" not in str(body) and "module" not in str(body):
        from_mapping(body, Path(tempfile.gettempdir()) / "nothing is here")


def _json(data: bytes) -> Any:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data)


def _token(data: bytes) -> None:
    Token.decode(data.decode("utf-8", "replace"))


def _asked_of_a_party(data: bytes) -> None:
    """A request of the coordinator in a secure sum, in each phase; the first byte says which."""
    seats, roles, _ = attempt()
    for phase, seat in seats.items():
        if data[:1] == bytes([phase]):
            roles["a"].step(seat, [terms.Envelope("run", "session", 1, phase, "", "a", data[1:])])
            return
    terms.decode(data, terms.Envelope)


def _answered_to_the_coordinator(data: bytes) -> None:
    """A party's answer, in each phase. A wrong one is noted, not raised."""
    for phase, desk in attempt()[2].items():
        if data[:1] == bytes([phase]):
            coordinator.step(desk, [terms.Envelope("run", "session", 1, phase, "a", "", data[1:])])


@cache
def study() -> tuple[Any, Any]:
    """The ask of a first round, and what an answer to it must be."""
    setup = Setup(("a", "b", "c"), ("area", "texture"))
    course = from_mapping(tomllib.loads(STUDY), Path()).course(setup)
    ask = course.ask(course.begin())
    assert ask is not None
    return ask, course.signals(ask)[-1]


@cache
def attempt() -> tuple[dict[int, Any], dict[str, party.Party], dict[int, Any]]:
    """The seat of a party and the desk of the coordinator before each phase of an attempt among five."""
    names, rules = list("abcde"), terms.Rules(dropout=0.2, honest=3)
    keys = {name: Identity(bytes([i]) * 32) for i, name in enumerate(names)}
    pins = {name: key.public for name, key in keys.items()}
    roles = {name: party.Party(name, keys[name], pins, rules) for name in names}
    work = terms.Work(1, bytes(32), 7)
    now, members = {}, []
    for i, (name, role) in enumerate(roles.items()):
        seat, (said,) = role.advertise("run", "session", 1, bytes([i + 10]) * 32)
        now[name] = role.expect(seat, work)
        members.append(terms.Member(name, pins[name], said.payload))
    desk, out = coordinator.opening(terms.Terms("run", "session", 1, work, rules, tuple(members)))
    seats, desks = dict[int, Any](), dict[int, Any]()
    while not desk.ended:
        seats[desk.phase], desks[desk.phase], answers = now["a"], desk, list[Any]()
        for request in out:
            name = request.receiver
            now[name], said = roles[name].step(now[name], [request])
            if request.phase == terms.Phase.MASK:
                now[name], said = roles[name].commit(now[name], np.ones(7, np.uint32))
            answers += said
            HEARD.setdefault(desk.phase, []).extend([request.payload, *(e.payload for e in said)])
        desk, out = coordinator.step(desk, answers)
    return seats, roles, desks


IN_JSON = ("federation", "setup", "tables")
HEARD: dict[int, list[bytes]] = {}
"""What was said in each phase of that attempt."""


def _said() -> list[bytes]:
    attempt()
    return [bytes([phase]) + payload for phase, heard in sorted(HEARD.items()) for payload in heard[:4]]


def _seeds_of_wire() -> dict[str, list[bytes]]:
    ask = study()[0]
    body = tensors.write(ask.send)
    work = m.Work(run="r", work=ask.work, version=0, round=ask.round, attempt=1, ask=canonical(ask.header()))
    work.tensors = body
    offer = m.Offer(dataset="t", rows=9, columns=[m.Column(name="x", type="number")], allow=["cox-regression"])
    sums = tensors.write({field.name: np.zeros(field.shape or ()) for field in ask.fields})
    head = m.Head(run="r", version=0, attempt=1, weight=1.0, size=len(sums), digest=chunks.digest(sums), data=sums)
    return {
        "tensors": [body, sums, tensors.write({"a": np.ones((2, 3), "f4"), "b": np.array([True])}, {"k": "v"})],
        "ask": [m.Notice(work=[work]).SerializeToString()],
        "hello": [m.Hello(protocol=1, offers=[offer], pending=[m.Pending(run="r")]).SerializeToString()],
        "upload": [m.UploadPart(head=head).SerializeToString()],
        "chunks": [m.Chunk(offset=0, data=bytes(100)).SerializeToString()],
    }


def _wire(name: str) -> Callable[[], list[bytes]]:
    return lambda: _seeds_of_wire()[name]


TARGETS: dict[str, Target] = {
    "tensors": Target(_tensors, _wire("tensors")),
    "ask": Target(_ask, _wire("ask")),
    "hello": Target(_hello, _wire("hello")),
    "upload": Target(_upload, _wire("upload")),
    "chunks": Target(_chunks, _wire("chunks")),
    "federation": Target(_federation, lambda: [from_mapping(tomllib.loads(STUDY), Path()).to_json()]),
    "setup": Target(_setup, lambda: [canonical(Setup(("a", "b"), ("x",), {"c": ("u", "v")}).to_json())]),
    "tables": Target(_tables, lambda: [canonical(tomllib.loads(STUDY))]),
    "study": Target(_study, lambda: [STUDY.encode()]),
    "token": Target(
        _token, lambda: [Token.new("h:1", authority_key=bytes.fromhex(_POINT), lobby_seed=bytes(16)).encode().encode()]
    ),
    "party": Target(_asked_of_a_party, _said),
    "coordinator": Target(_answered_to_the_coordinator, _said),
}
_POINT = "036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"  # P-256's own


NASTY = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", "a", "\x00", "x" * 300, "../../etc", "\u202e", "müller", [], {}, [[]], {"": {}}, {"kind": 1}, ["a", 1, None]),
)


def moved(data: bytes, seed: int) -> bytes:
    """JSON with one place in it changed; what is none, as it is."""
    body, chance = _json(data), random.Random(seed)  # noqa: S311  # the same each time
    at, path = body, []
    while isinstance(at, dict | list) and at and (not path or chance.random() < 0.8):
        path.append((at, chance.choice(list(at)) if isinstance(at, dict) else chance.randrange(len(at))))
        at = path[-1][0][path[-1][1]]
    if not path:
        return data
    holder, key = path[-1]
    if chance.random() < 0.15:
        del holder[key]
    elif isinstance(holder, dict) and chance.random() < 0.15:
        holder[chance.choice(("kind", "extra", "", "stages"))] = holder.pop(key)
    else:
        holder[key] = chance.choice(NASTY)
    return json.dumps(body).encode()


def replayed(name: str, mutations: int) -> Iterator[bytes]:
    """The seeds, what was found before, and so many mutations of both, the same each time."""
    known = [*TARGETS[name].seeds(), *(path.read_bytes() for path in sorted(FOUND.glob(f"{name}-*")))]
    yield from known
    chance = random.Random(name)  # noqa: S311  # the same each time
    for _ in range(mutations):
        data = bytearray(moved(chance.choice(known), chance.getrandbits(32)))
        if name in IN_JSON and chance.random() < 0.8:
            yield bytes(data)
            continue
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(data) + 1)
            match chance.randrange(5):
                case 0:
                    data[at : at + 1] = bytes([chance.randrange(256)])
                case 1:
                    del data[at : at + chance.randrange(1, 9)]
                case 2:
                    data[at:at] = data[at : at + chance.randrange(1, 20)]
                case 3:
                    data[at : at + 8] = chance.choice((b"\xff" * 8, bytes(8), b"-1", b"1e999", b"null", b"[[[["))
                case 4:
                    data[at:at] = chance.choice(known)[: chance.randrange(1, 40)]
        yield bytes(data)


def checked(name: str, data: bytes) -> None:
    """Parse an input; what is expected to be wrong with it is fine."""
    with contextlib.suppress(*EXPECTED):
        TARGETS[name].parse(data)


def _mutated(data: bytes, most: int, seed: int) -> bytes:
    """As libFuzzer asks for it: mostly still JSON."""
    return moved(data, seed)[:most] if seed % 4 else bytes(atheris.Mutate(data, most))


def _one(name: str, runs: int) -> None:
    """Fuzz one target in this process, which ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        for i, seed in enumerate(TARGETS[name].seeds()):
            (Path(folder) / str(i)).write_bytes(seed)
        FOUND.mkdir(exist_ok=True)
        options = [f"-runs={runs}", f"-artifact_prefix={FOUND}/{name}-", "-timeout=20", "-max_len=8192", "-seed=1"]
        options += ["-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"]
        more = {"custom_mutator": _mutated} if name in IN_JSON else {}
        atheris.Setup([sys.argv[0], *options, folder], lambda data: checked(name, data), **more)
        atheris.Fuzz()


def main() -> int:
    """Fuzz all targets or some, one process each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("targets", nargs="*", choices=[[], *TARGETS], metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument("--runs", type=int, default=100_000, help="inputs for each target")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        _one(given.one, given.runs)
    failed = []
    for name in given.targets or TARGETS:
        command = [sys.executable, __file__, "--one", name, "--runs", str(given.runs)]
        print(f"--- {name}", flush=True)
        if subprocess.run(command, check=False).returncode:  # noqa: S603  # our own
            failed.append(name)
    print(f"found something in {', '.join(failed)}" if failed else "found nothing")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
