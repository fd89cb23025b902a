"""Estimates by Newton's method: how a run ends, what it refuses, and what an agent lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.agent.policy import Offer, admit
from hansa.aggregation import clip
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Ask, Total, Values
from hansa.errors import ConsentError, PipelineError, RunError, StudyError
from hansa.federation import Federation
from hansa.methods import IRLS, Cox, Setup, State
from hansa.methods.newton import INTERCEPT, Curve
from hansa.party import Crowd, Party
from hansa.run import Run, draw

ROWS = 120
RANDOM = np.random.default_rng(4)
A, B = RANDOM.normal(size=(2, ROWS))
Y = (RANDOM.random(ROWS) < 1 / (1 + np.exp(-A))).astype(float)
RARE = (np.arange(ROWS) % 20 == 0).astype(float)
TIMES = np.ceil(RANDOM.exponential(np.exp(-A)) * 10)
SEEN = (RANDOM.random(ROWS) < 0.7).astype(float)
LOGISTIC = hs.LogisticRegression(target="y")
COX = hs.CoxRegression(target="t", event="e")
Tables = dict[str, hs.Table]


def dealt(**columns: Any) -> Tables:
    return {f"party-{i}": hs.Table.of({n: list(c[i::3]) for n, c in columns.items()}) for i in range(3)}


def study(task: hs.Task, method: hs.methods.Method, **parts: Any) -> Federation:
    return Federation(**{"task": task, "method": method, "evaluation": hs.Evaluate(holdout=0), **parts})


def run(task: hs.Task, tables: Tables, **parts: Any) -> Run:
    method = Cox() if task.kind == "cox-regression" else IRLS()
    return study(task, method, **parts).run(hs.Local(tables))


WHOLE = {
    "irls": (study(LOGISTIC, IRLS()), dealt(a=A, b=B, y=Y)),
    "cox": (study(COX, Cox()), dealt(a=A, b=B, t=TIMES, e=SEEN)),
    "cox on a grid": (study(COX, Cox(ties="breslow", grid=5.0)), dealt(a=A, b=B, t=TIMES, e=SEEN)),
}


@pytest.fixture(params=WHOLE)
def whole(request: pytest.FixtureRequest) -> tuple[Federation, Tables]:
    return WHOLE[request.param]


# --- how it ends


def test_a_run_ends_by_itself_long_before_its_last_round(whole: tuple[Federation, Tables]) -> None:
    ended = whole[0].run(hs.Local(whole[1]))
    assert ended.progress is not None
    assert 2 <= ended.progress.round <= 8
    assert ended.reason == f"the estimates stand after {ended.progress.round} rounds"
    assert ended.model.facts["inference"]["converged"]


def test_a_run_that_is_cut_short_says_that_it_has_not_converged() -> None:
    cut = run(LOGISTIC, dealt(a=A, b=B, y=Y), rounds=2)
    assert cut.reason == "all 2 rounds were run"
    assert not cut.model.facts["inference"]["converged"]
    assert len(cut.summary()) == 3


def test_a_linear_model_is_exact_after_one_round_and_the_second_finds_nothing_left() -> None:
    ended = run(hs.LinearRegression(target="y"), dealt(a=A, b=B, y=A - 2 * B + Y))
    assert ended.progress is not None
    assert ended.progress.round == 2


@pytest.mark.parametrize(("every", "scored"), [(1, [1, 2, 3, 4, 5, 6]), (4, [4, 6]), (9, [6])])
def test_the_last_round_is_scored_whichever_it_was(every: int, scored: list[int]) -> None:
    evaluation = hs.Evaluate(holdout=0.25, every=every)
    ended = run(LOGISTIC, dealt(a=A, b=B, y=Y), evaluation=evaluation)
    assert [row["round"] for row in ended.metrics()] == scored


def test_the_model_file_keeps_the_table(tmp_path: Any, whole: tuple[Federation, Tables]) -> None:
    ended = whole[0].run(hs.Local(whole[1]))
    ended.save(tmp_path)
    assert hs.Model.load(tmp_path / "model.safetensors").summary() == ended.summary()
    assert Run.load(tmp_path).summary() == ended.summary()


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(whole: tuple[Federation, Tables]) -> None:
    federation, tables = whole
    undisturbed = federation.run(hs.Local(tables))
    cut = study(federation.task, federation.method, rounds=2).run(hs.Local(tables))
    assert cut.progress is not None
    progress = replace(cut.progress, phase="train", reason="")
    again = replace(undisturbed, status="stopped", progress=progress)
    resumed = federation.run(hs.Local(tables, resume=again))
    assert resumed.parameters.tobytes() == undisturbed.parameters.tobytes()
    assert resumed.summary() == undisturbed.summary()


def test_a_method_without_standard_errors_says_so() -> None:
    trained = study(LOGISTIC, hs.FedSGD(), rounds=1).run(hs.Local(dealt(a=A, b=B, y=Y)))
    with pytest.raises(RunError, match="no standard errors"):
        trained.summary()


# --- steps


def begun() -> State:
    return IRLS().init(Setup(("x", "y"), ("a",)), LOGISTIC.learner(1))


def curve(deviance: float, gradient: float = 1.0) -> Curve:
    return Curve(np.full(2, gradient), np.eye(2), np.ones(2), deviance, 1.0, {})


def total(*parties: str) -> Total:
    return Total(Values(), parties, 2, 2.0)


def test_a_step_after_which_the_deviance_rises_is_halved() -> None:
    method, both = IRLS(), total("x", "y")
    first = method.newton(begun(), both, curve(10.0))
    assert first.values["parameters"].tolist() == [1.0, 1.0]
    back = method.newton(first, both, curve(11.0))
    assert back.values["parameters"].tolist() == [0.5, 0.5]
    again = method.newton(back, both, curve(10.5))
    assert again.values["parameters"].tolist() == [0.25, 0.25]
    assert method.newton(again, both, curve(9.0)).values["parameters"].tolist() == [1.25, 1.25]


def test_a_deviance_of_other_parties_is_not_compared() -> None:
    method = IRLS()
    first = method.newton(begun(), total("x", "y"), curve(10.0))
    assert method.newton(first, total("x"), curve(11.0)).values["parameters"].tolist() == [2.0, 2.0]


def test_counts_in_the_thousands_converge_from_nothing() -> None:
    y = RANDOM.poisson(np.exp(8 + A)).astype(float)
    ended = run(hs.PoissonRegression(target="y"), dealt(a=A, b=B, y=y))
    assert ended.summary()[0].coefficient == pytest.approx(8, abs=0.01)
    assert ended.model.facts["inference"]["converged"]


# --- what cannot be estimated


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"c": 2 * A - 3 * B + 1}, "these columns depend on each other.*: a, b and c"),
        ({"c": np.full(ROWS, 7.0)}, "the column c says nothing: it is constant"),
    ],
)
@pytest.mark.parametrize("task", [LOGISTIC, COX], ids=lambda task: task.kind)
def test_columns_that_depend_on_each_other_are_named(task: hs.Task, columns: dict[str, Any], says: str) -> None:
    tables = dealt(a=A, b=B, y=Y, t=TIMES, e=SEEN, **columns)
    task = task.model_copy(update={"features": ("a", "b", "c")})
    with pytest.raises(RunError, match=says) as caught:
        run(task, tables)
    assert "Leave one of them out" in caught.value.remedy


def test_a_constant_column_that_is_not_scaled_depends_on_the_intercept() -> None:
    with pytest.raises(RunError, match=rf"c and {INTERCEPT[:-1]}".replace("(", r"\(")):
        run(LOGISTIC, dealt(a=A, c=np.full(ROWS, 7.0), y=Y), preprocessing=hs.Moments(standardise=False))


@pytest.mark.parametrize(
    ("task", "columns", "named"),
    [
        (LOGISTIC, {"a": A, "y": (A > 0.2).astype(float)}, "for a:"),
        (LOGISTIC, {"a": A, "rare": RARE, "y": np.where(RARE == 1, 0, Y)}, "for rare:"),
        (hs.PoissonRegression(target="y"), {"a": A, "rare": RARE, "y": np.where(RARE == 1, 0.0, 1.0 + Y)}, "for rare:"),
        (COX, {"a": A, "rare": RARE, "t": TIMES, "e": np.where(RARE == 1, 0, SEEN)}, "for rare:"),
        (COX, {"a": A, "t": np.exp(-A), "e": np.ones(ROWS)}, "for a:"),
    ],
    ids=["complete", "quasi-complete", "no counts", "no events", "in order"],
)
def test_a_coefficient_without_a_finite_estimate_is_named(task: hs.Task, columns: dict[str, Any], named: str) -> None:
    with pytest.raises(RunError, match=f"there is no finite estimate {named}") as caught:
        run(task, dealt(**columns))
    assert "merge rare categories" in caught.value.remedy


def test_a_rare_outcome_is_no_separation() -> None:
    random = np.random.default_rng(1)
    a = random.normal(size=60_000)
    y = (random.random(60_000) < 1 / (1 + np.exp(8 - a))).astype(float)
    assert 20 < y.sum() < 80
    row = run(LOGISTIC, dealt(a=a, y=y)).summary()[1]
    assert abs(row.coefficient - 1) < 3 * row.error < 1


@pytest.mark.parametrize(
    ("task", "y"),
    [(LOGISTIC, np.zeros(ROWS)), (LOGISTIC, np.ones(ROWS)), (hs.PoissonRegression(target="y"), np.zeros(ROWS))],
)
def test_a_target_that_is_everywhere_the_same_is_said(task: hs.Task, y: Any) -> None:
    with pytest.raises(RunError, match="the target is the same in every row"):
        run(task, dealt(a=A, y=y))


def test_nobody_with_an_event_is_said() -> None:
    with pytest.raises(RunError, match=r"no party has seen an event.*task\.event"):
        run(COX, dealt(a=A, t=TIMES, e=np.zeros(ROWS)))


def test_too_few_rows_are_said() -> None:
    with pytest.raises(RunError, match="3 complete rows are too few for 3 coefficients"):
        run(LOGISTIC, dealt(a=A[:3], b=B[:3], y=[0.0, 1.0, 0.0]))


def test_a_party_whose_gaps_leave_few_rows_is_not_counted() -> None:
    tables = dealt(a=A, b=B, y=Y)
    gaps = np.full(40, np.nan)
    gaps[:4] = 1.0
    tables["party-1"] = hs.Table.of({**tables["party-1"].columns, "b": gaps})
    ended = run(LOGISTIC, tables, rounds=1)
    assert ended.model.facts["inference"]["parties"] == ["party-0", "party-2"]
    [reason] = {e.body["reason"] for e in ended.events if e.kind == "refused"}
    assert reason == "fewer than 5 of its rows have no gap"


def test_a_party_with_too_many_times_is_told_of_the_grid() -> None:
    federation = study(COX, Cox(limit=3))
    with pytest.raises(RunError, match="more than 3 distinct times"):
        federation.run(hs.Local(dealt(a=A, t=TIMES, e=SEEN)))
    coarse = study(COX, Cox(limit=3, grid=float(TIMES.max())))
    assert coarse.run(hs.Local(dealt(a=A, t=TIMES, e=SEEN))).status == "finished"


# --- what cannot go together


@pytest.mark.parametrize(
    ("parts", "error", "says"),
    [
        ({"aggregation": clip(1.0)}, PipelineError, "irls needs the exact sums.*stage"),
        ({"cohort": hs.Fixed(size=2)}, PipelineError, "irls needs the exact sums.*cohort"),
        ({"task": COX}, StudyError, 'not cox-regression.*"cox"'),
        ({"task": hs.SoftmaxRegression(target="y", classes=(0, 1))}, StudyError, "not softmax-regression"),
        ({"task": hs.LogisticRegression(target="y", l2=0.1)}, StudyError, r"penalised.*task\.l2"),
        ({"task": hs.LogisticRegression(target="y", precision="float32")}, StudyError, "all digits"),
        ({"method": Cox()}, StudyError, "cox fits cox-regression, not logistic-regression"),
        ({"method": hs.FedAvg(), "task": COX}, StudyError, 'no mean over rows.*"cox"'),
    ],
)
def test_what_cannot_go_together_is_refused_when_it_is_built(
    parts: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        Federation(**{"task": LOGISTIC, "method": IRLS(), **parts})


# --- at a party


def asks(federation: Federation, tables: Tables) -> Iterator[Ask]:
    """Every ask of a run."""
    setup = federation.resolve({name: table.schema() for name, table in tables.items()})
    course = federation.course(setup)
    progress = course.begin()
    while (ask := course.ask(progress)) is not None:
        ask = draw(federation, course, ask)
        yield ask
        [arrival] = LocalExchange(course, Crowd(tables, course)).exchange([ask])
        progress = course.apply(progress, ask, arrival.total)


def offered(federation: Federation, table: hs.Table) -> list[Offer]:
    return [Offer(federation.dataset, table, (federation.task.kind,))]


@pytest.mark.parametrize("every", [1, 3])
def test_an_agent_admits_every_ask_of_the_run_and_none_with_another_shape(
    whole: tuple[Federation, Tables], every: int
) -> None:
    federation, tables = whole
    federation = federation.model_copy(update={"evaluation": hs.Evaluate(every=every)})
    setup = federation.resolve({name: table.schema() for name, table in tables.items()})
    works = []
    for ask in asks(federation, tables):
        works.append(ask.work)
        assert admit(federation, ask, setup, offered(federation, tables["party-0"]), "party-0")
        if ask.work != "train":
            continue
        twisted = [
            replace(ask, version=ask.version + 1),
            replace(ask, through="plain"),
            replace(ask, fields=(replace(ask.fields[0], shape=(400,)), *ask.fields[1:])),
            replace(ask, send=Values({**ask.send, "more": np.zeros(3)})),
        ]
        for other in twisted:
            with pytest.raises(ConsentError, match="asks for other fields"):
                admit(federation, other, setup, offered(federation, tables["party-0"]), "party-0")
    assert works[-1] == "evaluate"


def test_a_partys_answer_is_what_was_declared_and_holds_no_row(whole: tuple[Federation, Tables]) -> None:
    federation, tables = whole
    setup = federation.resolve({name: table.schema() for name, table in tables.items()})
    course = federation.course(setup)
    for ask in asks(federation, tables):
        answer = Party("party-0", tables["party-0"], course).answer(ask, Values())
        assert not answer.memory
        for field in ask.fields:
            value = answer.contribution.values[field.name]
            assert value.shape == field.shape
            assert tables["party-0"].rows not in value.shape


def test_a_time_that_nobody_named_is_not_worked_on() -> None:
    federation, tables = WHOLE["cox"]
    setup = federation.resolve({name: table.schema() for name, table in tables.items()})
    course = federation.course(setup)
    ask = next(ask for ask in asks(federation, tables) if "times" in ask.send)
    party, times = Party("party-0", tables["party-0"], course), ask.send["times"]

    def told(times: Any) -> None:
        party.answer(replace(ask, send=Values({**ask.send, "times": times})), Values())

    with pytest.raises(hs.errors.ContributionError, match="a time that was not named before"):
        told(times + 0.5)
    for none in (times[::-1], np.repeat(times, 2), times[:0]):
        with pytest.raises(hs.errors.ContributionError, match="none that parties name"):
            told(none)
