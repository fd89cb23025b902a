"""What every aggregation stage keeps."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import Aggregation, Reduction, Signal, Stage
from hansa.aggregation.stage import STAGES, Context
from hansa.contribution import Algebra, Array, Contribution, Field, Total, Values, canonical, check
from hansa.wire import tensors

SIZE = 6
FIELDS = (
    Field("update", like="parameters", shape=(SIZE,)),
    Field("control", like="parameters", shape=(SIZE,), algebra=Algebra.SUM),
    Field("steps", shape=(), algebra=Algebra.SUM, low=0.0, high=1e6),
)
SIGNAL = Signal(FIELDS)
CONTEXT = Context(seed=3, round=2, version=5, party="north", signal=SIGNAL)


def contribution(scale: float = 1.0, seed: int = 1) -> Contribution:
    random = np.random.default_rng(seed)
    vectors = {name: scale * random.normal(size=SIZE) for name in SIGNAL.vectors}
    return Contribution(Values({**vectors, "steps": np.asarray(4.0)}), weight=7.0)


def encode(
    stage: Stage, given: Contribution, memory: Values | None = None
) -> tuple[Contribution, Values]:
    return stage.encode(given, stage.announce(Values()), memory or Values(), CONTEXT)


def equal(one: Mapping[str, Array], other: Mapping[str, Array]) -> bool:
    return one.keys() == other.keys() and all((one[n] == other[n]).all() for n in one)


def test_it_binds_to_the_same_signal_every_time(stage: Stage) -> None:
    assert stage.bind(SIGNAL) == stage.bind(SIGNAL)


def test_what_it_encodes_is_what_it_bound_itself_to(stage: Stage) -> None:
    bound = stage.bind(SIGNAL)
    for scale in (0.0, 1e-9, 1.0, 1e9):
        encoded, _ = encode(stage, contribution(scale))
        check(encoded, bound.fields)
        assert encoded.weight == 7.0
        if math.isfinite(bound.norm):
            size = math.sqrt(sum(np.square(encoded.values[n]).sum() for n in bound.vectors))
            assert size <= bound.norm * (1 + 1e-12)


def test_fields_that_are_not_like_parameters_go_through(stage: Stage) -> None:
    encoded, _ = encode(stage, contribution(100.0))
    assert encoded.values.steps == 4.0


def test_encoding_is_a_pure_function(stage: Stage) -> None:
    given = contribution(3.0)
    first, memory = encode(stage, given)
    second, again = encode(stage, given)
    assert equal(first.values, second.values)
    assert equal(memory, again)
    assert equal(given.values, contribution(3.0).values)
    encode(stage, contribution(2.0, seed=8), memory)
    assert equal(memory, again)


def test_what_it_announces_and_remembers_can_be_sent_and_kept(stage: Stage) -> None:
    _, memory = encode(stage, contribution(3.0))
    for values in (stage.announce(Values()), memory):
        assert equal(tensors.read(tensors.write(values)), values)


def test_decoding_gives_back_the_declared_fields_and_who_was_counted(stage: Stage) -> None:
    bound = stage.bind(SIGNAL)
    reduction = Reduction(bound.fields)
    for seed, party in enumerate(("north", "river")):
        reduction.add(party, encode(stage, contribution(1.0, seed))[0])
    total = reduction.total(3)
    decoded, state = stage.decode(total, Values(), CONTEXT)
    assert set(decoded.values) == {field.name for field in FIELDS}
    assert (decoded.parties, decoded.population) == (("north", "river"), 3)
    assert decoded.weight == 14.0
    assert decoded.values.steps == 8.0
    assert stage.announce(state).keys() == stage.announce(Values()).keys()
    assert equal(tensors.read(tensors.write(state)), state)


def test_it_is_the_same_part_after_its_own_description(stage: Stage) -> None:
    if type(stage) is not Stage:  # which has no name: it does nothing
        again = STAGES.build(json.loads(canonical(STAGES.spec(stage))))
        assert again == stage


def test_a_whole_run_goes_through_it(stage: Stage, tables: Mapping[str, hs.Table]) -> None:
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        rounds=3,
        aggregation=Aggregation(stages=(stage,)),
    )
    run = federation.run(hs.Local(tables))
    assert np.isfinite(run.parameters).all()
    assert not any(event.kind == "refused" for event in run.events)


def test_error_feedback_loses_nothing_over_time(top_entries: type[Stage]) -> None:
    stage, memory = top_entries(), Values()
    given, sent = np.zeros(SIZE), np.zeros(SIZE)
    for seed in range(9):
        one = contribution(1.0, seed)
        encoded, memory = encode(stage, one, memory)
        assert np.count_nonzero(encoded.values.update) == 2
        given, sent = given + one.values.update, sent + encoded.values.update
    np.testing.assert_allclose(sent + memory.update, given, rtol=1e-12)


class Marked(Stage):
    """Writes down in which order it is passed."""

    mark: float

    def encode(
        self, contribution: Contribution, announced: Values, memory: Values, context: Context
    ) -> tuple[Contribution, Values]:
        values = {n: 10 * v + self.mark for n, v in contribution.values.items()}
        seen = memory.get("seen", np.asarray(0.0)) + self.mark + announced.mark
        return Contribution(Values(values), contribution.weight), Values({"seen": seen})

    def announce(self, state: Values) -> Values:
        return Values({"mark": np.asarray(100 * self.mark)})

    def decode(self, total: Total, state: Values, context: Context) -> tuple[Total, Values]:
        values = {n: (v - self.mark) / 10 for n, v in total.values.items()}
        return Total(Values(values), total.parties, total.population, total.weight), Values(
            {"seen": state.get("seen", np.asarray(0.0)) + self.mark}
        )


def test_a_chain_goes_forward_at_the_party_and_back_at_the_coordinator() -> None:
    chain = Aggregation(stages=(Marked(mark=1.0),)) >> Aggregation(stages=(Marked(mark=2.0),))
    signal = Signal((Field("update", like="parameters", shape=(1,)),))
    signals = chain.bind(signal)
    assert len(signals) == 3
    announced = chain.announce(Values())
    assert {name: float(v) for name, v in announced.items()} == {"0.mark": 100, "1.mark": 200}
    given = Contribution(Values({"update": np.array([5.0])}))
    context = Context(0, 1, 1, "north", signal)
    memory = Values({"0.seen": np.asarray(7.0)})
    encoded, memory = chain.encode(given, announced, memory, signals, context)
    assert encoded.values.update == 512.0
    assert {name: float(v) for name, v in memory.items()} == {"0.seen": 108, "1.seen": 202}
    total = Total(encoded.values, ("north",), 1, 1.0)
    decoded, state = chain.decode(total, Values(), signals, context)
    assert decoded.values.update == 5.0
    assert {name: float(v) for name, v in state.items()} == {"0.seen": 1, "1.seen": 2}


def test_an_announced_norm_reaches_the_parties_and_moves_with_what_they_answer(
    tables: Mapping[str, hs.Table],
) -> None:
    stage = STAGES.build({"kind": "adaptive-clip", "norm": 1e-3})
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        rounds=4,
        aggregation=Aggregation(stages=(stage,)),
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
