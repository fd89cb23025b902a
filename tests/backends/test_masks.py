"""Secure sums in simulation, carried out as between machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.backends.clock import Clock
from hansa.errors import RunError, StudyError, UsageError
from hansa.secure import coordinator as rows
from hansa.secure import rehearsal
from hansa.secure.terms import Rules

CHAIN = agg.clip(1.0) >> agg.rotate() >> agg.grid(bits=12)
SHARES = CHAIN >> agg.discrete_gaussian(noise_multiplier=1.0) >> agg.secure_sum(threshold=0.6)


@pytest.fixture(scope="module")
def population() -> hs.Population:
    random = np.random.default_rng(2)
    x = random.normal(size=(200, 3))
    columns = {f"x{i}": x[:, i] for i in range(3)} | {"y": (x.sum(axis=1) > 0).astype(float)}
    return hs.Population.of_sizes(columns, [20] * 10)


def study(chain: agg.Aggregation = SHARES, **more: Any) -> hs.Federation:
    known: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y"),
        "method": hs.FedAvg(local=hs.SGD(lr=0.5), weights="equal"),
        "aggregation": chain,
        "rounds": 3,
        "cohort": hs.Fixed(size=8, minimum=5),
    }
    return hs.Federation(**{**known, **more})


@pytest.mark.parametrize("engine", ["stacked", "resident"])
@pytest.mark.parametrize("chain", [SHARES, CHAIN >> agg.secure_sum()], ids=["noise", "no noise"])
def test_the_sums_under_masks_are_those_without_to_the_bit(
    engine: Any, chain: agg.Aggregation, population: hs.Population
) -> None:
    plain, masked = (study(chain).run(hs.Local(population, engine=engine, masks=masks)) for masks in (False, True))
    assert plain.parameters.tobytes() == masked.parameters.tobytes()
    assert plain.metrics() == masked.metrics()


def test_statistics_go_under_masks_too(population: hs.Population) -> None:
    chain = agg.grid(bits=10, examples=40) >> agg.skellam(noise_multiplier=2.0) >> agg.secure_sum()
    rule = hs.ColumnRule(type="number", low=-5, high=5)
    federation = study(
        agg.Aggregation(),
        statistics=chain,
        cohort=hs.All(minimum=5),
        contract=hs.Contract(columns={f"x{i}": rule for i in range(3)}),
        privacy=hs.Privacy(unit="example"),
    )
    plain, masked = (federation.run(hs.Local(population, masks=masks)) for masks in (False, True))
    assert plain.parameters.tobytes() == masked.parameters.tobytes()


def test_parties_that_are_lost_on_the_way_are_not_in_the_sum(population: hs.Population) -> None:
    clock = Clock(dropout=0.1)
    plain, masked = (study(rounds=6).run(hs.Local(population, clock=clock, masks=masks)) for masks in (False, True))
    assert plain.parameters.tobytes() == masked.parameters.tobytes()
    lost = [len(e.body["excluded"]) for e in masked.events if e.kind == "arrived"]
    assert max(lost) > 0


BUCKETS = CHAIN >> agg.bucket(size=2) >> agg.secure_sum() >> agg.geometric_median()


@pytest.mark.parametrize("engine", ["stacked", "resident"])
def test_the_sums_of_buckets_under_masks_are_those_without_to_the_bit(engine: Any, population: hs.Population) -> None:
    chain = agg.adaptive_clip(norm=0.5) >> agg.grid(bits=12) >> agg.bucket(size=2)
    chain = chain >> agg.skellam(noise_multiplier=1.0) >> agg.secure_sum() >> agg.median()
    runs = [study(chain).run(hs.Local(population, engine=engine, masks=masks)) for masks in (False, True)]
    again = study(chain).run(hs.Local(population, engine=engine, replay=runs[0]))
    assert len({run.parameters.tobytes() for run in (*runs, again)}) == 1
    for event in (e for e in runs[0].events if e.kind == "arrived" and e.body["work"] == "train"):
        assert [len(names) for names in event.body["buckets"]] == [2] * 4
        assert sorted(n for names in event.body["buckets"] for n in names) == sorted(event.body["counted"])


def test_a_bucket_of_which_too_few_come_is_left_out_and_the_others_count(population: hs.Population) -> None:
    federation = study(BUCKETS, rounds=8, cohort=hs.All(minimum=5))
    clock = Clock(dropout=0.08)
    plain, masked = (federation.run(hs.Local(population, clock=clock, masks=masks)) for masks in (False, True))
    assert plain.parameters.tobytes() == masked.parameters.tobytes()
    left_out = [e.body for e in plain.events if e.kind == "arrived" and rows.LOST in e.body["excluded"].values()]
    assert left_out
    for body in left_out:
        assert len(body["buckets"]) < 5
        assert not set(body["counted"]) & set(body["excluded"])
    again = federation.run(hs.Local(population, replay=masked, masks=True))
    assert again.parameters.tobytes() == masked.parameters.tobytes()


def test_too_few_buckets_end_the_run_and_say_so(population: hs.Population) -> None:
    federation = study(BUCKETS, rounds=9, cohort=hs.All(minimum=2))
    with pytest.raises(RunError, match="geometric-median needs 3 buckets to withstand"):
        federation.run(hs.Local(population, clock=Clock(dropout=0.6)))


def test_more_losses_than_the_threshold_allows_open_nothing() -> None:
    vectors = {f"p{i}": np.full(4, i, np.uint32) for i in range(10)}
    few = {name: vectors[name] for name in list(vectors)[:5]}
    rules = Rules(corrupt=1, dropout=0.3, honest=2)
    whole = rehearsal.summed(vectors, vectors, rules, "run", 1, bytes(32))
    assert whole.tolist() == [45] * 4
    with pytest.raises(RunError, match="ended without one"):
        rehearsal.summed(vectors, few, rules, "run", 2, bytes(32))


def test_nobody_in_the_middle_sees_a_vector(monkeypatch: pytest.MonkeyPatch, population: hs.Population) -> None:
    """What the coordinator is given is none of the vectors, nor near one."""
    given: list[Mapping[str, bytes]] = []
    sent: list[Mapping[str, Any]] = []
    total, summed = rehearsal.coordinator.total, rehearsal.summed

    def watched(desk: Any, vector: Callable[[str], bytes]) -> Any:
        given.append({name: vector(name) for name in desk.survivors})
        return total(desk, vector)

    def told(names: Sequence[str], vectors: Mapping[str, Any], *more: Any) -> Any:
        sent.append(dict(vectors))
        return summed(names, vectors, *more)

    monkeypatch.setattr(rehearsal.coordinator, "total", watched)
    monkeypatch.setattr(rehearsal, "summed", told)
    study(rounds=1).run(hs.Local(population, masks=True))
    assert given
    for masked, plain in zip(given, sent, strict=True):
        for name, vector in plain.items():
            seen = np.frombuffer(masked[name], np.uint32, count=len(vector))
            assert not (seen == vector).any()


@pytest.mark.parametrize(
    ("chain", "more", "error", "says"),
    [
        (agg.clip(1.0), {}, UsageError, "no secure sums to put masks on"),
        (
            SHARES,
            {"adversary": hs.Adversary(colluding=7), "cohort": hs.Fixed(size=8, minimum=8)},
            StudyError,
            "collude",
        ),
    ],
)
def test_masks_that_could_not_hold_are_refused(
    chain: agg.Aggregation, more: dict[str, Any], error: type[Exception], says: str, population: hs.Population
) -> None:
    with pytest.raises(error, match=says):
        study(chain, **more).run(hs.Local(population, masks=True))


def test_guarantee_and_rules_are_those_of_a_bucket_with_all_who_collude_in_it(population: hs.Population) -> None:
    chain = CHAIN >> agg.bucket(size=5, minimum=4) >> agg.skellam(noise_multiplier=2.0) >> agg.secure_sum()
    whole = CHAIN >> agg.skellam(noise_multiplier=2.0) >> agg.secure_sum()
    more: dict[str, Any] = {"cohort": hs.All(minimum=8), "adversary": hs.Adversary(colluding=1), "rounds": 1}
    more |= {"evaluation": hs.Evaluate(every=0), "preprocessing": hs.Moments(standardise=False)}
    federation, one = study(chain, **more), study(whole, **more)
    setup = federation.resolve({population.names[0]: population.table.schema()}, population.names)
    course = federation.course(setup)
    signal = course.signals(course.ask(course.begin()))[-1]
    assert federation.rules(10, signal.buckets) == Rules(1, 1 - 4 / 5, "curious", honest=2, bucket=5)
    assert federation.rules(10) == Rules(1, 1 - 0.8, "curious", honest=6)  # of the study's other secure sums
    [noised] = signal.noise
    assert noised.event.shares == 3  # of the four that stay
    apart, together = federation.guaranteed(setup), one.guaranteed(setup)
    assert apart["public"].epsilon == pytest.approx(together["public"].epsilon, rel=0.01)
    assert apart["coordinator"].sees == ("only totals over 4 or more parties each of the models of 1 rounds",)
    assert apart["coordinator"].epsilon < 3
