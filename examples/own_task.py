"""A task of one's own, from its losses to its metrics, in simulation only: counts of visits.

(Hansa has Poisson regression: `hansa.PoissonRegression`. Here it is made anew, as any task can be.)

``python examples/own_task.py``, or as a study in TOML beside this file::

    [task]
    module = "own_task:task"
"""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

import hansa as hs
from hansa.contribution import Algebra, Array, Field, Values
from hansa.learners.glm import Glm


class Poisson(Glm):
    """``y`` counts events, with mean ``exp(eta)`` (McCullagh and Nelder 1989, chapter 6)."""

    def losses(self, eta: Array, y: Array) -> Array:
        """Minus the log likelihood of each row, without the term that does not depend on eta."""
        score = eta[..., 0]
        loss: Array = np.exp(score) - y * score
        return loss

    def mean(self, eta: Array) -> Array:
        """The inverse of the log link."""
        mean: Array = np.exp(eta)
        return mean


class PoissonRegression(hs.Task):
    """Counts. Metrics: the loss above, and the mean deviance ``2 (y log(y / mu) - y + mu)``."""

    kind: ClassVar[str] = "visits"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "deviance")

    def learner(self, width: int) -> Poisson:
        """A generalised linear model of so many features."""
        return Poisson(width)

    def labels(self, table: hs.Table) -> Array:
        """The target column; counts are not negative."""
        counts = table.column(self.target)
        if table.kind(self.target) != "number" or not (counts >= 0).all():
            raise hs.errors.DataError(f"the target {self.target!r} must hold counts in every row")
        return counts

    def tallies(self) -> tuple[Field, ...]:
        """What leaves a party in an evaluation: three sums, each with its range."""
        wide = float(2**40)
        names = ("rows", "loss", "deviance")
        return tuple(
            Field(n, shape=(), algebra=Algebra.SUM, low=0.0 if n == "rows" else -wide, high=wide) for n in names
        )

    def tally(self, predicted: Array, y: Array) -> Values:
        """Sums over the held-out rows of one party."""
        ratio = np.where(y > 0, y, 1.0) / predicted
        deviance = 2 * (np.where(y > 0, y * np.log(ratio), 0.0) - y + predicted)
        loss = predicted - y * np.log(predicted)
        sums = {"rows": float(len(y)), "loss": loss.sum(), "deviance": deviance.sum()}
        return Values({name: np.asarray(value, dtype=np.float64) for name, value in sums.items()})

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        """Means over the rows of all parties."""
        rows = float(totals["rows"])
        return {name: float(totals[name]) / rows for name in ("loss", "deviance")}


task = PoissonRegression(target="visits")


def clinics(seed: int = 0) -> dict[str, hs.Table]:
    """Visits a year at three clinics whose patients differ in age."""
    random = np.random.default_rng(seed)
    tables = {}
    for name, age in {"coast": 35.0, "hills": 50.0, "town": 65.0}.items():
        ages, distance = random.normal(age, 8.0, 200), random.exponential(5.0, 200)
        visits = random.poisson(np.exp(0.02 * ages - 0.1 * distance)).astype(np.float64)
        tables[name] = hs.Table.of({"age": ages, "distance": distance, "visits": visits})
    return tables


federation = hs.Federation(name="visits", task=task, method=hs.FedAvg(local=hs.SGD(lr=0.05)), rounds=20)

if __name__ == "__main__":
    run = federation.run(hs.Local(clinics()))
    for row in run.metrics()[::5]:
        print(f"round {row['round']:2}: mean deviance {row['deviance']:.4f}")
