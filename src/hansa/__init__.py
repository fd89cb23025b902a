"""Federated learning for organisations that may not pool their data.

>>> import hansa as hs
>>> federation = hs.Federation(task=hs.LogisticRegression(target="malignant"))
>>> run = federation.run(hs.Local(hs.wisconsin.hospitals()))  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hansa import aggregation, errors, methods, tasks
    from hansa.backends.clock import Clock
    from hansa.backends.local import Local
    from hansa.backends.ray import Ray
    from hansa.backends.remote import Remote
    from hansa.cohort import All, Cyclic, Fixed, Poisson
    from hansa.contribution import Contribution, Field
    from hansa.data import partition, wisconsin
    from hansa.data.contract import ColumnRule, Contract
    from hansa.data.population import Population
    from hansa.data.source import read
    from hansa.data.table import Table
    from hansa.federation import Federation
    from hansa.learners.optimizer import DPSGD, SGD, Adagrad, Adam, AdamW, DPAdam, Yogi
    from hansa.methods.course import Stop
    from hansa.methods.evaluate import Evaluate
    from hansa.methods.fedavg import FedAvg
    from hansa.methods.fedsgd import FedSGD
    from hansa.methods.moments import Moments
    from hansa.model import Model
    from hansa.privacy.claim import Adversary, Privacy
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
    name: home
    for home, names in {
        "hansa": "aggregation errors methods tasks",
        "hansa.data": "partition wisconsin",
        "hansa.backends.clock": "Clock",
        "hansa.backends.local": "Local",
        "hansa.backends.ray": "Ray",
        "hansa.backends.remote": "Remote",
        "hansa.cohort": "All Cyclic Fixed Poisson",
        "hansa.contribution": "Contribution Field",
        "hansa.data.contract": "ColumnRule Contract",
        "hansa.data.population": "Population",
        "hansa.data.source": "read",
        "hansa.data.table": "Table",
        "hansa.federation": "Federation",
        "hansa.learners.optimizer": "Adagrad Adam AdamW DPAdam DPSGD SGD Yogi",
        "hansa.methods.course": "Stop",
        "hansa.methods.evaluate": "Evaluate",
        "hansa.methods.fedavg": "FedAvg",
        "hansa.methods.fedsgd": "FedSGD",
        "hansa.methods.moments": "Moments",
        "hansa.model": "Model",
        "hansa.privacy.claim": "Adversary Privacy",
        "hansa.run": "Run",
        "hansa.study": "load",
        "hansa.task": "CoxRegression LinearRegression LogisticRegression PoissonRegression SoftmaxRegression Task",
    }.items()
    for name in names.split()
}

__all__ = [
    "DPSGD", "SGD", "Adagrad", "Adam", "AdamW", "Adversary", "All", "Clock", "ColumnRule", "Contract",
    "Contribution", "CoxRegression", "Cyclic", "DPAdam", "Evaluate", "FedAvg", "FedSGD", "Federation", "Field",
    "Fixed", "LinearRegression", "Local", "LogisticRegression", "Model", "Moments", "Poisson",
    "PoissonRegression", "Population", "Privacy", "Ray", "Remote", "Run", "SoftmaxRegression", "Stop",
    "Table", "Task", "Yogi", "aggregation", "errors", "load", "methods", "partition", "read", "tasks",
    "wisconsin",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``hansa --help`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'hansa' has no attribute {name!r}")
    home = _HOMES[name]
    return import_module(f"{home}.{name}") if home in ("hansa", "hansa.data") else getattr(import_module(home), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
