"""What strangers send is refused in words: seeds, what fuzzing found, and mutations, the same each time."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[2] / "tools" / "fuzz.py"
NAMES = ["tensors", "ask", "hello", "upload", "chunks", "federation", "setup", "tables", "study", "token"]
NAMES += ["party", "coordinator"]  # of a secure sum
NAMES += ["calls", "certificate", "sealed", "archive", "coordinators-machine", "agents-machine"]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    if not PATH.exists():
        pytest.skip("tools/ is not here: there is nothing to fuzz with")
    spec = importlib.util.spec_from_file_location("fuzz", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # its dataclasses ask for it
    spec.loader.exec_module(module)
    return module


def test_every_target_is_replayed(fuzz: ModuleType) -> None:
    assert sorted(fuzz.TARGETS) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_taken_and_no_mutation_of_them_is_more_than_refused(fuzz: ModuleType, name: str) -> None:
    target = fuzz.TARGETS[name]
    taken = 0
    for data in target.seeds():
        try:
            target.parse(data)
            taken += 1
        except fuzz.EXPECTED:
            pass
    assert taken  # of the phases of an attempt, each refuses what belongs to another party
    for data in fuzz.replayed(name, mutations=300):
        fuzz.checked(name, data)
