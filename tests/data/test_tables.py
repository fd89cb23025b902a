import numpy as np
import pytest

from hansa.data.table import ColumnSchema, Table
from hansa.errors import DataError


def test_bools_and_integers_become_float64_and_none_becomes_missing():
    table = Table.of({"a": [True, False], "b": np.array([1, 2]), "c": [1, None], "d": ["x", None]})
    assert table.names == ("a", "b", "c", "d")
    assert table.rows == 2
    assert [table.kind(name) for name in table.names] == ["number", "number", "number", "text"]
    np.testing.assert_array_equal(table.column("a"), [1.0, 0.0])
    np.testing.assert_array_equal(table.column("c"), [1.0, np.nan])
    assert table.column("d").tolist() == ["x", None]
    assert table.schema()[0] == ColumnSchema("a", "number")


def test_text_arrays_of_numpy_become_plain_str():
    column = Table.of({"a": np.array(["x", "yy"])}).column("a")
    assert column.dtype == object
    assert [type(value) for value in column] == [str, str]


def test_a_table_cannot_be_changed_through_its_columns():
    source = np.array([1.0, 2.0])
    table = Table.of({"a": source})
    source[0] = 9.0
    assert table.column("a")[0] == 1.0
    with pytest.raises(ValueError, match="read-only"):
        table.column("a")[0] = 9.0


def test_an_unknown_column_names_the_nearest_and_those_there_are():
    with pytest.raises(DataError, match="'radius', 'texture'") as caught:
        Table.of({"radius": [1], "texture": [2]}).column("radios")
    assert "Did you mean 'radius'?" in str(caught.value)


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(DataError, match="differ in length"):
        Table.of({"a": [1], "b": [1, 2]})


def test_a_column_that_mixes_text_and_numbers_names_its_row():
    with pytest.raises(DataError, match="'a', row 2: 3 among text"):
        Table.of({"a": ["x", 3]})


@pytest.mark.parametrize(
    "values",
    [np.array(["x", "y"]), np.array([[None], ["x"]]), np.array([1j]), np.array([0], dtype="M8[s]"), np.asarray(1.0)],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_the_constructor_takes_only_columns_as_they_are_kept(values):
    with pytest.raises(DataError, match=r"Table\.of"):
        Table({"a": values})


def test_columns_of_arrays_are_taken_as_they_are():
    images = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    labels = np.array([3, 1])
    table = Table({"image": images, "label": labels, "age": np.array([40.0, np.nan])})
    assert [table.kind(name) for name in table.names] == ["array", "array", "number"]
    assert [column.shape for column in table.schema()] == [(2, 3), (), ()]
    assert table.column("image").dtype == np.uint8
    assert np.shares_memory(table.column("image"), images)
    with pytest.raises(ValueError, match="read-only"):
        table.column("image")[0] = 0
    last = table.take([1])
    np.testing.assert_array_equal(last.column("image"), images[1:])
    assert last.column("label").tolist() == [1]
    copied = Table.of({"image": images, "label": labels})
    assert not np.shares_memory(copied.column("image"), images)
    assert [copied.kind(name) for name in copied.names] == ["array", "number"]


@pytest.mark.parametrize("values", [3, "text", np.asarray(1.0)])
def test_what_has_no_rows_is_not_a_column(values):
    with pytest.raises(DataError, match="not \\[rows\\]"):
        Table.of({"a": values})


def test_take_and_drop_keep_order_and_refuse_unknown_names():
    table = Table.of({"a": [1, 2, 3], "b": ["x", "y", "z"]})
    assert table.take([2, 0]).column("b").tolist() == ["z", "x"]
    assert table.take(table.column("a") > 1).column("a").tolist() == [2.0, 3.0]
    assert table.take([]).rows == 0
    assert table.drop("a").names == ("b",)
    with pytest.raises(DataError, match="'c'"):
        table.drop("c")


def test_an_empty_table_has_no_rows():
    assert Table.of({}).rows == 0
    assert Table.of({"a": []}).kind("a") == "number"
