"""Estimates and their uncertainty by Newton's method on exact sums, as a statistics package computes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import VALUE_LIMIT, Array, Json, Total, Values
from hansa.data.contract import numbers, texts
from hansa.data.preprocessing import Encoding
from hansa.errors import ContributionError, RunError, StudyError
from hansa.learners.base import Learner
from hansa.methods.base import Method, Setup, State
from hansa.methods.work import At
from hansa.task import counted

FARTHEST = 500.0
"""A linear predictor is held within this of 0, so that a step too far is seen in the deviance and undone."""

FEWEST = 5
"""Complete rows of which a party that has as many rows sends sums; an agent with fewer rows sends none at all."""

ROUNDING = 1e-12  # a step so much smaller than the linear predictor is none

INTERCEPT = "(intercept)"
VANISHED = {False: 1e-3, True: 1e-8}
"""Share of a coefficient's first information (of the intercept's, for True) below which it is lost."""


@dataclass(frozen=True, eq=False)
class Curve:
    """A log likelihood at the parameters that were asked about, over the free coefficients."""

    gradient: Array  # ``[f]``
    hessian: Array  # of minus the log likelihood, ``[f, f]``
    spread: Array  # what its diagonal would be if nothing were explained by the other columns, ``[f]``
    # minus twice the log likelihood, up to a constant; None if the sums were not made at the parameters themselves
    deviance: float | None
    dispersion: float  # by which the inverse of the Hessian is multiplied
    facts: Mapping[str, Json]  # what else the model's reader should know


class Newton(Method):
    """Methods that add up what Newton's method needs: one step a round, until a step is nothing.

    Every party takes part in every round, on its training rows without a gap, and remembers nothing. A category column
    is measured against its first declared category. A step after which the deviance rises is halved.

    Args:
        tolerance: the run ends after a step of less than so many standard errors."""

    exact: ClassVar[bool] = True
    intercept: ClassVar[bool] = True  # whether the model has one; it lies behind the features

    tolerance: Annotated[float, Limits(gt=0, lt=1)] = 1e-8

    def free(self, setup: Setup) -> list[int]:
        """Positions of the free coefficients: all but the one of the first category of each column."""
        at = len(setup.numbers)
        free = list(range(at))
        for values in setup.categories.values():
            free += range(at + 1, at + len(values))
            at += len(values)
        return [*free, at] if self.intercept else free

    def init(self, setup: Setup, learner: Learner) -> State:
        free = self.free(setup)
        names = [(*setup.encoding.names, INTERCEPT)[i] for i in free]
        zeros = np.zeros(learner.layout.size)
        facts: dict[str, Json] = {"free": free, "names": names, "converged": False, "lost": 0}
        return State(0, Values({"parameters": zeros, "previous": zeros}), facts)

    def newton(self, state: State, total: Total, curve: Curve) -> State:
        """The state after a round: one step, or back half of the last one. Columns that depend on each other, and
        coefficients without a finite estimate, are a RunError that names them."""
        facts, here = state.facts, state.values["parameters"]
        before, parties = facts.get("deviance"), list(total.parties)
        if before is None or parties != facts["parties"]:
            before = np.inf  # among other parties it is another sum
        if not (curve.deviance or 0.0) <= before + 1e-9 * (abs(before) + 0.1):
            halved = Values({**state.values, "parameters": (here + state.values["previous"]) / 2})
            return State(state.round + 1, halved, facts)
        inverse = self._inverse(state, curve)
        step = inverse @ curve.gradient
        length = float(np.sqrt(np.maximum(step @ curve.gradient, 0.0)))
        small = self.tolerance * np.sqrt(curve.dispersion)
        # What rounding leaves of a step is no step either: of a perfect fit, nothing else is left.
        scale, theta = np.sqrt(curve.spread), here[facts["free"]]
        rounding = ROUNDING * np.linalg.norm(theta * scale)
        still = length < small or np.linalg.norm(step * scale) <= rounding
        converged = curve.deviance is not None and bool(still)
        first = state.values.get("first", np.diagonal(inverse))
        lost, there = self._lost(state, inverse, first, step), here.copy()
        there[facts["free"]] += step
        arrays = {"parameters": there, "previous": here, "step": step, "first": first}
        values = Values({**state.values, **arrays, "covariance": curve.dispersion * inverse})
        reason, more = f"the estimates stand after {state.round + 1} rounds", {"dispersion": curve.dispersion}
        known: dict[str, Json] = {"parties": parties, "deviance": curve.deviance, "converged": converged, "lost": lost}
        known |= {"reason": reason, "more": {**curve.facts, **more}}
        return State(state.round + 1, values, {**facts, **known})

    def facts(self, state: State, encoding: Encoding) -> dict[str, Json]:
        """``inference``: coefficients with their covariance in the units of the columns, and the fit."""
        if "covariance" not in state.values:
            return {}
        free, names = state.facts["free"], state.facts["names"]
        width = len(encoding.numbers)
        scale, mean = np.ones(encoding.width + 1), np.zeros(encoding.width + 1)
        scale[:width], mean[:width] = encoding.scale, encoding.mean
        # A standardised column is (x - mean) / scale: slopes are divided, the intercept takes up the rest.
        back, order = np.diag(1 / scale[free]), np.arange(len(free))
        if self.intercept:
            back[-1] -= mean[free] / scale[free]
            order = np.roll(order, 1)
        coefficients = (back @ state.values["parameters"][free])[order]
        covariance = (back @ state.values["covariance"] @ back.T)[np.ix_(order, order)]
        kept = {name: state.facts[name] for name in ("deviance", "converged", "parties")}
        found = {"names": [names[i] for i in order], "coefficients": coefficients.tolist(), "degrees": None}
        return {"inference": {**found, "covariance": covariance.tolist(), **kept, **state.facts["more"]}}

    def _inverse(self, state: State, curve: Curve) -> Array:
        """Of the Hessian, by the eigenvalues of what it is after its columns are brought to one scale."""
        scale = np.sqrt(np.where(curve.spread > 0, curve.spread, 1.0))
        scaled = curve.hessian / np.outer(scale, scale)
        if not np.isfinite(scaled).all():
            raise RunError("the sums of this round make no model", round=state.round + 1)
        values, vectors = np.linalg.eigh(scaled)
        poor = values < 1e-12
        if poor.any():
            part = np.abs(vectors[:, poor]).max(axis=1) > 1e-4
            names = [name for name, named in zip(state.facts["names"], part, strict=True) if named]
            # If they were independent before, it is the coefficients that grew.
            raise (_no_estimate if "first" in state.values else _dependent)(names, state.round + 1)
        return np.asarray((vectors / values) @ vectors.T / np.outer(scale, scale))

    def _lost(self, state: State, inverse: Array, first: Array, step: Array) -> int:
        """For how many rounds some coefficient has run away: it walks on in equal steps, and each takes more of
        the information that there was about it."""
        names, last = state.facts["names"], state.values.get("step", np.zeros_like(step))
        few = (first / np.diagonal(inverse)) < np.asarray([VANISHED[name == INTERCEPT] for name in names])
        running = few & (step * last > 0) & (np.abs(step) > 0.5 * np.abs(last))
        rounds = state.facts["lost"] + 1 if running.any() else 0
        if rounds == 3:
            raise _no_estimate([name for name, runs in zip(names, running, strict=True) if runs], state.round + 1)
        return rounds


def complete(at: At) -> tuple[Array, Array]:
    """Features ``[n, p]`` and labels ``[n]`` of the training rows in which no feature is missing; a
    ContributionError if gaps leave so few that sums over them would tell of single ones."""
    x, y = at.rows()
    whole = np.ones(len(y), dtype=bool)
    for name in at.setup.numbers:
        whole &= ~np.isnan(numbers(at.train_rows, name))
    for name, values in at.setup.categories.items():
        whole &= np.isin(texts(at.train_rows, name).astype(str), values)
    if whole.sum() < min(FEWEST, len(y)):
        raise ContributionError(f"fewer than {FEWEST} of its rows have no gap")
    return x[whole].astype(np.float64), y[whole]


summed = partial(counted, low=-VALUE_LIMIT, high=VALUE_LIMIT)  # a declared sum, of either sign unless said


def unpenalised(kind: str, learner: Learner) -> None:
    """Refuse (StudyError) a model whose estimates have no standard errors, or lose digits."""
    if getattr(learner, "l2", 0.0):
        remedy = 'Leave task.l2 out, or use method.kind = "fedavg"'
        raise StudyError(f"the method {kind} gives standard errors, and a penalised fit has none", remedy=remedy)
    if learner.dtype != "float64":
        raise StudyError(f"the method {kind} needs all digits", remedy='Say task.precision = "float64"')


def _dependent(names: list[str], round: int) -> RunError:
    said = f"these columns depend on each other, so their coefficients are not one: {_and(names)}"
    what = said if names[1:] else f"the column {names[0]} says nothing: it is constant"
    remedy = "Leave one of them out of `features`; a column far from 0 needs preprocessing.standardise"
    return RunError(what, round=round, remedy=remedy)


def _no_estimate(names: list[str], round: int) -> RunError:
    why = "the likelihood grows for ever with the coefficient, as where a column parts those with an event from others"
    remedy = 'Leave columns out, merge rare categories, or train with kind = "fedavg" and l2'
    return RunError(f"there is no finite estimate for {_and(names)}: {why}", round=round, remedy=remedy)


def _and(names: list[str]) -> str:
    if len(names) > 8:
        names = [*names[:7], f"{len(names) - 7} more"]
    return ", ".join(names[:-1]) + f" and {names[-1]}" if len(names) > 1 else names[0]
