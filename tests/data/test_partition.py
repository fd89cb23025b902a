import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hansa.data import partition
from hansa.data.partition import by_column, describe
from hansa.data.population import Population
from hansa.data.table import Table
from hansa.errors import DataError

DIGITS = np.repeat(np.arange(10), 60)
"""Ten labels, sixty rows each."""
WAYS = {
    "iid": lambda seed: partition.iid_rows(600, 12, seed),
    "shares": lambda seed: partition.share_rows(600, [0.5, 0.3, 0.2], seed),
    "quantity": lambda seed: partition.quantity_rows(600, 12, 0.5, seed),
    "dirichlet": lambda seed: partition.dirichlet_rows(DIGITS, 12, 0.3, seed),
    "shards": lambda seed: partition.shard_rows(DIGITS, 12, 2, seed),
}

TABLE = Table.of({"x": range(6), "医院": ["乙", "甲", "乙", "丙", "甲", "乙"]})


def iid(table, parties, seed):
    return Population.of_rows(table, partition.iid_rows(table.rows, parties, seed))


def shares(table, fractions, seed):
    return Population.of_rows(table, partition.share_rows(table.rows, fractions, seed))


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
    one, same, other = (iid(table, 2, seed)["party-1"].column("x") for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert one.tolist() != other.tolist()
    assert one.tolist() != list(range(50))


def test_shares_are_kept():
    parts = shares(Table.of({"x": range(100)}), [0.5, 0.3, 0.2], seed=0)
    assert [part.rows for part in parts.values()] == [50, 30, 20]
    assert rows(parts) == list(range(100))


@pytest.mark.parametrize("fractions", [[], [0.5], [1.5, -0.5], [1.0, 0.0]])
def test_shares_that_cannot_be_dealt_are_refused(fractions):
    with pytest.raises(DataError):
        shares(TABLE, fractions, seed=0)


@pytest.mark.parametrize("parties", [0, -1, 7])
def test_parties_that_cannot_be_dealt_to_are_refused(parties):
    with pytest.raises(DataError):
        iid(TABLE, parties, seed=0)


@pytest.mark.parametrize("way", WAYS)
def test_every_row_goes_to_one_party_and_the_seed_alone_decides_to_which(way):
    first, same, other = (WAYS[way](seed) for seed in (1, 1, 2))
    assert np.sort(np.concatenate(first)).tolist() == list(range(600))
    assert all((np.diff(part) > 0).all() for part in first)
    for one, again in zip(first, same, strict=True):
        np.testing.assert_array_equal(one, again)
    assert any(a.tolist() != b.tolist() for a, b in zip(first, other, strict=True))


def spread(share):
    """Mean and variance over many seeds of what ``share(seed)`` measures."""
    drawn = np.array([share(seed) for seed in range(600)])
    return drawn.mean(), drawn.var()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_dirichlet_shares_have_the_moments_of_the_distribution(alpha):
    """Of Dir(alpha, ..., alpha) over n, a share has mean 1/n and variance (n-1) / (n^2 (n alpha + 1))."""
    one_label = np.zeros(1000)
    for parties, share in (
        (2, lambda seed: len(partition.dirichlet_rows(one_label, 2, alpha, seed, 0)[0]) / 1000),
        (5, lambda seed: len(partition.quantity_rows(1000, 5, alpha, seed, 0)[0]) / 1000),
    ):
        mean, variance = spread(share)
        expected = (parties - 1) / (parties**2 * (parties * alpha + 1))
        assert mean == pytest.approx(1 / parties, abs=4 * (expected / 600) ** 0.5)
        assert variance == pytest.approx(expected, rel=0.2)


@given(st.integers(1, 30), st.integers(0, 5), st.floats(0.001, 1000), st.integers(0, 9))
def test_every_party_gets_the_minimum_whatever_is_drawn(parties, minimum, alpha, seed):
    labels = np.arange(150) % 7
    for parts in (
        partition.dirichlet_rows(labels, parties, alpha, seed, minimum),
        partition.quantity_rows(150, parties, alpha, seed, minimum),
    ):
        assert min(map(len, parts)) >= minimum
        assert np.sort(np.concatenate(parts)).tolist() == list(range(150))


def test_the_minimum_is_taken_from_the_largest_and_moves_nobody_else():
    free = partition.quantity_rows(1000, 8, 0.2, 3, 0)
    filled = partition.quantity_rows(1000, 8, 0.2, 3, 20)
    before, after = [list(map(len, parts)) for parts in (free, filled)]
    assert min(before) < 20
    assert all(n == max(b, 20) or b == max(before) for b, n in zip(before, after, strict=True))


def test_two_shards_of_a_digit_each_leave_at_most_two_digits():
    parts = partition.shard_rows(DIGITS[::-1], 100, 2, seed=0)
    digits = [set(DIGITS[::-1][part].tolist()) for part in parts]
    assert {len(part) for part in parts} == {6}
    assert max(map(len, digits)) == 2
    assert [len(part) for part in partition.shard_rows(["b", "a", "b"], 1, 3, seed=0)] == [3]


def test_a_large_alpha_is_nearly_iid_and_a_small_one_leaves_one_digit():
    way = partition.dirichlet_rows
    even = [np.bincount(DIGITS[part], minlength=10) for part in way(DIGITS, 5, 1e6, 0)]
    assert np.abs(np.array(even) - 12).max() <= 1
    skewed = way(DIGITS, 10, 1e-3, 0)
    assert np.median([np.bincount(DIGITS[part]).max() / len(part) for part in skewed]) == 1


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: partition.dirichlet_rows(DIGITS, 12, 0.0, 0),
        lambda: partition.dirichlet_rows(DIGITS, 12, float("nan"), 0),
        lambda: partition.dirichlet_rows(DIGITS, 601, 0.5, 0),
        lambda: partition.dirichlet_rows(DIGITS, 100, 0.5, 0, minimum=7),
        lambda: partition.dirichlet_rows(np.arange(600) / 7, 12, 0.5, 0),
        lambda: partition.shard_rows(DIGITS, 12, 0, 0),
        lambda: partition.shard_rows(DIGITS, 301, 2, 0),
        lambda: partition.quantity_rows(600, 0, 1.0, 0),
        lambda: partition.iid_rows(3, 4, 0),
    ],
)
def test_what_cannot_be_dealt_is_refused(wrong):
    with pytest.raises(DataError):
        wrong()


def test_of_many_parties_the_first_are_listed_and_the_rest_summed_up():
    parts = {f"p{i}": Table.of({"y": [0] * i + [1]}) for i in range(12)}
    assert describe(parts, "y") == [
        ["party", "rows", "y=0", "y=1"],
        *((f"p{i}", i + 1, i, 1) for i in range(8)),
        ("... 4 more", None, None, None),
        ("least", 1, 0, 1),
        ("median", 6, 5, 1),
        ("most", 12, 11, 1),
    ]


def test_a_partition_is_described_by_rows_and_labels():
    parts = {"北": Table.of({"y": [0, 1, 1, None]}), "south": Table.of({"y": [0, 0]})}
    assert describe(parts, "y") == [["party", "rows", "y=0", "y=1"], ("北", 4, 1, 2), ("south", 2, 2, 0)]
    assert describe(parts, None)[2] == ("south", 2)


def test_a_target_of_many_values_is_described_in_short():
    numbers = describe({"a": Table.of({"y": range(20)})}, "y")
    assert numbers == [["party", "rows", "mean of y"], ("a", 20, 9.5)]
    words = describe({"a": Table.of({"y": [f"v{i}" for i in range(20)]})}, "y")
    assert words == [["party", "rows", "values of y"], ("a", 20, 20)]


def test_a_party_without_the_target_is_an_error():
    with pytest.raises(DataError, match="no column 'y'"):
        describe({"a": TABLE}, "y")
