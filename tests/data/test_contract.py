import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hansa.data.contract import OTHER, ColumnRule, Contract, check, count_categories
from hansa.data.table import Table
from hansa.errors import ContractError

TABLE = Table.of({"年龄": [40, None, 52.5], "stage": ["I", "II", None], "grade": [1, 2, 3], "note": ["3", "x", "4"]})


def contract(name, **rule):
    return Contract(columns={name: ColumnRule(**rule)})


def test_a_table_that_keeps_its_contract_passes():
    rules = {
        "年龄": ColumnRule(type="number", unit="years", low=0, high=120),
        "stage": ColumnRule(type="category", categories=("I", "II", "III")),
        "grade": ColumnRule(type="category", categories=("1", "2", "3"), missing=False),
        "note": ColumnRule(type="text"),
    }
    check(TABLE, Contract(columns=rules, minimum_rows=3))
    check(TABLE, contract("grade", type="integer"))


def test_a_text_value_in_a_number_column_names_its_row():
    with pytest.raises(ContractError, match="column 'note', row 2: 'x' is text"):
        check(TABLE, contract("note", type="number"))


def test_a_decimal_comma_is_told_the_way_out():
    with pytest.raises(ContractError, match="row 1: '-1,5' is text") as caught:
        check(Table.of({"a": ["-1,5"]}), contract("a", type="number"))
    assert "with a point" in caught.value.remedy


def test_text_that_spells_numbers_passes_for_numbers():
    table = Table.of({"a": ["1", None, "2.5"]})
    check(table, contract("a", type="number", high=3))
    with pytest.raises(ContractError, match=r"row 3: 2\.5 is not an integer"):
        check(table, contract("a", type="integer"))
    with pytest.raises(ContractError, match="row 1: inf is not finite"):
        check(Table.of({"a": ["inf"]}), contract("a", type="number"))


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("年龄", {"type": "number", "low": 50}, "'年龄', row 1: 40 is below 50"),
        ("年龄", {"type": "number", "high": 50, "unit": "a"}, "row 3: 52.5 a is above 50"),
        ("年龄", {"type": "integer"}, "row 3: 52.5 is not an integer"),
        ("年龄", {"type": "number", "missing": False}, "row 2: the value is missing"),
        ("stage", {"type": "text", "missing": False}, "row 3: the value is missing"),
        ("stage", {"type": "category", "categories": ["I", "IV"]}, "row 2: 'II' is not a category"),
        ("grade", {"type": "category", "categories": ["1", "2"]}, "row 3: '3' is not a category"),
    ],
)
def test_a_breach_names_column_and_row(name, rule, message):
    with pytest.raises(ContractError, match=message) as caught:
        check(TABLE, contract(name, **rule))
    assert caught.value.field == name


def test_a_missing_column_says_which_there_are():
    with pytest.raises(ContractError, match="'年龄', 'stage', 'grade', 'note'") as caught:
        check(TABLE, contract("grades", type="number"))
    assert "Did you mean 'grade'?" in caught.value.remedy


def test_too_few_rows_are_refused():
    with pytest.raises(ContractError, match="3 rows, and the contract asks for 4"):
        check(TABLE, Contract(minimum_rows=4))


def test_a_column_without_any_value_passes_for_each_type():
    empty = Table.of({"a": [None, None]})
    check(empty, contract("a", type="category", categories=("x",)))
    check(empty, contract("a", type="text"))
    check(empty, contract("a", type="integer", low=0))


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "category"},
        {"type": "number", "categories": ["a"]},
        {"type": "category", "categories": ["a", "a"]},
        {"type": "category", "categories": [OTHER]},
        {"type": "text", "low": 1},
        {"type": "number", "low": 2, "high": 1},
        {"type": "number", "low": float("inf")},
        {"type": "date"},
        {"type": "number", "lowest": 1},
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule):
    with pytest.raises(ValidationError):
        ColumnRule(**rule)


def test_a_rare_category_is_counted_as_other_before_it_leaves():
    values = ["a"] * 10 + ["b"] * 9 + ["undeclared"] * 2 + [None] * 5
    assert count_categories(values, ["a", "b", "c"]).tolist() == [10, 0, 0, 11]
    assert count_categories(values, ["a", "b", "c"], minimum=1).tolist() == [10, 9, 0, 2]
    assert count_categories([], ["a"]).tolist() == [0, 0]


@given(st.lists(st.sampled_from(["a", "b", "c", "z", None]), max_size=60), st.integers(1, 12))
def test_no_count_between_zero_and_the_minimum_leaves_by_name(values, minimum):
    counts = count_categories(np.array(values, dtype=object), ["a", "b", "c"], minimum)
    assert all(count == 0 or count >= minimum for count in counts[:-1])
    assert counts.sum() == sum(value is not None for value in values)
