"""Many contributions become one total, and a refused one leaves no trace."""

from __future__ import annotations

import numpy as np
import pytest

from hansa.aggregation import Reduction
from hansa.aggregation.reduce import BLOCK, PIECE, Block, piecewise
from hansa.contribution import VALUE_LIMIT, WEIGHT_LIMIT, Algebra, Contribution, Contributions, Field, Values
from hansa.errors import ContributionError

FIELDS = (
    Field("mean", shape=(2,)),
    Field("sum", shape=(), algebra=Algebra.SUM),
    Field("all", shape=(1,), algebra=Algebra.GATHER),
)


def one(mean: list[float], total: float, each: float, weight: float = 1.0) -> Contribution:
    values = {"mean": np.array(mean), "sum": np.asarray(total), "all": np.array([each])}
    return Contribution(Values(values), weight)


def test_every_algebra_is_what_it_says() -> None:
    reduction = Reduction(FIELDS, "ab")
    reduction.add("a", one([1.0, 2.0], 3.0, 4.0, weight=3.0))
    reduction.add("b", one([5.0, -2.0], 4.0, 6.0, weight=1.0))
    total = reduction.total(9)
    assert total.values["mean"].tolist() == [2.0, 1.0]
    assert total.values["sum"] == 7.0
    assert total.values["all"].tolist() == [[4.0], [6.0]]
    assert (total.parties, total.population, total.weight) == (("a", "b"), 9, 4.0)


@pytest.mark.parametrize(
    "bad",
    [
        one([np.nan, 0.0], 1.0, 1.0),
        one([0.0, 0.0], np.inf, 1.0),
        one([0.0, 0.0], 1.0, np.nan),
        one([0.0], 1.0, 1.0),
        one([0.0, 0.0], 1.0, 1.0, weight=-1.0),
        one([1e271, 0.0], 1.0, 1.0),
        one([0.0, 0.0], -1.7e308, 1.0),
    ],
    ids=["NaN", "infinity", "NaN last", "broadcastable", "weight", "absurd", "absurd sum"],
)
def test_a_refused_contribution_leaves_the_sums_as_they_were(bad: Contribution) -> None:
    good = [one([1.0, 2.0], 1e270, 4.0), one([3.0, 8.0], 1.0, 2.0)]
    asked = ["a", "bad", "b"]
    undisturbed, disturbed = Reduction(FIELDS, asked), Reduction(FIELDS, asked)
    for party, contribution in zip("ab", good, strict=True):
        undisturbed.add(party, contribution)
    disturbed.add("a", good[0])
    with pytest.raises(ContributionError):
        disturbed.add("bad", bad)
    disturbed.add("b", good[1])
    expected, found = undisturbed.total(3), disturbed.total(3)
    assert found.parties == expected.parties == ("a", "b")
    assert found.weight == expected.weight
    for name in expected.values:
        assert found.values[name].tobytes() == expected.values[name].tobytes()


def test_the_total_of_nobody_is_empty() -> None:
    total = Reduction(FIELDS, "abc").total(5)
    assert (dict(total.values), total.parties, total.population, total.weight) == ({}, (), 5, 0.0)


def test_sums_are_made_in_float64_whatever_travels() -> None:
    reduction = Reduction((Field("mean", shape=(), dtype="float32"),), "ab")
    for party, value in (("a", 1.0), ("b", 1e-9)):
        reduction.add(party, Contribution(Values({"mean": np.asarray(value, dtype=np.float32)})))
    total = reduction.total(2).values["mean"]
    assert total.dtype == np.float64
    assert total == (1.0 + float(np.float32(1e-9))) / 2


def ragged(seed: int) -> tuple[list[str], dict[str, Contribution]]:
    """Two blocks and a half of parties, some of whom are missing, with values of all sizes."""
    random = np.random.default_rng(seed)
    asked = [f"party-{i:02d}" for i in range(BLOCK * 5 // 2)]
    there = [name for name in asked if random.random() < 0.8]
    mean = random.normal(size=(len(there), 2)) * 10.0 ** random.integers(-9, 9, (len(there), 1))
    values = [one(list(m), random.normal(), random.normal(), random.uniform(1, 9)) for m in mean]
    return asked, dict(zip(there, values, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_blocks_that_were_summed_elsewhere_give_the_bits_of_one_party_after_the_other(seed: int) -> None:
    asked, there = ragged(seed)
    whole, merged = Reduction(FIELDS, asked), Reduction(FIELDS, asked)
    for party, contribution in there.items():
        whole.add(party, contribution)
    for begin in range(0, len(asked), BLOCK):
        block = Block(FIELDS)
        for party in asked[begin : begin + BLOCK]:
            if party in there:
                block.add(Contributions.of(party, there[party]), (0,))
        merged.merge(block)
    expected, found = whole.total(99), merged.total(99)
    assert found.parties == expected.parties == tuple(there)
    assert found.weight == expected.weight
    for name in expected.values:
        assert found.values[name].tobytes() == expected.values[name].tobytes()
    mean = np.average([c.values["mean"] for c in there.values()], axis=0, weights=[c.weight for c in there.values()])
    np.testing.assert_allclose(found.values["mean"], mean, rtol=1e-9)


def test_no_sum_of_values_that_are_let_in_overflows() -> None:
    asked = [str(i) for i in range(99)]
    reduction = Reduction(FIELDS, asked)
    for party in asked:
        reduction.add(party, one([VALUE_LIMIT, -VALUE_LIMIT], VALUE_LIMIT, 1.0, WEIGHT_LIMIT))
    total = reduction.total(99)
    assert total.values["mean"].tolist() == [VALUE_LIMIT, -VALUE_LIMIT]
    assert np.isfinite(total.values["sum"])


def test_an_all_zero_round_is_zero() -> None:
    reduction = Reduction(FIELDS, "ab")
    for party in "ab":
        reduction.add(party, one([0.0, 0.0], 0.0, 0.0))
    assert not any(value.any() for value in reduction.total(2).values.values())


def weighted_mean(models: list[dict[str, np.ndarray]], weights: list[float]) -> Values:
    """Of models that are to have the fields of the first."""
    fields = tuple(Field(name, shape=np.shape(value), dtype="float64") for name, value in models[0].items())
    reduction = Reduction(fields, "abc")
    for party, model, weight in zip("abc", models, weights, strict=False):
        reduction.add(party, Contribution(Values(model), float(weight)))
    return reduction.total(3).values


def test_the_weighted_mean_of_models_worked_out_by_hand() -> None:
    models = [
        {"coef": np.array([1.0, 2.0]), "intercept": np.asarray(0.0)},
        {"coef": np.array([5.0, 6.0]), "intercept": np.asarray(8.0)},
    ]
    mean = weighted_mean(models, [3, 1])
    assert mean["coef"].tolist() == [2.0, 3.0]
    assert mean["intercept"] == 2.0
    equal = weighted_mean(models, [1, 1])
    assert equal["coef"].tolist() == [3.0, 4.0]


W = np.array([1.0, 2.0])


@pytest.mark.parametrize(
    ("models", "weights", "reason"),
    [
        ([{"w": W}, {"v": W}], [1, 1], "field 'v': this field was not declared"),
        ([{"w": W}, {}], [1, 1], "field 'w': this declared field is missing"),
        ([{"w": W}, {"w": W, "v": W}], [1, 1], "field 'v': this field was not declared"),
        ([{"w": W}, {"w": W[:1]}], [1, 1], "field 'w': shape [1] where [2]"),
        ([{"w": W}, {"w": W * np.nan}], [1, 1], "field 'w': there is NaN in it"),
        ([{"w": W}, {"w": W}], [1, 0], "the weight is 0.0"),
        ([{"w": W}, {"w": W}], [1, -2], "the weight is -2.0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_models_and_weights_that_do_not_match_are_refused(
    models: list[dict[str, np.ndarray]], weights: list[float], reason: str
) -> None:
    with pytest.raises(ContributionError) as caught:
        weighted_mean(models, weights)
    assert reason in str(caught.value)


def test_a_piece_of_all_parties_at_a_time_gives_the_same_bits() -> None:
    random, parties = np.random.default_rng(0), [f"p{i}" for i in range(2 * BLOCK + 3)]
    fields = (
        Field("update", shape=(PIECE + 5,), dtype="float32"),
        Field("matrix", shape=(3, 4), algebra=Algebra.SUM),
        Field("rows", shape=(), algebra=Algebra.SUM),
    )
    given = {}
    for party in parties[::2]:  # the others are not counted
        values = {f.name: random.normal(size=f.shape or ()).astype(f.dtype) for f in fields}
        given[party] = Contribution(Values(values), float(random.integers(1, 50)))
    reduction, pieces = Reduction(fields, parties), list[None]()
    for party, contribution in given.items():
        reduction.add(party, contribution)
    expected = reduction.total(99)
    found = piecewise(fields, parties, given, 99, after=lambda: pieces.append(None))
    assert len(pieces) == 5  # two, one, one, and one for who is counted
    assert (found.parties, found.population, found.weight) == (expected.parties, 99, expected.weight)
    for field in fields:
        assert found.values[field.name].shape == field.shape
        assert found.values[field.name].tobytes() == expected.values[field.name].tobytes()
