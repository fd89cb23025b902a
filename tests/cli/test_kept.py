"""Backup, restore and rekey, as an operator and an owner type them."""

import base64
import json
import secrets
import tarfile

import pytest

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
    keys = key_file(tmp_path / "both", secrets.token_bytes(32), first)
    assert hansa("coordinator", "rekey", "--home", again, "--key-file", keys).status == 0
    lost = coordinator(program, again, "--key-file", tmp_path / "keys").ended()
    assert lost.status == 9
    assert "encrypted, with another storage key" in lost.message
    key_file(keys, base64.b64decode(keys.read_text().splitlines()[0]))  # the old one is destroyed

    serves = coordinator(program, again, "--key-file", keys, port=port)
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

    assert "cannot be restored" in restored()
    archive.write_bytes(b"not an archive")
    assert "cannot be restored" in restored()
    write({"name": b"x"}, {"program": program, "made": "noon", "files": {"name": "0" * 64}})
    assert "name is missing, or not what it was" in restored()
    write({}, {"program": program, "made": "noon", "files": {"name": "0" * 64}})
    assert "name is missing, or not what it was" in restored()
    empty = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    write({"../name": b""}, {"program": program, "made": "noon", "files": {"../name": empty}})
    assert "cannot be restored" in restored()
    other = "agent" if program == "coordinator" else "coordinator"
    write({"name": b""}, {"program": other, "made": "noon", "files": {"name": empty}})
    assert f"it is the {other}'s" in restored()
