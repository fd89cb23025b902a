import runpy
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def play():
    """The hall of tests, ``play.Hall(...)``, and its faulty twin; see ``play.py``."""
    return runpy.run_path(str(Path(__file__).with_name("play.py")))["HELPERS"]
