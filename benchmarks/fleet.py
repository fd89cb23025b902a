"""A federation of real processes that can be broken: killed, frozen, cut off, and started again.

`Fleet` starts a coordinator and agents as a user would, by their commands, with mutual TLS on one port; what breaks
them is real, too. The tests in ``tests/chaos`` and the figures of ``docs/reliability.md`` come from it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import hansa as hs
from hansa import methods
from hansa.agent.offers import Offers
from hansa.backends.remote import Remote
from hansa.cli.operator import call
from hansa.data.source import write_parquet
from hansa.methods.course import Progress
from hansa.run import Run
from hansa.wire.rpcs import INVITE, PARTIES, SUBMIT

PATIENCE = 240.0
"""Seconds after which whatever is waited for is taken for a hang."""

COORDINATOR = "coordinator"


@dataclass
class Fleet:
    """Programs in a folder.

    Args:
        folder: where the tables, the homes and the logs of all are.
        address: under which parties reach the coordinator.
        listen: the address on which it listens, if it is another.
        before: words before a program's command, by its name: another network, another clock.
        words: more words of a program's command.
        env: more of its environment.
    """

    folder: Path
    address: str = "127.0.0.1"
    before: dict[str, tuple[str, ...]] = field(default_factory=dict)
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = 0

    @property
    def homes(self) -> Path:
        """The folder of the homes."""
        return self.folder / "homes"

    @property
    def agents(self) -> list[str]:
        """The names of the parties."""
        return sorted(path.stem for path in self.folder.glob("*.parquet"))

    def log(self, name: str) -> str:
        """What a program has said on its standard error, all its lives long."""
        path = self.folder / f"{name}.log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # --- programs

    def start(self, name: str, *words: str) -> None:
        """Start a program in its home; it stops when this process ends."""
        kind = "coordinator" if name == COORDINATOR else "agent"
        where = ("--address", self.address, "--port", str(self.port)) if name == COORDINATOR else ()
        command = (*self.before.get(name, ()), sys.executable, "-m", "hansa", kind, "start", *where)
        all_words = (*command, "--home", str(self.homes / name), *self.words.get(name, ()), *words)
        # Where Python is told not to keep what it compiled, every start would compile everything anew.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        with (self.folder / f"{name}.json").open("wb") as said, (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(  # our own words, no shell
                [*all_words, "--json", "--leash"],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=log,
                start_new_session=True,
                env={**kept, **self.env},
            )

    def document(self, name: str) -> dict[str, Any]:
        """What a program printed when it was up."""
        with patience(f"{name} does not come up") as waiting:
            while waiting():
                with suppress(ValueError):
                    document: dict[str, Any] = json.loads((self.folder / f"{name}.json").read_bytes())
                    if "error" not in document:
                        return document
                if self.running[name].poll() is not None:
                    raise AssertionError(f"{name} ended: {self.log(name)[-600:]}")
        raise AssertionError

    def kill(self, *names: str, how: signal.Signals = signal.SIGKILL) -> None:
        """Kill programs: SIGKILL, as a power cut does, unless it is said otherwise."""
        for name in names:
            self.running[name].send_signal(how)
        for name in names:
            process = self.running.pop(name)
            process.wait(PATIENCE)
            if process.stdin:
                process.stdin.close()

    def gone(self, name: str) -> int:
        """Wait until a program has ended by itself; its status."""
        process = self.running.pop(name)
        status = process.wait(PATIENCE)
        if process.stdin:
            process.stdin.close()
        return status

    def freeze(self, *names: str) -> None:
        """Stop programs in their tracks, without ending them."""
        for name in names:
            self.running[name].send_signal(signal.SIGSTOP)

    def thaw(self, *names: str) -> None:
        """Let them go on."""
        for name in names:
            self.running[name].send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End all that runs."""
        self.kill(*self.running)

    # --- the federation

    def found(self) -> None:
        """Start the coordinator for the first time; it keeps its port ever after."""
        self.homes.mkdir(parents=True, exist_ok=True)
        self.start(COORDINATOR)
        self.port = self.document(COORDINATOR)["port"]

    def join(self, tables: Mapping[str, Mapping[str, np.ndarray]], *words: str) -> None:
        """Let parties join with these columns, started with more words, and wait until they listen."""
        for name, table in tables.items():
            write_parquet(self.folder / f"{name}.parquet", dict(table))
            token = call(self.homes / COORDINATOR, INVITE, party=name, lifetime_seconds=600).token
            data = f"tiny={self.folder / name}.parquet"
            self.start(name, "--token", token, "--data", data, "--allow", "logistic-regression", *words)
        self.present(*tables)

    def acquaint(self, honest: int = 2) -> None:
        """Let the owners confirm each other's identities, and ask for so many honest parties."""
        said = {name: self.document(name)["identity"] for name in self.agents}
        for name in said:
            with closing(Offers(self.homes / name)) as offers:
                offers.ask_for(honest)
                for other in said.keys() - {name}:
                    offers.confirm(other, said[other])

    def present(self, *names: str) -> None:
        """Wait until these parties listen."""
        with patience(f"not all of {', '.join(names)} listen") as waiting:
            while waiting():
                listed = call(self.homes / COORDINATOR, PARTIES).parties
                if {party.name for party in listed if party.connected} >= set(names):
                    return
                time.sleep(0.05)

    def submit(self, federation: hs.Federation) -> str:
        """Begin a run."""
        run: str = call(self.homes / COORDINATOR, SUBMIT, federation=federation.to_json()).run
        return run

    def place(self, run: str) -> tuple[int, str]:
        """The round of a run that was applied last, and its status, from the coordinator's own file."""
        with suppress(sqlite3.Error), closing(self._opened()) as database:
            row = database.execute("SELECT round, status FROM run WHERE id = ?", (run,)).fetchone()
            return row or (0, "running")
        return 0, "running"

    def arrivals(self, run: str) -> int:
        """How many exchanges of a run have ended."""
        with suppress(sqlite3.Error), closing(self._opened()) as database:
            query = "SELECT count(*) FROM event WHERE run = ? AND kind = 'arrived'"
            return int(database.execute(query, (run,)).fetchone()[0])
        return 0

    def parameters(self, run: str) -> bytes:
        """The bytes of a run's model, from the coordinator's own file, for a client whose clock is another."""
        with closing(self._opened()) as database:
            query = "SELECT body FROM blob WHERE run = ? AND name = 'checkpoint' ORDER BY version DESC"
            (body,) = database.execute(query, (run,)).fetchone()
        return Progress.unpack(body)[0].parameters.tobytes()

    def _opened(self) -> sqlite3.Connection:
        path = self.homes / COORDINATOR / "coordinator.db"
        return sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=5)

    def reach(self, run: str, round: int, every: float = 0.002) -> bool:
        """Wait until a run has applied this round; False if it ended before. To look ``every`` so often costs, too."""
        with patience(f"the run does not reach round {round}") as waiting:
            while waiting():
                at, status = self.place(run)
                if status != "running":
                    return False
                if at >= round:
                    return True
                time.sleep(every)
        raise AssertionError

    def ended(self, run: str) -> Run:
        """Wait for the end of a run, and fetch it."""
        with patience(f"the run {run} does not end") as waiting:
            while waiting() and self.place(run)[1] == "running":
                dead = {n: self.log(n)[-500:] for n, p in self.running.items() if p.poll() is not None}
                assert not dead, dead
                time.sleep(0.01)
        return Remote(self.homes / COORDINATOR).watch(run)

    # --- the same again

    def begun(self, federation: hs.Federation) -> str:
        """A run that was just submitted, when everybody was killed; `again` begins from there."""
        self.freeze(*self.agents)
        run = self.submit(federation)
        self.kill(*self.running)
        shutil.copytree(self.homes, self.folder / "begun")
        return run

    def again(self) -> None:
        """Everybody as at `begun`, to the byte, and started."""
        self.kill(*self.running)
        shutil.rmtree(self.homes)
        shutil.copytree(self.folder / "begun", self.homes)
        for name in (COORDINATOR, *self.agents):
            self.start(name)

    def undercharged(self) -> dict[str, tuple[int, int]]:
        """The parties of whose answers more left, by content, than were charged: both numbers of each."""
        found = {}
        for name in self.agents:
            with closing(sqlite3.connect(self.homes / name / "agent.db")) as database:
                (charges,) = database.execute("SELECT count(*) FROM charge").fetchone()
            if len(bodies := answers_left(self.homes / name)) > charges:
                found[name] = len(bodies), charges
        return found


def answers_left(home: Path) -> set[str]:
    """The hashes of the answers in an agent's record of what left; one that was sent again is the same."""
    lines = (home / "left.jsonl").read_bytes().splitlines()
    said = []
    for line in lines:
        with suppress(ValueError):  # the last one may be torn
            said.append(json.loads(line))
    return {line["hash"] for line in said if line["call"] == "Upload" and "first" in line}


@contextmanager
def patience(what: str, seconds: float = PATIENCE) -> Iterator[Callable[[], bool]]:
    """A clock that raises AssertionError when it has run out."""
    give_up = time.monotonic() + seconds

    def waiting() -> bool:
        assert time.monotonic() < give_up, what
        return True

    yield waiting


def tables(count: int, rows: int = 40, columns: int = 4, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Columns for parties: numbers, and a binary target that follows from them."""
    chance, made = np.random.default_rng(seed), {}
    for i in range(count):
        x = chance.normal(size=(rows, columns)).clip(-9, 9)
        made[f"p{i}"] = {**{f"x{j}": x[:, j] for j in range(columns)}, "y": (x.sum(axis=1) > 0).astype(float)}
    return made


def tiny(rounds: int, **parts: Any) -> hs.Federation:
    """A small study with what parties must remember between rounds (SCAFFOLD); every part can be given otherwise."""
    fields: dict[str, Any] = {
        "name": "tiny",
        "task": hs.LogisticRegression(target="y"),
        "dataset": "tiny",
        "method": methods.Scaffold(local=hs.SGD(lr=0.1, batch_size=8)),
        "rounds": rounds,
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=10, holdout=0.25),
    }
    return hs.Federation(**{**fields, **parts})


@dataclass
class Killed:
    """What came of a run that was disturbed.

    Args:
        kills: of processes.
        seconds: from the start of a killed coordinator to the end of the next exchange, of each.
    """

    kills: int = 0
    seconds: list[float] = field(default_factory=list)


def disturbed(
    fleet: Fleet, run: str, kills: int, seed: int, whom: str, rounds: int = 30, again: bool = True, within: float = 0.03
) -> Killed:
    """Kill processes at random moments of a run, and start them again.

    Args:
        fleet: under way.
        run: that is under way.
        kills: how many, at different rounds.
        seed: of the moments.
        whom: the coordinator, or ``agents``: one of them, or two at once; or ``any``: in turn the one and the others.
        rounds: of the run.
        again: whether now and then one that is just coming up is killed, too.
        within: so many seconds of a round's beginning they are killed: about what a round takes.
    """
    chance, told = random.Random(seed), Killed()
    for i, round in enumerate(sorted(chance.choice(range(rounds)) for _ in range(kills))):
        if told.kills >= kills or not fleet.reach(run, round):
            break
        time.sleep(chance.uniform(0, within))
        of_it = whom == COORDINATOR or (whom == "any" and i % 2 == 0)
        among = [COORDINATOR] if of_it else chance.sample(fleet.agents, chance.choice((1, 1, 2)))
        before = fleet.arrivals(run)
        fleet.kill(*among)
        told.kills += len(among)
        if again and chance.random() < 0.15 and told.kills < kills:
            for name in among:
                fleet.start(name)
            time.sleep(chance.uniform(0, 1.0))
            fleet.kill(*among)
            told.kills += len(among)
        began = time.monotonic()
        for name in among:
            fleet.start(name)
        if of_it:
            before = max(before, fleet.arrivals(run))
            with patience("no round ends after a restart") as waiting:
                while waiting() and fleet.arrivals(run) == before and fleet.place(run)[1] == "running":
                    time.sleep(0.02)  # to look costs, too
            told.seconds.append(time.monotonic() - began)
    return told
