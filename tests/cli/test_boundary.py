"""Every way in which a command can stop becomes a message and an exit status."""

import errno
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hansa import errors
from hansa.agent.store import AgentStore
from hansa.cli import boundary, main, serving
from hansa.cli.boundary import run
from hansa.database import Put
from hansa.errors import DataError, HansaError, StoreError, UnreachableError

ROOT = Path(__file__).parents[2]


def fails_with(monkeypatch, error):
    """Let every command raise ``error``."""

    def app(*_, **__):
        raise error

    monkeypatch.setattr(boundary, "build_app", lambda: app)


def test_an_error_of_the_house_ends_with_its_own_status_and_no_traceback(monkeypatch, capsys):
    fails_with(monkeypatch, UnreachableError("no answer", remedy="Start the coordinator."))
    assert run(["runs"]) == 6
    assert capsys.readouterr().err == "error: no answer\nhelp: Start the coordinator.\n"


def test_ctrl_c_is_one_line_and_130(monkeypatch, capsys):
    fails_with(monkeypatch, KeyboardInterrupt())
    assert run(["runs", "--json"]) == 130
    out, err = capsys.readouterr()
    assert err == "error: interrupted\n"
    assert json.loads(out)["error"]["kind"] == "Interrupted"


def test_ctrl_c_in_a_query_of_duckdb_is_ctrl_c_too(monkeypatch, capsys):
    error = DataError("rows.csv cannot be read")
    error.__cause__ = RuntimeError("Query interrupted")
    fails_with(monkeypatch, error)
    assert run(["runs"]) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


def test_a_defect_keeps_its_traceback_in_a_file(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(boundary.tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("HANSA_DEBUG", raising=False)
    fails_with(monkeypatch, ZeroDivisionError("by nothing"))
    assert run(["runs", "--json"]) == 1
    out, err = capsys.readouterr()
    (kept,) = tmp_path.iterdir()
    assert str(kept) in err
    assert "Traceback" not in err
    assert "ZeroDivisionError: by nothing" in kept.read_text("utf-8")
    assert json.loads(out)["error"]["kind"] == "Defect"


@pytest.mark.parametrize(
    ("number", "way"), [("ENOSPC", "df -h"), ("EIO", "smartctl"), ("EROFS", "mount"), ("EACCES", "ls -ld")]
)
def test_what_a_disk_refuses_is_no_defect_and_names_the_file(monkeypatch, capsys, number, way):
    code = getattr(errno, number)
    fails_with(monkeypatch, OSError(code, os.strerror(code), "/srv/hansa/operator.pem"))
    assert run(["runs", "--json"]) == 9
    said = json.loads(capsys.readouterr().out)["error"]
    assert (said["kind"], said["message"]) == ("StoreError", f"/srv/hansa/operator.pem: {os.strerror(code)}")
    assert way in said["remedy"]


def test_a_database_on_a_full_disk_is_not_to_be_restored(monkeypatch, capsys, tmp_path):
    store = AgentStore(tmp_path)
    store._connection.exec_driver_sql("PRAGMA max_page_count=1")
    store._connection.rollback()
    with pytest.raises(StoreError) as refused:
        store.apply([Put("member", {"name": "x" * 100_000, "identity": None, "words": ""})])
    store.close()
    fails_with(monkeypatch, refused.value)
    assert run(["agent", "status"]) == 9
    said = capsys.readouterr().err
    assert "database or disk is full\nhelp: Free some space there" in said


def test_an_error_of_a_socket_is_none_of_a_disk(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(boundary.tempfile, "tempdir", str(tmp_path))
    fails_with(monkeypatch, ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert run(["runs"]) == 1
    assert "this is a defect" in capsys.readouterr().err


def test_a_lock_for_which_there_is_no_room_is_not_said_to_be_anothers(monkeypatch, tmp_path):
    class Full(sqlite3.Connection):
        def execute(self, *words):
            return super().execute("SELECT no_such_function()")

    with serving.sole(tmp_path), pytest.raises(UnreachableError, match="another program"), serving.sole(tmp_path):
        pass
    real = sqlite3.connect
    monkeypatch.setattr(serving.sqlite3, "connect", lambda path, timeout: real(path, factory=Full))
    with pytest.raises(StoreError, match=f"{tmp_path} cannot be locked"), serving.sole(tmp_path):
        pass


def test_hansa_debug_shows_the_traceback_of_a_defect(monkeypatch, capsys):
    monkeypatch.setenv("HANSA_DEBUG", "1")
    fails_with(monkeypatch, ZeroDivisionError("by nothing"))
    assert run(["runs"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message", "remedy"),
    [
        (["agnet"], "there is no command 'agnet'", "Did you mean 'agent'?"),
        (["agent", "strat"], "there is no command 'agent strat'", "Did you mean 'agent start'?"),
        (["zzzz"], "there is no command 'zzzz'", "`hansa --help` lists the commands."),
        (["--json", "runs"], "--json stands before the command", "Type hansa COMMAND --json."),
        (
            ["doctor", "--prot", "1"],
            "Unknown option: --prot. Did you mean --port?",
            "`hansa doctor --help` shows what there is.",
        ),
        (["runs", "one", "two"], "nothing takes 'one' 'two'", "`hansa runs --help` shows what there is."),
        (
            ["doctor", "--port", "x"],
            'Invalid value for --port: unable to convert "x" into int',
            "`hansa doctor --help` shows what there is.",
        ),
    ],
)
def test_a_slip_on_the_command_line_is_status_2_with_the_way_out(words, message, remedy, capsys):
    assert run([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == f"error: {message}\nhelp: {remedy}\n"
    assert json.loads(out)["error"]["message"] == message


def test_main_leaves_with_the_status_of_the_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["new", "a", "--kind", "tree"])
    assert left.value.code == 2
    assert "linear-regression" in capsys.readouterr().err


def test_main_prints_a_page_and_leaves_well(capsys):
    with pytest.raises(SystemExit) as left:
        main(["data", "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("Usage: hansa data COMMAND")


def test_a_reader_that_has_seen_enough_is_no_error():
    program = (
        "from hansa.cli import boundary;"
        "boundary.build_app = lambda: lambda *_, **__: print('line\\n' * 200000);"
        "raise SystemExit(boundary.run(['runs']))"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program_run:
        program_run.stdout.readline()
        program_run.stdout.close()
        complaint = program_run.stderr.read()
    assert program_run.returncode == boundary.PIPE_CLOSED
    assert complaint == b""


def every_error(root=HansaError):
    """The classes of the tree, the root included."""
    return [root, *(found for child in root.__subclasses__() for found in every_error(child))]


@pytest.mark.parametrize("kind", every_error(), ids=lambda kind: kind.__name__)
def test_every_exit_status_is_documented(kind):
    page = (ROOT / "docs/reference/exit-codes.md").read_text("utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| {kind.exit_status} |"))
    if kind is not HansaError and kind.__module__ == errors.__name__:
        assert f"`{kind.__name__}`" in row
