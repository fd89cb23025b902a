"""Where a robust reducer is refused, what it needs, and that it serves a run with a liar in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from hansa import aggregation as agg
from hansa.aggregation import Aggregation, Reducer, Signal
from hansa.aggregation.stage import STAGES, Context
from hansa.contribution import Algebra, Field, Total, Values
from hansa.errors import PipelineError, RunError, StudyError

SIGNAL = Signal((Field("update", like="parameters", shape=(4,)),))
NEEDED = {
    "median": ({}, 3),
    "trimmed-mean": ({"fraction": 0.2}, 5),
    "krum": ({"byzantine": 2}, 7),
    "multi-krum": ({"byzantine": 1}, 5),
    "geometric-median": ({}, 3),
    "centered-clip": ({"radius": 1.0}, 3),
}


def reducer(kind: str) -> Reducer:
    stage = STAGES.build({"kind": kind, **NEEDED[kind][0]})
    assert isinstance(stage, Reducer)
    return stage


@pytest.mark.parametrize("kind", NEEDED)
def test_after_it_nothing_is_linear_and_only_sums_are_refused(kind: str) -> None:
    assert not reducer(kind).bind(SIGNAL).linear
    with pytest.raises(PipelineError, match=f"{kind} works on single contributions"):
        reducer(kind).bind(replace(SIGNAL, view="sum"))
    with pytest.raises(PipelineError, match=f"{kind} .*only one such stage"):
        reducer(kind).bind(reducer("median").bind(SIGNAL))
    with pytest.raises(PipelineError, match="no parameter-like field"):
        reducer(kind).bind(Signal((Field("rows", shape=()),)))


@pytest.mark.parametrize("kind", NEEDED)
def test_too_few_parties_for_its_promise_end_the_round_with_the_number_needed(kind: str) -> None:
    least = NEEDED[kind][1]
    context = Context(0, 4, 1, (), SIGNAL, reducer(kind).bind(SIGNAL))
    x = np.random.default_rng(0).normal(size=(least, 4))
    reducer(kind).reduce({"update": x}, Values(), context)
    with pytest.raises(RunError, match=rf"round 4: {kind} needs {least} .*cohort.minimum"):
        reducer(kind).reduce({"update": x[1:]}, Values(), context)


@pytest.mark.parametrize("kind", ["median", "trimmed-mean"])
@pytest.mark.parametrize("before", [agg.rotate(), agg.top_k(), agg.subsample(), agg.low_rank()])
def test_entry_by_entry_is_refused_where_entries_are_not_the_same(kind: str, before: Aggregation) -> None:
    chain = before >> Aggregation(stages=(reducer(kind),))
    with pytest.raises(PipelineError, match=f"{kind} compares parties entry by entry.*geometric"):
        chain.bind(SIGNAL)


@pytest.mark.parametrize("kind", NEEDED)
def test_a_sparsifier_comes_before_a_robust_reducer(kind: str) -> None:
    with pytest.raises(PipelineError, match="top-k comes before a robust reducer"):
        (Aggregation(stages=(reducer(kind),)) >> agg.top_k()).bind(SIGNAL)


def test_a_norm_bound_is_for_whole_vectors_and_promises_nothing_of_the_party() -> None:
    assert agg.norm_bound(norm=1.0).bind(SIGNAL)[-1] == SIGNAL
    (agg.norm_bound(norm=1.0) >> agg.quantize()).bind(SIGNAL)
    with pytest.raises(PipelineError, match="Put norm-bound before the stage that"):
        (agg.quantize() >> agg.norm_bound(norm=1.0)).bind(SIGNAL)
    with pytest.raises(PipelineError, match="Put norm-bound before the stage that"):
        (agg.subsample() >> agg.norm_bound(norm=1.0)).bind(SIGNAL)


def test_all_fields_are_one_point_and_a_sum_counts_the_value_for_everybody() -> None:
    fields = (
        Field("update", like="parameters", shape=(2,)),
        Field("control", like="parameters", shape=(2,), algebra=Algebra.SUM),
    )
    signal = Signal(fields)
    stage = agg.krum(byzantine=1).stages[0]
    # The second lies in its control only; the first and the third are as near in both.
    update = np.array([[1.0, 1], [1, 1], [1.1, 1], [1, 1.1], [1.3, 1]])
    control = np.array([[2.0, 2], [99, 2], [2.1, 2], [2, 2.1], [2.3, 2]])
    total = Total(Values({"update": update, "control": control}), tuple("abcde"), 9, 5.0)
    context = Context(0, 1, 1, (), signal, stage.bind(signal))
    decoded, _ = stage.decode(total, Values(), context)
    chosen = [row.tolist() for row in update].index(decoded.values["update"].tolist())
    assert chosen == 0
    assert decoded.values["control"].tolist() == (5 * control[0]).tolist()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("trimmed-mean", {"fraction": 0.5}),
        ("krum", {"byzantine": -1}),
        ("centered-clip", {"radius": 0.0}),
        ("geometric-median", {"iterations": 0}),
        ("norm-bound", {"norm": 0.0}),
    ],
)
def test_a_setting_that_means_nothing_is_refused(kind: str, keys: Mapping[str, object]) -> None:
    with pytest.raises(StudyError, match=f"aggregation stage.{next(iter(keys))}"):
        STAGES.build({"kind": kind, **keys})
