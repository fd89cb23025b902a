import numpy as np
import pytest

from hansa.data.preprocessing import Encoding
from hansa.data.table import Table
from hansa.errors import ContractError, DataError

ENCODING = Encoding(("年龄", "flat"), np.array([40.0, 7.0]), np.array([10.0, 0.0]), {"stage": ("I", "II"), "n": ("1",)})


def test_numbers_are_standardised_and_categories_one_hot():
    table = Table.of(
        {"stage": ["II", None, "other", "I"], "n": [1, 2, None, 1], "flat": [7, 7, 7, 8], "年龄": [50, 40, None, 30]}
    )
    assert ENCODING.names == ("年龄", "flat", "stage=I", "stage=II", "n=1")
    assert ENCODING.width == 5
    expected = [[1, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [-1, 1, 1, 0, 1]]
    matrix = ENCODING.matrix(table)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix, expected)


def test_an_encoding_survives_json_to_the_bit():
    encoding = Encoding(("a",), np.array([0.1 + 0.2]), np.array([1 / 3]), {"城市": ("上海",)})
    back = Encoding.from_json(encoding.to_json())
    assert back.numbers == encoding.numbers
    assert back.categories == encoding.categories
    assert back.mean.tobytes() == encoding.mean.tobytes()
    assert back.scale.tobytes() == encoding.scale.tobytes()


def plain(numbers=(), categories=None) -> Encoding:
    """The encoding that leaves numbers as they are."""
    return Encoding(tuple(numbers), np.zeros(len(numbers)), np.ones(len(numbers)), categories or {})


def test_numbers_of_mean_0_and_scale_1_are_left_alone():
    encoding = plain(["a"], {"b": ["x"]})
    table = Table.of({"a": [3, -1], "b": ["x", "y"]})
    np.testing.assert_array_equal(encoding.matrix(table), [[3, 1], [-1, 0]])
    assert plain(["a"]).names == ("a",)


def test_a_text_value_in_a_number_feature_names_its_row():
    with pytest.raises(ContractError, match="column 'a', row 2: 'x' is text"):
        plain(["a"]).matrix(Table.of({"a": ["1", "x"]}))


@pytest.mark.parametrize("encoding", [plain(["radius"]), plain([], {"radius": ["x"]})])
def test_a_missing_feature_column_is_named(encoding):
    with pytest.raises(ContractError, match="no column 'radius'") as caught:
        encoding.matrix(Table.of({"radios": [1]}))
    assert "Did you mean 'radios'?" in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "mean", "scale", "categories"),
    [
        (("a",), [0.0, 1.0], [1.0], {}),
        (("a",), [0.0], [1.0, 1.0], {}),
        (("a",), [np.nan], [1.0], {}),
        (("a",), [0.0], [-1.0], {}),
        (("a", "a"), [0.0, 0.0], [1.0, 1.0], {}),
        (("a",), [0.0], [1.0], {"a": ("x",)}),
        ((), [], [], {"a": ("x", "x")}),
    ],
)
def test_an_encoding_that_cannot_be_is_refused(numbers, mean, scale, categories):
    with pytest.raises(DataError):
        Encoding(numbers, np.array(mean), np.array(scale), categories)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"numbers": ["a"], "mean": [0], "scale": [1]}', "3"])
def test_a_damaged_encoding_is_refused(text):
    with pytest.raises(DataError, match="not an encoding"):
        Encoding.from_json(text)
