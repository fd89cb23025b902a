"""Attacks that test what a guarantee claims: they may find less than it allows, never more.

- A lower bound on epsilon from one training run: Steinke, Nasr and Jagielski 2023, arXiv 2305.08846.
- Rows read off updates: Phong et al. 2018, doi 10.1109/TIFS.2017.2787987; Geiping et al. 2020, arXiv 2003.14053.
- Was a row learnt from? Watson et al. 2022, arXiv 2111.08440; Carlini et al. 2022, arXiv 2112.03570."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from hansa import keyed
from hansa.aggregation.clip import Clip
from hansa.aggregation.noise import Gaussian, Noise
from hansa.aggregation.ring import SecureSum, Shares
from hansa.aggregation.stage import Aggregation, Reducer
from hansa.backends.local import Local
from hansa.cohort import All
from hansa.contribution import Array
from hansa.data.contract import Contract
from hansa.data.population import Population
from hansa.data.table import Table
from hansa.errors import StudyError, UsageError
from hansa.federation import Federation
from hansa.learners.base import Layout, Learner
from hansa.learners.glm import Glm, Linear, Poisson
from hansa.learners.optimizer import SGD, Private
from hansa.methods.base import UpdateMethod
from hansa.methods.evaluate import Evaluate
from hansa.methods.moments import Moments
from hansa.methods.work import no_row
from hansa.party import Party
from hansa.privacy.claim import Adversary
from hansa.privacy.guarantee import Guarantee
from hansa.privacy.mechanisms import least
from hansa.run import Run

ROWS, VICTIMS, CANARIES = 2000, 10, 20
"""Rows that attacks look at, at most; rows that they try to read; canaries, at least."""
SHARES, FALSE = (1.0, 0.5, 0.2, 0.05), 0.001
"""Canaries that are guessed, fixed beforehand, which split the confidence; false alarms about membership."""

SIGHTS = ("unprotected", "coordinator", "public", "blind")


@dataclass(frozen=True, eq=False)
class Bare:
    """A federation that neither standardises nor evaluates, with one array column of features: those, encoded,
    ``[n, ...]``, the target as it is written, the number of each row's party, ascending, and what is held out."""

    federation: Federation
    x: Array
    target: Array
    owner: Array
    held_out: Sequence[Table]

    @classmethod
    def of(cls, federation: Federation, tables: Mapping[str, Table]) -> Bare:
        """The federation among parties with these tables; a StudyError if no gradients are sent."""
        method, task = federation.method, federation.task
        if not isinstance(method, UpdateMethod):
            what = f"the attacks read updates of a gradient, and the method {method.kind} sends none"
            raise StudyError(what, remedy="Audit a study that learns by gradients, as fedavg does")
        setup = federation.resolve({name: table.schema() for name, table in tables.items()})
        course = federation.course(setup)
        splits = [Party(name, tables[name], course).split for name in setup.parties]
        owner = np.repeat(np.arange(len(splits)), [train.rows for train, _ in splits])
        if not len(owner):
            raise no_row(setup.parties[0])
        drawn = keyed.generator(federation.seed, "audited").permutation(len(owner))
        names, encoding, kept = splits[0][0].names, setup.encoding, np.sort(drawn[:ROWS])
        rows = Table({n: np.concatenate([train.column(n) for train, _ in splits]) for n in names}).take(kept)
        if federation.preprocessing.standardise and setup.numbers:
            numbers = np.stack([rows.column(name) for name in setup.numbers])
            encoding = setup.scaled(np.nanmean(numbers, axis=1), np.nanstd(numbers, axis=1))
        one_array = task.model_copy(update={"features": (f"features of {task.target}",)})
        free = federation.privacy.model_copy(update={"epsilon": None})
        plain = {"preprocessing": Moments(standardise=False), "statistics": Aggregation(), "contract": Contract()}
        bare = {**plain, "task": one_array, "evaluation": Evaluate(every=0, holdout=0.0), "stop": None, "privacy": free}
        x = encoding.matrix(rows) if task.flat else encoding.features(rows)
        held_out, target = [test for _, test in splits if test.rows], rows.column(task.target)
        return cls(federation.model_copy(update=bare), x, target, owner[kept], held_out)

    def holding(self, x: Array, target: Array) -> Table:
        """A table of such rows."""
        return Table({self.federation.task.features[0]: x, self.federation.task.target: target})

    def parties(self, own: Array) -> dict[str, Table]:
        """Each party's rows of a mask, ``[n]``; or one row, if it has none of them."""
        parts = np.split(np.arange(len(own)), np.flatnonzero(np.diff(self.owner)) + 1)
        chosen = [rows[own[rows]] if own[rows].any() else rows[:1] for rows in parts]
        return {f"{i}": self.holding(self.x[r], self.target[r]) for i, r in enumerate(chosen)}


def unnoised(federation: Federation, bare: bool = False) -> Federation:
    """The same federation with as good as no noise: the same samples and clips; or ``bare`` of any protection."""
    none = {"noise_multiplier": 1e-9}
    kept = [stage for stage in federation.aggregation.stages if not (bare or isinstance(stage, Shares))]
    stages = tuple(stage.model_copy(update=none) if isinstance(stage, Noise) else stage for stage in kept)
    method, local = federation.method, getattr(federation.method, "local", None)
    if isinstance(local, Private):
        local = SGD(lr=local.lr) if bare else local.model_copy(update=none)
        method = method.model_copy(update={"local": local})
    privacy = federation.privacy.model_copy(update={"epsilon": None})
    changed = {"aggregation": Aggregation(stages=stages), "method": method, "privacy": privacy}
    return federation.model_copy(update=changed)


def ran(federation: Federation, tables: Mapping[str, Table]) -> tuple[Run, Learner, Array]:
    """A run among parties with these tables, its learner, and how far it moved the parameters, ``[d]``."""
    run = federation.run(Local(tables))
    assert run.setup is not None
    course = federation.course(run.setup)
    return run, course.learner, run.parameters - course.begin().parameters


def with_and_without(federation: Federation, tables: Mapping[str, Table]) -> tuple[Run, Run, float]:
    """The run, that without noise from the same seed, and the cosine of their first updates."""
    silent = {"evaluation": federation.evaluation.model_copy(update={"every": 0}), "stop": None}
    both = [f.model_copy(update=silent) for f in (federation, unnoised(federation))]
    noised, exact = (ran(f.model_copy(update={"rounds": 1}), tables)[2] for f in both)
    length = float(np.linalg.norm(noised) * np.linalg.norm(exact)) or math.inf
    return ran(both[0], tables)[0], ran(both[1], tables)[0], float(noised @ exact) / length


def inverted(layout: Layout, update: Array, width: int) -> Array:
    """The row that a dense layer saw, ``[width]``: a unit's weight gradient over its bias gradient. Exact for one row,
    however many steps were taken; of several, a weighted mean of them; zeros if nothing moved. Raises StudyError if no
    dense layer with a bias sees the features."""
    for (_, weight), (_, bias) in pairwise(layout.split(update).items()):
        if weight.shape[-1:] == (width,) and weight.shape[:-1] == bias.shape:
            unit = int(np.abs(bias).argmax())
            return np.asarray(weight.reshape(-1, width)[unit] / (bias.reshape(-1)[unit] or 1.0))
    what = "no dense layer with a bias sees the features, so that no row is read by division"
    raise StudyError(what, remedy="Use a linear model, or begin with a dense layer")


def psnr(found: Array, row: Array, span: Array | float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, at most 400; ``span`` is the range of each feature."""
    return 10 * math.log10(1 / max(float(np.mean(np.square((found - row) / span))), 1e-40))


def read_rows(bare: Bare, victims: int = VICTIMS) -> dict[str, float]:
    """How well a party's only row is read, in dB, the median over rows: off an unprotected update, off what the
    coordinator sees, off two models a round apart, and blindly: the mean of all rows. Errors as for `inverted`."""
    x, federation = bare.x.reshape(len(bare.owner), -1), bare.federation
    span, others = np.ptp(x, axis=0), bare.parties(np.ones(len(x), bool))
    span[span == 0] = 1.0
    method = federation.method.model_copy(update={"server": SGD(lr=1.0)})
    minimum, stages = federation.cohort.minimum, federation.aggregation.stages
    once = {"rounds": 1, "method": method, "cohort": All(minimum=minimum)}
    before = Aggregation(stages=tuple(s for s in stages if not isinstance(s, Gaussian | Reducer)))
    one = {"cohort": All(minimum=1), "adversary": Adversary(), "aggregation": before}
    found, random = [], keyed.generator(federation.seed, "victims")
    for number, i in enumerate(random.permutation(len(x))[:victims].tolist()):
        whole = federation.model_copy(update={**once, "seed": federation.seed + number})
        alone = whole.model_copy(update=one)
        single = {"victim": bare.holding(bare.x[[i]], bare.target[[i]])}
        hidden, public = any(isinstance(s, SecureSum) for s in stages), ran(whole, others | single)
        looks = ran(unnoised(alone, True), single), public if hidden else ran(alone, single), public
        rows = [inverted(learner.layout, moved, x.shape[1]) for _, learner, moved in looks]
        found.append([psnr(row, x[i], span) for row in (*rows, x.mean(axis=0))])
    return dict(zip(SIGHTS, np.median(found, axis=0).tolist(), strict=True))


def row_losses(learner: Learner, parameters: Array, x: Array, y: Array) -> Array:
    """What the model loses on each row, ``[n]``: each is a party of its own."""
    found, many = [], max(1, (1 << 22) // parameters.size)
    for few in np.split(np.arange(len(y)), range(many, len(y), many)):
        own = np.repeat(parameters[None].astype(learner.dtype), len(few), axis=0)
        features = x[few, None].astype(learner.takes(x.dtype), copy=False)
        found.append(np.asarray(learner.loss(own, features, y[few, None]), np.float64))
    return np.concatenate(found)


def membership(bare: Bare, models: int = 8) -> float:
    """True positives at `FALSE` false ones. Every model is attacked with the others as its shadows: ``models`` runs, 4
    or more, each with a seed, and so a noise, of its own; each row is in half of them."""
    federation, y = bare.federation, bare.federation.task.labels(bare.holding(bare.x, bare.target))
    drawn = keyed.generator(federation.seed, "members").random((models, len(y)))
    members = np.argsort(np.argsort(drawn, axis=0), axis=0) < models // 2
    sure, beyond = np.empty(drawn.shape), np.empty(drawn.shape)
    for k, own in enumerate(members):
        run, learner, _ = ran(federation.model_copy(update={"seed": federation.seed + 1 + k}), bare.parties(own))
        loss = np.maximum(row_losses(learner, run.parameters, bare.x, y), 1e-12)
        sure[k] = -loss - np.log(-np.expm1(-loss))  # the logit of exp(-loss)
    for k in range(models):  # as far as it is beyond what is usual of the row, halfway between in and out
        rest, inside = np.delete(sure, k, axis=0), np.delete(members, k, axis=0)
        sides = [(rest * side).sum(axis=0) / side.sum(axis=0) for side in (inside, ~inside)]
        beyond[k] = sure[k] - (sides[0] + sides[1]) / 2
    others = np.sort(beyond[~members])[::-1]
    return float((beyond[members] > others[int(FALSE * len(others))]).mean())


def p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """The chance, at most, of so many right guesses or more, if training is (epsilon, delta)-private. ``P[W >= v] + 2 m
    delta max_i P[v > W >= v - i] / i``: ``v`` right ones of ``r`` guesses about ``m`` canaries, and ``W`` binomial with
    ``r`` trials of chance ``e^epsilon / (1 + e^epsilon)`` (Steinke et al., theorem 5.2)."""
    from scipy.stats import binom

    right, i = 1 / (1 + math.exp(-epsilon)), np.arange(1, correct + 1)
    slack = 2 * canaries * delta * float((np.cumsum(binom.pmf(correct - i, guesses, right)) / i).max(initial=0.0))
    return min(1.0, float(binom.sf(correct - 1, guesses, right)) + slack)


class Bound(NamedTuple):
    """A lower bound on epsilon, and what proves it: right guesses, guesses, canaries."""

    epsilon: float
    correct: int
    guesses: int
    canaries: int


def least_epsilon(correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95) -> float:
    """The largest epsilon that so many right guesses refute with this confidence; 0 if none."""
    counts, missed = (correct, guesses, canaries), 1 - confidence
    if p_value(*counts, 0.0, delta) > missed:
        return 0.0
    return least(lambda e: p_value(*counts, e, delta) > missed, 0.0, 64.0, 1e-9) * (1 - 1e-9)


def lower_bound(scores: Array, included: Array, delta: float, confidence: float = 0.95) -> Bound:
    """The best bound from scores, higher for canaries that were in, ``[m]``, and the coins, ``[m]``."""
    order, found = np.argsort(scores, kind="stable"), []
    for share in SHARES:
        half = max(1, int(share * len(scores) / 2))
        correct = int((~included[order[:half]]).sum() + included[order[-half:]].sum())
        counts = correct, 2 * half, len(scores)
        found.append(Bound(least_epsilon(*counts, delta, 1 - (1 - confidence) / len(SHARES)), *counts))
    return max(found)


def one_run(bare: Bare, canaries: int = 1000, confidence: float = 0.95) -> tuple[Bound, Guarantee]:
    """One run with canaries, each a row of some party, or a party if those are protected; and its guarantee. Each has
    one more feature, its own: its gradient points where no other does. Raises UsageError for fewer canaries than a
    bound needs; StudyError if the model is not linear."""
    federation, x, target = bare.federation, bare.x, bare.target
    learner, parties = federation.task.learner(x[0].size), int(bare.owner[-1]) + 1
    if canaries < CANARIES:
        raise UsageError(f"{canaries} canaries prove nothing", remedy=f"Say {CANARIES} or more; 1000 are usual")
    if not isinstance(learner, Glm):
        what = "canaries are features that are added to a linear model, and this is none"
        raise StudyError(what, remedy="Audit a linear model under the same privacy")
    random, number = keyed.generator(federation.seed, "canaries"), np.arange(canaries)
    included, labels = random.random(canaries) < 0.5, random.choice(target, canaries)
    if isinstance(learner, Linear | Poisson):
        top = float(np.abs(target).max()) + 1
        labels = np.where(number % 2, top, -top * isinstance(learner, Linear))
    wide = np.zeros((len(x) + canaries, x.shape[1] + canaries))
    wide[: len(x), : x.shape[1]], wide[len(x) + number, x.shape[1] + number] = x, _reach(federation)
    homes = parties + number if federation.privacy.unit == "party" else number % parties
    order = np.argsort(owner := np.concatenate([bare.owner, homes]), kind="stable")
    order = order[np.concatenate([np.full(len(x), True), included])[order]]
    table = bare.holding(wide[order], np.concatenate([target, labels])[order])
    run, _, moved = ran(federation, Population.of_sizes(table, np.unique(owner[order], return_counts=True)[1]))
    y = federation.task.labels(bare.holding(wide[len(x) :], labels))
    own = moved[: -learner.outputs].reshape(learner.outputs, -1)[:, x.shape[1] :]
    scores = -(own * learner.residual(np.zeros(own.shape), y)).sum(axis=0)  # its gradient's way
    return lower_bound(scores, included, federation.privacy.delta, confidence), run.guarantee


def _reach(federation: Federation) -> float:
    """The value of a canary's own feature, with which its gradient, or its party's update, is clipped."""
    local = getattr(federation.method, "local", SGD(lr=1.0))
    if isinstance(local, Private):
        return 4 * local.clip
    clips = [stage.norm for stage in federation.aggregation.stages if isinstance(stage, Clip)]
    return 4 * min(clips, default=1.0) / (min(1.0, local.lr) if clips else 1.0)
