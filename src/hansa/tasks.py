"""Tasks whose model is code: ``hansa.tasks.torch(Net, ...)`` makes one of a PyTorch module.

PyTorch itself is imported when a model is needed, and no sooner."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field as Limits
from pydantic import PrivateAttr

from hansa.contribution import Array, Field, Values, canonical
from hansa.data.table import Table
from hansa.errors import DataError, StudyError, UsageError, did_you_mean
from hansa.learners.base import Learner
from hansa.task import SIDES, SoftmaxRegression, Task, counted, histograms, ordered_pairs, refuse

LOSSES = ("bce_with_logits", "cross_entropy", "l1", "mse", "nll", "smooth_l1")
METRICS = ("accuracy", "auc", "mae", "mse", "rmse")
Buffers = Literal["refuse", "average", "local"]
Precision = Literal["float32", "float64", "bfloat16"]

_LIVE: dict[tuple[str, str], Any] = {}
"""Code that was handed over in this process; a task or a model that is read back finds it here."""


def torch(
    module: Any,
    *,
    loss: str | Callable[[Any, Any], Any] = "cross_entropy",
    metrics: Sequence[str | Callable[[Any, Any], Any]] = (),
    target: str = "y",
    features: Sequence[str] = ("*",),
    classes: Sequence[str | int] = (),
    buffers: Buffers = "refuse",
    precision: Precision = "float32",
    start: Literal["seed", "given"] = "seed",
    **arguments: Any,
) -> "Torch":
    """A task that learns a PyTorch module as it is.

    Args:
        module: a class derived from ``torch.nn.Module``, or a function that makes a module; or a module, which
            then stays in this process.
        loss: one of `LOSSES`; or a function of outputs and labels that gives a loss per row, ``[n]``. One that
            gives a single number works too, one party at a time.
        metrics: of `METRICS`, or functions of predictions and labels (NumPy) that give a value per row.
        target: the column of labels.
        features: the columns that the module sees: one column of arrays as it is, ``[n, ...]`` with its dtype,
            or a matrix of numbers ``[n, width]``.
        classes: the labels of a column of text, in the order of the outputs; numbered labels need none.
        buffers: what becomes of BatchNorm's running statistics: refused; made part of what is averaged; or
            not kept, so that each party's rows are normalised by themselves (``"local"``).
        precision: of parameters; ``"bfloat16"`` keeps them in float32 and computes in bfloat16 where the
            machine multiplies it faster.
        start: from weights keyed by the federation's seed, or from those that the module has.
        arguments: of the class or the function: numbers, text, lists.

    Raises StudyError if an argument is not what it must be."""
    if not callable(module):
        raise StudyError(f"a module was wanted, not {type(module).__name__}")
    live = not inspect.isclass(module) and not inspect.isfunction(module)
    if live and arguments:
        remedy = "Give its class, or make it with them"
        raise StudyError(f"arguments {', '.join(arguments)} for a module that is already made", remedy=remedy)
    for name, given in (("metrics", metrics), ("features", features), ("classes", classes)):
        if isinstance(given, str) or not isinstance(given, Iterable):
            what = f"`{name}` is the task's own, a list, and not {given!r}"
            way = "write a function without arguments that makes it, and give that"
            raise StudyError(what, remedy=f"Write {name}=[...]; for a module that takes {name}, too, {way}")
    try:
        canonical(arguments)
    except (TypeError, ValueError):
        what = f"the arguments {', '.join(arguments)} are not all numbers, text or lists of them"
        remedy = "Write a function without arguments that makes the module, and give that"
        raise StudyError(what, remedy=remedy) from None
    task = Torch(
        module=_reference(module),
        arguments=arguments,
        loss=_reference(loss),
        measures=tuple(map(_reference, metrics)),
        target=target,
        features=tuple(features),
        classes=tuple(classes),
        buffers=buffers,
        precision=precision,
        start=start,
        source=_digest(module, loss, *metrics),
    )
    for code in (module, loss, *metrics):
        if not isinstance(code, str):
            _LIVE[_reference(code), task.source] = code
    return task


class Torch(Task):
    """A PyTorch module as a task; `torch` makes one, and explains the arguments.

    Args:
        module: ``"package.file:Class"``; a module that lives in this process has ``()`` behind it.
        arguments: of the class.
        loss: a name, or ``"package.file:function"``.
        measures: the metrics, likewise.
        source: digest of the code, so that a federation with other code is another federation."""

    kind: ClassVar[str] = "torch"
    flat: ClassVar[bool] = False

    target: Annotated[str, Limits(min_length=1)] = "y"
    module: str
    arguments: Mapping[str, Any] = Limits(default_factory=dict)
    loss: str = "cross_entropy"
    measures: tuple[str, ...] = ()
    classes: tuple[str | int, ...] = ()
    buffers: Buffers = "refuse"
    precision: Precision = "float32"
    start: Literal["seed", "given"] = "seed"
    source: str = ""
    _learner: Any = PrivateAttr(default=None)

    def model_post_init(self, context: Any) -> None:
        """Refuse a loss or a metric that is neither known nor code."""
        super().model_post_init(context)
        for what, (names, known) in {"loss": ([self.loss], LOSSES), "metrics": (self.measures, METRICS)}.items():
            for name in names:
                if name not in known and ":" not in name:
                    raise StudyError(f"unknown {what} {name!r}", remedy=did_you_mean(name, known))

    def load(self) -> Self:
        """The same task with its code imported, in another process of the same owner; raises UsageError if the code
        lives in its maker's process; StudyError if it cannot be imported, or is not what it was there."""
        code = [r for r in (self.module, self.loss, *self.measures) if ":" in r]
        for reference in code:
            module, _, name = reference.partition(":")
            if module == "__main__" or "<" in name or name.endswith("()"):
                what = f"{reference} lives in the process that made it, and cannot go to another"
                raise UsageError(what, remedy="Move it to a file: a class, or a function that makes the module")
            try:
                found = import_module(module)
                for part in name.split("."):
                    found = getattr(found, part)
            except (ImportError, AttributeError) as error:
                raise StudyError(f"{reference} cannot be imported here: {error}") from None
            _LIVE[reference, self.source] = found
        if self.source != _digest(*(self._code(reference) for reference in code)):
            what = f"the code of {', '.join(code)} is not here what it was where the task was made"
            raise StudyError(what, remedy="Bring the same files to both")
        return self

    def learner(self, width: int) -> Learner:
        """`hansa.learners.torch.Torch`; a StudyError if PyTorch is not installed, or the code not in this process."""
        if self._learner is None:
            try:
                from hansa.learners.torch import Torch as Module
            except ModuleNotFoundError as error:
                if (error.name or "").partition(".")[0] != "torch":
                    raise
                raise StudyError("PyTorch is not installed", remedy="pip install 'hansa[torch]'") from None
            loss, given = self.loss if self.loss in LOSSES else self._code(self.loss), self.start == "given"
            self._learner = Module(self._build, loss, precision=self.precision, buffers=self.buffers, given=given)
        learner: Learner = self._learner
        return learner

    def labels(self, table: Table) -> Array:
        """Class numbers as integers, other labels as they are, ``[rows, ...]``."""
        if self.classes:
            return SoftmaxRegression(target=self.target, classes=self.classes).labels(table)
        values = table.column(self.target)
        if table.kind(self.target) == "text":
            raise DataError(f"the target {self.target!r} holds text", remedy="Name its labels: classes=[...]")
        if values.dtype.kind != "f":
            return values
        numbered = self.loss in ("cross_entropy", "nll")
        bad = ~np.isfinite(values) | (numbered & (values != np.floor(values)))
        refuse(bad, self.target, "is missing or no class number")
        return values.astype(np.int64) if numbered else values

    @property
    def metric_names(self) -> tuple[str, ...]:
        return ("loss", *(m.rpartition(":")[2].rpartition(".")[2] for m in self.measures))

    @property
    def lower_is_better(self) -> frozenset[str]:
        return super().lower_is_better | {"mse"}

    def tallies(self) -> tuple[Field, ...]:
        """Rows, and a sum over rows for the loss and each metric; histograms of scores for AUC."""
        names = ("rows", *(name for name in self.metric_names if name != "auc"))
        sums = (counted(name, low=-(2.0**100), high=2.0**100) for name in names)
        return (*sums, *(SIDES if "auc" in self.measures else ()))

    def tally(self, predicted: Array, y: Array) -> Values:
        """Sums over rows; of several labels a row, their mean counts."""
        sums: dict[str, Any] = {"rows": len(y)}
        for name, which in zip(self.metric_names, ("", *self.measures), strict=True):
            if which == "auc":
                sums |= histograms(predicted[:, 1] if predicted.ndim > y.ndim else predicted, y)
            else:
                sums[name] = self._each(which, predicted, y).sum() if len(y) else 0.0
        return Values({name: np.asarray(value, dtype=np.float64) for name, value in sums.items()})

    def metrics(self, totals: Mapping[str, Array]) -> dict[str, float]:
        rows = float(totals["rows"])
        means = {n: float(totals[n]) / rows for n in self.metric_names if n != "auc"}
        if "rmse" in means:
            means["rmse"] **= 0.5
        if "auc" in self.measures:
            means["auc"] = ordered_pairs(totals)
        return {name: means[name] for name in self.metric_names}

    def _each(self, which: str, predicted: Array, y: Array) -> Array:
        """The loss, or a metric, of each row ``[n]``."""
        if not which:
            losses: Array = self.learner(0).row_losses(predicted, y)  # type: ignore[attr-defined]
            return losses
        if ":" in which:
            values = np.asarray(self._code(which)(predicted, y), dtype=np.float64)
            if values.shape[:1] != (len(y),):
                what = f"the metric {which} gives {list(values.shape)} for {len(y)} rows"
                raise StudyError(what, remedy="Give one value per row; their mean is the metric")
        elif which == "accuracy":
            classes = predicted.ndim > y.ndim
            values = (predicted.argmax(axis=-1) if classes else predicted >= 0.5) == y
        else:
            error = predicted.reshape(y.shape) - y
            values = np.abs(error) if which == "mae" else np.square(error, dtype=np.float64)
        each: Array = values.reshape(len(y), -1).mean(axis=1, dtype=np.float64)
        return each

    def _code(self, reference: str) -> Any:
        found = _LIVE.get((reference, self.source))
        if found is None:
            what = f"the task is code ({reference}), which is not loaded in this process"
            raise StudyError(what, remedy="Call hansa.tasks.torch(...) here first, as where it was trained")
        return found

    def _build(self) -> Any:
        code = self._code(self.module)
        if not self.module.endswith("()"):
            return code(**self.arguments)
        module = copy.deepcopy(code)
        for part in module.modules() if self.start == "seed" else ():
            for name in ("reset_parameters", "_reset_parameters"):
                getattr(part, name, lambda: None)()
        return module


def _reference(code: Any) -> str:
    """Where a class or a function is found; an instance by its class, with ``()`` behind it; a name as it is."""
    if isinstance(code, str):
        return code
    if not callable(code):
        raise StudyError(f"a name or a function was wanted, not {code!r}")
    live = not hasattr(code, "__qualname__")
    named = type(code) if live else code
    return f"{named.__module__}:{named.__qualname__}" + "()" * live


def _digest(*code: Any) -> str:
    """SHA-256 over the source of everything that was handed over, and over the weights of a module."""
    state = hashlib.sha256()
    for one in code:
        if isinstance(one, str):
            continue
        live = not hasattr(one, "__qualname__")
        try:
            text = inspect.getsource(type(one) if live else one)
        except (OSError, TypeError):  # typed into an interpreter
            text = _reference(one)
        state.update(text.encode())
        for name, value in one.state_dict().items() if hasattr(one, "state_dict") and live else ():
            state.update(f"{one}{name}".encode() + value.detach().cpu().numpy().tobytes())
    return state.hexdigest()
