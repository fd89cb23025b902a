"""The built wheel holds all that a demo needs."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(
    "HANSA_TEST_WHEEL" not in os.environ,
    reason="installs Hansa anew, which takes most of a minute: set HANSA_TEST_WHEEL",
)


def test_a_demo_runs_from_the_wheel_in_an_empty_environment(tmp_path):
    wheels = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-q", "-w", tmp_path, ROOT]
    subprocess.run(wheels, check=True)
    (wheel,) = tmp_path.glob("hansa-*.whl")
    venv.create(tmp_path / "venv")
    programs = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    pins = ["-c", ROOT / "constraints.txt"]
    there = [sys.executable, "-m", "pip", "--python", programs / "python"]
    subprocess.run([*there, "install", "-q", "--no-compile", *pins, wheel], check=True)
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "COV_"))}
    demo = subprocess.run(
        [programs / "hansa", "demo", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    assert demo.returncode == 0, demo.stderr
    document = json.loads(demo.stdout)
    assert document["rounds"] == 12
    assert (tmp_path / document["folder"] / "model.safetensors").is_file()
