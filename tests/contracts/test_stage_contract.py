"""What every aggregation stage keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

import hansa as hs
from hansa import tensors
from hansa.aggregation import Aggregation, Reduction, Signal, Stage
from hansa.aggregation.stage import STAGES, Context
from hansa.contribution import Algebra, Array, Contributions, Field, Total, Values, canonical

SIZE = 6
PARTIES = ("harbour", "north", "river")
FIELDS = (
    Field("update", like="parameters", shape=(SIZE,)),
    Field("control", like="parameters", shape=(SIZE,), algebra=Algebra.SUM),
    Field("steps", shape=(), algebra=Algebra.SUM, low=0.0, high=1e6),
)
SIGNAL = Signal(FIELDS)
SINGLE = Signal((*(replace(field, dtype="float32") for field in FIELDS[:2]), FIELDS[2]))


def stack(scale: float = 1.0, seed: int = 1, parties: Sequence[str] = PARTIES) -> Contributions:
    random, size = np.random.default_rng(seed), (len(parties), SIZE)
    vectors = {name: scale * random.normal(size=size) for name in SIGNAL.vectors}
    steps = 4.0 + np.arange(len(parties))
    weights = np.linspace(7.0, 9.0, len(parties))
    return Contributions(tuple(parties), Values({**vectors, "steps": steps}), weights)


def context(stage: Stage, parties: Sequence[str] = PARTIES, signal: Signal = SIGNAL) -> Context:
    bound = stage.bind(signal)
    return Context(3, round=2, version=5, parties=tuple(parties), signal=signal, bound=bound)


def encode(
    stage: Stage, given: Contributions, memory: Values | None = None, signal: Signal = SIGNAL
) -> tuple[Contributions, Values]:
    at = context(stage, given.parties, signal)
    return stage.encode(given, stage.announce(Values()), memory or Values(), at)


def opened(stage: Stage, sent: Contributions, signal: Signal = SIGNAL) -> Contributions:
    return stage.open(sent, stage.announce(Values()), context(stage, sent.parties, signal))


def in_single(given: Contributions) -> Contributions:
    small = {name: given.values[name].astype(np.float32) for name in SIGNAL.vectors}
    return given.holding({**given.values, **small})


def equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and np.array_equal(one[n], other[n]) for n in one
    )


def test_it_binds_to_the_same_signal_every_time(stage: Stage) -> None:
    assert stage.bind(SIGNAL) == stage.bind(SIGNAL)


@pytest.mark.parametrize("signal", [SIGNAL, SINGLE], ids=["float64", "float32"])
def test_what_travels_and_what_is_opened_is_what_it_bound_itself_to(stage: Stage, signal: Signal) -> None:
    bound = stage.bind(signal)
    for scale in (0.0, 1e-9, 1.0, 1e9):
        given = stack(scale) if signal is SIGNAL else in_single(stack(scale))
        sent, _ = encode(stage, given, signal=signal)
        assert not bound.faults(sent)
        assert (sent.parties, sent.weights.tolist()) == (given.parties, given.weights.tolist())
        back = opened(stage, sent, signal)
        assert not bound.faults(back, opened=True)
        assert (back.parties, back.weights.tolist()) == (given.parties, given.weights.tolist())
        if math.isfinite(bound.norm):
            squares = sum(np.square(back.values[n].astype(float)) for n in bound.vectors)
            slack = 1e-12 if signal is SIGNAL else 1e-6
            assert (np.sqrt(squares.sum(axis=-1)) <= bound.norm * (1 + slack)).all()


def test_a_stack_is_encoded_and_opened_as_every_party_by_itself(stage: Stage) -> None:
    given, memory = stack(3.0), Values()
    alone = [Values()] * len(PARTIES)
    for seed in range(3):
        given = stack(3.0, seed)
        sent, memory = encode(stage, given, memory)
        back = opened(stage, sent)
        for i, party in enumerate(PARTIES):
            mine, alone[i] = encode(stage, given.take([i]), alone[i])
            assert mine.parties == (party,)
            assert equal(mine.values, sent.take([i]).values)
            assert equal(opened(stage, mine).values, back.take([i]).values)
            assert equal(alone[i], {name: value[[i]] for name, value in memory.items()})


def test_who_else_is_in_the_stack_and_in_which_order_is_nothing(stage: Stage) -> None:
    given = stack(3.0)
    sent, _ = encode(stage, given)
    other, _ = encode(stage, given.take([2, 0]))
    assert equal(other.values, sent.take([2, 0]).values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300], ids=str)
def test_a_party_whose_training_diverged_moves_nobody_else(stage: Stage, bad: float) -> None:
    """It is in the stack until the stack is opened, and the others must not notice."""
    given, (first, _, last) = stack(3.0), PARTIES
    spoiled = {name: value.copy() for name, value in given.values.items()}
    for name in SIGNAL.vectors:
        spoiled[name][1, ::2] = bad
    with np.errstate(over="ignore", invalid="ignore"):  # as where parties work
        sent, memory = encode(stage, given.holding(spoiled))
    alone, kept = encode(stage, given.take([0, 2]))
    assert alone.parties == (first, last)
    assert equal(alone.values, sent.take([0, 2]).values)
    assert equal(kept, {name: value[[0, 2]] for name, value in memory.items()})
    bound, chain = stage.bind(SIGNAL), Aggregation(stages=(stage,))
    assert set(bound.faults(sent)) <= {1}
    if bound.travel is not None and not bound.faults(sent):
        at = context(stage)
        back = chain.open(sent, Values(), (SIGNAL, bound), at)
        assert set(bound.faults(back, opened=True)) <= {1}


def test_fields_that_are_not_like_parameters_go_through(stage: Stage) -> None:
    sent, _ = encode(stage, stack(100.0))
    assert sent.values.steps.tolist() == [4.0, 5.0, 6.0]
    assert opened(stage, sent).values.steps.tolist() == [4.0, 5.0, 6.0]


def test_encoding_and_opening_are_pure_functions(stage: Stage) -> None:
    given = stack(3.0)
    first, memory = encode(stage, given)
    second, again = encode(stage, given)
    assert equal(first.values, second.values)
    assert equal(memory, again)
    assert equal(given.values, stack(3.0).values)
    assert equal(opened(stage, first).values, opened(stage, first).values)
    assert equal(first.values, second.values)
    encode(stage, stack(2.0, seed=8), memory)
    assert equal(memory, again)


def test_what_it_announces_and_remembers_and_sends_can_be_sent_and_kept(stage: Stage) -> None:
    sent, memory = encode(stage, stack(3.0))
    for values in (stage.announce(Values()), memory, sent.one(1).values):
        assert equal(tensors.read(tensors.write(values)), values)


def test_decoding_gives_back_the_declared_fields_and_who_was_counted(stage: Stage) -> None:
    bound = stage.bind(SIGNAL)
    asked = ("castle", *PARTIES)  # who says nothing; three are as few as robust reducers need
    reduction = Reduction(bound.fields, asked)
    back = opened(stage, encode(stage, stack())[0])
    for i in range(3):
        reduction.add(PARTIES[i], back.one(i))
    total = reduction.total(4)
    decoded, state = stage.decode(total, Values(), context(stage, ()))
    assert set(decoded.values) == {field.name for field in FIELDS}
    assert (decoded.parties, decoded.population) == (PARTIES, 4)
    assert decoded.weight == 24.0
    assert decoded.values.steps == 15.0
    for name in SIGNAL.vectors:
        assert decoded.values[name].shape == (SIZE,)
        assert decoded.values[name].dtype == np.float64
    assert stage.announce(state).keys() == stage.announce(Values()).keys()
    assert equal(tensors.read(tensors.write(state)), state)


def test_it_is_the_same_part_after_its_own_description(stage: Stage) -> None:
    if type(stage) is not Stage:  # which has no name: it does nothing
        again = STAGES.build(json.loads(canonical(STAGES.spec(stage))))
        assert again == stage


def test_a_whole_run_goes_through_it(stage: Stage, tables: Mapping[str, hs.Table]) -> None:
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"), rounds=3, aggregation=Aggregation(stages=(stage,))
    )
    run = federation.run(hs.Local(tables))
    assert np.isfinite(run.parameters).all()
    assert not any(event.kind == "refused" for event in run.events)


def test_error_feedback_loses_nothing_over_time(top_entries: type[Stage]) -> None:
    stage, memory = top_entries(), Values()
    given, sent = np.zeros((len(PARTIES), SIZE)), np.zeros((len(PARTIES), SIZE))
    for seed in range(9):
        whole = stack(1.0, seed)
        encoded, memory = encode(stage, whole, memory)
        assert (np.count_nonzero(encoded.values.update, axis=-1) == 2).all()
        given, sent = given + whole.values.update, sent + encoded.values.update
    np.testing.assert_allclose(sent + memory.update, given, rtol=1e-12)


class Marked(Stage):
    """Writes down in which order it is passed."""

    mark: float

    def encode(
        self, stack: Contributions, announced: Values, memory: Values, context: Context
    ) -> tuple[Contributions, Values]:
        values = {n: 10 * v + self.mark for n, v in stack.values.items()}
        seen = memory.get("seen", np.zeros(len(stack.parties))) + self.mark + announced.mark
        return stack.holding(values), Values({"seen": seen})

    def announce(self, state: Values) -> Values:
        return Values({"mark": np.asarray(100 * self.mark)})

    def open(self, stack: Contributions, announced: Values, context: Context) -> Contributions:
        return stack.holding({n: v * announced.mark for n, v in stack.values.items()})

    def decode(self, total: Total, state: Values, context: Context) -> tuple[Total, Values]:
        values = {n: (v - self.mark) / 10 for n, v in total.values.items()}
        return replace(total, values=Values(values)), Values({"seen": state.get("seen", np.asarray(0.0)) + self.mark})


class Halved(Stage):
    """A codec of no use: it sends halves, and says so of what travels."""

    field: str

    def bind(self, signal: Signal) -> Signal:
        packed = Field(self.field, like="parameters", shape=(1,))
        return replace(signal, travel=(packed,))

    def encode(
        self, stack: Contributions, announced: Values, memory: Values, context: Context
    ) -> tuple[Contributions, Values]:
        [before], [after] = context.signal.wire, context.bound.wire
        return stack.holding({after.name: stack.values[before.name] / 2}), memory

    def open(self, stack: Contributions, announced: Values, context: Context) -> Contributions:
        [before], [after] = context.signal.wire, context.bound.wire
        return stack.holding({before.name: stack.values[after.name] * 2})


ONE = Signal((Field("update", like="parameters", shape=(1,)),))


def test_a_chain_goes_forward_at_the_party_and_back_at_the_coordinator() -> None:
    chain = Aggregation(stages=(Marked(mark=1.0),)) >> Aggregation(stages=(Marked(mark=2.0),))
    signals = chain.bind(ONE)
    assert len(signals) == 3
    announced = chain.announce(Values())
    assert {name: float(v) for name, v in announced.items()} == {"0.mark": 100, "1.mark": 200}
    given = Contributions(("north",), Values({"update": np.array([[5.0]])}), np.ones(1))
    at = Context(0, 1, 1, ("north",), ONE, ONE)
    memory = Values({"0.seen": np.array([7.0])})
    encoded, memory = chain.encode(given, announced, memory, signals, at)
    assert encoded.values.update == 512.0
    assert {name: float(v[0]) for name, v in memory.items()} == {"0.seen": 108, "1.seen": 202}
    assert chain.open(encoded, announced, signals, at).values.update == 512.0 * 200 * 100
    total = Total(encoded.one(0).values, ("north",), 1, 1.0)
    decoded, state = chain.decode(total, Values(), signals, at)
    assert decoded.values.update == 5.0
    assert {name: float(v) for name, v in state.items()} == {"0.seen": 1, "1.seen": 2}


def test_each_codec_of_a_chain_is_opened_by_itself_the_last_first() -> None:
    chain = Aggregation(stages=(Halved(field="half"), Halved(field="quarter")))
    signals = chain.bind(ONE)
    assert [[f.name for f in signal.wire] for signal in signals] == [["update"], ["half"], ["quarter"]]
    assert all(signal.fields == ONE.fields for signal in signals)
    given = Contributions(("a", "b"), Values({"update": np.array([[8.0], [4.0]])}), np.ones(2))
    at = Context(0, 1, 1, ("a", "b"), ONE, ONE)
    sent, _ = chain.encode(given, Values(), Values(), signals, at)
    assert sent.values.quarter.tolist() == [[2.0], [1.0]]
    assert equal(chain.open(sent, Values(), signals, at).values, given.values)


def test_an_announced_norm_reaches_the_parties_and_moves_with_what_they_answer(tables: Mapping[str, hs.Table]) -> None:
    stage = STAGES.build({"kind": "adaptive-clip", "norm": 1e-3})
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"), rounds=4, aggregation=Aggregation(stages=(stage,))
    )
    run = federation.run(hs.Local(tables))
    assert run.progress is not None
    # Nobody is inside so small a norm: each round it grows by exp(0.2 x 0.5).
    norm = run.progress.states["stages"].values["0.norm"]
    np.testing.assert_allclose(norm, 1e-3 * np.exp(0.1 * 4), rtol=1e-12)


@pytest.mark.parametrize("kind", ["clipp", "cliq"])
def test_an_unknown_stage_is_answered_with_the_nearest_known_one(kind: str) -> None:
    with pytest.raises(hs.errors.StudyError, match=r"unknown aggregation stage.*mean 'clip'"):
        STAGES.build({"kind": kind, "norm": 1.0})
