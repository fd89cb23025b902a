"""A trained model: its parameters, and the preprocessing that belongs to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hansa import tensors
from hansa.contribution import Array, Json, canonical
from hansa.data.preprocessing import Encoding
from hansa.data.table import Table
from hansa.errors import DataError, HansaError, StoreError
from hansa.files import write_whole
from hansa.inference import Estimate, estimates
from hansa.task import TASKS, Task


@dataclass(frozen=True, eq=False)
class Model:
    """What a run ends with.

    Args:
        task: what was learnt.
        encoding: what turns a table into features.
        parameters: the flat vector ``[d]`` in the learner's layout.
        facts: where it comes from: run, federation hash, rounds, metrics."""

    task: Task
    encoding: Encoding
    parameters: Array
    facts: Mapping[str, Json] = field(default_factory=dict)

    def predict(self, table: Table) -> Array:
        """A value or a probability per row ``[n]``, or probabilities ``[n, classes]``; a DataError if a feature
        column is missing or holds text."""
        learner = self.task.learner(self.encoding.width)
        x = self.encoding.matrix(table) if self.task.flat else self.encoding.features(table)
        return learner.predict(self.parameters, x)

    def score(self, *tables: Table) -> dict[str, float]:
        """The task's metrics over the rows of tables that have the target."""
        totals: dict[str, Array] = {}
        for table in tables:
            for name, value in self.task.tally(self.predict(table), self.task.labels(table)).items():
                totals[name] = totals[name] + value if name in totals else value
        return self.task.metrics(totals)

    def summary(self, level: float = 0.95) -> list[Estimate]:
        """The table of coefficients, in the units of the columns, with confidence intervals of that level; raises
        RunError if the method that trained it gives no standard errors."""
        return estimates(self.facts, level)

    def to_bytes(self) -> bytes:
        """A safetensors file: named arrays, and everything else as JSON in its metadata."""
        layout = self.task.learner(self.encoding.width).layout
        facts = {"task": TASKS.spec(self.task), "encoding": self.encoding.to_json(), "facts": dict(self.facts)}
        return tensors.write(layout.split(self.parameters), {"hansa": canonical(facts).decode()})

    def save(self, path: str | Path) -> Path:
        """Write `to_bytes` to a file."""
        path = Path(path)
        write_whole(path, self.to_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Model:
        """Read what `save` wrote; raises DataError if there is no such file, and StoreError if it is not a model of
        Hansa."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no such file: {path}", remedy="Give the path of a model.safetensors")
        try:
            data = path.read_bytes()
            facts = json.loads(tensors.metadata(data)["hansa"])
            task, encoding = TASKS.build(facts["task"]), Encoding.from_json(facts["encoding"])
            arrays = {n: np.asarray(a) for n, a in tensors.read(data).items()}
            parameters = task.learner(encoding.width).layout.join(arrays)
        except (HansaError, KeyError, ValueError, TypeError) as error:
            what = f"{path} is not a model that Hansa wrote ({error})"
            raise StoreError(what, remedy="Give the model.safetensors of a run") from error
        return cls(task, encoding, parameters, facts["facts"])
