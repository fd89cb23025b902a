import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.data import Table, by_column, describe, iid, shares
from hansa.errors import DataError

TABLE = Table.of({"x": range(6), "医院": ["乙", "甲", "乙", "丙", "甲", "乙"]})


def rows(parts):
    return sorted(x for part in parts.values() for x in part.column("x").tolist())


def test_a_column_divides_a_table_and_is_dropped():
    parts = by_column(TABLE, "医院")
    assert list(parts) == sorted(["甲", "乙", "丙"])
    assert parts["乙"].names == ("x",)
    assert parts["乙"].column("x").tolist() == [0, 2, 5]
    assert list(by_column(Table.of({"x": [1, 2], "p": [10, 9]}), "p")) == ["10", "9"]


def test_a_row_without_a_party_is_named():
    with pytest.raises(DataError, match="column 'p', row 2"):
        by_column(Table.of({"x": [1, 2], "p": ["a", None]}), "p")
    with pytest.raises(DataError, match="no column 'q'"):
        by_column(TABLE, "q")


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_iid_gives_every_row_to_one_party_in_equal_parts(count, extra, seed):
    table = Table.of({"x": range(count + extra)})
    parts = iid(table, count, seed)
    sizes = [part.rows for part in parts.values()]
    assert rows(parts) == list(range(count + extra))
    assert max(sizes) - min(sizes) <= 1
    assert list(parts) == sorted(parts)


def test_the_seed_alone_decides_who_gets_what():
    table = Table.of({"x": range(100)})
    one, same, other = (iid(table, ["a", "b"], seed)["a"].column("x") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()
    assert one.tolist() != list(range(50))


def test_shares_are_kept():
    parts = shares(Table.of({"x": range(100)}), {"a": 0.5, "b": 0.3, "c": 0.2}, seed=0)
    assert {name: part.rows for name, part in parts.items()} == {"a": 50, "b": 30, "c": 20}
    assert rows(parts) == list(range(100))


@pytest.mark.parametrize(
    "fractions",
    [{}, {"a": 0.5}, {"a": 1.5, "b": -0.5}, {"a": 1.0, "b": 0.0}, {"a": 0.99, "b": 0.01}],
)
def test_shares_that_cannot_be_dealt_are_refused(fractions):
    with pytest.raises(DataError):
        shares(TABLE, fractions, seed=0)


@pytest.mark.parametrize("parties", [0, -1, 7, [], ["a", "a"]])
def test_parties_that_cannot_be_dealt_to_are_refused(parties):
    with pytest.raises(DataError):
        iid(TABLE, parties, seed=0)


def test_a_partition_is_described_by_rows_and_labels():
    parts = {"北": Table.of({"y": [0, 1, 1, None]}), "south": Table.of({"y": [0, 0]})}
    assert describe(parts, "y").splitlines() == [
        "party  rows  y=0  y=1",
        "北        4    1    2",
        "south     2    2    0",
    ]
    assert describe(parts, None).splitlines()[2] == "south     2"


def test_a_target_of_many_values_is_described_in_short():
    numbers = describe({"a": Table.of({"y": range(20)})}, "y")
    assert numbers.splitlines() == ["party  rows  mean of y", "a        20        9.5"]
    words = describe({"a": Table.of({"y": [f"v{i}" for i in range(20)]})}, "y")
    assert words.splitlines() == ["party  rows  values of y", "a        20           20"]


def test_a_party_without_the_target_is_an_error():
    with pytest.raises(DataError, match="no column 'y'"):
        describe({"a": TABLE}, "y")
