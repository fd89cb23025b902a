import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hansa import tensors
from hansa.errors import ContributionError

DTYPES = ["?", "i1", "u1", "<i2", "<u2", "<f2", "<i4", "<u4", "<f4", "<i8", "<u8", "<f8"]
ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0))
    ),
    max_size=4,
)
TEXTS = st.dictionaries(st.text("ab汉", max_size=3), st.text("xy\n汉", max_size=5), max_size=1)


def packed(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(begin: int, end: int, *, dtype: Any = "U8", shape: Any = None) -> dict[str, Any]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


@given(ARRAYS, TEXTS)
def test_arrays_survive_the_wire(arrays, texts):
    data = tensors.write(arrays, texts)
    assert_same(tensors.read(data), arrays)
    assert tensors.metadata(data) == texts


@given(ARRAYS, TEXTS)
def test_what_is_written_is_equal_to_the_reference_library_s_bytes(arrays, texts):
    assert tensors.write(arrays, texts) == safetensors.numpy.save(arrays, texts or None)


@given(ARRAYS)
def test_the_reference_library_reads_what_is_written_and_the_other_way_round(arrays):
    assert_same(safetensors.numpy.load(tensors.write(arrays)), arrays)
    assert_same(tensors.read(safetensors.numpy.save(arrays)), arrays)


def test_the_same_arrays_give_the_same_bytes_whatever_their_order_or_layout():
    plain = {"a": np.arange(6.0).reshape(2, 3), "b": np.arange(3, dtype=np.int16)}
    other = {"b": plain["b"].astype(">i2"), "a": np.asfortranarray(plain["a"]).astype(">f8")}
    assert tensors.write(plain, {"k": "v", "a": "b"}) == tensors.write(other, {"a": "b", "k": "v"})


def test_reading_copies_nothing_and_its_arrays_cannot_be_changed():
    data = bytearray(tensors.write({"w": np.arange(4.0)}))
    found = tensors.read(data)["w"]
    assert np.shares_memory(found, np.frombuffer(data, np.uint8))
    assert not found.flags.writeable
    assert found.flags.aligned


def test_every_array_is_aligned_whatever_its_neighbours_are():
    arrays = {"a": np.ones(3, bool), "b": np.ones(3), "c": np.ones(1, np.float32)}
    found = tensors.read(tensors.write(arrays)).values()
    assert all(array.flags.aligned for array in found)


@pytest.mark.parametrize(
    "array",
    [np.array(["a"]), np.array([1j]), np.array([None]), np.zeros(1, "M8[s]"),
     np.zeros(2, [("a", "f4")])],
)  # fmt: skip
def test_only_numbers_and_truth_values_can_be_sent(array):
    with pytest.raises(ContributionError, match="cannot be sent"):
        tensors.write({"w": array})


@pytest.mark.parametrize("name", ["__metadata__", 3])
def test_a_reserved_name_cannot_be_sent(name):
    with pytest.raises(ContributionError, match="cannot be the name"):
        tensors.write({name: np.ones(1)})


def test_a_name_that_is_not_text_cannot_be_sent():
    with pytest.raises(ContributionError, match="not text"):
        tensors.write({"\ud800": np.ones(1)})


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "too short"),
    "a header longer than the buffer": (b"\xff" * 8 + b"{}", "longer than what arrived"),
    "a header longer than any": ((5 << 20).to_bytes(8, "little") + bytes(5 << 20), "longer than 4194304"),
    "a header that is not UTF-8": (packed(b'{"\xff":1}'), "not JSON"),
    "a header that is not JSON": (packed(b"{"), "not JSON"),
    "a header that is a list": (packed([]), "not a table"),
    "NaN in the header": (packed(b'{"a":NaN}'), "not JSON"),
    "a header that is absurdly deep": (packed(b"[" * 100_000), "not JSON"),
    "a table that is absurdly deep": (packed(b'{"a":' * 100_000), "not JSON"),
    "a shape that is absurdly deep": (
        packed(b'{"a":{"dtype":"U8","data_offsets":[0,0],"shape":' + b"[" * 900 + b"]" * 900 + b"}}"),
        "shape|not JSON",
    ),
    "a number that is absurdly long": (packed(b'{"a":' + b"9" * 10_000 + b"}"), "not JSON"),
    "a name that occurs twice": (packed(b'{"a":' + json.dumps(entry(0, 1)).encode() + b',"a":1}', b"x"), "twice"),
    "a name that is half a character": (packed(b'{"\\ud800":1}'), "not JSON"),
    "metadata that are not text": (packed({"__metadata__": {"a": 1}}), "not a table of text"),
    "metadata that are a list": (packed({"__metadata__": ["a"]}), "not a table of text"),
    "an entry that is a number": (packed({"a": 1}), "needs dtype"),
    "an entry with more than its three parts": (packed({"a": {**entry(0, 0), "x": 1}}), "needs"),
    "an unknown dtype": (packed({"a": entry(0, 1, dtype="F8")}, b"x"), "dtype"),
    "bfloat16": (packed({"a": entry(0, 2, dtype="BF16", shape=[1])}, b"xx"), "dtype"),
    "a dtype that is a list": (packed({"a": entry(0, 1, dtype=[])}, b"x"), "dtype"),
    "a negative shape": (packed({"a": entry(0, 1, shape=[-1])}, b"x"), "shape"),
    "a shape of truth values": (packed({"a": entry(0, 1, shape=[True])}, b"x"), "shape"),
    "a shape of fractions": (packed({"a": entry(0, 1, shape=[1.0])}, b"x"), "shape"),
    "a shape that is a number": (packed({"a": entry(0, 1, shape=1)}, b"x"), "shape"),
    "a shape of too many dimensions": (packed({"a": entry(0, 1, shape=[1] * 33)}, b"x"), "shape"),
    "a shape whose size wraps round": (packed({"a": entry(0, 0, shape=[2**32] * 2)}), "too large"),
    "an empty shape that is huge": (packed({"a": entry(0, 0, shape=[0, 2**61, 8])}), "too large"),
    "offsets that are three": (packed({"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0, 0]}}), "offsets"),
    "offsets that run backwards": (packed({"a": entry(1, 0, shape=[1])}, b"x"), "disagree"),
    "a shape of another size": (packed({"a": entry(0, 2, shape=[3])}, b"xx"), "disagree"),
    "overlapping arrays": (packed({"a": entry(0, 2), "b": entry(1, 3)}, b"xxx"), "overlaps"),
    "arrays with a gap": (packed({"a": entry(0, 1), "b": entry(2, 3)}, b"xxx"), "gap"),
    "trailing bytes": (packed({"a": entry(0, 1)}, b"xx"), "1 trailing bytes"),
    "missing bytes": (packed({"a": entry(0, 9)}, b"xx"), "7 bytes missing"),
    "a huge array of nothing": (packed({"a": entry(0, 2**60)}, b""), "bytes missing"),
    "a bool that is neither": (packed({"a": entry(0, 1, dtype="BOOL")}, b"\x02"), "neither 0 nor 1"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_bytes_are_refused(case: str):
    data, reason = HOSTILE[case]
    with pytest.raises(ContributionError, match=reason):
        tensors.read(data)


def test_more_bytes_than_allowed_are_refused_before_they_are_read():
    data = tensors.write({"w": np.ones(100)})
    assert tensors.read(data, limit=len(data))["w"].size == 100
    with pytest.raises(ContributionError, match="more than the"):
        tensors.read(data, limit=len(data) - 1)


def test_a_refusal_names_the_field():
    with pytest.raises(ContributionError) as caught:
        tensors.read(packed({"weights": entry(0, 1, shape=[7])}, b"x"))
    assert caught.value.field == "weights"


GOOD = tensors.write({"w": np.arange(3.0), "b": np.array([True, False])}, {"k": "v"})


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(GOOD)),
    st.binary(max_size=20),
)
@example([], len(GOOD), b"")
def test_mutated_bytes_raise_nothing_but_a_contribution_error(changes, cut, tail):
    data = bytearray(GOOD)
    for place, value in changes:
        data[place] = value
    mutated = bytes(data[:cut]) + tail
    try:
        found = tensors.read(mutated)
        tensors.metadata(mutated)
    except ContributionError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(mutated)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just([0, 8]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner, max_size=3)
            ),
        ),
        max_size=3,
    ),
    st.binary(max_size=16),
)
def test_any_header_at_all_raises_nothing_but_a_contribution_error(header, data):
    try:
        tensors.read(packed(header, data))
    except ContributionError:
        return
