"""What travels in place of a vector, what it costs, and where a codec is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.aggregation import Aggregation, Signal
from hansa.aggregation.stage import STAGES, Context
from hansa.contribution import Algebra, Contributions, Field, Total, Values
from hansa.errors import PipelineError, StudyError

UPDATE = Field("update", like="parameters", shape=(7850,), dtype="float32")
SIGNAL = Signal((UPDATE, Field("steps", shape=(), algebra=Algebra.SUM)))
STEPS = 8  # bytes of the field that is not like parameters


@pytest.mark.parametrize(
    ("chain", "nbytes"),
    [
        (agg.rotate(), 4 * 7850),
        (agg.quantize(bits=16), 2 * 7850 + 4),
        (agg.quantize(bits=8), 7850 + 4),
        (agg.quantize(bits=4), 3925 + 4),
        (agg.quantize(bits=3), 2944 + 4),
        (agg.quantize(bits=1), 982 + 4),
        (agg.quantize(bits=11), 7850 + 2944 + 4),
        (agg.qsgd(bits=4, bucket=512), 3925 + 16 * 4),
        (agg.top_k(fraction=0.01), 79 * (4 + 2)),
        (agg.random_k(fraction=0.01), 79 * 4),
        (agg.random_mask(fraction=0.1), 785 * 4),
        (agg.subsample(fraction=0.1), 785 * 4),
        (agg.low_rank(rank=8), 8 * 89 * 4),
        (agg.subsample(fraction=0.1) >> agg.quantize(bits=2), 197 + 4),
        (agg.top_k(fraction=0.1) >> agg.clip(1.0) >> agg.quantize(bits=8), 785 * 3 + 4),
    ],
)
def test_the_signal_says_how_many_bytes_travel_and_so_many_do(chain: Aggregation, nbytes: int) -> None:
    signals = chain.bind(SIGNAL)
    assert signals[-1].nbytes == nbytes + STEPS
    assert signals[-1].fields == SIGNAL.fields
    context = Context(0, 1, 1, ("a", "b"), SIGNAL, SIGNAL)
    x = np.random.default_rng(0).normal(size=(2, 7850)).astype(np.float32)
    stack = Contributions(("a", "b"), Values({"update": x, "steps": np.ones(2)}), np.ones(2))
    sent, _ = chain.encode(stack, Values(), Values(), signals, context)
    assert sent.one(0).values.nbytes == nbytes + STEPS
    assert not signals[-1].faults(sent)
    opened = chain.open(sent, Values(), signals, context)
    assert opened.values["update"].dtype == np.float32
    assert not signals[-1].faults(opened, opened=True)


def test_a_clip_between_two_codecs_bounds_what_is_opened() -> None:
    chain = agg.top_k(fraction=0.1) >> agg.clip(0.5) >> agg.quantize(bits=8)
    signals = chain.bind(SIGNAL)
    context = Context(0, 1, 1, ("a",), SIGNAL, SIGNAL)
    x = np.random.default_rng(0).normal(size=(1, 7850)).astype(np.float32)
    stack = Contributions(("a",), Values({"update": x, "steps": np.ones(1)}), np.ones(1))
    sent, _ = chain.encode(stack, Values(), Values(), signals, context)
    opened = chain.open(sent, Values(), signals, context)
    assert 0.45 < np.linalg.norm(opened.values["update"]) <= signals[-1].norm


def test_rounding_widens_the_bound_and_a_projection_does_not() -> None:
    bound = replace(SIGNAL, norm=2.0)
    assert agg.quantize(bits=8).bind(bound)[-1].norm == pytest.approx(2 * (1 + 7850**0.5 / 127))
    assert agg.qsgd(bits=8, bucket=16).bind(bound)[-1].norm == pytest.approx(2 * (1 + 4 / 127))
    assert agg.subsample(fraction=0.1).bind(bound)[-1].norm == pytest.approx(20)
    assert agg.random_mask(fraction=0.1).bind(bound)[-1].norm == 2.0
    assert agg.low_rank().bind(bound)[-1].norm == 2.0
    assert agg.rotate().bind(bound)[-1].norm == pytest.approx(2.0, rel=1e-5)


CODECS = ["quantize", "qsgd", "top-k", "random-k", "random-mask", "subsample", "low-rank", "rotate"]


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        (replace(SIGNAL, view="sum"), r"only their sum exists here. Put {} before"),
        (Signal((Field("rows", shape=()),)), r"sends no parameter-like field. Leave {} out"),
        (agg.quantize().bind(SIGNAL)[-1], r"these are packed already. Put {} before"),
    ],
)
def test_a_refusal_names_stage_reason_and_remedy(kind: str, signal: Signal, reason: str) -> None:
    with pytest.raises(PipelineError, match=kind + ".*" + reason.format(kind)):
        STAGES.build({"kind": kind}).bind(signal)


@pytest.mark.parametrize("chain", [agg.top_k(), agg.random_k()])
def test_error_feedback_comes_before_the_clip(chain: Aggregation) -> None:
    with pytest.raises(PipelineError, match=r"was clipped already. Put .* before the clip"):
        (agg.clip(1.0) >> chain).bind(SIGNAL)
    with pytest.raises(PipelineError, match=r"rotate works on whole vectors.*Put rotate before"):
        (chain >> agg.rotate()).bind(SIGNAL)
    (agg.rotate() >> chain >> agg.clip(1.0)).bind(SIGNAL)


def test_updates_of_several_rounds_may_be_in_one_total_that_is_turned_back() -> None:
    chain = agg.rotate()
    signals = chain.bind(SIGNAL)
    x = np.random.default_rng(0).normal(size=(2, 7850)).astype(np.float32)
    turned = []
    for version in range(2):
        context = Context(0, version, version, ("a",), SIGNAL, SIGNAL)
        values = Values({"update": x[[version]], "steps": np.ones(1)})
        stack = Contributions(("a",), values, np.ones(1))
        sent, _ = chain.encode(stack, Values(), Values(), signals, context)
        turned.append(sent.values["update"][0].astype(np.float64))
    total = Total(Values({"update": sum(turned), "steps": np.asarray(2.0)}), ("a", "b"), 2, 2.0)
    decoded, _ = chain.decode(total, Values(), signals, context)
    np.testing.assert_allclose(decoded.values["update"], x.sum(axis=0), atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("kind", CODECS)
def test_a_party_whose_update_is_not_finite_is_found_and_spoils_nobody_else(kind: str, bad: float) -> None:
    chain = Aggregation(stages=(STAGES.build({"kind": kind}),))
    signal = Signal((Field("update", like="parameters", shape=(200,), dtype="float32"),))
    signals = chain.bind(signal)
    x = np.random.default_rng(0).normal(size=(3, 200)).astype(np.float32)
    names, weights = ("a", "b", "c"), np.ones(3)
    context = Context(0, 1, 1, names, signal, signal)
    clean, _ = chain.encode(Contributions(names, Values({"update": x}), weights), Values(), Values(), signals, context)
    spoilt = x.copy()
    spoilt[1] = bad
    sent, _ = chain.encode(
        Contributions(names, Values({"update": spoilt}), weights), Values(), Values(), signals, context
    )
    assert list(signals[-1].faults(sent)) == [1]
    for name, value in sent.values.items():
        assert np.array_equal(value[[0, 2]], clean.values[name][[0, 2]])


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("quantize", {"bits": 0}),
        ("quantize", {"bits": 17}),
        ("quantize", {"rounding": "up"}),
        ("qsgd", {"bits": 1}),
        ("qsgd", {"bucket": 0}),
        ("top-k", {"fraction": 0.0}),
        ("subsample", {"fraction": 1.5}),
        ("low-rank", {"rank": 0}),
    ],
)
def test_a_setting_that_means_nothing_is_refused(kind: str, keys: Mapping[str, object]) -> None:
    with pytest.raises(StudyError, match=f"aggregation stage.{next(iter(keys))}"):
        STAGES.build({"kind": kind, **keys})


def test_indices_outside_the_vector_are_refused_before_they_are_used() -> None:
    chain = agg.top_k(fraction=0.01)
    signals = chain.bind(SIGNAL)
    values = np.ones((1, 79), dtype=np.float32)
    forged = Values(
        {"update.values": values, "update.indices": np.full((1, 79), 7850, dtype=np.uint16), "steps": np.ones(1)}
    )
    [fault] = signals[-1].faults(Contributions(("a",), forged, np.ones(1))).values()
    assert "0 to 7849" in str(fault)


@pytest.mark.parametrize(
    "chain",
    [
        agg.clip(5.0) >> agg.rotate() >> agg.quantize(bits=8),
        agg.top_k(fraction=0.5) >> agg.clip(5.0) >> agg.quantize(bits=8),
        agg.subsample(fraction=0.9) >> agg.qsgd(bits=8),
        agg.rotate() >> agg.quantize(bits=8) >> agg.geometric_median(),
        agg.median() >> agg.rotate() >> agg.quantize(bits=8),
    ],
)
def test_a_run_through_the_chain_comes_near_the_run_without(chain: Aggregation, shards: Mapping[str, hs.Table]) -> None:
    federation = hs.Federation(task=hs.LogisticRegression(target="y"), rounds=10)
    plain = federation.run(hs.Local(shards))
    packed = federation.model_copy(update={"aggregation": chain}).run(hs.Local(shards))
    size = np.linalg.norm(plain.parameters)
    assert np.linalg.norm(packed.parameters - plain.parameters) < 0.5 * size
    assert not any(event.kind == "refused" for event in packed.events)


@pytest.fixture
def shards() -> Mapping[str, hs.Table]:
    """Five parties with the same problem."""
    random = np.random.default_rng(0)
    tables = {}
    for i in range(5):
        x = random.normal(size=(60, 3))
        y = (x @ [2.0, -1.0, 0.5] + random.normal(size=60) > 0).astype(float)
        columns = {f"x{j}": x[:, j] for j in range(3)}
        tables[f"party-{i}"] = hs.Table({**columns, "y": y})
    return tables
