"""Feed the parsers of what strangers send with bytes that nobody meant.

``make fuzz`` runs atheris (libFuzzer), guided by the branches that an input takes, over each target. What it
finds is written to ``tests/tools/found/TARGET-...``, and the tests replay that, with the seeds and some hundred
mutations of them. Whatever is wrong with an input must be said by one of `EXPECTED`.

    python tools/fuzz.py [TARGET ...] [--runs 100000]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
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

    from hansa import backup, tensors
    from hansa.agent import machine as agent
    from hansa.agent import store as agents_store
    from hansa.contribution import Ask, Total, Values, canonical
    from hansa.coordinator import events as ev
    from hansa.coordinator import hello, inbox
    from hansa.coordinator import store as coordinators_store
    from hansa.coordinator.machine import Machine
    from hansa.crypto import keys, pki
    from hansa.crypto.agreement import Identity
    from hansa.crypto.token import Token
    from hansa.crypto.vault import Vault
    from hansa.data.table import ColumnSchema
    from hansa.database import Put
    from hansa.errors import HansaError
    from hansa.federation import Federation
    from hansa.methods.base import Setup
    from hansa.secure import coordinator, party, terms
    from hansa.study import from_mapping
    from hansa.wire import chunks
    from hansa.wire import messages as m
    from hansa.wire.rpcs import RPCS
    from hansa.wire.service import decoded

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
    """A body of a hundred zeros, cut where the first byte says."""
    receiver, cut = chunks.Receiver(100, tensors.digest(bytes(100))), 1 + data[0] if data else 0
    for chunk in (data[1:cut], data[cut:]):
        receiver.accept(chunk)
    assert receiver.finish() == bytes(100)


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


# --- every call, and what it brings to the coordinator


def _calls(data: bytes) -> None:
    """A request of any call, by its number in the table, as a running coordinator takes it."""
    rpc = list(RPCS.values())[data[0] % len(RPCS)] if data else None
    if rpc is not None:
        request = decoded(rpc, data[1:])
        again = rpc.request.FromString(request.SerializeToString())
        assert again.SerializeToString() == request.SerializeToString()
        if isinstance(request, m.RenewRequest):
            authority().issue(request.csr, role=pki.PARTY, name="a")
        elif isinstance(request, m.SubmitRequest):
            _federation(request.federation)
        elif isinstance(request, m.UploadPart) and request.HasField("step"):
            terms.Step.read(request.step)
        elif isinstance(request, m.JoinRequest):
            hello.speaks(request.protocol)
            authority().issue(request.csr, role=pki.PARTY, name="a")


@cache
def authority() -> pki.Authority:
    """Who signs, and whose certificates are read."""
    return pki.Authority.create("fuzz")


def _certificate(data: bytes) -> None:
    pki.identify(data, authority().public_key)


def _sealed(data: bytes) -> None:
    """What lies on the disk and was not written by us, or not there."""
    assert Vault([bytes(32)]).open(data, "place", 1) == bytes(100)  # whatever opens is what was sealed


def _archive(data: bytes) -> None:
    """A backup, which somebody had in their hands; it writes nothing outside its folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "archive").write_bytes(data)
        with backup.restored(folder / "archive", folder / "home", "agent"):
            pass
        assert {path.name for path in folder.iterdir()} == {"archive", "home"}


# --- state machines: bytes become events, each of a number and small arguments


class Dice:
    """Small numbers from bytes, 0 for ever at their end."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def __call__(self, sides: int) -> int:
        """A number below ``sides``."""
        return (self._data.read(1) or b"\0")[0] % sides

    def __bool__(self) -> bool:
        """Whether there is more."""
        return self._data.tell() < len(self._data.getbuffer())


PARTIES = ("a", "b", "c")
COLUMNS = tuple(ColumnSchema(name, "number") for name in ("area", "texture", "malignant"))


def _coordinators_machine(data: bytes) -> None:
    """Sequences of events, most of them possible. Each exchange has one fate, and its rows fit into their tables."""
    dice, machine, settled = Dice(data), Machine(secret=bytes(32)), set[tuple[str, int]]()
    sums: list[tuple[str, int, tuple[str, ...]]] = []
    seen = dict[str, int]()
    for party in PARTIES:
        machine.handle(ev.Joined(party, f"serial {party}", "2099-01-01"))
    while dice:
        event = _event(dice, machine, sums)
        if event is None:
            continue
        with contextlib.suppress(HansaError):  # it says what cannot be
            effects = machine.handle(event)
            sums += effects.reduce
            for run, version in effects.settled:
                assert (run, version) not in settled, "an exchange settled twice"
                settled.add((run, version))
            _fits(effects.changes, coordinators_store.metadata.tables)
            for row in (dict(change.values) for change in effects.changes if change.table == "event"):
                assert row["seq"] == seen.get(row["run"], 0) + 1, "an event without its number"
                seen[row["run"]] = row["seq"]
                body = row["body"]
                if row["kind"] == "arrived":
                    assert not set(body["counted"]) & set(body["excluded"]), "counted, and not"
    for live in machine.runs.values():
        assert live.ask is not None, "a run under way that asks nothing"


def _event(dice: Dice, machine: Machine, sums: list[Any]) -> Any:
    """The next event; None if there is none of that kind now."""
    kind, party = dice(10), PARTIES[dice(3)]
    run = sorted(machine.runs or ["no run"])[dice(len(machine.runs) or 1)]
    live = machine.runs.get(run)
    version = (live.progress.version if live else 0) + (dice(8) == 7) - (dice(8) == 7)
    attempt = (live.attempt if live else 1) + (dice(8) == 7)
    match kind:
        case 0:
            offer = ev.Offered("data", 20 + dice(3), COLUMNS, ("logistic-regression",))
            pending = tuple(ev.Unsettled(run, version, bool(dice(2)), dice(4)) for _ in range(dice(2)))
            return ev.Connected(party, (offer,) * (dice(4) > 0), pending, bytes([dice(4)]) * 32)
        case 1:
            return ev.Disconnected(party)
        case 2:
            name, hidden = f"run {len(machine.runs) + len(machine._applied)}", bool(dice(2))
            return ev.Submitted(name, submitted(hidden)) if len(machine.runs) < 3 else None
        case 3 | 4 | 5:
            refusal, weight = "torn" if dice(8) == 7 else "", float(1 + dice(60))
            return ev.Delivered(object(), party, run, version, attempt, weight, f"{dice(3)}", b"", refusal)
        case 6:
            return ev.Failed(object(), party, run, version, attempt, "no" * dice(3), PARTIES[: dice(3)])
        case 7:
            return ev.DeadlinePassed(run, version, attempt, dice(8))
        case 8:
            step = terms.Step(run, version, attempt, dice(9), bytes([dice(256)]) * dice(70))
            return ev.Said(object(), party, step)
        case _ if sums:
            run, version, counted = sums.pop(dice(len(sums)))
            if run not in machine.runs or machine.runs[run].ask is None:
                return None
            fields = machine.runs[run].ask.fields
            total = Values({field.name: np.full(field.shape or (), 30.0) for field in fields})
            return ev.Reduced(run, version, Total(total, counted, 3, float(len(counted))), {}, "no" * (dice(8) == 7))
        case _:
            which = dice(4)
            if which == 3:
                return ev.Removed(party, "fuzzed")
            return ev.Joined(party, f"serial {dice(256)}", "2099-01-01") if which else None


@cache
def submitted(hidden: bool) -> Federation:
    """A study of two rounds, with or without a secure sum."""
    body = tomllib.loads(STUDY)
    body["study"]["name"], body["method"]["rounds"], body["cohort"] = "fuzzed", 2, {"kind": "all", "minimum": 1}
    body["study"]["dataset"] = "data"
    if hidden:
        body["cohort"]["minimum"] = 3
        body["aggregation"]["stages"] += [{"kind": "grid", "bits": 8}, {"kind": "secure-sum", "threshold": 0.6}]
    return from_mapping(body, Path())


def _fits(changes: list[Any], tables: Mapping[str, Any]) -> None:
    for change in changes:
        assert set(change.values) <= set(tables[change.table].columns.keys()), change
        primary = {column.name for column in tables[change.table].primary_key}
        assert primary <= set(change.values) or not isinstance(change, Put), change


def _agents_machine(data: bytes) -> None:
    """Sequences of events. The bytes of an answer never change, and every charge is written down."""
    dice, machine = Dice(data), agent.Machine()
    sent, working = dict[tuple[str, int], tuple[int, bytes]](), list[agent.Asked]()
    ask = study()[0]
    while dice:
        kind, run, version, attempt = dice(6), f"run {dice(3)}", dice(4), 1 + dice(3)
        asked = agent.Asked(run, Ask("train", version, 1 + dice(2), ask.send, ask.fields), attempt, "f" * 64, bytes(32))
        event: agent.AgentEvent = asked
        if kind == 1 and working:
            done, charge = working.pop(dice(len(working))), {"number": len(sent) + dice(256)}
            event = agent.Worked(done, 1.0, bytes([dice(256)]), bytes(dice(2)), charge)
        elif kind == 2 and working:
            event = agent.CouldNot(working.pop(dice(len(working))), "no", {"number": 1} if dice(2) else {})
        elif kind in (3, 4):
            event = agent.Settled(run, version, bool(dice(2)))
        elif kind == 5:
            event = agent.Heard(terms.Step(run, version, attempt, dice(9), bytes([dice(256)]) * dice(70)))
        effects = machine.handle(event)
        working += effects.work
        _fits([c for c in effects.changes if c.table != "charge"], agents_store.metadata.tables)
        if isinstance(event, agent.Worked | agent.CouldNot) and event.charge:
            assert Put("charge", event.charge) in effects.changes, "a charge that is not written down"
        for held in effects.send:
            attempt, body = sent.get((held.run, held.version), (0, b""))
            assert held.attempt != attempt or held.body == body, "other bytes for the same answer"
            sent[held.run, held.version] = held.attempt, held.body
        for key in sent.keys() - machine.held.keys():
            del sent[key]  # it is over; a run that failed may go on


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


def _in_order() -> list[bytes]:
    """Two parties connect, a run begins, they answer, it is summed, and so on, as `_event` reads it."""
    head = [0] * 4  # which run, and that version and attempt are the right ones
    connect = [byte for party in range(3) for byte in (0, party, *head, 0, 0, 1, party)]
    submit = [2, 0, *head, 0]
    answers = [byte for party in range(3) for byte in (3, party, *head, 0, 1, 0)]
    reduce = [9, 0, *head, 0, 0]
    others = [6, 1, *head, 1, 0, 7, 0, *head, 0, 1, 2, *head]
    hidden = [*connect, *submit[:-1], 1, *(byte for party in range(3) for byte in (8, party, *head, 1, 9, 64))]
    return [bytes([*connect, *submit, *3 * (answers + reduce)]), bytes([*connect, *submit, *others]), bytes(hidden)]


def _taken_by_calls() -> list[bytes]:
    seeds = [bytes([i]) + rpc.request().SerializeToString() for i, rpc in enumerate(RPCS.values())]
    names = list(RPCS)
    csr = keys.request(keys.new_key())
    seeds.append(
        bytes([names.index("Join")]) + m.JoinRequest(secret=bytes(16), csr=csr, protocol=1).SerializeToString()
    )
    seeds.append(bytes([names.index("Renew")]) + m.RenewRequest(csr=csr).SerializeToString())
    study = from_mapping(tomllib.loads(STUDY), Path()).to_json()
    seeds.append(bytes([names.index("Submit")]) + m.SubmitRequest(federation=study).SerializeToString())
    part = m.UploadPart(step=m.Step(run="r", version=0, attempt=1, phase=3, payload=bytes(9)))
    return [*seeds, bytes([names.index("Upload")]) + part.SerializeToString()]


def _archived() -> list[bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "home"
        folder.mkdir()
        (folder / "party.json").write_text("{}")
        backup.backup(folder, Path(name) / "archive", {"program": "agent"})
        return [(Path(name) / "archive").read_bytes()]


def _certificates() -> list[bytes]:
    return [authority().issue(keys.request(keys.new_key()), role=pki.PARTY, name="a"), authority().certificate_pem]


SHARES = {
    **dict.fromkeys(("tensors", "hello", "upload", "chunks", "token", "ask"), 0.1),
    **dict.fromkeys(("sealed", "certificate"), 0.08),
    "setup": 0.06,
    **dict.fromkeys(("calls", "party", "coordinator"), 0.03),
    "study": 0.02,
    "agents-machine": 0.015,
    **dict.fromkeys(("federation", "tables", "archive", "coordinators-machine"), 0.006),
}
"""Of many messages over all targets: fewer for those that take long."""

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
    head = m.Head(run="r", version=0, attempt=1, weight=1.0, size=len(sums), digest=tensors.digest(sums), data=sums)
    return {
        "tensors": [body, sums, tensors.write({"a": np.ones((2, 3), "f4"), "b": np.array([True])}, {"k": "v"})],
        "ask": [m.Notice(work=[work]).SerializeToString()],
        "hello": [m.Hello(protocol=1, offers=[offer], pending=[m.Pending(run="r")]).SerializeToString()],
        "upload": [m.UploadPart(head=head).SerializeToString()],
        "chunks": [bytes([50]) + bytes(100)],
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
    "calls": Target(_calls, _taken_by_calls),
    "certificate": Target(_certificate, _certificates),
    "sealed": Target(_sealed, lambda: [b"".join(map(bytes, Vault([bytes(32)]).seal(bytes(100), "place", 1)))]),
    "archive": Target(_archive, _archived),
    "coordinators-machine": Target(_coordinators_machine, _in_order),
    "agents-machine": Target(_agents_machine, lambda: [bytes([0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 3, 0, 0, 1] * 3)]),
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
        options = [f"-runs={runs}", f"-artifact_prefix={FOUND}/{name}-", "-timeout=10", "-max_len=8192", "-seed=1"]
        options += ["-rss_limit_mb=1024", "-print_final_stats=1", "-verbosity=1"]
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
