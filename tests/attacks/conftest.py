import runpy
from pathlib import Path

import pytest

PLAY = Path(__file__).parents[1] / "secure" / "play.py"


@pytest.fixture(scope="session")
def play():
    """The hall of the secure sum's tests, ``play.Hall(...)``."""
    return runpy.run_path(str(PLAY))["HELPERS"]
