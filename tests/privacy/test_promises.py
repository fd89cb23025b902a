"""Small promises on which guarantees rest, one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.agent.policy import Offer, admit
from hansa.aggregation import Gaussian, Signal
from hansa.aggregation.noise import LocalLaplace
from hansa.contribution import Field, Values
from hansa.errors import ConsentError, ContributionError, PipelineError, RunError, StudyError
from hansa.methods.base import Setup
from hansa.party import Party
from hansa.privacy import noise
from hansa.run import draw, needed

BOUNDED = hs.Contract(columns={n: hs.ColumnRule(type="number", low=-10, high=10) for n in ("a", "b")})
PRIVATE = hs.FedAvg(
    local=hs.DPSGD(lr=0.1, batch_size=10, clip=1.0, noise_multiplier=1.0, rate=0.5, steps=2), weights="equal"
)
SHARES = agg.clip(1.0) >> agg.grid(bits=8) >> agg.skellam(noise_multiplier=1.0) >> agg.secure_sum()


@pytest.fixture(scope="module")
def tables() -> dict[str, hs.Table]:
    random = np.random.default_rng(9)
    found = {}
    for i in range(12):
        x = random.normal(size=(20, 2)).clip(-10, 10)
        found[f"party-{i:02d}"] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": 1.0 * (x[:, 0] > 0)})
    return found


def study(**more: Any) -> hs.Federation:
    known: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y"),
        "method": hs.FedAvg(weights="equal"),
        "rounds": 3,
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0),
    }
    return hs.Federation(**{**known, **more})


# --- shares of noise


@pytest.mark.parametrize(
    ("chain", "asked", "wanted"),
    [
        (SHARES, 0, 3),  # nobody was drawn: without a share the sum has no noise
        (SHARES, 2, 3),
        (SHARES, 9, 3),
        (agg.clip(1.0), 0, 0),
        (agg.clip(1.0), 2, 2),
        (agg.clip(1.0), 9, 3),
    ],
)
def test_a_round_with_shares_of_noise_needs_the_minimum_however_few_were_drawn(
    chain: agg.Aggregation, asked: int, wanted: int, tables: dict[str, hs.Table]
) -> None:
    federation = study(cohort=hs.Poisson(rate=0.1, minimum=3), aggregation=chain)
    course = federation.course(federation.resolve({n: t.schema() for n, t in tables.items()}))
    ask = course.ask(course.begin())
    assert ask is not None
    assert needed(federation, replace(ask, parties=tuple(tables)[:asked])) == wanted


def test_a_poisson_round_with_too_few_shares_is_not_opened(tables: dict[str, hs.Table]) -> None:
    federation = study(cohort=hs.Poisson(rate=0.1, minimum=3), aggregation=SHARES, rounds=20)
    with pytest.raises(RunError, match="the study needs 3"):
        federation.run(hs.Local(tables))
    bare = federation.model_copy(update={"aggregation": agg.clip(1.0)})
    assert bare.run(hs.Local(tables)).status == "finished"


def test_statistics_in_shares_need_the_minimum_too(tables: dict[str, hs.Table]) -> None:
    chain = agg.grid(bits=8, examples=50) >> agg.skellam(noise_multiplier=1.0) >> agg.secure_sum()
    federation = study(
        cohort=hs.All(minimum=4), statistics=chain, preprocessing=hs.Moments(), contract=BOUNDED,
        privacy=hs.Privacy(unit="example"),
        method=PRIVATE,
    )  # fmt: skip
    course = federation.course(federation.resolve({n: t.schema() for n, t in tables.items()}))
    ask = course.ask(course.begin())
    assert ask is not None
    assert ask.work == "moments"
    assert needed(federation, replace(ask, parties=tuple(tables)[:2])) == 4


# --- ranges of columns, at the agent


@pytest.mark.parametrize("twist", ["narrower", "wider", "none", "no noise", "another"])
def test_an_agent_refuses_ranges_that_are_not_the_contract_s(twist: str, tables: dict[str, hs.Table]) -> None:
    federation = study(
        name="rows", method=PRIVATE, preprocessing=hs.Moments(), contract=BOUNDED,
        statistics=agg.local_gaussian(noise_multiplier=1.0), privacy=hs.Privacy(unit="example"),
    )  # fmt: skip
    setup = federation.resolve({n: t.schema() for n, t in tables.items()})
    offers = [Offer("rows", tables["party-00"], ("logistic-regression",))]

    course = federation.course(setup)
    ask = course.ask(course.begin())
    assert ask is not None
    ask = draw(federation, course, ask)
    assert admit(federation, ask, setup, offers, "party-00") is offers[0]
    assert setup.bounds is not None
    bounds: dict[str, Any] = {
        "narrower": {**setup.bounds, "a": (-0.1, 0.1)},  # a row would be moved to the edge, or the next one seen
        "wider": {**setup.bounds, "a": (-1e6, 10)},
        "none": {},
        "no noise": None,
        "another": {"a": setup.bounds["a"]},
    }
    with pytest.raises(ConsentError, match="other ranges than the study's contract declares"):
        admit(federation, ask, replace(setup, bounds=bounds[twist]), offers, "party-00")


@pytest.mark.parametrize("numbers", [(), ("age",)])
def test_columns_of_categories_alone_have_noised_counts_too(numbers: tuple[str, ...]) -> None:
    """Rows and categories and, of a number column, gaps, sums and squares share the noise evenly."""
    study = hs.Federation(
        task=hs.LogisticRegression(target="y", features=("sex", *numbers)),
        method=PRIVATE,
        rounds=1,
        evaluation=hs.Evaluate(every=0, holdout=0),
        cohort=hs.All(minimum=1),
        contract=hs.Contract(
            columns={
                "sex": hs.ColumnRule(type="category", categories=("f", "m")),
                "age": hs.ColumnRule(type="number", low=0, high=100),
            }
        ),
        statistics=agg.local_gaussian(noise_multiplier=3.0),
        privacy=hs.Privacy(unit="example"),
    )
    table = hs.Table.of({"sex": ["f"] * 50 + ["m"] * 9, "age": np.arange(59.0), "y": np.ones(59)})
    setup = study.resolve({"a": table.schema()})
    assert Setup.from_json(json.loads(json.dumps(setup.to_json()))) == setup
    run = study.run(hs.Local({"a": table}))
    assert math.isfinite(run.guarantee["coordinator"].epsilon)
    assert run.progress is not None
    counts = run.progress.states["moments"].values["categories"]
    assert np.abs(counts - [50, 9, 0]).min() > 0  # of nine rows, too, and not as "other"
    assert np.abs(counts - [50, 9, 0]).max() < 5 * 3 * 5**0.5


# --- the ring of statistics


@pytest.mark.parametrize("cohort", [hs.Fixed(size=3), hs.Poisson(rate=0.25), hs.Cyclic(groups=4)])
@pytest.mark.parametrize("sample", [None, 2])
def test_sums_of_everybody_fit_the_ring_whatever_the_cohort_of_training_is(
    cohort: Any, sample: int | None, tables: dict[str, hs.Table]
) -> None:
    chain = agg.grid(bits=19, examples=900) >> agg.secure_sum()  # three parties' sums fit, twelve parties' do not
    federation = study(
        statistics=chain, cohort=cohort, preprocessing=hs.Moments(), contract=BOUNDED,
        evaluation=hs.Evaluate(every=1, sample=sample), privacy=hs.Privacy(unit="example"),
        method=PRIVATE,
    )  # fmt: skip
    setup = federation.resolve({n: t.schema() for n, t in tables.items()})
    course = federation.course(setup)
    begun = course.begin()
    moments = course.ask(begun)
    assert moments is not None
    with pytest.raises(PipelineError, match=r"the sum of 12 parties .* the ring ends at 2\^31"):
        course.signals(moments)
    with pytest.raises(PipelineError, match="the sum of 12 parties"):
        federation.guaranteed(setup)
    scored = replace(moments, work="evaluate", fields=federation.evaluation.fields(federation.task, own=False))
    if sample:
        assert course.signals(scored)[-1].among == replace(course.among, most=2, expected=2.0)
    else:
        with pytest.raises(PipelineError, match="the sum of 12 parties"):
            course.signals(scored)


HIDDEN = agg.local_gaussian(noise_multiplier=1.0), agg.grid(bits=9, examples=9) >> agg.secure_sum()


@pytest.mark.parametrize("chain", HIDDEN)
def test_a_sample_for_evaluation_below_the_minimum_is_refused_when_it_is_built(chain: agg.Aggregation) -> None:
    def sampled(size: int, chain: agg.Aggregation = chain, **more: Any) -> hs.Federation:
        evaluation = hs.Evaluate(sample=size, only=("accuracy",), **more)
        by_example = hs.Privacy(unit="example")
        return study(
            statistics=chain, cohort=hs.All(minimum=5), evaluation=evaluation, privacy=by_example, method=PRIVATE
        )

    with pytest.raises(StudyError, match=r"sample is below cohort.minimum.*Raise evaluation.sample"):
        sampled(4)
    assert all([sampled(5), sampled(4, every=0), sampled(4, agg.Aggregation())])


# --- the grid of noise from a key


def signal(size: int) -> Signal:
    field = Field("update", like="parameters", shape=(size,))
    return Signal((field,), norm=1.0, weights="equal")


def rounded(values: Any, spread: float) -> Any:
    """The integers under the noise."""
    return np.rint(values * (noise.GRID / spread))


@pytest.mark.parametrize(
    ("stage", "order", "size"), [(LocalLaplace, 1, 2**14), (Gaussian, 2, 2**24)], ids=["laplace", "gaussian"]
)
def test_rounding_to_the_grid_moves_neighbours_no_further_than_the_noise_pays_for(
    stage: Callable[..., Any], order: int, size: int
) -> None:
    z = 10.0
    made = stage(noise_multiplier=z)
    spread = made.spread(signal(size))["update"]
    step = spread / noise.GRID
    # All entries move alike, and rounding moves each of them by another half step at both ends.
    each = 1 / np.sqrt(size)
    low = (np.floor(0.5 * each / step) + 0.5 + 1e-6 - each / step) * step
    near, far = np.full(4, low), np.full(4, low + each)
    apart = np.abs(rounded(far, spread) - rounded(near, spread))
    moved = apart[0] * (size if order == 1 else np.sqrt(size)) / noise.GRID
    bare = (np.sqrt(size) if order == 1 else 1) / (spread * (1 - moved * 0))  # without rounding
    assert moved <= 1 / z
    assert bare < moved  # rounding does cost
    unpaid = z * (np.sqrt(size) if order == 1 else 1)  # the spread that would forget it
    assert np.abs(each / (unpaid / noise.GRID) + 1) * (size if order == 1 else np.sqrt(size)) / noise.GRID > 1 / z


def test_laplace_noise_from_a_key_lies_on_its_grid_and_has_its_scale() -> None:
    stream = noise.Stream(bytes(32))
    values = np.linspace(-3, 3, 200_000)
    drawn = noise.noised(values, 2.5, stream, laplace=True)
    steps = drawn * (noise.GRID / 2.5)
    assert np.array_equal(steps, np.rint(steps))  # and nothing of a value in the low bits of a float
    left = drawn - values
    assert np.abs(left).mean() == pytest.approx(2.5, rel=0.01)
    assert left.std() == pytest.approx(2.5 * np.sqrt(2), rel=0.02)
    again = noise.noised(values, 2.5, noise.Stream(bytes(32)), laplace=True)
    assert np.array_equal(again, drawn)


# --- evaluation


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e308])
def test_a_model_that_diverged_is_scored_under_noise_and_refused_without(
    wrong: float, tables: dict[str, hs.Table]
) -> None:
    federation = study(evaluation=hs.Evaluate(every=1))
    course = federation.course(federation.resolve({n: t.schema() for n, t in tables.items()}))
    ask = course.ask(course.begin())
    assert ask is not None
    at = Party("party-00", tables["party-00"], course).at(ask, Values())
    models = {"": np.full(3, wrong)}
    with np.errstate(all="ignore"):
        answer = course.evaluate.score(at, models, noised=True)  # whether it comes tells nothing of a row
        values = answer.contribution.values
        assert all(np.isfinite(value).all() for value in values.values())
        for tally in federation.task.tallies():
            assert np.all((values[tally.name] >= tally.low) & (values[tally.name] <= tally.high))
        if np.isnan(wrong):
            with pytest.raises(ContributionError, match="the model has diverged"):
                course.evaluate.score(at, models)
