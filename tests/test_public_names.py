"""The public names, sorted; a change here is a change of the interface."""

from __future__ import annotations

import doctest
import importlib
import subprocess
import sys

import pytest

import hansa

NAMES = [
    "Adagrad", "Adam", "AdamW", "Adversary", "All", "Clock", "ColumnRule", "Contract", "Contribution",
    "CoxRegression", "Cyclic", "DPAdam", "DPSGD", "Evaluate", "FedAvg", "FedSGD", "Federation", "Field", "Fixed",
    "LinearRegression", "Local", "LogisticRegression", "Model", "Moments", "Poisson", "PoissonRegression",
    "Population", "Privacy", "Ray", "Remote", "Run", "SGD", "SoftmaxRegression", "Stop", "Table", "Task",
    "Yogi", "aggregation", "errors", "load", "methods", "partition", "read", "tasks", "wisconsin",
]  # fmt: skip


def test_the_public_names_are_these() -> None:
    assert sorted(hansa.__all__) == NAMES
    assert sorted(dir(hansa)) == sorted([*NAMES, "__version__"])
    assert sorted(hansa._HOMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported(name: str) -> None:
    found = getattr(hansa, name)
    assert found is getattr(hansa, name)
    assert (found.__doc__ or "").strip()


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'hansa' has no attribute 'Fedavg'"):
        hansa.Fedavg  # noqa: B018  # the access is the test


def test_importing_the_package_imports_no_library() -> None:
    program = (
        "import sys, hansa; assert hansa.__version__; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    heavy = {"numpy", "pydantic", "duckdb", "grpc", "sqlalchemy", "cryptography", "rich"}
    assert not heavy & set(result.stdout.split())


@pytest.mark.parametrize("name", ["hansa", "hansa.errors"])
def test_examples_in_docstrings_are_true(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
