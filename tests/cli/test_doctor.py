"""``hansa doctor`` finds what would stop a machine from taking part."""

import asyncio
import base64
import errno
import json
import os
import secrets
import socket
import sqlite3
import sys
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from hansa.agent.offers import Offers
from hansa.agent.store import AgentStore
from hansa.cli import doctor
from hansa.cli.boundary import run
from hansa.cli.home import agent_home, coordinator_home, hansa_home
from hansa.coordinator.home import CoordinatorHome
from hansa.crypto import certificates, pki
from hansa.crypto.vault import REMEMBERED, Vault
from hansa.database import Put


def test_a_machine_that_is_well_exits_0_and_says_what_was_looked_at(tmp_path, capsys):
    assert run(["doctor", "--home", str(tmp_path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["well"] is True
    names = ["packages", "clock", "port", "home", "disk", "proxy"]
    assert [check["name"] for check in document["checks"]] == names


def test_a_port_in_use_exits_1_and_names_it(tmp_path, capsys):
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["doctor", "--home", str(tmp_path), "--port", str(port)]) == 1
    assert f"bad  port: {port}: Address already in use" in capsys.readouterr().out


def test_a_port_that_cannot_be_one_is_bad(tmp_path):
    check = doctor.free_port(70000, tmp_path)
    assert check.verdict == "bad"
    assert "ss -ltnp" not in check.remedy
    with socket.create_server(("", 0)) as taken:
        assert "ss -ltnp" in doctor.free_port(taken.getsockname()[1], tmp_path).remedy


def test_a_port_that_the_coordinator_of_the_folder_has_is_well(tmp_path):
    home = CoordinatorHome.open(tmp_path / "coordinator", "Lübeck")
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        assert doctor.free_port(port, home.folder).verdict == "bad"
        home.write_address(f"fl.example.org:{port}", f"127.0.0.1:{port}")
        assert doctor.free_port(port, home.folder).verdict == "ok"


def test_a_missing_package_is_named(monkeypatch):
    def version(name):
        if name == "duckdb":
            raise metadata.PackageNotFoundError
        return "1.0"

    monkeypatch.setattr(doctor.metadata, "version", version)
    check = doctor.packages()
    assert (check.verdict, check.found) == ("bad", "missing: duckdb")


def test_a_clock_before_the_code_was_written_is_bad(tmp_path, monkeypatch):
    class Past(datetime):
        @classmethod
        def now(cls, tz):
            return cls(1970, 1, 2, tzinfo=tz)

    monkeypatch.setattr(doctor, "datetime", Past)
    found = {check.name: check for check in doctor.examine(None, tmp_path)}
    assert found["clock"].verdict == "bad"
    assert "timedatectl" in found["clock"].remedy


def test_a_home_that_cannot_be_written_is_bad(tmp_path):
    (tmp_path / "file").write_text("in the way", "utf-8")
    check = doctor.writable(tmp_path / "file" / "home")
    assert check.verdict == "bad"
    assert "HANSA_HOME" in check.remedy


def test_a_home_on_a_full_disk_needs_room_and_no_other_owner(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", full)
    check = doctor.writable(tmp_path)
    assert (check.verdict, check.found) == ("bad", f"{tmp_path}: No space left on device")
    assert "df -h" in check.remedy


@pytest.mark.parametrize(("free", "verdict"), [(1 << 20, "bad"), (1 << 30, "note"), (1 << 40, "ok")])
def test_little_disk_space_is_a_note_and_none_is_bad(tmp_path, monkeypatch, free, verdict):
    class Usage:
        pass

    Usage.free = free
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage)
    assert doctor.disk(tmp_path).verdict == verdict


@pytest.mark.parametrize("where", ["coordinator/blobs/run/3/body", "agent/large/body"])
def test_a_disk_that_holds_few_of_the_largest_model_is_told(tmp_path, monkeypatch, where):
    body = tmp_path / where
    body.parent.mkdir(parents=True)
    with body.open("wb") as file:
        file.truncate(1 << 30)  # a hole

    class Usage:
        pass

    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: Usage)
    for free, verdict in ((1 << 30, "bad"), (5 << 30, "note"), (11 << 30, "ok")):
        Usage.free = free
        check = doctor.disk(tmp_path)
        assert check.verdict == verdict
        assert "a model has up to 1.1 GB" in check.found


def test_a_slow_disk_is_a_note(tmp_path, monkeypatch):
    assert doctor.writable(tmp_path).verdict == "ok"
    ticks = iter([0.0, 2.0])
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks))
    check = doctor.writable(tmp_path)
    assert (check.verdict, check.found) == ("note", f"{tmp_path}, an fsync takes 2e+02 ms")


def test_proxies_are_noted_without_their_passwords():
    check = doctor.proxies({"https_proxy": "http://me:secret@proxy:3128", "no_proxy": "localhost"})
    assert check.verdict == "note"
    assert check.found == "https_proxy=http://proxy:3128, no_proxy=localhost"
    assert "no_proxy" in check.remedy
    assert doctor.proxies({}).verdict == "ok"


def test_a_proxy_that_grpc_does_not_read_is_told():
    check = doctor.proxies({"HTTPS_PROXY": "http://proxy:3128"})
    assert check.verdict == "note"
    assert "small names" in check.remedy


@pytest.mark.parametrize(
    ("days", "verdict", "said"), [(0, "ok", "valid until"), (-1, "bad", "not valid before"), (31, "bad", "expired")]
)
def test_a_certificate_is_good_between_its_two_days(tmp_path, days, verdict, said):
    home = CoordinatorHome.open(tmp_path / "coordinator", "Lübeck")
    home.write_operator()
    _, operator = doctor.certificates(home.folder, datetime.now(UTC) + timedelta(days, minutes=1))
    assert operator.name == "certificate coordinator/operator.pem"
    assert operator.verdict == verdict
    assert said in operator.found
    assert bool(operator.remedy) == (verdict == "bad")


def test_a_certificate_of_another_authority_is_bad(tmp_path):
    for name in ("one", "other"):
        CoordinatorHome.open(tmp_path / name, "Lübeck").write_operator()
    (tmp_path / "one" / "operator.pem").replace(tmp_path / "other" / "operator.pem")
    authority, operator = doctor.certificates(tmp_path / "other", datetime.now(UTC))
    assert (authority.verdict, operator.verdict) == ("ok", "bad")
    assert "not of the authority" in operator.found


# --- the storage key


@pytest.fixture(params=["coordinator", "agent"])
def sealed(request, tmp_path):
    """A folder that is encrypted, and the file of its key."""
    (file := tmp_path / "keys").write_text(base64.b64encode(secrets.token_bytes(32)).decode())
    file.chmod(0o600)
    folder = tmp_path / request.param
    vault = Vault.of(folder, file)
    vault.write(folder / {"coordinator": "authority.key", "agent": "party.pem"}[request.param], b"secret")
    return folder, file


def test_a_storage_key_that_opens_what_is_kept_is_well(sealed):
    (check,) = doctor.storage_key(sealed[0])
    assert (check.name, check.verdict, check.found) == ("storage key", "ok", "it opens what is encrypted")


def test_a_storage_key_that_is_missing_is_bad(sealed):
    folder, file = sealed
    file.unlink()
    (check,) = doctor.storage_key(folder)
    assert (check.verdict, str(file) in check.found) == ("bad", True)
    assert "--key-file" in check.remedy
    (folder / REMEMBERED).unlink()
    (check,) = doctor.storage_key(folder)
    assert (check.verdict, "no storage key was given" in check.found) == ("bad", True)


def test_another_storage_key_is_bad(sealed):
    folder, file = sealed
    file.write_text(base64.b64encode(bytes(32)).decode())
    (check,) = doctor.storage_key(folder)
    assert (check.verdict, "with another storage key" in check.found) == ("bad", True)
    assert "--key-file" in check.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no owner-only mode")
def test_a_storage_key_that_everybody_can_read_is_bad(sealed):
    folder, file = sealed
    file.chmod(0o644)
    (check,) = doctor.storage_key(folder)
    assert (check.verdict, check.found) == ("bad", f"everybody on this machine can read {file}")
    assert check.remedy == f"chmod 600 {file}"


def test_a_home_without_a_storage_key_is_well(tmp_path):
    assert not [*doctor.storage_key(tmp_path)]
    (tmp_path / "party.pem").write_bytes(b"secret")
    (check,) = doctor.storage_key(tmp_path)
    assert (check.verdict, check.found) == ("ok", "none: nothing is encrypted")


# --- stores


@pytest.fixture
def agent(tmp_path):
    """A folder with an agent's database."""
    AgentStore(tmp_path / "agent").close()
    return tmp_path / "agent"


def test_a_store_that_is_whole_is_well_and_stays_as_it_is(agent):
    before = sorted(agent.iterdir())
    (check,) = doctor.store(agent)
    assert sorted(agent.iterdir()) == before
    assert (check.verdict, check.name) == ("ok", "store agent.db")
    assert "whole, revision 00" in check.found


def test_a_store_that_is_in_use_is_well(agent):
    with closing(AgentStore(agent)) as store:
        store.apply([Put("rule", {"name": "honest", "value": 1})])
        assert (agent / "agent.db-wal").exists()
        (check,) = doctor.store(agent)
        assert check.verdict == "ok"


def test_a_damaged_store_is_bad_and_stays_as_it_is(agent):
    file = agent / "agent.db"
    body = bytearray(file.read_bytes())
    body[5000:9000] = bytes(4000)
    file.write_bytes(body)
    (check,) = doctor.store(agent)
    assert check.verdict == "bad"
    assert "hansa agent restore" in check.remedy
    assert file.read_bytes() == body


def test_a_store_on_a_full_disk_is_not_to_be_restored(agent, monkeypatch):
    class Full(sqlite3.Connection):
        def execute(self, *words):
            super().execute("PRAGMA max_page_count=1")
            super().execute("CREATE TABLE more (room)")

    real = sqlite3.connect
    monkeypatch.setattr(doctor.sqlite3, "connect", lambda *_, **__: real(agent / "agent.db", factory=Full))
    (check,) = doctor.store(agent)
    assert (check.verdict, check.found) == ("bad", "database or disk is full")
    assert "Free some space there" in check.remedy
    assert "estore" not in check.remedy


def test_an_agent_from_a_backup_waits_for_its_owner(agent):
    with closing(AgentStore(agent)) as store:
        store.restored("noon")
    (check,) = doctor.store(agent)
    assert (check.verdict, check.found) == ("bad", "it waits for its owner, and takes part in nothing")
    assert "hansa agent status --confirm" in check.remedy
    with closing(Offers(agent)) as offers:
        offers.take_as_spent()
    (check,) = doctor.store(agent)
    assert check.verdict == "ok"


def test_something_else_in_place_of_a_store_is_bad(tmp_path):
    (tmp_path / "coordinator.db").write_text("no database at all, but long enough to look at " * 100, "utf-8")
    (check,) = doctor.store(tmp_path)
    assert (check.verdict, check.found) == ("bad", "file is not a database")


def test_a_store_that_cannot_be_written_is_bad(agent, monkeypatch):
    monkeypatch.setattr(doctor.os, "access", lambda path, how: path.name != "agent.db")
    (check,) = doctor.store(agent)
    assert (check.verdict, check.found) == ("bad", "it cannot be written")


def test_a_database_and_storage_that_do_not_answer_are_bad_and_no_password_is_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    said = {"HANSA_DATABASE": "postgresql://me:secret@127.0.0.1:9/hansa", "HANSA_BLOBS": "s3://league/blobs"}
    database, blobs = doctor.elsewhere(said)
    assert [(check.name, check.verdict) for check in (database, blobs)] == [("database", "bad"), ("blobs", "bad")]
    for check in (database, blobs):
        assert check.remedy
        assert "secret" not in check.found
    assert list(doctor.elsewhere({"HANSA_BLOBS": "file:///srv/blobs"})) == []


def test_a_database_that_answers_is_well_and_stays_as_it_is(tmp_path):
    url = os.environ.get("HANSA_TEST_POSTGRESQL", f"sqlite:///{tmp_path / 'empty.db'}")
    for _ in range(2):
        (check,) = doctor.elsewhere({"HANSA_DATABASE": url})
        assert check.verdict == "ok"
        assert check.found == "revision none yet" or "postgresql" in url


# --- the other side


async def asked(folder):
    return {check.name: check for check in await asyncio.to_thread(lambda: [*doctor.coordinator(folder)])}


async def test_a_coordinator_that_answers_is_well_for_party_and_operator(town, harvests):
    await town.join("north", harvests["bremen"])
    for folder in (town.folder / "north", town.folder / "coordinator"):
        found = await asked(folder)
        assert {name: check.verdict for name, check in found.items()} == {"coordinator's clock": "ok", "versions": "ok"}
    assert '"Describe"' in (town.folder / "north" / "left.jsonl").read_text("utf-8")


@pytest.mark.parametrize(("seconds", "said"), [(7200, "7200 s ahead of"), (-180, "180 s behind")])
async def test_clocks_that_differ_are_told_apart(town, harvests, monkeypatch, seconds, said):
    await town.join("north", harvests["bremen"])
    now = time.time()
    monkeypatch.setattr(doctor.time, "time", lambda: now)
    monkeypatch.setattr("hansa.wire.service.time", SimpleNamespace(time=lambda: now + seconds))
    check = (await asked(town.folder / "north"))["coordinator's clock"]
    assert check.verdict == "bad"
    assert said in check.found
    assert "timedatectl" in check.remedy


async def test_versions_that_differ_are_a_note(town, monkeypatch):
    monkeypatch.setattr("hansa.wire.service.__version__", "9.0")
    check = (await asked(town.folder / "coordinator"))["versions"]
    assert check.verdict == "note"
    assert "9.0 there" in check.found


async def test_a_coordinator_that_is_down_is_bad_for_a_party_and_a_note_beside_it(town, harvests):
    await town.join("north", harvests["bremen"])
    await town.kill()
    for folder, verdict in ((town.folder / "north", "bad"), (town.folder / "coordinator", "note")):
        (check,) = (await asked(folder)).values()
        assert check.verdict == verdict
        assert "cannot be reached" in check.found
        assert "hansa coordinator start" in check.remedy
        assert "hansa doctor" not in check.remedy


@pytest.mark.parametrize(("hours", "said"), [(-72, "has expired"), (72, "is not yet valid")])
async def test_a_clock_that_is_off_by_days_is_named_where_one_connects(town, harvests, monkeypatch, hours, said):
    await town.join("north", harvests["bremen"])
    await town.kill()
    real = certificates.now
    monkeypatch.setattr(certificates, "now", lambda: real() + timedelta(hours=hours))
    await town.open()
    monkeypatch.setattr(certificates, "now", real)
    monkeypatch.setattr(pki, "renewal_due", lambda _: False)  # which would make it right again
    found = await asked(town.folder / "north")
    assert f"the coordinator's certificate {said}" in found["coordinator"].found
    assert "clock that is wrong" in found["coordinator"].remedy
    town.begin("north")
    await town.until(lambda: any(f"certificate {said}" in line for line in town.said["north"]))


def test_homes_follow_the_option_then_the_environment_then_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("HANSA_HOME", str(tmp_path))
    assert agent_home() == tmp_path / "agent"
    assert coordinator_home() == tmp_path / "coordinator"
    assert agent_home(Path("here")) == Path.cwd() / "here"
    monkeypatch.delenv("HANSA_HOME")
    assert hansa_home() == Path.home() / ".hansa"
