"""A schedule is a fold over arrivals: buffered asynchrony fits `exchange` as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

import hansa as hs
from hansa.aggregation import Reduction
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Arrival, Ask, Contribution, Total, Values
from hansa.keyed import generator
from hansa.methods.course import Course, Progress
from hansa.party import Crowd

SIZES = {"a": 30, "b": 12, "c": 40, "d": 25, "e": 18}


class Slow:
    """A backend in which an answer takes its time: some arrive in a later call than they were asked in."""

    def __init__(self, inner: LocalExchange, seed: int) -> None:
        self.inner, self.memories = inner, inner.memories
        self._random, self._under_way = generator(seed, "slowness"), list[Arrival]()

    def exchange(self, asks: Sequence[Ask]) -> Iterator[Arrival]:
        self._under_way += self.inner.exchange(asks)
        for _ in range(int(self._random.integers(1, len(self._under_way) + 1))):
            yield self._under_way.pop(int(self._random.integers(len(self._under_way))))


def rows() -> dict[str, hs.Table]:
    random = np.random.default_rng(1)
    parties = {}
    for shift, (name, size) in enumerate(SIZES.items()):
        x = random.normal(0.2 * shift, 1.0, size)
        parties[name] = hs.Table.of({"x": x, "y": 3 * x - 1 + random.normal(0, 0.01, size)})
    return parties


def course(tables: Mapping[str, hs.Table], rounds: int = 60) -> Course:
    federation = hs.Federation(
        task=hs.LinearRegression(target="y"),
        method=hs.FedAvg(local=hs.SGD(lr=0.1), server=hs.SGD(lr=1.0)),
        rounds=rounds,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(holdout=0),
    )
    return federation.course(federation.resolve({n: t.schema() for n, t in tables.items()}))


def buffered(course: Course, exchange: LocalExchange | Slow, goal: int, log: list[int] | None = None) -> Progress:
    """FedBuff (Nguyen et al. 2022, arXiv 2106.06639): apply after every ``goal`` arrivals.

    A party is asked again as soon as it has answered. An update counts by 1 / sqrt(1 + staleness).
    """
    progress, buffer = course.begin(), list[Arrival]()
    idle = set(course.setup.parties)
    while (ask := course.ask(progress)) is not None:
        asks = [replace(ask, parties=(party,)) for party in sorted(idle)]
        idle.clear()
        for arrival in exchange.exchange(asks):
            idle |= set(arrival.ask.parties)
            if arrival.total.parties:
                buffer.append(arrival)
        if len(buffer) < goal:
            continue
        reduction = Reduction(course.signals(ask)[-1].fields, course.setup.parties)
        for arrival in sorted(buffer, key=lambda a: (a.ask.version, a.ask.parties)):
            staleness = progress.version - arrival.ask.version
            if log is not None:
                log.append(staleness)
            weight = arrival.total.weight / (1 + staleness) ** 0.5
            for party in arrival.total.parties:
                reduction.add(party, Contribution(arrival.total.values, weight))
        buffer.clear()
        progress = course.apply(progress, ask, reduction.total(len(course.setup.parties)))
    return progress


@pytest.mark.parametrize("seed", range(3))
def test_a_buffered_schedule_learns_from_arrivals_that_come_late(seed: int) -> None:
    tables, staleness = rows(), list[int]()
    this = course(tables)
    end = buffered(this, Slow(LocalExchange(this, Crowd(tables, this)), seed), goal=3, log=staleness)
    assert max(staleness) >= 2
    assert end.round == 60
    np.testing.assert_allclose(end.parameters, [3.0, -1.0], atol=0.05)


def test_a_buffer_as_large_as_the_roster_on_a_prompt_backend_is_the_synchronous_schedule() -> None:
    tables = rows()
    this = course(tables, rounds=7)
    end = buffered(this, LocalExchange(this, Crowd(tables, this)), goal=len(SIZES))
    federation = hs.Federation(
        task=this.task, method=this.method, rounds=7, preprocessing=this.moments, evaluation=this.evaluate
    )
    expected = federation.run(hs.Local(tables)).parameters
    np.testing.assert_allclose(end.parameters, expected, rtol=1e-13)


def test_a_party_that_cannot_answer_holds_no_buffer_up() -> None:
    tables = {**rows(), "f": hs.Table.of({"x": [1.0, 2.0], "y": [np.nan, 1.0]})}
    this = course(tables, rounds=20)
    end = buffered(this, LocalExchange(this, Crowd(tables, this)), goal=4)
    assert end.round == 20
    exchange = LocalExchange(this, Crowd(tables, this))
    ask = this.ask(this.begin())
    assert ask is not None
    [arrival] = exchange.exchange([replace(ask, parties=("f",))])
    assert arrival.total.parties == ()
    assert dict(arrival.total.values) == {}
    assert arrival.excluded == {"f": "the target 'y' is missing in row 1"}


def test_asks_arrive_in_the_order_in_which_they_were_asked_in_simulation() -> None:
    tables = rows()
    this = course(tables)
    ask = this.ask(this.begin())
    assert ask is not None
    asks = [replace(ask, parties=(party,)) for party in ("c", "a", "d")]
    arrivals = list(LocalExchange(this, Crowd(tables, this)).exchange(asks))
    assert [arrival.total.parties for arrival in arrivals] == [("c",), ("a",), ("d",)]
    assert [arrival.ask for arrival in arrivals] == asks
    totals: list[Total] = [arrival.total for arrival in arrivals]
    assert [total.weight for total in totals] == [40.0, 30.0, 25.0]
    assert all(isinstance(total.values, Values) for total in totals)
