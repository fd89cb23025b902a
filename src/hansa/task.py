"""What is learnt: which column is predicted from which others, by which model, judged how.

A task knows columns and labels; the mathematics is its learner's. What it counts on held-out rows are
sums (`tallies`), so that a metric of the federation is computed from totals and never from rows."""

import bisect
import fnmatch
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from pydantic import Field as Limits
from pydantic import PrivateAttr

from hansa.contribution import Algebra, Array, Field, Values
from hansa.data.table import Table
from hansa.errors import DataError, StudyError
from hansa.learners.base import Learner
from hansa.learners.glm import Glm, Hazard, Linear, Logistic, Poisson, Softmax
from hansa.part import Catalogue, Part

Sums: TypeAlias = Mapping[str, tuple[str, ...]]  # of each metric, those that it is made of

BINS = 512
"""Bins of the score histograms from which AUC is computed; its error is below the share of pairs of a
positive and a negative row that fall into one bin, which count as ties."""


class Task(Part):
    """The contract of every task.

    Args:
        target: the column that is predicted.
        features: the columns it is predicted from; shell patterns, ``"*"`` for all but the target."""

    flat: ClassVar[bool] = True  # whether the model sees a row as a vector; else an array column keeps its shape

    additive: ClassVar[bool] = True  # whether its loss is a mean over rows, so that each row has a gradient of its own

    made_of: ClassVar[Sums] = {}
    """The sums, beside ``rows``, of each metric that `metrics` can give by itself."""

    target: Annotated[str, Limits(min_length=1)]
    features: Annotated[tuple[str, ...], Limits(min_length=1)] = ("*",)

    def select(self, columns: Sequence[str], where: str) -> tuple[str, ...]:
        """The feature columns among those that a party has, in the party's order; a DataError if the target or
        a named feature is not there, naming what is."""
        if self.target not in columns:
            raise _absent("target", f"the target column {self.target!r} is missing", columns, where)
        rest = [name for name in columns if name != self.target]
        for pattern in self.features:
            if not any(_matches(name, pattern) for name in rest):
                raise _absent("features", f"no column is named {pattern!r}", columns, where)
        return tuple(n for n in rest if any(_matches(n, pattern) for pattern in self.features))

    @abstractmethod
    def learner(self, width: int) -> Learner:
        """The model for a matrix of ``width`` features."""

    @abstractmethod
    def labels(self, table: Table) -> Array:
        """The target as the learner wants it, ``[rows]``; raises DataError with the row (from 1) that holds no valid
        label."""

    @abstractmethod
    def tallies(self) -> tuple[Field, ...]:
        """The sums that `tally` makes."""

    @abstractmethod
    def tally(self, predicted: Array, y: Array) -> Values:
        """Sums over held-out rows, one per declared tally.

        Args:
            predicted: what the learner predicts, ``[n]`` or ``[n, k]``.
            y: labels, ``[n]``."""

    @abstractmethod
    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        """The metrics of the federation from the totals of the tallies."""

    @property
    def lower_is_better(self) -> frozenset[str]:
        """Those of its metrics that are losses or errors."""
        return frozenset({"loss", "rmse", "mae"})

    @property
    @abstractmethod
    def metric_names(self) -> tuple[str, ...]:
        """What `metrics` returns."""


def _absent(key: str, what: str, columns: Sequence[str], party: str) -> DataError:
    remedy = f"Correct `{key}` in the study, or the table that the party offers"
    return DataError(f"{what}; it has {', '.join(columns)}", party=party, remedy=remedy)


def _matches(name: str, pattern: str) -> bool:
    """By its own name, too: ``size [mm]`` is a name before it is a pattern."""
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def counted(name: str, *shape: int, low: float = 0.0, high: float = 2.0**40, example: float = math.inf) -> Field:
    """A declared sum over rows, to which one row adds ``example`` at most."""
    return Field(name, shape=shape, algebra=Algebra.SUM, low=low, high=high, example=example)


def _summed(y: Array, **each: Any) -> Values:
    """How many rows there are, and the sums of what each adds, ``[n]``."""
    return Values({name: np.asarray(np.sum(of), np.float64) for name, of in {"rows": len(y), **each}.items()})


_LEAST = 1e-12  # of a probability in a log loss
_HITS = (*(counted(name, example=1.0) for name in ("rows", "correct")), counted("loss", example=-math.log(_LEAST)))
SIDES = tuple(counted(name, BINS, example=1.0) for name in ("positives", "negatives"))  # what `histograms` gives


def histograms(scores: Array, y: Array) -> dict[str, Array]:
    """How many rows of either class have scores, from 0 to 1, in each bin."""
    bins = np.minimum((scores * BINS).astype(np.intp), BINS - 1)
    sides = {"positives": y == 1, "negatives": y == 0}
    return {side: np.bincount(bins[own], minlength=BINS).astype(np.float64) for side, own in sides.items()}


def ordered_pairs(totals: Mapping[str, Array]) -> float:
    """AUC from such histograms: the share of pairs in order, ties counting half; 0.5 without a pair."""
    positives, negatives = totals["positives"], totals["negatives"]
    below, pairs = np.cumsum(negatives) - negatives / 2, float(positives.sum() * negatives.sum())
    return float((positives * below).sum()) / pairs if pairs else 0.5


def refuse(bad: Array, column: str, what: str) -> None:
    """Refuse (DataError) a target with rows that are bad."""
    if bad.any():
        row = int(np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))[0]) + 1
        raise DataError(f"the target {column!r} {what} in row {row}", remedy="Correct the row or leave it out")


class _Glm(Task):
    model: ClassVar[type[Glm]]
    sums: ClassVar[tuple[Field, ...]]

    l2: Annotated[float, Limits(ge=0)] = 0.0
    precision: Literal["float64", "float32"] = "float64"

    def learner(self, width: int) -> Learner:
        return self.model(width, l2=self.l2, dtype=self.precision)

    def tallies(self) -> tuple[Field, ...]:
        return self.sums

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        """Single sums over rows, of which noise may leave less than one, or more right ones than there are."""
        rows = max(1.0, float(totals["rows"]))
        sums = {name: of[0] for name, of in self.made_of.items() if len(of) == 1 and of[0] in totals}
        means = {name: float(totals[of]) / rows for name, of in sums.items()}
        return {name: min(mean, 1.0) if name == "accuracy" else mean for name, mean in means.items()}

    def _numbers(self, table: Table, column: str = "") -> Array:
        """The target column, or another, as numbers without a gap."""
        column = column or self.target
        values = table.column(column)
        if table.kind(column) == "text":
            row = next((i for i, v in enumerate(values) if v is not None), 0)
            # The cell itself is not quoted: the reason for a refusal leaves the party.
            remedy = "Name the labels in the study's [task]: positive = ... or classes = [...]"
            raise DataError(f"the target {column!r} must be a number; row {row + 1} holds text", remedy=remedy)
        refuse(np.isnan(values), column, "is missing")
        return values


class LinearRegression(_Glm):
    """Least squares. Metrics: rmse, mae, r2."""

    kind = "linear-regression"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "rmse", "mae", "r2")
    model = Linear
    sums = (
        counted("rows"),
        *(counted(name, high=2.0**100) for name in ("squared", "absolute", "target_squared")),
        counted("target", low=-(2.0**100), high=2.0**100),
    )

    def labels(self, table: Table) -> Array:
        return self._numbers(table)

    def tally(self, predicted: Array, y: Array) -> Values:
        error = predicted - y
        return _summed(y, squared=np.square(error), absolute=np.abs(error), target_squared=np.square(y), target=y)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        rows = float(totals["rows"])
        mse = float(totals["squared"]) / rows
        spread = float(totals["target_squared"]) / rows - (float(totals["target"]) / rows) ** 2
        r2 = 1 - mse / spread if spread > 0 else 0.0
        return {"loss": mse / 2, "rmse": mse**0.5, "mae": float(totals["absolute"]) / rows, "r2": r2}


class LogisticRegression(_Glm):
    """Two classes. Metrics: log loss, accuracy at one half, AUC.

    Args:
        positive: the label that counts as 1, if the target is text; a target of numbers is 0 or 1."""

    kind = "logistic-regression"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "auc")
    model = Logistic
    made_of: ClassVar[Sums] = {"loss": ("loss",), "accuracy": ("correct",), "auc": ("positives", "negatives")}
    sums = (*_HITS, *SIDES)
    positive: str | None = None

    def labels(self, table: Table) -> Array:
        if self.positive is not None and table.kind(self.target) == "text":
            values = table.column(self.target)
            refuse(np.asarray([value is None for value in values], dtype=bool), self.target, "is missing")
            return np.asarray([value == self.positive for value in values], dtype=np.float64)
        values = self._numbers(table)
        refuse((values != 0) & (values != 1), self.target, "is neither 0 nor 1")
        return values

    def tally(self, predicted: Array, y: Array) -> Values:
        """Sums over rows. Probabilities are kept 1e-12 away from 0 and 1."""
        p = np.clip(predicted, _LEAST, 1 - _LEAST)
        losses = -(y * np.log(p) + (1 - y) * np.log1p(-p))
        hits = _summed(y, correct=(predicted >= 0.5) == (y == 1), loss=losses)
        return Values({**hits, **histograms(predicted, y)})

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        auc = {"auc": ordered_pairs(totals)} if "positives" in totals else {}
        return {**super().metrics(totals), **auc}


class SoftmaxRegression(_Glm):
    """More than two classes. Metrics: log loss, accuracy.

    Args:
        classes: the labels, distinct, as text or numbers, in the order of the model's outputs."""

    kind = "softmax-regression"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "accuracy")
    made_of: ClassVar[Sums] = {"loss": ("loss",), "accuracy": ("correct",)}
    sums = _HITS
    classes: Annotated[tuple[str | int, ...], Limits(min_length=2)]

    def model_post_init(self, context: Any) -> None:
        """Refuse a class that is named twice."""
        if len({str(label) for label in self.classes}) < len(self.classes):
            raise StudyError(f"task.classes names a class twice: {list(self.classes)}")

    def learner(self, width: int) -> Learner:
        return Softmax(width, len(self.classes), self.l2, self.precision)

    def labels(self, table: Table) -> Array:
        if table.kind(self.target) == "array" and self.classes == tuple(range(len(self.classes))):
            given = table.column(self.target)
            refuse((given < 0) | (given >= len(self.classes)), self.target, f"is none of {self.classes}")
            return given.astype(np.intp, copy=False)
        if table.kind(self.target) == "text":
            names = {str(label): i for i, label in enumerate(self.classes)}
            found = [names.get(value, -1) for value in table.column(self.target)]
        else:
            numbers = {label: i for i, label in enumerate(self.classes) if isinstance(label, int)}
            found = [numbers.get(value, -1) for value in self._numbers(table).tolist()]
        labels = np.asarray(found, dtype=np.intp)
        refuse(labels < 0, self.target, f"is none of {list(self.classes)}")
        return labels

    def tally(self, predicted: Array, y: Array) -> Values:
        chosen = np.clip(predicted[np.arange(len(y)), y], _LEAST, 1.0)
        return _summed(y, correct=predicted.argmax(axis=-1) == y, loss=-np.log(chosen))


class PoissonRegression(_Glm):
    """Counts, with mean ``exp(x w + b)``. Metrics: deviance, mae. The loss is minus the log likelihood but for what the
    model cannot change; the deviance of a row is ``2 (y log(y / mu) - y + mu)``."""

    kind = "poisson-regression"
    metric_names: ClassVar[tuple[str, ...]] = ("loss", "deviance", "mae")
    model = Poisson
    made_of: ClassVar[Sums] = {"loss": ("loss",), "deviance": ("deviance",), "mae": ("absolute",)}
    sums = (
        counted("rows"),
        counted("loss", low=-(2.0**400), high=2.0**400),
        *(counted(name, high=2.0**400) for name in ("deviance", "absolute")),
    )
    lower_is_better: ClassVar[frozenset[str]] = frozenset(metric_names)

    def labels(self, table: Table) -> Array:
        values = self._numbers(table)
        refuse((values < 0) | (values != np.floor(values)), self.target, "is no count")
        return values

    def tally(self, predicted: Array, y: Array) -> Values:
        """Sums over rows. Means are kept 1e-300 away from 0."""
        mu = np.maximum(predicted, 1e-300)
        logs = np.where(y > 0, y * np.log(np.maximum(y, 1) / mu), 0.0)
        deviance = np.maximum(2 * (logs - y + mu), 0.0)
        return _summed(y, loss=mu - y * np.log(mu), deviance=deviance, absolute=np.abs(mu - y))


class CoxRegression(_Glm):
    """Times to an event (Cox 1972). The target is the time; a prediction is the relative hazard.

    Metrics: concordance, the share of comparable pairs of rows *of one party* in which the one whose event
    came first had the larger hazard, ties counting half (Harrell 1982).

    Args:
        event: the column that is 1 where the event was seen at that time, 0 where the row was last seen without it."""

    kind = "cox-regression"
    metric_names: ClassVar[tuple[str, ...]] = ("concordance",)
    additive = False
    model = Hazard
    sums = (counted("rows"), *(counted(name, high=2.0**80) for name in ("pairs", "ordered", "tied")))
    event: Annotated[str, Limits(min_length=1)]

    def select(self, columns: Sequence[str], where: str) -> tuple[str, ...]:
        """Neither the time nor the event is a feature."""
        if self.event not in columns:
            raise _absent("event", f"the event column {self.event!r} is missing", columns, where)
        return super().select([name for name in columns if name != self.event], where)

    def labels(self, table: Table) -> Array:
        """Times, negative where no event was seen."""
        times = self._numbers(table)
        refuse(times < 0, self.target, "is negative")
        events = self._numbers(table, self.event)
        refuse((events != 0) & (events != 1), self.event, "is neither 0 nor 1")
        return np.where(events == 1, times, -times)

    def tally(self, predicted: Array, y: Array) -> Values:
        later: list[float] = []
        pairs = ordered = tied = 0
        time, event = np.abs(y), ~np.signbit(y)
        # Of one time, the rows without an event outlive those with one, and events are not comparable.
        for moment in np.unique(time)[::-1]:
            now = time == moment
            for score in predicted[now & ~event].tolist():
                bisect.insort(later, score)
            scores = predicted[now & event].tolist()
            for score in scores:
                below = bisect.bisect_left(later, score)
                pairs, ordered = pairs + len(later), ordered + below
                tied += bisect.bisect_right(later, score) - below
            for score in scores:
                bisect.insort(later, score)
        return _summed(y, pairs=pairs, ordered=ordered, tied=tied)

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        """One half if no pair is comparable."""
        pairs = float(totals["pairs"])
        won = float(totals["ordered"]) + float(totals["tied"]) / 2
        return {"concordance": won / pairs if pairs else 0.5}


def _authors(name: str) -> Any:
    return property(lambda self: getattr(self.loaded, name), doc="The author's.")


class CodeTask(Task):
    """A task written by the study's author, in simulation only.

    Args:
        module: ``"file:object"``, beside the study; the object is a `Task`."""

    kind = "code"
    module: str
    target: str = ""
    _task: Task | None = PrivateAttr(default=None)

    flat = _authors("flat")
    metric_names = _authors("metric_names")
    made_of = _authors("made_of")
    lower_is_better = _authors("lower_is_better")
    learner = _authors("learner")
    labels = _authors("labels")
    tallies = _authors("tallies")
    tally = _authors("tally")
    metrics = _authors("metrics")

    def bound_to(self, task: Task) -> Self:
        """The same task with its code loaded."""
        bound = self.model_copy(update={"target": task.target, "features": task.features})
        bound._task = task
        return bound

    @property
    def loaded(self) -> Task:
        """The author's task; a StudyError if the code has not been loaded: it never is, except to simulate."""
        if self._task is None:
            remedy = "Use a built-in task kind: " + ", ".join(BUILT_IN)
            raise StudyError(f"the task is code ({self.module}), which only `hansa simulate` runs", remedy=remedy)
        return self._task


TASKS: Catalogue[Task] = Catalogue(
    "task",
    Task,  # type: ignore[type-abstract]  # only instances are asked for
    (LinearRegression, LogisticRegression, SoftmaxRegression, PoissonRegression, CoxRegression, CodeTask),
    later={"torch": "hansa.tasks:Torch"},
)
WITH_CODE = ("code", "torch")
BUILT_IN = tuple(kind for kind in TASKS if kind not in WITH_CODE)
"""Kinds of task that run no code of a study's author: all that an agent works on."""

AnyTask = Annotated[Task, TASKS]
