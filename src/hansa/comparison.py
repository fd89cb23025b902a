"""What federating was worth: each party alone, the federation, and all rows in one place.

The baselines are not crippled: the same features, the same epochs, the same optimiser, the best of several
learning rates, and no clip. The rate is chosen by the log loss on the very rows that everybody is scored on,
which favours them; the federated model gets no such choice."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hansa.aggregation.stage import Aggregation
from hansa.backends.local import Local
from hansa.cohort import All
from hansa.contribution import Array, Values
from hansa.data.table import Table
from hansa.errors import RunError, StudyError, did_you_mean
from hansa.federation import Federation
from hansa.methods.evaluate import Evaluate
from hansa.methods.fedavg import FedAvg
from hansa.model import Model
from hansa.party import Party
from hansa.privacy.claim import Privacy
from hansa.run import Run

RATES = (0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Scored:
    """One row of the comparison."""

    name: str  # a party's name, ``federated`` or ``pooled``
    rows: int  # how many rows it learnt from
    metrics: Mapping[str, float]  # on all parties' held-out rows
    rate: float | None  # the learning rate that was chosen; None for the federation, and where a method needs none


def compare(federation: Federation, tables: Mapping[str, Table], model: Model) -> list[Scored]:
    """Score the model that a federation ended with beside what each party, and all together, would have had; for
    whoever may see all the parties' tables. Raises StudyError if no row is held out."""
    course = federation.course(federation.resolve({name: table.schema() for name, table in tables.items()}))
    splits = {name: Party(name, table, course).split for name, table in sorted(tables.items())}
    held_out = [test for _, test in splits.values()]
    if not any(table.rows for table in held_out):
        raise StudyError("no row is held out, so there is nothing to compare on", remedy="Raise evaluation.holdout")
    trained = {name: train for name, (train, _) in splits.items()}
    scored = [_alone(federation, name, table, held_out) for name, table in trained.items()]
    parts = list(trained.values())
    everything = Table.of({name: np.concatenate([part.column(name) for part in parts]) for name in parts[0].names})
    scored.append(Scored("federated", everything.rows, model.score(*held_out), None))
    if federation.noised and not federation.method.noise(federation.privacy):
        plain = bare(federation).run(Local(tables)).model
        scored.append(Scored("without noise", everything.rows, plain.score(*held_out), None))
    return [*scored, _alone(federation, "pooled", everything, held_out)]


def bare(federation: Federation) -> Federation:
    """The same, but for what hides something on its way: noise, secure sums, and the grid that they need."""
    rest = [s for s in federation.aggregation.stages if not s.protects and s.kind != "grid"]
    chains = {"aggregation": Aggregation(stages=tuple(rest)), "statistics": Aggregation()}
    return federation.model_copy(update={**chains, "privacy": Privacy()})


@dataclass(frozen=True, eq=False)
class Crossed:
    """Models on the rows that parties hold out; NaN where a party holds out none."""

    parties: tuple[str, ...]  # their names, sorted
    shared: Array  # before personalisation: the global model on each party's rows, ``[parties]``
    own: Array  # after it: the model of party ``i`` on the rows of party ``j``, ``[parties, parties]``


def cross_matrix(run: Run, parties: Mapping[str, Table], metric: str = "accuracy") -> Crossed:
    """Score each party's own model on every party's held-out rows, where somebody may see all the parties' tables.
    Raises StudyError if parties have no models, or with a central evaluation no rows, of their own; or the task has no
    such metric; RunError if the run has no model yet."""
    method, task, evaluation = run.federation.method, run.federation.task, run.federation.evaluation
    if not method.personalises or evaluation.central:
        what = f"no party has a model and rows of its own: {method.kind}, central={evaluation.central}"
        raise StudyError(what, remedy="Use ditto, fedper, fedrep or ifca, and leave evaluation.central out")
    if metric not in task.metric_names:
        raise StudyError(f"the task has no metric {metric!r}", remedy=did_you_mean(metric, task.metric_names))
    if run.setup is None or run.progress is None:
        raise RunError("the run has no model yet")
    scoring = {"evaluation": evaluation.model_copy(update={"own": True})}
    course = run.federation.model_copy(update=scoring).course(run.setup)
    ask = course.ask(replace(run.progress, phase="evaluate"))
    assert ask is not None
    memories = {name: run.memories.get(name, Values()).under("train") for name in sorted(parties)}
    ats = [Party(name, parties[name], course).at(ask, memory) for name, memory in memories.items()]
    held_out = [at.held_out() for at in ats]

    def scored(model: Array, x: Array, y: Array) -> float:
        tallies = task.tally(course.learner.predict(model, x), y)
        return task.metrics(tallies)[metric] if len(y) else math.nan

    models = [run.parameters, *(method.personal(at) for at in ats)]
    grid = np.array([[scored(model, x, y) for x, y in held_out] for model in models])
    return Crossed(tuple(sorted(parties)), grid[0], grid[1:])


def _alone(federation: Federation, name: str, table: Table, held_out: Sequence[Table]) -> Scored:
    """The best model, over the rates, that one table gives."""
    method, split = federation.method, federation.evaluation.split
    rows = table.drop(split) if split else table
    by_itself = {"cohort": All(minimum=1), "evaluation": Evaluate(every=0, holdout=0.0)}
    plain = bare(federation).model_copy(update={**by_itself, "aggregation": Aggregation(), "stop": None})
    tried = []
    for rate in (None,) if method.exact else RATES:  # an exact method has no rate to choose
        if not method.exact:
            method = FedAvg(local=getattr(federation.method, "local", FedAvg().local).model_copy(update={"lr": rate}))
        try:
            metrics = plain.model_copy(update={"method": method}).run(Local({name: rows})).model.score(*held_out)
        except RunError:  # too little to estimate
            if not method.exact:
                raise
            metrics = dict.fromkeys(federation.task.metric_names, math.nan)
        tried.append(Scored(name, table.rows, metrics, rate))
    # Only where there is one rate, none, may there be no loss either.
    return min(tried, key=lambda scored: scored.metrics.get("loss", math.nan))
