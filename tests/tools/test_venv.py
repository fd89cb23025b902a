"""``tools/venv.sh`` finds an interpreter that works, or says what is missing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WORDS = ("cat", "env", "mkdir", "rm")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="a shell script of Unix")

RIGHT = """\
#!{sh}
case "$1" in
  -c) case "$2" in *print*) echo 3.12 ;; esac ;;
  --version) echo Python 3.12.1 ;;
  -m) {venv} ;;
esac
"""
MAKES = 'mkdir -p "$4/bin"; env > "$4/environment"; echo $0 > "$4/made-by"'
CANNOT = 'mkdir -p "$4"; echo "ensurepip is not available" >&2; exit 1'
ABSENT = "#!{sh}\necho 'no such version is installed' >&2; exit 127\n"


@pytest.fixture
def make(tmp_path):
    """Runs the script where these interpreters, and no others, are on the path."""
    (tmp_path / "bin").mkdir()
    sh = shutil.which("sh")
    for word in WORDS:
        (tmp_path / "bin" / word).symlink_to(shutil.which(word))

    def call(pythons, **environment):
        for name, text in pythons.items():
            file = tmp_path / "bin" / name
            file.write_text(text.replace("{sh}", sh), "utf-8")
            file.chmod(0o755)
        return subprocess.run(
            [sh, str(ROOT / "tools" / "venv.sh"), str(tmp_path / "made")],
            env={"PATH": str(tmp_path / "bin"), **environment},
            capture_output=True,
            text=True,
        )

    return call


def right(venv=MAKES):
    return RIGHT.replace("{venv}", venv)


def test_the_first_interpreter_that_works_is_taken(make, tmp_path):
    """A name may be a shim for a version that is not there, or may not make environments."""
    done = make({"python3.13": ABSENT, "python3.12": right(CANNOT), "python3": right()})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"Made {tmp_path / 'made'} with Python 3.12.1.\n"
    assert (tmp_path / "made" / "made-by").read_text().strip().endswith("/python3")


def test_the_interpreter_that_is_asked_for_is_taken(make, tmp_path):
    done = make({"python3": right(CANNOT), "mine": right()}, PYTHON="mine")
    assert done.returncode == 0
    assert (tmp_path / "made" / "made-by").read_text().strip().endswith("/mine")


def test_an_environment_that_works_is_left_as_it_is(make, tmp_path):
    first = make({"python3": right()})
    shutil.copy(tmp_path / "bin" / "python3", tmp_path / "made" / "bin" / "python")
    (tmp_path / "made" / "mine").touch()
    again = make({})
    assert (first.returncode, again.returncode, again.stdout) == (0, 0, "")
    assert (tmp_path / "made" / "mine").exists()


def test_a_missing_venv_module_is_named_with_its_package(make, tmp_path):
    done = make({"python3": right(CANNOT)})
    assert done.returncode == 1
    assert "Found python3, but it cannot make virtual environments." in done.stderr
    assert "sudo apt install python3-venv   (or python3.12-venv)" in done.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(("asked", "said"), [({}, "found."), ({"PYTHON": "x"}, "found as x.")])
def test_a_missing_interpreter_is_said_with_the_way_out(make, asked, said):
    done = make({"python3.13": ABSENT}, **asked)
    assert done.returncode == 1
    assert f"No working Python 3.11, 3.12 or 3.13 was {said}" in done.stderr
    assert "make PYTHON=/path/to/python3.12" in done.stderr


def test_the_configuration_of_pip_is_left_alone(make, tmp_path):
    own = {"PIP_INDEX_URL": "https://mirror.example.org/simple", "PIP_CONFIG_FILE": "/etc/own.conf"}
    assert make({"python3": right()}, **own).returncode == 0
    passed = (tmp_path / "made" / "environment").read_text().splitlines()
    assert {line for line in passed if line.startswith("PIP_")} == {f"{name}={value}" for name, value in own.items()}
    assert not list((tmp_path / "made").rglob("pip.conf"))
