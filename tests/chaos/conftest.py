"""Federations of real processes, to be broken; the long way behind HANSA_LONG=1, which `make chaos` sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A folder for processes, all of which are gone at the end."""
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether there is time."""
    return bool(os.environ.get("HANSA_LONG"))
