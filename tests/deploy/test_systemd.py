"""The units of systemd are understood by it, and leave little open."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = sorted((Path(__file__).parents[2] / "deploy" / "systemd").glob("*.service"))
needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is missing")
EXPOSED = 20
"""Tenths of a point of `systemd-analyze security`, from 0 to 100; a service without any of it has 96."""


@pytest.fixture(params=UNITS, ids=lambda unit: unit.stem)
def unit(request, tmp_path):
    """The unit, with a program that is there."""
    made = tmp_path / request.param.name
    made.write_text(request.param.read_text("utf-8").replace("/opt/hansa/bin/hansa", shutil.which("true")), "utf-8")
    return made


def analyze(*words):
    return subprocess.run(["systemd-analyze", *map(str, words)], capture_output=True, text=True, timeout=60)


def test_there_are_two():
    assert [unit.stem for unit in UNITS] == ["hansa-agent", "hansa-coordinator"]


@needs_systemd
def test_systemd_understands_every_line(unit):
    answer = analyze("verify", "--man=no", unit)
    assert answer.returncode == 0, answer.stderr
    said = [line for line in answer.stderr.splitlines() if unit.name in line]
    assert said == []


@needs_systemd
def test_a_line_that_it_does_not_know_would_be_seen(unit):
    unit.write_text(unit.read_text("utf-8").replace("NoNewPrivileges", "NoNewPriveleges"), "utf-8")
    assert "'NoNewPriveleges'" in analyze("verify", "--man=no", unit).stderr


@needs_systemd
@pytest.mark.parametrize("unit", UNITS[1:], indirect=True, ids=lambda unit: unit.stem)
def test_systemd_understands_the_key_for_what_is_kept(unit):
    more = unit.with_name(f"{unit.name}.d") / "storage-key.conf"
    more.parent.mkdir()
    text = (UNITS[1].parent / more.name).read_text("utf-8").replace("/opt/hansa/bin/hansa", shutil.which("true"))
    more.write_text(text, "utf-8")
    answer = analyze("verify", "--man=no", unit)
    assert (answer.returncode, answer.stderr) == (0, "")


@needs_systemd
def test_little_is_left_open(unit):
    answer = analyze("security", "--offline=yes", f"--threshold={EXPOSED}", "--no-pager", unit)
    if "unrecognized option" in answer.stderr:
        pytest.skip("systemd before 250 judges no file")
    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("path", [*UNITS, UNITS[1].with_name("storage-key.conf")], ids=lambda unit: unit.stem)
def test_the_words_are_those_of_the_command_line(hansa_help, path):
    (line,) = re.findall(r"^ExecStart=/opt/hansa/bin/hansa (.+)$", path.read_text("utf-8"), re.MULTILINE)
    group, command, *words = line.split()
    page = hansa_help(group, command)
    for word in words:
        if word.startswith("--"):
            assert word in page
