"""What every method keeps, whichever engine trains its parties, on however many cores, in whichever company."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.contribution import Ask, Contribution, Values
from hansa.data.population import Population
from hansa.methods import UpdateMethod
from hansa.methods.course import Course
from hansa.party import Crowd, Outcome
from hansa.run import draw

PARTIES, COHORT, WIDTH = 70, 45, 3
PLAIN: Mapping[str, Any] = {
    "preprocessing": hs.Moments(standardise=False),
    "evaluation": hs.Evaluate(every=0, holdout=0),
}


@pytest.fixture(scope="module")
def ragged() -> Population:
    """One party of every size from 1 to 70 rows, in no order; the smallest have one class only."""
    random = np.random.default_rng(4)
    sizes = random.permutation(np.arange(1, PARTIES + 1))
    x = random.normal(size=(sizes.sum(), WIDTH)) + np.repeat(random.normal(size=PARTIES), sizes)[:, None]
    score = x @ np.array([1.0, -2.0, 0.5]) + random.normal(size=len(x))
    columns = {f"x{i}": column for i, column in enumerate(x.T)}
    return Population.of_sizes({**columns, "y": (score > 0).astype(float)}, sizes)


def whole(method: UpdateMethod, **options: Any) -> hs.Federation:
    task = hs.LogisticRegression(target="y", l2=0.01, precision=options.pop("precision", "float64"))
    parts = {"rounds": 3, "cohort": hs.Fixed(size=COHORT), **PLAIN, **options}
    return hs.Federation(task=task, method=method, **parts)


def ends(run: hs.Run) -> Iterator[tuple[str, Values]]:
    """Everything that a run has learnt, and everything that parties remember."""
    assert run.progress is not None
    yield "the state", run.progress.states["train"].values
    yield from sorted(run.memories.items())


def bits(run: hs.Run) -> bytes:
    assert run.progress is not None
    return run.progress.pack(run.memories)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_many_at_once_end_where_one_after_the_other_does(
    method: UpdateMethod, precision: str, tolerance: float, ragged: Population
) -> None:
    federation = whole(method, precision=precision)
    one, other = (federation.run(hs.Local(ragged, engine=e)) for e in ("stacked", "resident"))
    picked = [event.body["engine"] for run in (one, other) for event in run.events if event.kind == "engine"]
    assert picked == ["stacked", "resident"]
    assert one.memories.keys() == other.memories.keys()
    for (name, these), (_, those) in zip(ends(one), ends(other), strict=True):
        assert these.keys() == those.keys()
        for which, value in these.items():
            far = np.linalg.norm(value - those[which])
            assert far <= tolerance * np.linalg.norm(those[which]), (name, which)


def test_what_travels_is_of_the_learners_precision(method: UpdateMethod, ragged: Population) -> None:
    course, ask = first(whole(method, precision="float32"), ragged)
    [outcome] = answers(course, ragged, ask, [ask.parties[:5]])
    for field in course.signals(ask)[-1].fields:
        bounded = field.like != "parameters" or field.example < math.inf
        assert field.dtype == ("float64" if bounded else "float32")
        assert outcome.counted.values[field.name].dtype == field.dtype
        assert ask.send["parameters"].dtype == np.float32
    assert course.begin().parameters.dtype == np.float32


@pytest.mark.parametrize("engine", ["stacked", "resident"])
def test_the_number_of_workers_changes_no_bit(engine: Any, method: UpdateMethod, ragged: Population) -> None:
    cohort = hs.All() if engine == "stacked" else hs.Fixed(size=20)
    federation = whole(method, rounds=2, cohort=cohort)
    one, two, three = (bits(federation.run(hs.Local(ragged, engine=engine, workers=workers))) for workers in (1, 2, 3))
    assert one == two == three


def first(federation: hs.Federation, population: Population) -> tuple[Course, Ask]:
    """The first round's ask."""
    setup = federation.resolve({"": population.table.schema()}, population.names)
    course = federation.course(setup)
    ask = course.ask(course.begin())
    assert ask is not None
    return course, draw(federation, course, ask)


def answers(
    course: Course,
    population: Population,
    ask: Ask,
    stacks: Sequence[Sequence[str]],
    memory: Mapping[str, Values] | None = None,
) -> Iterator[Outcome]:
    """What comes of each stack of parties."""
    crowd = Crowd(population, course)
    crowd.prepare(ask)
    for names in stacks:
        yield crowd.stack(ask, names, memory or {})


def same(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].tobytes()) == (other[n].dtype, other[n].tobytes()) for n in one
    )


@pytest.fixture(scope="module")
def troubled() -> Population:
    """The third party has no row, and the rows of the fifth are beyond all measure."""
    random = np.random.default_rng(2)
    sizes = np.array([9, 20, 0, 8, 11, 30])
    x = random.normal(size=(sizes.sum(), WIDTH))
    y = (x @ np.array([1.0, -2.0, 0.5]) > 0).astype(float)
    x[37:48] *= 1e307
    columns = {f"x{i}": column for i, column in enumerate(x.T)}
    return Population.of_sizes({**columns, "y": y}, sizes)


def of(outcome: Outcome, name: str) -> tuple[Contribution, Values]:
    """What one party answered and wants to remember, wherever it stands in the stack."""
    place = outcome.counted.parties.index(name)
    return outcome.counted.one(place), outcome.memory.get(name, Values())


def alike(one: Outcome, other: Outcome, name: str) -> bool:
    (these, memory), (those, kept) = of(one, name), of(other, name)
    return same(these.values, those.values) and these.weight == those.weight and same(memory, kept)


def test_both_engines_leave_the_same_parties_out_for_the_same_reasons(
    method: UpdateMethod, troubled: Population
) -> None:
    federation = hs.Federation(
        task=hs.LinearRegression(target="y"),
        method=method,
        rounds=4,
        cohort=hs.All(minimum=1),  # which a buffer of two may need
        **PLAIN,
    )
    one, other = (federation.run(hs.Local(troubled, engine=e)) for e in ("stacked", "resident"))
    refused = [[event.body for event in run.events if event.kind == "refused"] for run in (one, other)]
    assert refused[0] == refused[1]
    clipped = getattr(method, "clip", None) is not None  # rows without a gradient then add nothing
    assert {body["party"] for body in refused[0]} == {"party-3"} | (set() if clipped else {"party-5"})
    assert bits(one) == bits(other)
    assert np.isfinite(one.parameters).all()


def test_a_partys_bits_do_not_depend_on_its_company(method: UpdateMethod, ragged: Population) -> None:
    course, ask = first(whole(method), ragged)
    random, names = np.random.default_rng(8), list(ask.parties)
    [together] = answers(course, ragged, ask, [names])
    assert sorted(together.counted.parties) == names
    again = replace(ask, round=2, version=1)
    # Half of them remember the round before, so that not all of them make one stack.
    memory = {name: kept for name, kept in together.memory.items() if names.index(name) % 2}
    [together] = answers(course, ragged, again, [names], memory)
    companies = [list(random.permutation(names)[: random.integers(1, 9)]) for _ in range(40)]
    companies += [[name] for name in names]
    for company, outcome in zip(companies, answers(course, ragged, again, companies, memory), strict=True):
        assert sorted(outcome.counted.parties) == sorted(company)
        assert all(alike(outcome, together, name) for name in company)


def test_a_party_by_itself_answers_as_in_the_stack(method: UpdateMethod, ragged: Population) -> None:
    """To the bit: what is deployed is what was simulated, whichever engine simulated it."""
    course, ask = first(whole(method), ragged)
    [together] = answers(course, ragged, ask, [ask.parties])
    crowd = Crowd(ragged, course)
    crowd.prepare(ask)
    for name in ask.parties:
        assert alike(crowd.one(ask, name, Values()), together, name)
    assert together.leaving == sum(crowd.one(ask, n, Values()).leaving for n in ask.parties)
