"""Parties as ranges of rows of one table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import hansa as hs
from hansa.data.population import Numbered, Population, listed, unlisted
from hansa.data.table import Table
from hansa.errors import DataError
from hansa.methods import Setup

COLUMNS = {"x": np.arange(10.0), "y": np.arange(10.0) ** 2}


def test_parties_lie_one_after_the_other():
    population = Population.of_sizes(COLUMNS, [3, 0, 5, 2])
    assert list(population) == ["party-1", "party-2", "party-3", "party-4"]
    assert len(population) == 4
    assert [table.rows for table in population.values()] == [3, 0, 5, 2]
    assert population["party-3"].column("x").tolist() == [3.0, 4.0, 5.0, 6.0, 7.0]
    assert population["party-3"].names == ("x", "y")
    assert population.range("party-4") == slice(8, 10)


def test_a_party_is_a_view_that_nobody_can_write_to():
    source = np.arange(10.0)
    population = Population.of_sizes({"x": source}, [4, 6])
    column = population["party-2"].column("x")
    assert np.shares_memory(column, source)
    with pytest.raises(ValueError, match="read-only"):
        column[0] = 1.0


def test_rows_that_a_partitioner_deals_out_are_copied_once_into_their_order():
    dealt = [np.array([9, 0]), np.array([], dtype=int), np.array([4, 2, 7])]
    population = Population.of_rows(COLUMNS, dealt)
    assert population.table.rows == 5
    assert [population[name].column("x").tolist() for name in population] == [[9.0, 0.0], [], [4.0, 2.0, 7.0]]


def test_parties_may_share_rows():
    population = Population(COLUMNS, [0, 2, 0], [6, 8, 10])
    first, second, third = population.values()
    assert first.column("x").tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    assert second.column("x").tolist() == [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert np.shares_memory(first.column("y"), second.column("y"))
    assert third.rows == 10


def test_a_million_parties_cost_an_index():
    million = 1_000_000
    starts = np.zeros(million, np.int64)
    population = Population(COLUMNS, starts, starts + 4)
    assert len(population) == million
    assert population["party-1000000"].rows == 4
    assert "party-1000001" not in population
    assert next(iter(population)) == "party-0000001"


def test_columns_may_lie_on_disk(tmp_path: Path):
    images = np.lib.format.open_memmap(tmp_path / "images.npy", mode="w+", dtype=np.float32, shape=(8, 3, 3))
    images[:] = np.arange(72, dtype=np.float32).reshape(8, 3, 3)
    images.flush()
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.arange(8) % 2
    population = Population.of_sizes({"image": mapped, "label": labels}, [3, 5])
    mine = population["party-2"].column("image")
    assert isinstance(mine, np.memmap)
    assert np.shares_memory(mine, mapped)
    assert mine.dtype == np.float32
    np.testing.assert_array_equal(mine, images[3:])
    task = hs.SoftmaxRegression(target="label", classes=(0, 1), precision="float32")
    study = hs.Federation(task=task, rounds=2, evaluation=hs.Evaluate(holdout=0.4))
    in_memory = Population.of_sizes({"image": np.array(mapped), "label": labels}, [3, 5])
    one, other = (study.run(hs.Local(parties)) for parties in (population, in_memory))
    assert one.parameters.tobytes() == other.parameters.tobytes()
    assert one.metrics() == other.metrics()


@pytest.mark.parametrize(
    ("starts", "stops", "reason"),
    [
        ([0], [11], "lie outside the table of 10 rows"),
        ([-1], [3], "lie outside the table of 10 rows"),
        ([0, 5], [3, 4], "party 2 ends before it begins"),
        ([0, 1], [3], r"make no parties\. Give the first row of each party"),
        ([], [], "make no parties"),
        ([[0]], [[3]], "make no parties"),
    ],
)
def test_ranges_that_make_no_parties_are_refused(starts, stops, reason):
    with pytest.raises(DataError, match=reason):
        Population(COLUMNS, starts, stops)


def test_columns_that_make_no_table_are_refused():
    with pytest.raises(DataError, match="differ in length"):
        Population.of_sizes({"x": np.zeros(3), "y": np.zeros(4)}, [1])
    with pytest.raises(DataError, match="lie outside"):
        Population.of_sizes(COLUMNS, [9, 2])


def test_who_is_not_there_is_said():
    population = Population.of_sizes(COLUMNS, [5, 5])
    for name in ("party-3", "party-0", "party-01", "north", "party-", "party-x", "party-²", ""):
        assert name not in population
        with pytest.raises(DataError, match=f"no party is called {name!r}"):
            population[name]


@pytest.mark.parametrize("count", [1, 9, 10, 120])
def test_names_are_numbered_so_that_their_order_is_that_of_the_rows(count: int):
    names = Numbered(count)
    assert len(names) == len(set(names)) == count
    assert sorted(names) == list(names)
    assert [names.index(name) for name in names] == list(range(count))
    assert names[-1] == list(names)[-1]
    assert names[:2] == tuple(names)[:2]
    assert names == Numbered(count)
    assert hash(names) == hash(Numbered(count))
    assert names != Numbered(count + 1)
    with pytest.raises(IndexError):
        names[count]


def test_a_roster_is_two_facts_in_json_and_comes_back():
    names = Numbered(1_000_000)
    text = json.dumps(listed(names))
    assert len(text) < 50
    assert unlisted(json.loads(text)) == names
    assert unlisted(json.loads(json.dumps(listed(("a", "b"))))) == ("a", "b")
    setup = Setup(names, ("x",), seed=3)
    again = Setup.from_json(json.loads(json.dumps(setup.to_json())))
    assert again == setup
    assert again.parties[999_999] == "party-1000000"


def test_a_population_takes_a_table_as_it_is():
    table = Table.of({"x": [1.0, 2.0, 3.0], "word": ["a", "b", None]})
    population = Population.of_sizes(table, [1, 2])
    assert population.table is table
    assert population["party-2"].column("word").tolist() == ["b", None]
    assert population["party-2"].schema() == table.schema()
