"""What an agent works out for a secure sum, whatever is described to it in between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.agent.desk import STUDIES, Desk
from hansa.agent.machine import Asked
from hansa.agent.policy import Offer
from hansa.contribution import Ask
from hansa.federation import deployed
from hansa.party import Party
from hansa.run import draw

RANDOM = np.random.default_rng(3)
TABLES = {name: hs.Table.of({"x": (x := RANDOM.normal(size=20)), "y": 2 * x + 1}) for name in "abcd"}
NOISY = agg.grid(bits=10, examples=40) >> agg.skellam(noise_multiplier=2.0)


def study(statistics: Any) -> hs.Federation:
    return hs.Federation(
        name="lines",
        task=hs.LinearRegression(target="y"),
        statistics=statistics,
        contract=hs.Contract(columns={"x": hs.ColumnRule(type="number", low=-10, high=10)}),
        evaluation=hs.Evaluate(every=0, holdout=0),
        privacy=hs.Privacy(unit="example"),
        cohort=hs.All(minimum=4),
        rounds=3,
    )


HIDDEN, OPEN = study(NOISY >> agg.secure_sum(threshold=1.0)), study(NOISY)
SETUP = HIDDEN.resolve({name: table.schema() for name, table in TABLES.items()})


def first(federation: hs.Federation) -> Ask:
    course = deployed(federation, SETUP, b"k" * 32, "run")
    ask = course.ask(course.begin())
    assert ask is not None
    return draw(federation, course, ask)


def asked(federation: hs.Federation, attempt: int) -> Asked:
    return Asked("run", first(federation), attempt, federation.hash)


@pytest.fixture
def desk() -> Desk:
    made = Desk("a", [Offer("lines", TABLES["a"], ("linear-regression",))], b"s" * 32)
    made.describe("run", HIDDEN.to_json(), SETUP.to_json())
    return made


def test_each_attempt_has_noise_of_its_own_and_none_has_that_of_what_is_open(desk: Desk) -> None:
    vectors = set()
    for attempt in (1, 2, 3):
        for _ in range(2):
            sitting = desk.work(asked(HIDDEN, attempt), b"").sitting
            assert sitting is not None
            vectors.add(sitting.vector.tobytes())
    assert len(vectors) == 3
    course = deployed(HIDDEN, SETUP, b"s" * 32, "run")
    keys = {Party("a", TABLES["a"], course).again(attempt).course.chance for attempt in (1, 2)}
    assert len(keys | {course.chance}) == 3


@pytest.mark.parametrize("between", [0, STUDIES])
def test_a_study_that_is_described_anew_is_worked_on_as_described_and_charged_so(desk: Desk, between: int) -> None:
    assert desk.work(asked(HIDDEN, 1), b"").sitting is not None
    for number in range(between):
        desk.describe(f"other {number}", HIDDEN.to_json(), SETUP.to_json())
    desk.describe("run", OPEN.to_json(), SETUP.to_json())
    again = desk.work(asked(OPEN, 2), b"")
    alone = Desk("a", [Offer("lines", TABLES["a"], ("linear-regression",))], b"s" * 32)
    alone.describe("run", OPEN.to_json(), SETUP.to_json())
    due = alone.work(asked(OPEN, 2), b"")
    assert again.sitting is due.sitting is None
    assert (again.body, again.charge["event"]) == (due.body, due.charge["event"])
    assert again.charge["event"]["kind"] == "exact"  # each share of the noise alone protects nobody


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fedsgd"])
def test_no_ask_of_a_study_brings_more_than_several_times_what_it_begins_with(desk: Desk, method: str) -> None:
    study: dict[str, Any] = {"name": "lines", "task": hs.LinearRegression(target="y"), "method": {"kind": method}}
    federation = hs.Federation(**study)
    setup = federation.resolve({name: table.schema() for name, table in TABLES.items()})
    desk.describe("run", federation.to_json(), setup.to_json())
    course = federation.course(setup)
    for phase in ("moments", "train", "evaluate"):
        begun: Any = replace(course.begin(), phase=phase)
        ask = course.ask(begun)
        assert ask is not None
        assert 2 * ask.send.nbytes <= desk.begins("run")
