"""Federated learning for organisations that may not pool their data.

>>> import hansa as hs
>>> federation = hs.Federation(task=hs.LogisticRegression(target="malignant"))
>>> run = federation.run(hs.Local(hs.wisconsin.hospitals()))  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hansa import aggregation, errors, methods, tasks
    from hansa.backends.clock import Clock
    from hansa.backends.local import Local
    from hansa.backends.ray import Ray
    from hansa.backends.remote import Remote
    from hansa.contribution import Contribution, Field
    from hansa.data import partition, wisconsin
    from hansa.data.contract import ColumnRule, Contract
    from hansa.data.population import Population
    from hansa.data.source import read
    from hansa.data.table import Table
    from hansa.federation import All, Federation, Fixed
    from hansa.learners.optimizer import SGD, Adagrad, Adam, AdamW, Yogi
    from hansa.methods.course import Stop
    from hansa.methods.evaluate import Evaluate
    from hansa.methods.fedavg import FedAvg
    from hansa.methods.fedsgd import FedSGD
    from hansa.methods.moments import Moments
    from hansa.model import Model
    from hansa.run import Run
    from hansa.study import load
    from hansa.task import (
        CoxRegression,
        LinearRegression,
        LogisticRegression,
        PoissonRegression,
        SoftmaxRegression,
        Task,
    )

__version__ = "0.1.0"

_HOMES = {
    "Adagrad": "hansa.learners.optimizer",
    "Adam": "hansa.learners.optimizer",
    "AdamW": "hansa.learners.optimizer",
    "All": "hansa.federation",
    "Clock": "hansa.backends.clock",
    "ColumnRule": "hansa.data.contract",
    "Contract": "hansa.data.contract",
    "Contribution": "hansa.contribution",
    "CoxRegression": "hansa.task",
    "Evaluate": "hansa.methods.evaluate",
    "FedAvg": "hansa.methods.fedavg",
    "FedSGD": "hansa.methods.fedsgd",
    "Federation": "hansa.federation",
    "Field": "hansa.contribution",
    "Fixed": "hansa.federation",
    "LinearRegression": "hansa.task",
    "Local": "hansa.backends.local",
    "LogisticRegression": "hansa.task",
    "Model": "hansa.model",
    "Moments": "hansa.methods.moments",
    "PoissonRegression": "hansa.task",
    "Population": "hansa.data.population",
    "Ray": "hansa.backends.ray",
    "Remote": "hansa.backends.remote",
    "Run": "hansa.run",
    "SGD": "hansa.learners.optimizer",
    "SoftmaxRegression": "hansa.task",
    "Stop": "hansa.methods.course",
    "Table": "hansa.data.table",
    "Task": "hansa.task",
    "Yogi": "hansa.learners.optimizer",
    "aggregation": "",
    "errors": "",
    "load": "hansa.study",
    "methods": "",
    "partition": "hansa.data",
    "read": "hansa.data.source",
    "tasks": "",
    "wisconsin": "hansa.data",
}

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "All",
    "Clock",
    "ColumnRule",
    "Contract",
    "Contribution",
    "CoxRegression",
    "Evaluate",
    "FedAvg",
    "FedSGD",
    "Federation",
    "Field",
    "Fixed",
    "LinearRegression",
    "Local",
    "LogisticRegression",
    "Model",
    "Moments",
    "PoissonRegression",
    "Population",
    "Ray",
    "Remote",
    "Run",
    "SoftmaxRegression",
    "Stop",
    "Table",
    "Task",
    "Yogi",
    "aggregation",
    "errors",
    "load",
    "methods",
    "partition",
    "read",
    "tasks",
    "wisconsin",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``hansa --help`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hansa' has no attribute {name!r}")
    home = _HOMES[name]
    if not home or home == "hansa.data":
        return import_module(f"{home or 'hansa'}.{name}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
