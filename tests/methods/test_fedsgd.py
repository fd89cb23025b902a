"""Full-batch gradients whose rows are bounded one by one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.aggregation import Signal
from hansa.aggregation.noise import groups
from hansa.contribution import Values
from hansa.errors import PipelineError, StudyError
from hansa.party import Party
from hansa.privacy import accountant, events

RANDOM = np.random.default_rng(5)
SHARES = agg.grid(bits=12, examples=64) >> agg.discrete_gaussian(noise_multiplier=4.0) >> agg.secure_sum(threshold=1.0)


def table(rows: int) -> hs.Table:
    x = RANDOM.normal(size=(rows, 2)) * RANDOM.exponential(2.0, size=(rows, 1))
    return hs.Table({"a": x[:, 0], "b": x[:, 1], "y": (x[:, 0] > 0).astype(float)})


PARTIES = {"bremen": table(40), "danzig": table(25), "lübeck": table(31)}


def study(**more: object) -> hs.Federation:
    method = hs.FedSGD(server=hs.SGD(lr=1.0), clip=0.5, batch_size=20, weights="equal")
    known = {
        "task": hs.LogisticRegression(target="y"),
        "method": method,
        "rounds": 1,
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0, holdout=0),
        "cohort": hs.All(minimum=3),
        "privacy": hs.Privacy(unit="example"),
    }
    return hs.Federation(**{**known, **more})


def by_hand() -> np.ndarray:
    """Minus the mean, over parties, of sums of clipped gradients at zero over 20."""
    total = np.zeros(3)
    for party in PARTIES.values():
        for a, b, y in zip(*(party.column(n) for n in ("a", "b", "y")), strict=True):
            gradient = (0.5 - y) * np.array([a, b, 1.0])
            total += gradient * min(1.0, 0.5 / float(np.linalg.norm(gradient)))
    return -total / 20 / 3


def test_a_step_is_the_mean_of_sums_of_clipped_gradients_over_a_public_number() -> None:
    run = study().run(hs.Local(PARTIES))
    np.testing.assert_allclose(run.parameters, by_hand(), rtol=1e-12)


def test_under_a_secure_sum_it_is_the_same_but_for_the_grid_and_the_noise() -> None:
    """The sum of three parties' clipped gradients has noise of four clips, whatever the number of rows."""
    found = []
    for seed in range(200):
        run = study(aggregation=SHARES, seed=seed).run(hs.Local(PARTIES))
        found.append((run.parameters - by_hand()) * 3 * 20)
    spread, count = np.std(found), np.size(found)
    assert np.mean(found) == pytest.approx(0, abs=4 * 2.0 / math.sqrt(count))
    assert spread == pytest.approx(4.0 * 0.5, rel=4 / math.sqrt(2 * count))


def test_masks_change_no_bit_of_it() -> None:
    federation = study(aggregation=SHARES, rounds=2)
    plain, masked = (federation.run(hs.Local(PARTIES, masks=masks)) for masks in (False, True))
    np.testing.assert_array_equal(plain.parameters, masked.parameters)


def test_its_guarantee_is_that_of_one_noise_on_the_sum_of_all_parties() -> None:
    guarantee = study(aggregation=SHARES, rounds=10).run(hs.Local(PARTIES)).guarantee
    # The grid has 2^12 steps a clip; one example more moves the rounded sum by sqrt(3) steps more at most.
    apart = 2**12 + math.sqrt(3)
    event = events.DiscreteGaussian(
        adjacency="add-remove",
        variance=(4.0 * apart) ** 2 / 3,
        shares=3,
        dimension=3,
        l2=apart,
        l1=apart * math.sqrt(3),
        times=10,
    )
    expected = accountant.epsilon([event], 1e-5)
    assert guarantee["coordinator"].epsilon == pytest.approx(expected, rel=1e-6)
    assert guarantee["public"].epsilon == pytest.approx(expected, rel=1e-6)
    assert guarantee["party"].epsilon > expected  # which knows a share of the three


def test_one_row_moves_what_leaves_by_the_clip_and_no_more() -> None:
    """Opposed gradients as long as the clip: what a party sends differs by all that is claimed."""
    federation = study()
    moved = []
    for scale in (0.1, 3.0, 1e6):
        row = hs.Table({n: np.array([scale if n != "y" else 0.0]) for n in ("a", "b", "y")})
        before = PARTIES["danzig"]
        after = hs.Table({n: np.append(before.column(n), row.column(n)) for n in before.names})
        runs = [federation.run(hs.Local({**PARTIES, "danzig": one})) for one in (before, after)]
        moved.append(float(np.linalg.norm(runs[1].parameters - runs[0].parameters)) * 3 * 20)
    assert max(moved) <= 0.5 * (1 + 1e-9)
    assert max(moved) == pytest.approx(0.5, rel=1e-9)


def test_a_sum_of_many_rows_is_not_rounded_to_the_models_precision() -> None:
    """At a million rows of the clip each, float32 has 26 numbers for a clip: a row would move it by more."""
    federation, sums = study(task=hs.LogisticRegression(target="y", precision="float32")), []
    for rows in range(1_000_000, 1_000_005):
        table = hs.Table({"a": np.ones(rows), "b": np.ones(rows), "y": np.zeros(rows)})
        course = federation.course(federation.resolve(dict.fromkeys(PARTIES, table.schema())))
        ask = course.ask(course.begin())
        assert ask is not None
        sums.append(Party("danzig", table, course).answer(ask, Values()).contribution.values["update"])
    moved = np.linalg.norm(np.diff(np.asarray(sums, np.float64), axis=0), axis=1)
    np.testing.assert_allclose(moved, 0.5 / 20, rtol=1e-6)


def test_a_penalty_is_the_servers_and_rounds_no_row_away_at_a_party() -> None:
    """Parameters of minus 2^53 and their penalty have steps of 2 between them, and a row adds a fortieth."""
    penalised = study(task=hs.LogisticRegression(target="y", l2=1.0))
    setup = penalised.resolve({name: rows.schema() for name, rows in PARTIES.items()})
    sent = []
    for federation in (penalised, study()):
        course = federation.course(setup)
        ask = course.ask(course.begin())
        assert ask is not None
        assert not [name for name in ask.send if name.startswith("server.")]
        ask = replace(ask, send=Values({**ask.send, "parameters": np.array([-(2.0**53), 0.0, 0.0])}))
        answer = Party("danzig", PARTIES["danzig"], course).answer(ask, Values())
        sent.append(answer.contribution.values["update"])
    assert 0 < np.linalg.norm(sent[0]) <= 25 * 0.5 / 20
    np.testing.assert_array_equal(sent[0], sent[1])


def test_with_a_penalty_it_descends_the_penalised_loss() -> None:
    """With a clip that no row reaches, it is the gradient descent of the same study without one."""
    method = hs.FedSGD(server=hs.Adam(lr=0.1), clip=1e9, batch_size=25, weights="equal")
    task, same = hs.LogisticRegression(target="y", l2=0.3), dict.fromkeys("ab", PARTIES["danzig"])
    more = {"task": task, "rounds": 5, "cohort": hs.All(minimum=2)}
    clipped = study(method=method, **more).run(hs.Local(same))
    plain = study(method=hs.FedSGD(server=hs.Adam(lr=0.1)), **more).run(hs.Local(same))
    np.testing.assert_allclose(clipped.parameters, plain.parameters, rtol=1e-9)


def test_a_clip_without_its_denominator_is_refused() -> None:
    for keys in ({"clip": 1.0}, {"batch_size": 20}):
        with pytest.raises(StudyError, match="belong together"):
            hs.FedSGD(weights="equal", **keys)


def test_noise_for_an_example_needs_the_clip() -> None:
    with pytest.raises(PipelineError, match="one example adds, and update has none"):
        study(method=hs.FedSGD(weights="equal"), aggregation=SHARES)


CODECS = (
    agg.quantize(bits=1),
    agg.qsgd(bits=2),
    agg.top_k(fraction=0.4),
    agg.random_k(fraction=0.4),
    agg.subsample(fraction=0.4),
)


@pytest.mark.parametrize("codec", CODECS, ids=lambda chain: chain.stages[0].kind)
def test_a_codec_leaves_no_bound_of_one_example_to_noise_behind_it(codec: agg.Aggregation) -> None:
    """One row decides a step or which entries are sent: what is unpacked moves by more than its gradient."""
    noise = agg.gaussian(noise_multiplier=1.0)
    with pytest.raises(PipelineError, match="one example adds, and update has none"):
        study(aggregation=codec >> noise)
    packed = agg.clip(0.3) >> codec  # a clip of the whole bounds it again: by 2 norms, as the codec scales them
    if not getattr(codec.stages[0], "remembers", False):
        fields = hs.FedSGD(clip=0.5, batch_size=20).declared(3)
        signal = packed.bind(Signal(fields, weights="equal", privacy=hs.Privacy(unit="example")))
        [group] = groups(signal[-1], "gaussian")
        assert group.bound == 2 * signal[-1].norm >= 0.6


def test_only_the_metrics_that_are_asked_for_leave() -> None:
    whole = study(evaluation=hs.Evaluate(holdout=0.3)).run(hs.Local(PARTIES)).metrics()[-1]
    few = study(evaluation=hs.Evaluate(holdout=0.3, only=("accuracy",)))
    run = few.run(hs.Local(PARTIES))
    assert run.metrics()[-1] == {name: whole[name] for name in ("round", "accuracy")}
    [asked] = [e.body for e in run.events if e.kind == "asked" and e.body["work"] == "evaluate"]
    assert "positives" not in str(asked)
    auc = study(evaluation=hs.Evaluate(holdout=0.3, only=("auc",))).run(hs.Local(PARTIES))
    assert auc.metrics()[-1]["auc"] == whole["auc"]
    with pytest.raises(StudyError, match=r"no metric 'acuracy'.*Did you mean 'accuracy'"):
        study(evaluation=hs.Evaluate(only=("acuracy",))).run(hs.Local(PARTIES))
