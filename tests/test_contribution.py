"""What leaves a party is exactly what was declared."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest

from hansa.contribution import WEIGHT_LIMIT, Algebra, Array, Ask, Contribution, Field, Values, canonical, check
from hansa.errors import ContributionError, StudyError

FIELDS = (
    Field("update", like="parameters", shape=(2, 3)),
    Field("loss", shape=(), algebra=Algebra.SUM, low=0.0, high=10.0),
)
UPDATE = np.arange(6.0).reshape(2, 3)


def contribution(update: Array | None = None, loss: object = 1.0, weight: float = 5.0, **more: Array) -> Contribution:
    values = {"update": UPDATE if update is None else update, "loss": np.asarray(loss), **more}
    return Contribution(Values(values), weight)


def spoilt(value: float) -> Array:
    array = UPDATE.copy()
    array[1, 2] = value
    return array


def test_what_was_declared_is_accepted() -> None:
    check(contribution(), FIELDS)
    check(contribution(np.zeros((2, 3)), loss=0.0, weight=1e-9), FIELDS)
    check(contribution(loss=10.0, weight=WEIGHT_LIMIT), FIELDS)


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        (contribution(np.zeros((3, 2))), "update", "shape [3, 2] where [2, 3] was declared"),
        (contribution(np.zeros(6)), "update", "shape [6] where [2, 3] was declared"),
        (contribution(np.zeros((1, 3))), "update", "shape [1, 3] where"),
        (contribution(np.zeros(3)), "update", "shape [3] where"),
        (contribution(np.zeros(())), "update", "shape [] where"),
        (contribution(np.zeros((1, 2, 3))), "update", "shape [1, 2, 3] where"),
        (contribution(loss=[1.0]), "loss", "shape [1] where [] was declared"),
        (contribution(UPDATE.astype("float32")), "update", "dtype float32 where float64"),
        (contribution(UPDATE.astype("int64")), "update", "dtype int64 where float64"),
        (contribution(UPDATE.astype("complex128")), "update", "dtype complex128 where"),
        (contribution(UPDATE.astype("object")), "update", "dtype object where"),
        (contribution(UPDATE.astype(">f8")), "update", "dtype >f8 where"),
        (contribution(spoilt(math.nan)), "update", "there is NaN in it"),
        (contribution(spoilt(math.inf)), "update", "there is an infinity in it"),
        (contribution(spoilt(-math.inf)), "update", "there is an infinity in it"),
        (contribution(loss=10.1), "loss", "values from 10.1 to 10.1 where 0 to 10 was declared"),
        (contribution(loss=-1e-9), "loss", "where 0 to 10 was declared"),
        (contribution(extra=np.zeros(2)), "extra", "this field was not declared"),
        (Contribution(Values({"update": UPDATE})), "loss", "this declared field is missing"),
        (Contribution(Values()), "update", "this declared field is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_field_is_refused_by_name(bad: Contribution, field: str, reason: str) -> None:
    with pytest.raises(ContributionError) as caught:
        check(bad, FIELDS)
    assert caught.value.field == field
    assert reason in caught.value.message


@pytest.mark.parametrize(("bad", "reason"), [(math.nan, "NaN"), (math.inf, "infinity"), (-1e300, "1e\\+300 is absurd")])
@pytest.mark.parametrize("place", [0, (1 << 18) - 1, 1 << 18, 3 << 18])
def test_one_bad_number_among_many_is_found_wherever_it_is(place: int, bad: float, reason: str) -> None:
    update = np.zeros((3 << 18) + 1)
    update[place] = bad
    field = Field("update", shape=update.shape)
    with pytest.raises(ContributionError, match=reason):
        check(Contribution(Values({"update": update}), 1.0), (field,))
    update[place] = 0.0
    check(Contribution(Values({"update": update}), 1.0), (field,))


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (0.0, "the weight is 0.0; it must be positive and finite"),
        (-1.0, "the weight is -1.0; it must be positive and finite"),
        (math.nan, "the weight is nan"),
        (math.inf, "the weight is inf"),
        (-math.inf, "the weight is -inf"),
        (WEIGHT_LIMIT * 1.01, "is absurd; the limit is 1.09951e+12"),
        (1e300, "the weight 1e+300 is absurd"),
    ],
)
def test_a_bad_weight_is_refused(weight: float, reason: str) -> None:
    with pytest.raises(ContributionError) as caught:
        check(contribution(weight=weight), FIELDS)
    assert reason in caught.value.message


def test_an_empty_field_is_a_field() -> None:
    check(Contribution(Values({"none": np.empty(0)})), (Field("none", shape=(0,), low=0.0),))


def test_values_do_not_change() -> None:
    source = UPDATE.copy()
    values = Values({"update": source})
    assert values.update is values["update"]
    with pytest.raises(AttributeError, match="do not change"):
        values.update = UPDATE
    with pytest.raises(ValueError, match="read-only"):
        values.update[0, 0] = 1.0
    source[0, 0] = 1.0  # who made it may still write into it
    assert not hasattr(values, "other")
    with pytest.raises(AttributeError, match=r"no value named 'updat'; there are \['update'\]"):
        values.updat  # noqa: B018  # the access is the test
    assert repr(values) == "Values(update: float64[2, 3])"
    assert values.nbytes == 48


def test_values_can_be_copied() -> None:
    values = Values({"update": UPDATE})
    for twin in (copy.copy(values), copy.deepcopy(values), pickle.loads(pickle.dumps(values))):
        np.testing.assert_array_equal(twin.update, UPDATE)


def ask(**send: Array) -> Ask:
    return Ask("train", 3, 1, Values(send or {"parameters": UPDATE}), FIELDS, "update", ("a", "b"))


def test_an_ask_is_known_by_its_content() -> None:
    assert ask() == ask()
    assert hash(ask()) == hash(ask())
    assert ask() != "ask"
    assert ask(parameters=UPDATE[:, ::-1][:, ::-1]) == ask()


def test_one_byte_makes_another_ask() -> None:
    one = np.frombuffer(bytes([1]) + UPDATE.tobytes()[1:]).reshape(2, 3)
    assert (one != UPDATE).sum() == 1
    others = [
        ask(parameters=one),
        ask(parameters=UPDATE.reshape(3, 2)),
        ask(parameters=UPDATE.view(np.int64)),
        ask(parameter=UPDATE),
        ask(parameters=UPDATE, more=np.empty(0)),
        replace(ask(), round=2),
        replace(ask(), version=4),
        replace(ask(), parties=("a",)),
        replace(ask(), work="evaluate"),
        replace(ask(), through="plain"),
        replace(ask(), fields=FIELDS[:1]),
        replace(ask(), fields=(FIELDS[0], replace(FIELDS[1], high=11.0))),
    ]
    assert len({ask().digest, *(other.digest for other in others)}) == len(others) + 1


def test_names_and_bytes_cannot_be_shifted_into_each_other() -> None:
    one = ask(a=np.frombuffer(b"b1234567", np.uint8), c=np.empty(0))
    other = ask(ab=np.frombuffer(b"1234567", np.uint8), c=np.empty(0))
    assert one != other


def test_an_ask_is_the_same_after_its_header() -> None:
    header = json.loads(canonical(ask().header()))
    assert Ask.from_header(header, ask().send) == ask()
    assert "among" not in header
    grown = replace(ask(), among=3)
    assert Ask.from_header(json.loads(canonical(grown.header())), ask().send) == grown != ask()


def test_a_field_is_the_same_after_json() -> None:
    for field in (*FIELDS, Field("rows", shape=(4,), dtype="float32", secrecy="public", high=3.0)):
        assert Field.from_json(json.loads(canonical(field.to_json()))) == field


def test_a_field_without_shape_or_likeness_is_refused() -> None:
    assert Field("update", like="parameters").bind(7).shape == (7,)
    assert Field("rows", shape=()).bind(7).shape == ()
    with pytest.raises(StudyError, match="field 'rows' has neither a shape nor likeness"):
        Field("rows").bind(7)


def test_canonical_json_is_one_string_per_value() -> None:
    assert canonical({"b": 1, "a": ["é", 0.1]}) == '{"a":["é",0.1],"b":1}'.encode()
    assert canonical({"a": ["é", 0.1], "b": 1}) == canonical({"b": 1, "a": ["é", 0.1]})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"loss": math.nan})
