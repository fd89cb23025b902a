"""What a secure sum costs each of its roles: processor time on one core, and bytes.

Every phase runs as it is, every payload is made. To keep the run short, only some parties check the others'
signatures, and only theirs are the clients' figures. The attempt is played once up to the vectors and then goes
on for each share of dropouts, which its pure roles allow.
"""

from __future__ import annotations

import os
import time
from datetime import datetime
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR

import hansa as hs
from benchmarks.deployed import parties
from hansa import aggregation as agg
from hansa.backends.remote import Remote
from hansa.crypto import masks
from hansa.crypto.agreement import Identity
from hansa.secure import coordinator, party
from hansa.secure.terms import Member, Phase, Rules, Terms, Work

MB = 1e6
# Parties, parameters, rules, and of each share of dropouts the seconds to reach.
RACES: dict[str, tuple[int, int, Rules, dict[float, float], float, float]] = {
    "complete, 100 x 1 M": (
        100, 1_000_000, Rules(corrupt=20, dropout=0.3), {0.0: 0.2, 0.1: 1.0, 0.3: 2.2}, 0.15, 4.1,
    ),
    "complete, 500 x 100 K": (
        500, 100_000, Rules(corrupt=100, dropout=0.3, graph="complete"),
        {0.0: 0.15, 0.1: 3.5, 0.3: 8.0}, 0.2, 0.5,
    ),
    "regular, 500 x 100 K": (
        500, 100_000, Rules(corrupt=100, dropout=0.3), {0.0: 0.15, 0.1: 3.5, 0.3: 8.0}, 0.2, 0.5,
    ),
    "regular, 1000 x 100 K": (
        1000, 100_000, Rules(corrupt=200, dropout=0.1), {0.1: 3.0}, 0.0, 0.0,
    ),
    "regular, curious, 1000 x 100 K": (
        1000, 100_000, Rules(corrupt=200, dropout=0.1, adversary="curious"), {0.1: 3.0}, 0.0, 0.0,
    ),
}  # fmt: skip


class Clock:
    """Processor seconds, by name."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}

    def __call__(self, name: str, work: Any, *given: Any) -> Any:
        begin = time.process_time()
        done = work(*given)
        self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - begin
        return done


class Play:
    """An attempt whose vectors were sent, ready to go on with any dropouts."""

    def __init__(self, n: int, length: int, rules: Rules) -> None:
        names = [f"party {i:04d}" for i in range(n)]
        self.probes = set(names[:: n // 5])
        keys = {name: Identity(os.urandom(32)) for name in names}
        pins = {name: key.public for name, key in keys.items()}
        self.roles = {name: party.Party(name, keys[name], pins, rules) for name in names}
        self.vectors = {name: np.full(length, i, np.uint32) for i, name in enumerate(names)}
        self.clients = {name: Clock() for name in names}
        self.sent = dict.fromkeys(names, 0)
        self.got = dict.fromkeys(names, 0)
        self.spool: dict[str, bytes] = {}
        self.seats, roster, work = {}, [], Work(1, bytes(32), length)
        for name, role in self.roles.items():
            seat, (said,) = self.clients[name]("all", role.advertise, "run", "session", 1, os.urandom(32))
            self.seats[name] = role.expect(seat, work)
            self.sent[name] += len(said.payload)
            roster.append(Member(name, pins[name], said.payload))
        self.terms = Terms("run", "session", 1, work, rules, tuple(roster))
        _ = self.terms.numbers, party.encode(self.terms)  # derived and compiled once a process
        self.server = Clock()
        self.desk, self.out = self.server("relay", coordinator.opening, self.terms)
        while self.desk.phase < Phase.MASK:
            answers = self.ask(self.seats)
            self.desk, self.out = self.server("relay", coordinator.step, self.desk, answers)
        self.vectored = self.ask(self.seats)

    def ask(self, seats: dict[str, Any]) -> list[Any]:
        """Everybody's answers; who is no probe takes signatures on trust."""
        answers = []
        for request in self.out:
            name = request.receiver
            role, clock = self.roles[name], self.clients[name]
            believed = patch.object(party, "signed", lambda *_: True)
            if name in self.probes:
                seats[name], said = clock("all", role.step, seats[name], [request])
            else:
                with believed:
                    seats[name], said = role.step(seats[name], [request])
            if request.phase == Phase.MASK:
                seats[name], said = clock("all", role.commit, seats[name], self.vectors[name])
                self.spool[name] = said[0].payload
            self.sent[name] += sum(len(envelope.payload) for envelope in said)
            self.got[name] += len(request.payload)
            answers += said
        return answers

    def end(self, dropout: float) -> dict[str, float]:
        """Seconds of the coordinator for the whole attempt and for the sum alone, with so many lost."""
        n = len(self.vectored)
        lost = set(np.linspace(0, n - 1, int(n * dropout + 1e-9), dtype=int).tolist())
        there = [e for i, e in enumerate(self.vectored) if i not in lost]
        server, seats = Clock(), dict(self.seats)
        desk, out = server("relay", coordinator.step, self.desk, there)
        if not desk.ended and desk.phase == Phase.MASK:
            desk, out = server("relay", coordinator.advance, desk)
        before, self.out = self.out, out
        answers = self.ask(seats)
        desk, self.out = server("relay", coordinator.step, desk, answers)
        answers = self.ask(seats)
        desk, _ = server("open", coordinator.step, desk, answers)
        total = server("open", coordinator.total, desk, self.spool.__getitem__)
        self.out = before
        assert desk.ended == "summed"
        want = sum(int(self.vectors[name][0]) for name in desk.survivors)
        assert (total == want).all()
        whole = self.server.spent["relay"] + sum(server.spent.values())
        return {"whole_s": whole, "open_s": server.spent["open"]}


def race(n: int, length: int, rules: Rules, dropouts: list[float]) -> dict[str, Any]:
    """One row of figures."""
    play = Play(n, length, rules)
    ends = {}
    for i, dropout in enumerate(dropouts):
        ends[str(dropout)] = play.end(dropout)
        if not i:  # a client answers an attempt once
            clients = median(play.clients[name].spent["all"] for name in play.probes)
            probe = max(play.probes - {"party 0000"})
            sent, got = play.sent[probe], play.got[probe]
    numbers = play.terms.numbers
    return {
        "degree": numbers.degree, "threshold": numbers.threshold, "signers": numbers.signers,
        "client_s": clients, "sent_mb": sent / MB, "got_mb": got / MB, "ends": ends,
    }  # fmt: skip


def expansion() -> dict[str, float]:
    """Gigabytes a second of our masks and of bare AES-CTR plus an addition, turn by turn."""
    size, count = masks.BLOCK, 1500
    zeros, buffer = bytes(size), bytearray(size + 15)
    total, made = np.zeros(size // 4, np.uint32), np.frombuffer(buffer, np.uint32, count=size // 4)

    def bare() -> None:
        stream = Cipher(AES256(os.urandom(32)), CTR(bytes(16))).encryptor()
        for _ in range(count):
            stream.update_into(zeros, buffer)
            np.add(total, made, out=total)

    vector = np.zeros(1_000_000, np.uint32)
    keys = [(os.urandom(32), True) for _ in range(count * size // vector.nbytes)]
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(7):
        for name, work, nbytes in (
            ("bare", bare, count * size),
            ("ours", lambda: masks.apply(vector, keys), len(keys) * vector.nbytes),
        ):
            clock = Clock()
            clock("all", work)
            rates[name].append(nbytes / clock.spent["all"] / 1e9)
    ratio = median(a / b for a, b in zip(rates["ours"], rates["bare"], strict=True))
    return {"bare_gbs": median(rates["bare"]), "ours_gbs": median(rates["ours"]), "ratio": ratio}


def deployed(rounds: int = 6) -> dict[str, float]:
    """Median seconds of a round of ten parties with a million parameters between processes on loopback, in turn
    with a secure sum and with the same stages before it and none.
    """
    chain = agg.clip(1.0) >> agg.grid(bits=12)
    taken: dict[str, list[float]] = {"plain": [], "secure": []}
    with parties(10, columns=1000, kind="softmax-regression", acquainted=True) as home:
        for _ in range(3):
            for name, stages in (("plain", chain), ("secure", chain >> agg.secure_sum(threshold=0.8))):
                run = hs.Federation(
                    name="tiny",
                    task=hs.SoftmaxRegression(target="y", classes=range(1000)),
                    method=hs.FedSGD(weights="equal"),
                    aggregation=stages,
                    rounds=rounds,
                    cohort=hs.All(minimum=8),
                    preprocessing=hs.Moments(standardise=False),
                    evaluation=hs.Evaluate(every=0, holdout=0.0),
                ).run(Remote(home))
                asked = [datetime.fromisoformat(e.at).timestamp() for e in run.events if e.kind == "asked"]
                taken[name] += np.diff(asked)[1:].tolist()
    plain, secure = median(taken["plain"]), median(taken["secure"])
    return {"plain_s": plain, "secure_s": secure, "ratio": secure / plain}


def measure() -> dict[str, object]:
    """All figures; BLAS on one core, as everything else."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    between = deployed()
    races = {name: race(n, d, rules, list(at)) for name, (n, d, rules, at, *_) in RACES.items()}
    return {"expansion": expansion(), "races": races, "deployed": between}


def lines(r: dict[str, Any], taken: str) -> list[str]:
    """The section of the page."""
    rows = [
        "## Secure sum\n",
        "Processor time on one core. A client: everything that one party does in an attempt, from its keys to",
        "its shares. The coordinator: the whole attempt; in brackets from the arrival of the shares to the sum.",
        "uint32; 30% dropout tolerated, of 1000 parties 10%; a fifth colludes; the coordinator is malicious",
        "unless it says curious.\n",
        taken,
        "| parties x parameters | k, t, T | client | reach | sent | reach | lost | coordinator | reach | reached |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in r["races"].items():
        *_, reach, client, sent = RACES[name]
        numbers = f"{figures['degree']}, {figures['threshold']}, {figures['signers']}"
        first = [
            f"{name} | {numbers} | {figures['client_s']:.2f} s | {_reach(client, 's')} "
            f"| {figures['sent_mb']:.2f} MB | {_reach(sent, 'MB')} "
        ]
        for dropout, end in figures["ends"].items():
            goal = reach[float(dropout)]
            said = "yes" if end["whole_s"] <= goal else "**no**"
            head = first.pop() if first else " | | | | | "
            rows.append(
                f"| {head}| {float(dropout):.0%} | {end['whole_s']:.2f} s ({end['open_s']:.2f} s) "
                f"| {goal:g} s | {said} |"
            )
    e = r["expansion"]
    rows += [
        "",
        f"Masks are expanded and added at {e['ours_gbs']:.1f} GB/s, bare AES-CTR and an addition reach "
        f"{e['bare_gbs']:.1f} GB/s in the same run: {e['ratio']:.0%} of it (reach 75%).",
        "",
    ]
    if d := r.get("deployed"):
        rows += [
            "Between eleven processes on loopback, ten parties with a million parameters each: a round takes "
            f"{d['secure_s']:.2f} s with a secure sum, {d['plain_s']:.2f} s without, {d['ratio']:.1f} times as "
            "long (reach: at most 3 times).\n"
        ]
    return rows


def _reach(value: float, unit: str) -> str:
    return f"{value:g} {unit}" if value else ""
