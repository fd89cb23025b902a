"""Federated preprocessing against NumPy on the pooled rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

import hansa as hs
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Array
from hansa.data.contract import ColumnRule
from hansa.methods import State
from hansa.party import Crowd
from hansa.run import draw

COLOURS = ColumnRule(type="category", categories=("red", "green", "blue"))


def moments(parties: Mapping[str, hs.Table], **columns: ColumnRule) -> State:
    """The state after all asks of the preprocessing, and before round 1."""
    federation = hs.Federation(
        task=hs.LinearRegression(target="y"),
        contract=hs.Contract(columns=columns),
        evaluation=hs.Evaluate(holdout=0),
        cohort=hs.All(minimum=1),
    )
    setup = federation.resolve({name: table.schema() for name, table in parties.items()})
    course = federation.course(setup)
    exchange, progress = LocalExchange(course, Crowd(parties, course)), course.begin()
    while progress.phase == "moments":
        ask = course.ask(progress)
        assert ask is not None
        ask = draw(federation, course, ask)
        [arrival] = exchange.exchange([ask])
        assert not arrival.excluded
        progress = course.apply(progress, ask, arrival.total)
    return progress.states["moments"]


def split(column: Array, cuts: tuple[int, ...] = (5, 200)) -> dict[str, hs.Table]:
    """One column among three unequal parties, with a target nobody looks at."""
    parts = np.split(column, cuts)
    return {name: hs.Table.of({"x": part, "y": np.zeros(len(part))}) for name, part in zip("abc", parts, strict=True)}


@pytest.mark.parametrize("centre", [0.0, 1e9, -1e12], ids="{:g}".format)
def test_means_and_variances_are_those_of_the_pooled_rows(centre: float) -> None:
    column = np.random.default_rng(5).normal(centre, 1.0, 300)
    state = moments(split(column))
    assert state.values.count == 300
    np.testing.assert_allclose(state.values.mean, [column.mean()], rtol=1e-15)
    # E[x^2] - E[x]^2 would be nowhere near: at 1e9 it loses all digits.
    np.testing.assert_allclose(state.values.scale, [column.std()], rtol=1e-9)


def test_missing_cells_are_counted_and_left_out() -> None:
    column = np.random.default_rng(6).normal(3.0, 2.0, 300)
    column[[0, 1, 2, 3, 4, 77, 250]] = np.nan  # all of the first party's rows
    state = moments(split(column))
    assert state.values.missing.tolist() == [7.0]
    assert state.values.rows == 300
    np.testing.assert_allclose(state.values.mean, [np.nanmean(column)], rtol=1e-14)
    np.testing.assert_allclose(state.values.scale, [np.nanstd(column)], rtol=1e-14)


def test_a_column_without_any_value_keeps_mean_0_and_scale_1() -> None:
    table = hs.Table.of({"x": [np.nan, np.nan], "z": [1.0, 3.0], "y": [0.0, 1.0]})
    state = moments({"a": table, "b": table})
    assert state.values.mean.tolist() == [0.0, 2.0]
    assert state.values.scale.tolist() == [1.0, 1.0]


def test_a_constant_column_has_scale_1() -> None:
    state = moments(split(np.full(300, 4.25)))
    assert (state.values.mean.tolist(), state.values.scale.tolist()) == ([4.25], [1.0])


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1, -123.456])
def test_what_rounding_leaves_of_a_constant_column_is_no_variance(value: float) -> None:
    assert moments(split(np.full(601, value))).values["scale"] == 1.0


def test_a_small_variance_is_not_taken_for_rounding() -> None:
    column = 1.0 + 1e-6 * np.random.default_rng(3).normal(size=601)
    assert moments(split(column)).values["scale"] == pytest.approx(column.std(), rel=1e-6)


def test_a_party_with_no_row_adds_nothing() -> None:
    parties = split(np.arange(10.0), cuts=(0, 4))
    state = moments(parties)
    assert state.values.rows == 10
    assert state.values.mean == 4.5


def test_a_category_that_is_rare_at_a_party_is_counted_as_other_there() -> None:
    def party(**counts: int) -> hs.Table:
        colours = [colour for colour, count in counts.items() for _ in range(count)]
        return hs.Table.of({"x": np.ones(len(colours)), "colour": colours, "y": [0.0] * len(colours)})

    parties = {"a": party(red=10, green=9, blue=30), "b": party(red=12, green=3, blue=0)}
    state = moments(parties, colour=COLOURS)
    # red 10 + 12; green is rare at both; blue 30; other 9 + 3
    assert state.values.categories.tolist() == [22.0, 0.0, 30.0, 12.0]


def test_categories_that_are_spelt_as_numbers_are_counted_by_their_text() -> None:
    grades = ColumnRule(type="category", categories=("1", "2"))
    table = hs.Table.of({"x": np.ones(25), "grade": [1] * 14 + [2] * 11, "y": np.zeros(25)})
    state = moments({"a": table, "b": table}, grade=grades)
    assert state.values.categories.tolist() == [28.0, 22.0, 0.0]


def test_the_encoding_gives_the_federation_mean_0_and_variance_1() -> None:
    random = np.random.default_rng(8)
    parties = {
        name: hs.Table.of({"x": random.normal(loc, 3.0, 80), "y": random.normal(size=80)})
        for name, loc in (("a", -5.0), ("b", 40.0))
    }
    federation = hs.Federation(task=hs.LinearRegression(target="y"), rounds=1, evaluation=hs.Evaluate(holdout=0))
    model = federation.run(hs.Local(parties)).model
    x = np.concatenate([model.encoding.matrix(table) for table in parties.values()])
    np.testing.assert_allclose([x.mean(), x.std()], [0.0, 1.0], atol=1e-12)
