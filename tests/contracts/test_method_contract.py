"""What every method keeps: training methods, and with them preprocessing and evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import tensors
from hansa.aggregation import clip
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Algebra, Arrival, Ask, Field, Values, canonical, check
from hansa.learners import Learner
from hansa.learners.base import Engine
from hansa.learners.glm import Logistic
from hansa.methods import GradientMethod, Setup, UpdateMethod
from hansa.methods.base import METHODS
from hansa.methods.course import Course, Progress
from hansa.party import Crowd, Party
from hansa.run import draw

Tables = Mapping[str, hs.Table]
TASK = hs.LogisticRegression(target="y", l2=0.01)
ROUNDS = 4


@dataclass(frozen=True)
class Moment:
    """One exchange of a run, with what everybody knew before it."""

    progress: Progress
    ask: Ask
    memories: Mapping[str, Values]
    arrival: Arrival
    after: Progress


def whole(method: UpdateMethod, **options: Any) -> hs.Federation:
    return hs.Federation(**{"task": TASK, "method": method, "rounds": ROUNDS, **options})


def course_of(federation: hs.Federation, tables: Tables) -> Course:
    return federation.course(federation.resolve({n: t.schema() for n, t in tables.items()}))


def journey(federation: hs.Federation, tables: Tables) -> Iterator[Moment]:
    """Every exchange of a run."""
    course = course_of(federation, tables)
    exchange, progress = LocalExchange(course, Crowd(tables, course)), course.begin()
    while (ask := course.ask(progress)) is not None:
        ask = draw(federation, course, ask)
        ask = ask if ask.parties else replace(ask, parties=tuple(course.setup.parties))  # buffered
        memories = dict(exchange.memories)
        [arrival] = exchange.exchange([ask])
        after = course.apply(progress, ask, arrival.total)
        yield Moment(progress, ask, memories, arrival, after)
        progress = after


def same(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(
        (one[n].dtype, one[n].shape, one[n].tobytes()) == (other[n].dtype, other[n].shape, other[n].tobytes())
        for n in one
    )


def test_every_ask_says_the_same_on_the_other_side_of_a_wire(method: UpdateMethod, tables: Tables) -> None:
    asks = [moment.ask for moment in journey(whole(method), tables)]
    assert {ask.work for ask in asks} == {"moments", "train", "evaluate"}
    assert len(set(asks)) == len(asks) == len({ask.digest for ask in asks})
    for ask in asks:
        header = json.loads(canonical(ask.header()))
        received = Ask.from_header(header, Values(tensors.read(tensors.write(ask.send))))
        assert received == ask
        assert received.fields == ask.fields
        assert hash(received) == hash(ask)


def test_a_party_permits_what_the_course_asks_and_nothing_else(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method, evaluation=hs.Evaluate(every=2), aggregation=clip(1.0))
    course = course_of(federation, tables)
    for moment in journey(federation, tables):
        ask = moment.ask
        assert course.permits(ask)
        others = [
            replace(ask, fields=(*ask.fields, Field("rows", shape=(9,), algebra=Algebra.GATHER))),
            replace(ask, fields=ask.fields[1:]),
            replace(ask, fields=(replace(ask.fields[0], algebra=Algebra.GATHER), *ask.fields[1:])),
            replace(ask, through="update" if ask.through == "plain" else "plain"),
            replace(ask, round=ROUNDS + 1),
            replace(ask, round=-1),
            replace(ask, work="peek"),
        ]
        if ask.work == "evaluate":
            others.append(replace(ask, round=1))  # every second round only
        assert not any(course.permits(other) for other in others)


def test_the_same_state_asks_the_same(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method)
    course = course_of(federation, tables)
    for moment in journey(federation, tables):
        again = course.ask(moment.progress)
        assert again is not None
        assert replace(again, parties=moment.ask.parties) == moment.ask


def test_asks_declare_distinct_bound_fields_and_keep_the_servers_slots_at_home(
    method: UpdateMethod, tables: Tables
) -> None:
    for moment in journey(whole(method), tables):
        names = [field.name for field in moment.ask.fields]
        assert len(set(names)) == len(names)
        assert all(field.shape is not None for field in moment.ask.fields)
        assert not any(name.startswith("server.") for name in moment.ask.send)


def test_work_sends_exactly_what_was_declared_and_nothing_depends_on_when(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method)
    course = course_of(federation, tables)
    for moment in journey(federation, tables):
        for name, table in tables.items():
            memory = moment.memories.get(name, Values())
            one, two = (Party(name, table, course).answer(moment.ask, memory) for _ in range(2))
            check(one.contribution, course.signals(moment.ask)[-1].fields)
            assert same(one.contribution.values, two.contribution.values)
            assert one.contribution.weight == two.contribution.weight
            assert same(one.memory, two.memory)


def test_weights_are_examples_or_equal_as_the_method_says(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method, evaluation=hs.Evaluate(holdout=0))
    for moment in journey(federation, tables):
        if moment.ask.work == "train":
            rows = sum(table.rows for table in tables.values())
            expected = rows if method.weights == "examples" else len(tables)
            assert moment.arrival.total.weight == expected


def test_its_state_survives_a_checkpoint_bit_for_bit(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method)
    course = course_of(federation, tables)
    for moment in journey(federation, tables):
        restored, memories = Progress.unpack(moment.progress.pack(moment.memories))
        assert restored.phase == moment.progress.phase
        assert restored.metrics == moment.progress.metrics
        assert restored.states.keys() == moment.progress.states.keys()
        for name, state in moment.progress.states.items():
            assert same(restored.states[name].values, state.values)
            assert restored.states[name].round == state.round
        assert memories.keys() == moment.memories.keys()
        assert all(same(memories[party], moment.memories[party]) for party in memories)
        after = course.apply(restored, moment.ask, moment.arrival.total)
        assert after.pack() == moment.after.pack()


def test_applying_leaves_the_state_before_as_it_was(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method)
    course = course_of(federation, tables)
    for moment in journey(federation, tables):
        before = moment.progress.pack()
        course.apply(moment.progress, moment.ask, moment.arrival.total)
        assert moment.progress.pack() == before


def test_a_seed_fixes_every_bit(method: UpdateMethod, tables: Tables) -> None:
    ends = []
    for seed in (3, 3, 4):
        *_, last = journey(whole(method, seed=seed), tables)
        ends.append(last.after.pack(last.memories))
    assert ends[0] == ends[1]
    assert ends[0] != ends[2]


def test_the_order_in_which_parties_are_named_is_nothing(method: UpdateMethod, tables: Tables) -> None:
    backwards = dict(reversed(list(tables.items())))
    one, other = (whole(method).run(hs.Local(parties)) for parties in (tables, backwards))
    assert one.progress is not None
    assert other.progress is not None
    assert one.progress.pack(one.memories) == other.progress.pack(other.memories)


def test_it_learns(method: UpdateMethod, tables: Tables) -> None:
    losses = [row["loss"] for row in whole(method).run(hs.Local(tables)).metrics()]
    assert losses[-1] < losses[0] < 0.7


def test_a_stack_of_parties_is_each_party_by_itself(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method, cohort=hs.Fixed(size=2), rounds=6)
    one, other = (federation.run(hs.Local(tables, engine=e)) for e in ("stacked", "resident"))
    assert one.progress is not None
    assert other.progress is not None
    pairs = [(one.progress.states["train"].values, other.progress.states["train"].values)]
    assert one.memories.keys() == other.memories.keys()
    pairs += [(one.memories[party], other.memories[party]) for party in one.memories]
    for these, those in pairs:
        assert these.keys() == those.keys()
        for name, value in these.items():
            assert value.dtype == those[name].dtype
            np.testing.assert_allclose(value, those[name], rtol=1e-10, atol=1e-12, err_msg=name)


class Single(hs.LogisticRegression):
    """In single precision."""

    def learner(self, width: int) -> Learner:
        return Logistic(width, l2=self.l2, dtype="float32")


@pytest.mark.parametrize("engine", ["stacked", "resident"])
def test_a_model_in_single_precision_sends_single_precision(
    engine: Engine, method: UpdateMethod, tables: Tables
) -> None:
    single = Single(target="y", l2=0.01)
    one, other = (whole(method, task=task).run(hs.Local(tables, engine=engine)) for task in (single, TASK))
    assert not [event for event in one.events if event.kind == "refused"]
    assert {v.dtype for kept in one.memories.values() for v in kept.values()} <= {np.dtype(np.float32)}
    np.testing.assert_allclose(one.parameters, other.parameters, rtol=1e-3, atol=1e-4)


def test_what_a_party_would_use_itself_is_a_model(method: UpdateMethod, tables: Tables) -> None:
    federation = whole(method, evaluation=hs.Evaluate(own=True))
    rows = federation.run(hs.Local(tables)).metrics()
    assert all(("own.loss" in row) is method.personalises for row in rows)
    if method.personalises:
        assert rows[-1]["own.loss"] < rows[0]["own.loss"]


def test_it_is_the_same_part_after_its_own_description(method: UpdateMethod) -> None:
    again = METHODS.build(json.loads(canonical(METHODS.spec(method))))
    assert again == method
    assert type(again) is type(method)


def test_its_first_state_is_finite_float64(method: UpdateMethod) -> None:
    setup = Setup(("a", "b"), ("x", "z"), seed=5)
    learner = TASK.learner(2)
    one, other = method.init(setup, learner), method.init(setup, learner)
    assert same(one.values, other.values)
    assert one.round == 0
    for array in one.values.values():
        assert array.dtype == np.float64
        assert np.isfinite(array).all()


def pulling_apart() -> tuple[dict[str, hs.Table], np.ndarray[Any, Any]]:
    """Two quadratics of equal weight with other curvatures and other minima, and their optimum."""
    random = np.random.default_rng(2)
    parties, rows = {}, []
    for name, scales, truth in (("a", (2.0, 0.3), (3.0, -1.0)), ("b", (0.4, 1.5), (-2.0, 4.0))):
        x = random.normal(size=(20, 2)) * scales
        y = x @ np.array(truth)
        parties[name] = hs.Table.of({"u": x[:, 0], "v": x[:, 1], "y": y})
        rows.append(np.column_stack([x, np.ones(20), y]))
    pooled = np.concatenate(rows)
    return parties, np.linalg.lstsq(pooled[:, :3], pooled[:, 3])[0]


def test_scaffold_reaches_the_optimum_that_fedavg_drifts_away_from(scaffold: type[GradientMethod]) -> None:
    parties, optimum = pulling_apart()

    def distance(method: UpdateMethod) -> float:
        federation = hs.Federation(
            task=hs.LinearRegression(target="y"),
            method=method,
            rounds=400,
            preprocessing=hs.Moments(standardise=False),
            evaluation=hs.Evaluate(every=0, holdout=0),
        )
        found = federation.run(hs.Local(parties)).parameters
        return float(np.abs(found - optimum).max())

    local = hs.SGD(lr=0.1, epochs=5, batch_size="all")
    assert distance(scaffold(local=local)) < 1e-10
    assert distance(hs.FedAvg(local=local)) > 0.1


@pytest.mark.parametrize("key", ["epochs", "batch_size"])
def test_a_server_that_is_told_to_pass_over_rows_is_refused(key: str, method: UpdateMethod) -> None:
    with pytest.raises(hs.errors.StudyError, match=rf"method\.server\.{key}.*Say it in `local`"):
        METHODS.build({**METHODS.spec(method), "server": {"lr": 1.0, key: 2}})
