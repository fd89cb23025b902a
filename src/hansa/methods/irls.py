"""Generalised linear models by iteratively reweighted least squares, with standard errors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import numpy as np

from hansa.contribution import Array, Ask, Contribution, Total, Values
from hansa.errors import RunError, StudyError
from hansa.learners.base import Learner
from hansa.learners.glm import Glm, Linear, Logistic, Poisson
from hansa.methods.base import Answer, Setup, State
from hansa.methods.newton import FARTHEST, Curve, Newton, complete, summed, unpenalised
from hansa.methods.work import At
from hansa.task import CodeTask, Task


@dataclass(frozen=True)
class Family:
    """An exponential family with its canonical link, row by row."""

    link: Callable[[Array], Array]  # the linear predictor of a mean
    variance: Callable[[Array], Array]  # of the mean, up to the dispersion
    # from labels to the means of the first round (McCullagh and Nelder 1989, section 2.5)
    begin: Callable[[Array], Array]
    deviance: Callable[[Array, Array, Array], Array]  # of labels, linear predictors and means


FAMILIES: Mapping[type[Learner], Family] = {
    Linear: Family(
        link=lambda mu: mu, variance=np.ones_like, begin=lambda y: y, deviance=lambda y, eta, mu: np.square(y - mu)
    ),
    Logistic: Family(
        link=lambda mu: np.log(mu / (1 - mu)),
        variance=lambda mu: mu * (1 - mu),
        begin=lambda y: (y + 0.5) / 2,
        deviance=lambda y, eta, mu: 2 * (np.logaddexp(0.0, eta) - y * eta),
    ),
    Poisson: Family(
        link=np.log,
        variance=lambda mu: mu,
        begin=lambda y: y + 0.1,
        deviance=lambda y, eta, mu: 2 * (y * (np.log(np.where(y > 0, y, 1.0)) - eta) - (y - mu)),
    ),
}


class IRLS(Newton):
    """Linear, logistic and Poisson regression as a statistics package fits them (Nelder and Wedderburn 1972).

    Each party sends sums over its rows: ``X' (y - mu)``, ``X' V X`` with V the variance at the mean, the deviance,
    Pearson's statistic and the number of rows. The sums of all are those of the pooled table, so estimates, standard
    errors and p-values are, too. In round 1 the means come from the labels alone, so a linear model is exact then."""

    kind: ClassVar[str] = "irls"

    def require(self, task: Task) -> None:
        """Refuse a task that is none of these models, or that has a penalty or is not in float64."""
        learner = None if isinstance(task, CodeTask) else task.learner(1)
        if type(learner) not in FAMILIES or learner is None:
            what = f"the method irls fits linear, logistic and Poisson regression, not {task.kind}"
            raise StudyError(what, remedy='Use method.kind = "fedavg", or "cox" for cox-regression')
        unpenalised(self.kind, learner)

    def init(self, setup: Setup, learner: Learner) -> State:
        state = super().init(setup, learner)
        known = {"estimated": isinstance(learner, Linear), "binary": isinstance(learner, Logistic)}
        return replace(state, facts={**state.facts, **known})

    def ask(self, state: State) -> Ask | None:
        if state.facts["converged"]:
            return None
        free = len(state.facts["free"])
        fields = [summed("gradient", free), summed("hessian", free, free), summed("deviance")]
        fields += [summed("pearson", low=0.0), summed("labels"), summed("rows", low=0.0)]
        return Ask("", 0, 0, Values({"parameters": state.values["parameters"]}), tuple(fields), through="update")

    def work(self, at: At) -> Answer:
        family, free = FAMILIES[type(at.learner)], self.free(at.setup)
        x, y = complete(at)
        design = np.column_stack([x, np.ones(len(y))])[:, free]
        if at.round == 1:
            mu = family.begin(y)
            eta = family.link(mu)
        else:
            eta = design @ at.received["parameters"][free]
            eta = eta if isinstance(at.learner, Linear) else eta.clip(-FARTHEST, FARTHEST)
            mu = cast(Glm, at.learner).mean(eta)
        weights = family.variance(mu)
        # The response that is worked on: the score, or in round 1 what leads from 0 to the first estimate.
        response = weights * eta if at.round == 1 else y - mu
        pearson = np.square(y - mu) / np.where(weights > 0, weights, 1.0)
        sums = {"gradient": design.T @ response, "hessian": (design.T * weights) @ design, "pearson": pearson.sum()}
        sums |= {"deviance": family.deviance(y, eta, mu).sum(), "labels": y.sum(), "rows": float(len(y))}
        return Answer(Contribution(Values({k: np.asarray(v) for k, v in sums.items()})))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """A Newton step; a RunError if there are no more rows than coefficients, or if no label varies."""
        sums, free = total.values, len(state.facts["free"])
        rows = float(sums["rows"])
        degrees = rows - free
        if degrees <= 0:
            remedy = "Name fewer features, or invite more parties"
            raise RunError(f"{rows:.0f} complete rows are too few for {free} coefficients", remedy=remedy)
        first, estimated = state.round == 0, state.facts["estimated"]
        extremes = (0.0, rows) if state.facts["binary"] else (0.0,)
        if float(sums["labels"]) in extremes and not estimated:
            raise RunError("the target is the same in every row", remedy="Correct task.target, or its labels")
        pearson, known = float(sums["pearson"]), degrees if estimated else None
        hessian, deviance = sums["hessian"], None if first else float(sums["deviance"])
        dispersion = pearson / degrees if estimated and not first else 1.0
        facts = {"rows": int(rows), "degrees": known, "pearson": pearson}
        curve = Curve(sums["gradient"], hessian, np.diagonal(hessian), deviance, dispersion, facts)
        return self.newton(state, total, curve)
