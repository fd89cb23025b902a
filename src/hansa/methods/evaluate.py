"""Federated evaluation: metrics of the global model from sums over held-out rows."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Algebra, Array, Ask, Contribution, Field, Total, Values, check
from hansa.errors import ContributionError, StudyError, did_you_mean
from hansa.learners.base import Learner
from hansa.methods.base import Answer, Method, Setup, State
from hansa.methods.work import At
from hansa.task import Task


class Evaluate(Method):
    """Every party scores the global model on rows it never trained on and sends the task's sums.

    Args:
        every: evaluate after each so many rounds, and after the last; 0 for never.
        holdout: share of a party's rows that is held out, drawn by (seed, party). With 0, and no
            ``split``, there is nothing to evaluate on, and nothing is evaluated.
        split: a column that says it instead: rows whose value is ``test`` are held out.
        central: score on a test table that whoever simulates has; parties then hold nothing out.
        spread: also how the metrics are spread over the parties: quantiles, and the mean of the worst tenth.
        own: also score each party's own model on its own rows, where the method makes one.
        sample: ask so many parties, drawn anew each time, and not all.
        only: these of the task's metrics, and not all; where sums get noise, fewer of them share it."""

    kind: ClassVar[str] = "evaluate"
    every: Annotated[int, Limits(ge=0)] = 1
    holdout: Annotated[float, Limits(ge=0, lt=1)] = 0.25
    split: str | None = None
    central: bool = False
    spread: bool = False
    own: bool = False
    sample: Annotated[int, Limits(ge=1)] | None = None
    only: tuple[str, ...] = ()

    def model_post_init(self, context: Any) -> None:
        """Refuse what only parties could say of a table that no party holds."""
        for name in ("spread", "own", "sample", "split"):
            if self.central and getattr(self, name):
                what = f"evaluation.{name} is of the parties' rows, and evaluation.central of one table"
                raise StudyError(what, remedy="Leave one of the two out")

    def due(self, round: int, last: bool) -> bool:
        """Whether the model is scored after this round."""
        holds_out = self.holdout > 0 or self.split is not None or self.central
        return holds_out and self.every > 0 and (last or round % self.every == 0)

    def init(self, setup: Setup, learner: Learner) -> State:
        return State()

    def ask(self, state: State) -> Ask | None:
        """The run's driver adds the parameters and the task's tallies."""
        return Ask("", 0, 0, Values(), ())

    def work(self, at: At) -> Answer:
        return self.score(at, {"": at.received["parameters"]})

    def score(self, at: At, models: Mapping[str, Array], noised: bool = False) -> Answer:
        """The task's sums over the party's held-out rows, of several models by the prefix of their names; a
        ContributionError if a model's errors are beyond counting."""
        x, y = at.held_out()
        values: dict[str, Array] = {}
        asked = {tally.name for tally in self._tallies(at.task)}
        for prefix, parameters in models.items():
            predicted = at.learner.predict(parameters, x)
            if noised:  # no row may decide whether there is an answer
                predicted = np.nan_to_num(predicted, nan=0.0, posinf=1e12, neginf=-1e12)
            try:
                tallies = at.task.tally(predicted, y)
                check(Contribution(tallies), at.task.tallies())
            except (ContributionError, ValueError):
                what = "the model has diverged: its errors are beyond counting"
                remedy = "Lower the learning rates, or add a clip to the aggregation"
                raise ContributionError(what, remedy=remedy) from None
            values |= {prefix + name: value for name, value in tallies.items() if name in asked}
        return Answer(Contribution(Values(values)))

    def _tallies(self, task: Task) -> tuple[Field, ...]:
        """The task's sums, or those of the metrics asked for; a StudyError if it has no such metric."""
        if unknown := [name for name in self.only if name not in task.made_of]:
            what = f"evaluation.only: the task has no metric {unknown[0]!r} that can be asked for by itself"
            raise StudyError(what, remedy=did_you_mean(unknown[0], task.made_of))
        parts = {"rows", *(part for name in self.only for part in task.made_of[name])}
        return tuple(tally for tally in task.tallies() if not self.only or tally.name in parts)

    def fields(self, task: Task, own: bool) -> tuple[Field, ...]:
        """What a party answers: the task's sums, again for its own model, each party's if `spread`."""
        algebra = Algebra.GATHER if self.spread else Algebra.SUM
        tallies = [replace(tally, algebra=algebra) for tally in self._tallies(task)]
        return (*tallies, *[replace(t, name=f"own.{t.name}") for t in tallies if own])

    def metrics(self, task: Task, totals: Values) -> dict[str, float]:
        """The federation's metrics, and how they are spread over the parties that hold rows out: ``accuracy`` is of all
        rows, ``accuracy.p10`` a quantile over parties, ``accuracy.worst_decile`` the mean of the tenth that does worst;
        ``own.`` stands before those of the parties' own models."""
        metrics: dict[str, float] = {}
        for prefix in ("", "own."):
            names = [t.name for t in task.tallies() if prefix + t.name in totals]
            mine = {name: totals[prefix + name] for name in names}
            if not mine:
                continue
            summed = {n: v.sum(axis=0) for n, v in mine.items()} if self.spread else mine
            whole = task.metrics(summed)
            metrics |= {prefix + name: value for name, value in whole.items()}
            some = np.flatnonzero(mine["rows"]) if self.spread else ()
            each = [task.metrics({n: value[i] for n, value in mine.items()}) for i in some]
            each = [one for one in each if all(map(math.isfinite, one.values()))] or [whole]
            for name in whole if self.spread else ():
                ordered = np.sort([one[name] for one in each])
                few = max(1, len(each) // 10)
                tenth = (ordered[-few:] if name in task.lower_is_better else ordered[:few]).mean()
                low, median, high = np.quantile(ordered, [0.1, 0.5, 0.9])
                spread = {"p10": low, "p50": median, "p90": high, "worst_decile": tenth}
                metrics |= {f"{prefix}{name}.{which}": float(v) for which, v in spread.items()}
        return metrics

    def names(self, task: Task, own: bool) -> tuple[str, ...]:
        """Of all metrics that `metrics` gives."""
        names = [p + n for p in ("", "own.")[: 1 + own] for n in self.only or task.metric_names]
        which = ("p10", "p50", "p90", "worst_decile") if self.spread else ()
        return (*names, *(f"{name}.{w}" for name in names for w in which))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        return State(ask.round, total.values)
