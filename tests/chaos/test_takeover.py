"""Two coordinators on one PostgreSQL, as real processes: one at a time is at work, whatever happens to either."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from benchmarks.fleet import COORDINATOR, Fleet, patience, tables, tiny

import hansa as hs
from hansa.backends.remote import Remote
from hansa.cli.operator import call
from hansa.wire.rpcs import STATUS, SUBMIT

TOOL = Path(__file__).resolve().parents[2] / "tools" / "postgresql.sh"
FIRST, SECOND = COORDINATOR, "second"
KEYS = ("authority.key", "authority.pem", "lobby.seed", "name", "noise.key")
ROWS = tables(3)
STUDY = tiny(20)
LONG = pytest.mark.skipif(not os.environ.get("HANSA_LONG"), reason="HANSA_LONG is not set")


@dataclass
class Two(Fleet):
    """A fleet with two coordinators; the ``active`` one is asked."""

    database: str = ""
    active: str = FIRST
    ports: dict[str, int] = field(default_factory=dict)

    def start(self, name: str, *words: str) -> None:
        if name not in (FIRST, SECOND):
            return super().start(name, *words)
        (self.homes / name).mkdir(parents=True, exist_ok=True)
        words = ("--address", "127.0.0.1", "--port", str(self.ports.get(name, 0)), "--home", str(self.homes / name))
        with (self.folder / f"{name}.json").open("wb") as said, (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", "hansa", "coordinator", "start", *words, "--json", "--leash"],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=log,
                env={**os.environ, "HANSA_DATABASE": self.database},
            )
        return None

    def stand_by(self, name: str) -> None:
        """Start a coordinator with the keys of the active one, and wait until it says that it stands by."""
        (self.homes / name).mkdir(exist_ok=True)
        for key in KEYS:
            shutil.copy(self.homes / self.active / key, self.homes / name / key)
        before = self.log(name).count("Standing by")
        self.start(name)
        with patience(f"{name} does not stand by") as waiting:
            while waiting() and self.log(name).count("Standing by") == before:
                assert self.running[name].poll() is None, self.log(name)
                time.sleep(0.02)
        address = call(self.homes / name, STATUS).address
        self.ports[name] = int(address.rpartition(":")[2])
        with patience("not all agents hear of it") as waiting:
            while waiting() and any(address not in (self.homes / n / "party.json").read_text() for n in self.agents):
                time.sleep(0.02)

    def submit(self, federation: hs.Federation) -> str:
        run: str = call(self.homes / self.active, SUBMIT, federation=federation.to_json()).run
        return run

    def query(self, text: str, **values: Any) -> list[Any]:
        """What the database says."""
        engine = sa.create_engine(self.database.replace("postgresql:", "postgresql+psycopg:"))
        try:
            with engine.begin() as connection:
                return list(connection.execute(sa.text(text), values).all())
        finally:
            engine.dispose()

    def place(self, run: str) -> tuple[int, str]:
        with suppress(sa.exc.DBAPIError):  # it is just being restarted
            found = self.query("SELECT coalesce(round, 0), status FROM run WHERE id = :run", run=run)
            return tuple(found[0])
        return 0, "running"

    def arrivals(self, run: str) -> int:
        return int(self.query("SELECT count(*) FROM event WHERE run = :run AND kind = 'arrived'", run=run)[0][0])

    def taken_over(self, name: str, run: str) -> None:
        """Wait until a coordinator is active, and an exchange has ended since."""
        began, before = time.monotonic(), self.arrivals(run)
        self.document(name)
        self.active, up = name, time.monotonic() - began
        with patience("no exchange ends") as waiting:
            while waiting() and self.arrivals(run) == before and self.place(run)[1] == "running":
                time.sleep(0.01)
        print(f"takeover: active after {up:.2f} s, next exchange after {time.monotonic() - began:.2f} s")

    def has_the_simulated_bits(self, run: str) -> bool:
        with patience(f"the run {run} does not end") as waiting:
            while waiting() and self.place(run)[1] == "running":
                time.sleep(0.02)
        simulated = STUDY.run(hs.Local({name: hs.Table.of(columns) for name, columns in ROWS.items()}))
        ended = Remote(self.homes / self.active).watch(run)
        return ended.parameters.tobytes() == simulated.parameters.tobytes()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Path, str]]:
    """A server of our own, which may be restarted: its folder and its URL."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'hansa[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="hansa-postgresql-"))  # its user may not enter the folders of the tests
    started = subprocess.run(["bash", TOOL, "start", folder], capture_output=True, text=True, check=False)
    if started.returncode:
        pytest.skip("no PostgreSQL: see tools/postgresql.sh")
    yield folder, started.stdout.strip()
    subprocess.run(["bash", TOOL, "stop", folder], check=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def two(server: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Two]:
    """Two coordinators, of which the first is active, and three agents."""
    made = Two(tmp_path_factory.mktemp("two"), database=server[1])
    try:
        made.start(FIRST)
        made.ports[FIRST] = made.document(FIRST)["port"]
        made.join(ROWS)
        made.stand_by(SECOND)
        yield made
    finally:
        made.close()


def other(name: str) -> str:
    return SECOND if name == FIRST else FIRST


def test_when_the_active_one_is_killed_the_other_goes_on_and_the_run_ends_with_the_simulated_bits(two: Two) -> None:
    killed, heir = two.active, other(two.active)
    assert call(two.homes / killed, STATUS).epoch == 1
    assert call(two.homes / heir, STATUS).epoch == 0
    run = two.submit(STUDY)
    assert two.reach(run, 7)
    two.kill(killed)
    two.taken_over(heir, run)
    assert two.has_the_simulated_bits(run)
    assert call(two.homes / heir, STATUS).epoch == 2
    two.stand_by(killed)


@LONG
def test_a_frozen_one_whose_connection_was_ended_comes_back_refused_and_has_changed_nothing(two: Two) -> None:
    frozen, heir = two.active, other(two.active)
    run = two.submit(STUDY)
    assert two.reach(run, 7)
    two.freeze(frozen)
    ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    assert two.query(ended) == [(True,)]
    two.document(heir)
    two.thaw(frozen)
    assert two.running[frozen].wait(30) == 9
    two.kill(frozen)  # what is left of it
    two.active = heir
    assert "another coordinator has taken over" in two.log(frozen)
    assert two.has_the_simulated_bits(run)
    kinds = two.query("SELECT kind, count(*) FROM event WHERE run = :run GROUP BY kind", run=run)
    assert dict(map(tuple, kinds))["finished"] == 1
    two.stand_by(frozen)


@LONG
def test_a_server_that_crashes_in_the_middle_of_a_run_interrupts_it_and_no_more(
    two: Two, server: tuple[Path, str]
) -> None:
    epoch = call(two.homes / two.active, STATUS).epoch
    run = two.submit(STUDY)
    assert two.reach(run, 7)
    subprocess.run(["bash", TOOL, "restart", server[0]], check=True)
    assert two.has_the_simulated_bits(run)
    assert call(two.homes / two.active, STATUS).epoch == epoch
    assert call(two.homes / other(two.active), STATUS).epoch == 0


def test_a_coordinator_with_other_keys_is_refused(two: Two) -> None:
    two.homes.joinpath("stranger").mkdir()
    words = ["--address", "127.0.0.1", "--port", "0", "--home", two.homes / "stranger", "--json"]
    environment = {**os.environ, "HANSA_DATABASE": two.database}
    command = [sys.executable, "-m", "hansa", "coordinator", "start", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert "whose keys this coordinator has not" in done.stdout
    assert "copy its authority.key" in done.stdout
