"""Backup, restore and rekey, as an operator and an owner type them."""

import base64
import errno
import json
import os
import secrets
import tarfile

import pytest

from hansa.agent.home import AgentHome
from hansa.coordinator.home import CoordinatorHome
from hansa.coordinator.store import CoordinatorStore
from hansa.crypto import keys, pki
from hansa.crypto.vault import MARK, VARIABLE


def key_file(path, *keys):
    path.write_text("".join(base64.b64encode(key).decode() + "\n" for key in keys))
    return path


def coordinator(program, home, *options, port=0):
    return program("coordinator", "start", "--address", "127.0.0.1", "--port", port, "--home", home, *options)


@pytest.fixture
def first():
    return secrets.token_bytes(32)


def test_a_coordinator_is_backed_up_restored_encrypted_and_encrypted_anew(hansa, program, tmp_path, first):
    home, archive, again = tmp_path / "home", tmp_path / "monday.tar", tmp_path / "again"
    serves = coordinator(program, home)
    port = serves.up()["port"]
    token = hansa("party", "invite", "north", "--home", home).document["token"]
    made = hansa("coordinator", "backup", archive, "--home", home)
    assert "Keys are among them" in made.said
    assert {"coordinator.db", "authority.key", "noise.key"} < set(made.document["files"])
    assert archive.stat().st_mode & 0o077 == 0
    with tarfile.open(archive) as tar:
        assert {*tar.getnames()} == {*made.document["files"], "manifest.json"}
    busy = hansa("coordinator", "rekey", "--home", home, "--key-file", key_file(tmp_path / "keys", first))
    assert busy.status == 6
    serves.stop()

    back = hansa("coordinator", "restore", archive, "--home", again)
    assert back.document["files"] == made.document["files"]
    assert hansa("coordinator", "restore", archive, "--home", again).message == f"the folder {again} exists already"
    assert hansa("coordinator", "rekey", "--home", again, "--key-file", tmp_path / "keys").status == 0
    sealed = [path for path in again.iterdir() if path.read_bytes().startswith(MARK)]
    assert {path.name for path in sealed} == {"authority.key", "lobby.seed", "noise.key"}
    both = key_file(tmp_path / "both", secrets.token_bytes(32), first)
    assert hansa("coordinator", "rekey", "--home", again, "--key-file", both).status == 0
    lost = coordinator(program, again, "--key-file", tmp_path / "keys").ended()
    assert lost.status == 9
    assert "encrypted, with another storage key" in lost.message
    key_file(both, base64.b64decode(both.read_text().splitlines()[0]))  # the old one is destroyed

    serves = coordinator(program, again, "--key-file", both, port=port)
    serves.up()
    rows = tmp_path / "rows.csv"
    rows.write_text("age,outcome\n40,1\n50,0\n")
    offer = ("--data", f"t={rows}", "--allow", "linear-regression", "--home", tmp_path / "north")
    refused = program("agent", "start", "--token", token, *offer).ended()  # the backup's tokens may have been used
    assert "the token was used already" in refused.message
    assert not (again / "restored").exists()


def test_what_was_encrypted_is_not_read_without_its_key_nor_what_was_not_with_one(hansa, tmp_path, first, monkeypatch):
    plain, home, rows = tmp_path / "plain", tmp_path / "home", tmp_path / "rows.csv"
    rows.write_text("age,outcome\n40,1\n50,0\n")
    table = ("data", "add", f"t={rows}", "--allow", "linear-regression", "--home")
    assert hansa(*table, plain).status == 0
    assert hansa("agent", "rekey", "--home", plain).message == "there is no storage key"
    monkeypatch.setenv(VARIABLE, "nonsense")
    assert "the storage key of" in hansa("agent", "rekey", "--home", plain).message
    monkeypatch.setenv(VARIABLE, base64.b64encode(first).decode())
    assert hansa("agent", "rekey", "--home", plain).status == 0
    assert hansa("agent", "rekey", "--home", home).message == f"nothing is kept in {home}"


@pytest.fixture
def homes(tmp_path):
    """The folder of a coordinator and of an agent that has joined it, neither at work."""
    home = CoordinatorHome.open(tmp_path / "coordinator", "hanse")
    CoordinatorStore(home.folder).close()
    home.write_address("127.0.0.1:1", "127.0.0.1:1")
    own, key = keys.new_key(), home.authority
    pair = keys.key_to_pem(own), key.issue(keys.request(own), role=pki.PARTY, name="bremen")
    AgentHome(tmp_path / "agent", "bremen", "hanse", "127.0.0.1:1", *pair, key.certificate_pem).save()
    return tmp_path


def test_a_backup_is_of_the_programs_own_folder_and_whole(hansa, homes, monkeypatch):
    for program, other in (("coordinator", "agent"), ("agent", "coordinator")):
        said = hansa(program, "backup", homes / "a.tar", "--home", homes / other)
        assert (said.status, f"hansa {other}" in said.remedy) == (2, True)
        assert hansa(program, "rekey", "--home", homes / other).message == said.message
        for path in (homes / program).glob("*.db*"):
            path.unlink()
        gone = hansa(program, "backup", homes / "a.tar", "--home", homes / program)
        assert gone.status == 9
        assert gone.message == f"the database {homes / program / f'{program}.db'} is missing"
        assert f"hansa {program} restore" in gone.remedy
    assert not (homes / "a.tar").exists()
    monkeypatch.setenv("HANSA_DATABASE", "postgresql://hansa@127.0.0.1/hansa")
    said = hansa("coordinator", "backup", homes / "a.tar", "--home", homes / "coordinator").said
    assert "Rows in a database server are not" in said


@pytest.mark.parametrize("program", ["coordinator", "agent"])
def test_a_backup_takes_the_place_of_nothing(hansa, homes, program):
    home = homes / program
    (homes / "kept.tar").write_bytes(b"last week's")
    for file, why in (("kept.tar", "it exists already"), ("unmounted/a.tar", "there is no folder"),
                      (f"{program}/a.tar", "it is inside the folder")):  # fmt: skip
        said = hansa(program, "backup", homes / file, "--home", home)
        assert said.status == 2
        assert f"{homes / file} cannot be written: {why}" in said.message
        assert "Name a new file" in said.remedy
    assert (homes / "kept.tar").read_bytes() == b"last week's"
    assert not (homes / "unmounted").exists()
    assert hansa(program, "backup", homes / "new.tar", "--home", home).status == 0


def test_a_full_disk_is_named_with_what_helps(hansa, homes, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", full)
        said = hansa("agent", "backup", homes / "a.tar", "--home", homes / "agent")
    assert said.message.endswith(f"No space left on device: {homes / 'a.tar'}")
    assert "room" in said.remedy
    assert hansa("agent", "backup", homes / "a.tar", "--home", homes / "agent").status == 0
    with monkeypatch.context() as patch:
        patch.setattr("hansa.backup.writing", full)
        said = hansa("agent", "restore", homes / "a.tar", "--home", homes / "new")
    assert f"cannot be restored: No space left on device: {homes / 'new'}" in said.message
    assert "room" in said.remedy


def test_an_agent_whose_ledger_is_gone_does_not_begin_another(hansa, homes):
    assert hansa("agent", "status", "--home", homes / "agent").status == 0
    for path in (homes / "agent").glob("agent.db*"):
        path.unlink()
    for command in ("start", "status"):
        said = hansa("agent", command, "--home", homes / "agent")
        assert said.status == 9
        assert f"{homes / 'agent' / 'agent.db'} is missing" in said.message
        assert "hansa agent restore" in said.remedy


def test_a_first_start_that_was_cut_short_can_be_encrypted(hansa, tmp_path, first):
    home, keyed = tmp_path / "coordinator", ("--key-file", key_file(tmp_path / "key", first))
    CoordinatorHome.open(home, "hanse")
    answer = hansa("coordinator", "start", "--address", "127.0.0.1", "--home", home, *keyed)
    assert answer.status == 9
    assert "hansa coordinator rekey" in answer.remedy
    assert hansa("coordinator", "rekey", "--home", home, *keyed).status == 0
    assert (home / "authority.key").read_bytes().startswith(MARK)


@pytest.mark.parametrize("program", ["coordinator", "agent"])
def test_what_is_no_whole_backup_of_this_program_is_refused(hansa, tmp_path, program):
    archive, new = tmp_path / "a.tar", tmp_path / "new"

    def restored():
        answer = hansa(program, "restore", archive, "--home", new)
        assert answer.status == 9
        assert not list(tmp_path.glob("*new*"))
        return answer.message

    def write(files, manifest):
        with tarfile.open(archive, "w") as tar:
            for name, body in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
                (tmp_path / "body").write_bytes(body)
                tar.add(tmp_path / "body", name)

    assert f"No such file or directory: {archive}" in restored()
    none = f"it is no whole archive of `hansa {program} backup`"
    for body in (b"", b"age,outcome\n40,1\n" * 100):
        archive.write_bytes(body)
        assert none in restored()
    with tarfile.open(archive, "w"):
        pass
    assert none in restored()
    write({}, ["another program's"])
    assert none in restored()
    write({"name": b"x"}, {"program": program, "made": "noon", "files": {"name": "0" * 64}})
    assert "name is missing, or not what it was" in restored()
    write({}, {"program": program, "made": "noon", "files": {"name": "0" * 64}})
    assert "name is missing, or not what it was" in restored()
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    write({"../name": b""}, {"program": program, "made": "noon", "files": {"../name": empty}})
    assert "leads out of the folder" in restored()
    other = "agent" if program == "coordinator" else "coordinator"
    write({"name": b""}, {"program": other, "made": "noon", "files": {"name": empty}})
    assert f"it is the {other}'s" in restored()
    assert f"hansa {other} restore" in hansa(program, "restore", archive, "--home", new).remedy
    write({f"{other}.db": b""}, {"program": program, "made": "noon", "files": {f"{other}.db": empty}})
    assert f"it is the {other}'s" in restored()


def test_who_restores_an_agent_is_told_that_it_waits_to_be_confirmed(hansa, homes):
    for program, first in (("agent", "hansa agent status --confirm"), ("coordinator", "hansa coordinator start")):
        assert hansa(program, "backup", homes / f"{program}.tar", "--home", homes / program).status == 0
        said = hansa(program, "restore", homes / f"{program}.tar", "--home", homes / f"new-{program}").said
        assert f"Next: {first}" in said
