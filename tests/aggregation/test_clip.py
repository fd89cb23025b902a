"""A clip bounds what one party can move, and refuses where it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import Clip, Signal, clip
from hansa.aggregation.signal import joint_norms
from hansa.aggregation.stage import Context
from hansa.contribution import Contributions, Field, Values
from hansa.errors import PipelineError, StudyError

SIGNAL = Signal(
    (
        Field("update", like="parameters", shape=(2,)),
        Field("control", like="parameters", shape=(2,)),
        Field("rows", shape=()),
    )
)


def clipped(update: Sequence[Sequence[float]], control: Sequence[Sequence[float]], norm: float = 1.0) -> Values:
    rows = np.full(len(update), 9.0)
    given = Values({"update": np.array(update), "control": np.array(control), "rows": rows})
    names = tuple("abcdef"[: len(update)])
    stack = Contributions(names, given, np.ones(len(update)))
    context = Context(0, 1, 1, names, SIGNAL, SIGNAL)
    return Clip(norm=norm).encode(stack, Values(), Values(), context)[0].values


def test_parameter_like_fields_are_scaled_jointly_and_keep_their_direction() -> None:
    values = clipped([[3.0, 0.0], [0.6, 0.0]], [[0.0, -4.0], [0.0, -0.8]], norm=2.5)
    np.testing.assert_allclose(values.update, [[1.5, 0.0], [0.6, 0.0]])
    np.testing.assert_allclose(values.control, [[0.0, -2.0], [0.0, -0.8]])
    assert values.rows.tolist() == [9.0, 9.0]


def test_what_is_inside_stays_to_the_bit() -> None:
    assert clipped([[0.3, 0.1]], [[0.2, 0.0]]).update.tolist() == [[0.3, 0.1]]
    assert clipped([[0.0, 0.0]], [[0.0, 0.0]]).update.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("size", [1e-200, 1e-300, 1e200, 1e270])
def test_squares_that_leave_the_range_are_no_way_around_it(size: float) -> None:
    """The square of 1e-200 is 0, and that of 1e200 is infinite."""
    values = clipped([[3 * size, 0.0]], [[0.0, 4 * size]], norm=size)
    np.testing.assert_allclose(values.update, [[0.6 * size, 0.0]], rtol=1e-12)
    np.testing.assert_allclose(values.control, [[0.0, 0.8 * size]], rtol=1e-12)


def test_the_bound_becomes_part_of_the_signal_and_the_smallest_holds() -> None:
    *_, last = (clip(2.0) >> clip(0.5) >> clip(1.0)).bind(SIGNAL)
    assert last.norm == 0.5


@pytest.mark.parametrize(
    ("signal", "reason"),
    [
        (replace(SIGNAL, view="sum"), "only their sum exists here. Put clip before"),
        (replace(SIGNAL, travel=()), "these are packed already. Put clip before"),
        (replace(SIGNAL, domain=2**32), "these are packed already. Put clip before"),
        (Signal((Field("rows", shape=()),)), "sends no parameter-like field. Leave clip out"),
    ],
)
def test_a_refusal_names_stage_reason_and_remedy(signal: Signal, reason: str) -> None:
    with pytest.raises(PipelineError) as caught:
        clip(1.0).bind(signal)
    assert "clip" in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan"), float("inf")])
def test_a_norm_that_bounds_nothing_is_refused(norm: float) -> None:
    with pytest.raises(StudyError, match=r"aggregation\.stages\.norm"):
        hs.Federation(task=hs.LinearRegression(target="y"), aggregation={"stages": [{"kind": "clip", "norm": norm}]})


def test_norms_of_float32_are_those_of_float64_at_every_magnitude() -> None:
    for size in (1, 511, 513, 7850):
        for scale in (1e-35, 1e-16, 1.0, 1e17, 1e35):
            x = (np.random.default_rng(size).normal(size=(3, size)) * scale).astype(np.float32)
            exact = np.linalg.norm(x.astype(np.float64), axis=1)
            np.testing.assert_allclose(joint_norms([x]), exact, rtol=2e-7)
