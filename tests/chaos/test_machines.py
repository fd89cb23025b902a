"""Machines that are full, or whose clocks are wrong: an error says so, and nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from benchmarks.fleet import COORDINATOR, Fleet, patience, tables, tiny

import hansa as hs

pytestmark = pytest.mark.skipif(not os.environ.get("HANSA_LONG"), reason="HANSA_LONG is not set")


def simulated(federation: hs.Federation, parties: int) -> bytes:
    """The bits that the run is to end with."""
    alone = {name: hs.Table.of(columns) for name, columns in tables(parties).items()}
    return federation.run(hs.Local(alone)).parameters.tobytes()


# --- disks


class Disk:
    """A small file system that can be filled to its last byte."""

    def __init__(self, folder: Path) -> None:
        self._filler = folder / ".filler"

    def fill(self, but: int = 0) -> None:
        """Leave room for so many bytes."""
        with self._filler.open("wb", buffering=0) as file, _full():
            while True:
                file.write(bytes(4096))
        os.truncate(self._filler, max(0, self._filler.stat().st_size - but))

    def empty(self) -> None:
        """Make room again."""
        self._filler.unlink()


def _full() -> ExitStack:
    stack = ExitStack()
    stack.push(lambda kind, error, trace: isinstance(error, OSError))
    return stack


@pytest.fixture
def disk() -> Iterator[Callable[[Path, int], Disk]]:
    """Makes a file system of so many megabytes at a folder."""
    with ExitStack() as stack:

        def make(folder: Path, megabytes: int) -> Disk:
            folder.mkdir(parents=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
            if subprocess.run(mount, check=False, capture_output=True).returncode:
                pytest.skip("no file system can be mounted here")
            stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
            return Disk(folder)

        yield make


def stopped(fleet: Fleet, name: str) -> str:
    """Wait until a program has ended by itself, and return what it said."""
    assert fleet.gone(name) > 0
    return fleet.log(name)


@pytest.mark.parametrize("whose", [COORDINATOR, "p1"])
def test_a_disk_that_is_full_stops_its_program_with_a_clear_error_and_it_goes_on_with_room(
    whose: str, tmp_path: Path, disk: Callable[[Path, int], Disk]
) -> None:
    with ExitStack() as stack:
        fleet = Fleet(tmp_path)
        made = disk(fleet.homes / whose, 8)
        stack.callback(fleet.close)
        fleet.found()
        fleet.join(tables(3))
        federation = tiny(40)
        run = fleet.submit(federation)
        assert fleet.reach(run, 5)
        made.fill()
        said = stopped(fleet, whose)
        assert "Traceback" not in said
        assert "full" in said or "No space" in said
        assert "help: " in said
        at = fleet.place(run)
        made.empty()
        fleet.start(whose)
        ended = fleet.ended(run)
        assert at[1] == "running"
        assert ended.parameters.tobytes() == simulated(federation, 3)
        assert fleet.undercharged() == {}


# --- clocks


class Clock:
    """What programs take for the time, as far from the truth as a file says."""

    def __init__(self, path: Path) -> None:
        self._path = path
        found = subprocess.run(["faketime", "-f", "+0", "env"], check=True, capture_output=True, text=True).stdout
        library = next(line for line in found.splitlines() if line.startswith("LD_PRELOAD="))
        own = f"FAKETIME_TIMESTAMP_FILE={path}"
        self.words = ("env", library, own, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1")
        self.set(0)

    def set(self, hours: float) -> None:
        """Be so many hours fast."""
        part = self._path.with_suffix(".part")
        part.write_text(f"{hours * 3600:+.0f}\n")
        part.replace(self._path)


@pytest.fixture
def clock(tmp_path: Path) -> Callable[[str], Clock]:
    """Makes a clock."""
    if shutil.which("faketime") is None:
        pytest.skip("faketime is missing: apt-get install faketime")
    return lambda name: Clock(tmp_path / f"{name}.clock")


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(("hours", "said"), [(-5, "is not valid before"), (60, "expired on")])
def test_an_agent_whose_clock_is_wrong_says_so(
    hours: float, said: str, fleet: Fleet, clock: Callable[[str], Clock]
) -> None:
    own = clock("p1")
    fleet.before["p1"] = own.words
    fleet.found()
    fleet.join(tables(2))
    fleet.kill("p1")
    own.set(hours)
    fleet.start("p1")
    log = stopped(fleet, "p1")
    assert said in log
    assert "clock" in log
    assert "Traceback" not in log


def test_the_clock_of_a_coordinator_may_jump_in_a_run(fleet: Fleet, clock: Callable[[str], Clock]) -> None:
    own = clock(COORDINATOR)
    fleet.before[COORDINATOR] = own.words
    fleet.found()
    fleet.join(tables(3))
    federation = tiny(40)
    run = fleet.submit(federation)
    for round, hours in ((5, 3), (15, -2), (25, 0)):
        assert fleet.reach(run, round)
        own.set(hours)
    assert fleet.ended(run).parameters.tobytes() == simulated(federation, 3)


def test_certificates_renew_in_the_middle_of_a_run(fleet: Fleet, clock: Callable[[str], Clock]) -> None:
    """Two thirds of their 48 hours pass at once, for everybody; an agent looks at the clock every minute."""
    common = clock("all")
    names = (COORDINATOR, *tables(2))
    fleet.before.update(dict.fromkeys(names, common.words))
    fleet.found()
    fleet.join(tables(2))
    federation = tiny(40)
    run = fleet.submit(federation)
    assert fleet.reach(run, 5)
    fleet.freeze("p1")  # the run waits for it
    certificate = fleet.homes / "p0" / "party.pem"
    before = certificate.read_bytes()
    common.set(33)
    with patience("no certificate is renewed") as waiting:
        while waiting() and certificate.read_bytes() == before:
            time.sleep(0.2)
    fleet.thaw("p1")
    with patience("the run does not end") as waiting:
        while waiting() and fleet.place(run)[1] == "running":
            time.sleep(0.05)
    assert fleet.place(run) == (40, "finished")
    assert fleet.parameters(run) == simulated(federation, 2)
