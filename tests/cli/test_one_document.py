"""With --json every command prints exactly one JSON document, whatever it is given."""

import pytest

from hansa.cli.commands import COMMANDS

WORDS = {
    "demo": ["--output", "rows.csv/folder"],
    "new": ["tumours"],
    "doctor": [],
    "simulate": ["study.toml", "--data", "rows.csv"],
    "audit privacy": ["study.toml", "--data", "rows.csv"],
    "run": ["study.toml"],
    "runs": [],
    "watch": ["a-run"],
    "resume": ["a-run"],
    "predict": ["model.safetensors", "--data", "rows.csv"],
    "coordinator start": ["--address", "https://fl.example.org"],
    "coordinator status": [],
    "coordinator backup": ["monday.tar"],
    "coordinator restore": ["rows.csv"],
    "coordinator rekey": ["--key-file", "rows.csv"],
    "party invite": ["north"],
    "party list": [],
    "party remove": ["north"],
    "agent start": ["--token", "T", "--data", "tumours=rows.csv", "--allow", "linear-regression"],
    "agent status": [],
    "agent confirm": ["north", "zabod zapup munug juguj noguh jasuv dozit gafon"],
    "agent backup": ["monday.tar"],
    "agent restore": ["rows.csv"],
    "agent rekey": ["--key-file", "rows.csv"],
    "data add": ["tumours=rows.csv", "--allow", "linear-regression"],
    "data list": [],
    "data remove": ["tumours"],
    "data check": ["rows.csv"],
}
"""What each command is given in a folder without a coordinator; most must refuse."""
WELL = {"new", "doctor", "data add", "data list", "data check"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANSA_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.csv").write_text("age,outcome\n40,1\n50,0\n", "utf-8")


def test_every_command_is_tried():
    assert set(WORDS) == {command.name for command in COMMANDS}


@pytest.mark.parametrize("command", WORDS)
def test_every_command_prints_one_document(hansa, command):
    answer = hansa(*command.split(), *WORDS[command])
    assert (answer.status == 0) == (command in WELL), answer
    assert answer.document


@pytest.mark.parametrize("command", WORDS)
def test_every_command_prints_one_document_when_it_is_given_too_much(hansa, command):
    answer = hansa(*command.split(), *WORDS[command], "--no-such-option", "1")
    assert answer.status == 2
    assert answer.document["error"]["kind"] == "UsageError"
    assert "--no-such-option" in answer.message


def test_a_token_is_in_the_document_and_nowhere_else(hansa, harbour):
    invited = hansa("party", "invite", "静", "--home", harbour.home)
    token = invited.document["token"]
    assert len(token) > 40
    assert token not in invited.said
    assert "hansa agent start --token TOKEN" in invited.said
