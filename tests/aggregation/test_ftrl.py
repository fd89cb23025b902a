"""Noise that rounds share: what adds up in the model, and what one unit can move."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

import hansa as hs
from hansa import aggregation as agg
from hansa import tensors
from hansa.aggregation import Aggregation, Banded, Signal, Tree
from hansa.aggregation.signal import Among, Schedule
from hansa.aggregation.stage import Context
from hansa.contribution import Array, Field, Total, Values
from hansa.methods.base import Setup
from hansa.privacy import accountant, noise
from hansa.privacy.events import Gaussian, MatrixMechanism

ROUNDS, SIZE = 11, 20_000
KEY = bytes(range(32))


def bands(rounds: int, count: int) -> Array:
    """The lower triangular square root of the matrix of prefix sums, cut to so many bands."""
    whole = np.real(scipy.linalg.sqrtm(np.tril(np.ones((rounds, rounds)))))
    return np.triu(np.tril(whole), 1 - count)


def nodes(rounds: int, restart: int) -> Array:
    """Ones where a round is in the node that ends with another: as long as a power of two divides that."""
    c = np.zeros((rounds, rounds))
    for end in range(rounds):
        place = end % restart + 1
        length = max(2**k for k in range(20) if place % 2**k == 0)
        c[end, end + 1 - length : end + 1] = 1
    return c


CASES: dict[str, tuple[Aggregation, Array]] = {
    "one band": (agg.banded(noise_multiplier=1.5, bands=1), np.eye(ROUNDS)),
    "two bands": (agg.banded(noise_multiplier=1.5, bands=2), bands(ROUNDS, 2)),
    "four bands": (agg.banded(noise_multiplier=1.5, bands=4), bands(ROUNDS, 4)),
    "all bands": (agg.banded(noise_multiplier=1.5, bands=20), bands(ROUNDS, 20)),
    "tree": (agg.tree(noise_multiplier=1.5), nodes(ROUNDS, ROUNDS)),
    "trees": (agg.tree(noise_multiplier=1.5, restart=4), nodes(ROUNDS, 4)),
}


def released(
    chain: Aggregation, sums: Array, secret: bytes = b"", period: int = 1, clip: float = 2.0
) -> tuple[Array, list[Values]]:
    """What comes out for sums ``[rounds, d]``, and the states after each round, each sent and kept."""
    field = Field("update", like="parameters", shape=(sums.shape[1],))
    among, schedule = Among(most=4, expected=4.0, honest=4), Schedule(len(sums), period)
    first = Signal((field,), norm=clip, weights="equal", among=among, schedule=schedule)
    signals, state, out, states = chain.bind(first), Values(), [], []
    for t, mean in enumerate(sums / 4):
        context = Context(5, t + 1, t, (), first, first, secret)
        total = Total(Values({"update": mean}), tuple("abcd"), 4, 4.0)
        total, state = chain.decode(total, state, signals, context)
        state = Values(tensors.read(tensors.write(state)))
        out.append(total.values["update"] * 4)
        states.append(state)
    return np.stack(out), states


@pytest.mark.parametrize("secret", [b"", KEY], ids=["seed", "key"])
@pytest.mark.parametrize(("chain", "c"), CASES.values(), ids=CASES)
def test_the_noise_of_prefix_sums_has_the_covariance_of_the_factorisation(
    chain: Aggregation, c: Array, secret: bytes
) -> None:
    sums = np.random.default_rng(1).normal(size=(ROUNDS, SIZE))
    out, _ = released(chain, sums, secret)
    fresh = c @ (out - sums)
    wanted, slack = (1.5 * 2.0) ** 2, 5 / math.sqrt(SIZE)
    assert np.abs(fresh @ fresh.T / SIZE / wanted - np.eye(ROUNDS)).max() < 1.5 * slack
    added = np.cumsum(out - sums, axis=0)
    b = np.tril(np.ones((ROUNDS, ROUNDS))) @ np.linalg.inv(c)
    covariance = wanted * (b @ b.T)
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    assert (np.abs(added @ added.T / SIZE - covariance) < 1.5 * slack * scale).all()


@pytest.mark.parametrize("rounds", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("period", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "stage",
    [Banded(noise_multiplier=1, bands=b) for b in (1, 2, 3, 9)]
    + [Tree(noise_multiplier=1, restart=r) for r in (None, 1, 2, 3)],
    ids=str,
)
def test_no_unit_moves_what_is_released_by_more_than_the_sensitivity(
    stage: Banded | Tree, rounds: int, period: int
) -> None:
    """Every stream of signs in rounds a period apart; one of them reaches it."""
    known = stage.model_dump()
    many, anew = known.get("bands"), known.get("restart")
    c = bands(rounds, many) if many else nodes(rounds, anew or rounds)
    worst = 0.0
    for first in range(min(period, rounds)):
        mine = range(first, rounds, period)
        for signs in itertools.product((-1.0, 0.0, 1.0), repeat=len(mine)):
            x = np.zeros(rounds)
            x[list(mine)] = signs
            worst = max(worst, float(np.linalg.norm(c @ x)))
    assert stage.sensitivity(Schedule(rounds, period)) == pytest.approx(worst, rel=1e-12)
    # Vectors in several directions move it no further: a random search does not pass it.
    random = np.random.default_rng(3)
    for _ in range(20):
        x = np.zeros((rounds, 3))
        x[::period] = random.normal(size=x[::period].shape)
        x[::period] /= np.linalg.norm(x[::period], axis=1, keepdims=True)
        assert np.linalg.norm(c @ x) <= worst * (1 + 1e-12)


def test_a_tree_s_sensitivity_is_its_height() -> None:
    for rounds in (1, 2, 3, 4, 100, 1024):
        mine = Tree(noise_multiplier=1).sensitivity(Schedule(rounds, rounds))
        assert mine == pytest.approx(math.sqrt(rounds.bit_length()))


def event(chain: Aggregation, rounds: int, period: int) -> Any:
    field = Field("update", like="parameters", shape=(8,))
    signal = Signal((field,), norm=1.0, weights="equal", schedule=Schedule(rounds, period))
    [noised] = chain.bind(signal)[-1].noise
    return noised.event


def test_one_band_costs_what_independent_noise_costs() -> None:
    one = event(agg.banded(noise_multiplier=3.0, bands=1), 12, 1)
    plain = Gaussian(noise_multiplier=3.0, adjacency="add-remove", times=12)
    assert accountant.epsilon([one], 1e-5) == pytest.approx(accountant.epsilon([plain], 1e-5))
    alone = event(agg.banded(noise_multiplier=3.0, bands=1), 12, 12)
    plain = Gaussian(noise_multiplier=3.0, adjacency="add-remove", times=1)
    assert accountant.epsilon([alone], 1e-5) == pytest.approx(accountant.epsilon([plain], 1e-5))


def error(c: Array, sensitivity: float) -> float:
    """Root mean square error of prefix sums, if all rounds together cost as much as one of multiplier 1."""
    b = np.tril(np.ones(c.shape)) @ np.linalg.inv(c)
    return sensitivity * math.sqrt(float(np.square(b).sum()) / len(c))


def test_shared_noise_adds_up_to_less_at_the_same_epsilon() -> None:
    """The table of docs/privacy.md: 256 rounds, of which a party is in each, every fourth ... or one."""
    rounds, page = 256, (Path(__file__).parents[2] / "docs" / "privacy.md").read_text("utf-8")
    for period in (1, 4, 16, 64, 256):
        one, many = (Banded(noise_multiplier=1, bands=b) for b in (1, period))
        tree = Tree(noise_multiplier=1, restart=period)
        independent = error(np.eye(rounds), one.sensitivity(Schedule(rounds, period)))
        trees = error(nodes(rounds, period), tree.sensitivity(Schedule(rounds, period)))
        banded = error(bands(rounds, period), many.sensitivity(Schedule(rounds, period)))
        assert f"| {period} | {independent:.1f} | {trees:.1f} | {banded:.1f} |" in page
        assert (banded < trees < independent) is (period > 1)
        assert independent == pytest.approx(math.sqrt(rounds / period * (rounds + 1) / 2))


def test_a_state_that_was_kept_goes_on_with_the_same_noise_and_holds_no_more_than_it_needs() -> None:
    sums = np.ones((ROUNDS, 4))
    for chain, most in ((agg.banded(noise_multiplier=1.0, bands=3), 2), (agg.tree(noise_multiplier=1.0), 3)):
        once, states = released(chain, sums)
        again, _ = released(chain, sums)
        assert np.array_equal(once, again)
        assert max(len(state) - 1 for state in states) == most
        assert chain.announce(states[-1]) == Values()  # what is kept is secret


def test_noise_from_a_key_is_of_integers_whatever_the_rounds_before_left() -> None:
    """Given the outputs before, an output is on a public grid: its low bits tell nothing of the sums."""
    sums = np.random.default_rng(2).normal(size=(ROUNDS, 50))
    for chain, c in CASES.values():
        out, _ = released(chain, sums, KEY)
        whole = math.sqrt(float(np.square(c.sum(axis=1)).sum()))
        spread = 2.0 * whole * noise.grown(1.5 / whole, 50 * ROUNDS)
        steps = out * noise.GRID / spread
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-4)


def federation(chain: Aggregation, cohort: Any = None, **more: Any) -> hs.Federation:
    keys: dict[str, Any] = {
        "task": hs.LogisticRegression(target="y"),
        "method": hs.FedAvg(weights="equal"),
        "rounds": 8,
        "cohort": cohort or hs.All(),
        "aggregation": chain,
        "preprocessing": hs.Moments(standardise=False),
        "evaluation": hs.Evaluate(every=0),
    }
    return hs.Federation(**{**keys, **more})


def test_a_guarantee_covers_the_whole_run_at_once() -> None:
    chain = agg.clip(1.0) >> agg.banded(noise_multiplier=4.0, bands=4)
    everybody = federation(chain).guarantee["public"]
    turns = federation(chain, hs.Cyclic(groups=4)).guarantee["public"]
    whole = float(np.linalg.norm(bands(8, 4).sum(axis=1)))
    [found] = everybody.events or ()
    assert isinstance(found, MatrixMechanism)
    assert found.times == 1
    assert found.sensitivity == pytest.approx(whole)
    plain = Gaussian(noise_multiplier=4.0 / whole, adjacency="add-remove")
    assert everybody.epsilon == pytest.approx(accountant.epsilon([plain], 1e-5))
    assert turns.epsilon < everybody.epsilon / 2
    sampled = federation(chain, hs.Poisson(rate=0.1)).guarantee["public"]
    assert sampled.epsilon == everybody.epsilon  # a sample promises nothing about when


def test_more_rounds_than_the_noise_was_made_for_are_refused() -> None:
    chain = agg.tree(noise_multiplier=1.0)
    _, states = released(chain, np.ones((3, 4)))
    field = Field("update", like="parameters", shape=(4,))
    first = Signal((field,), norm=1.0, weights="equal", schedule=Schedule(3, 1))
    total = Total(Values({"update": np.ones(4)}), ("a",), 1, 1.0)
    with pytest.raises(hs.errors.RunError, match=r"among 3 rounds, and they are over\. Run"):
        chain.decode(total, states[-1], chain.bind(first), Context(5, 4, 3, (), first, first))


@pytest.mark.parametrize("chain", [agg.tree(noise_multiplier=1.0), agg.banded(noise_multiplier=1.0)])
def test_a_method_without_rounds_is_refused(chain: Aggregation) -> None:
    with pytest.raises(hs.errors.PipelineError, match="goes by rounds, and fedbuff has none"):
        federation(agg.clip(1.0) >> chain, method=hs.methods.FedBuff(weights="equal"))


def towns(seed: int = 2) -> dict[str, hs.Table]:
    random, tables = np.random.default_rng(seed), {}
    for name in ("harbour", "north", "river", "town"):
        x = random.normal(size=(30, 2))
        tables[name] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": 1.0 * (x[:, 0] > 0)})
    return tables


@pytest.mark.parametrize(
    "chain",
    [agg.clip(1.0) >> agg.tree(noise_multiplier=1.0),
     agg.adaptive_clip() >> agg.banded(noise_multiplier=1.0, bands=3)],
    ids=["tree", "banded"],
)  # fmt: skip
def test_a_run_that_stopped_goes_on_with_the_noise_of_the_undisturbed_one(chain: Aggregation, tmp_path: Path) -> None:
    tables = towns()
    study = federation(chain, hs.Cyclic(groups=2))

    def stop(event: Any) -> None:
        if event.kind == "arrived" and event.body["round"] == 5:
            raise KeyboardInterrupt

    whole = study.run(hs.Local(tables))
    with pytest.raises(KeyboardInterrupt):
        study.run(hs.Local(tables, folder=tmp_path, every=1, follow=stop))
    [folder] = tmp_path.iterdir()
    stopped = hs.Run.load(folder)
    assert stopped.progress is not None
    assert 0 < stopped.progress.round < 8
    resumed = study.run(hs.Local(tables, resume=stopped))
    assert np.array_equal(resumed.parameters, whole.parameters)


def test_a_fork_of_noise_that_rounds_share_is_refused_and_a_fork_with_other_noise_is_not() -> None:
    tree, banded = agg.tree(noise_multiplier=1.0), agg.banded(noise_multiplier=1.0, bands=3)
    clip, tables = agg.clip(1.0), towns()
    run = federation(clip >> banded, rounds=3).run(hs.Local(tables))
    for chain in (clip >> banded, clip >> tree):
        with pytest.raises(hs.errors.PrivacyError, match="the run to fork share their noise") as refused:
            federation(chain, rounds=6).run(hs.Local(tables, fork=run))
        assert "put gaussian in the fork's aggregation" in str(refused.value)
    other = federation(clip >> agg.gaussian(noise_multiplier=1.0), rounds=6)
    forked = other.run(hs.Local(tables, fork=run)).guarantee["public"]
    assert forked.exact == (f"there is no noise in the run {run.id}, from which this one was forked",)
    plain = other.run(hs.Local(tables))  # whose rounds share nothing: what begins behind it has its own noise
    assert federation(clip >> banded, rounds=8).run(hs.Local(tables, fork=plain)).status == "finished"


@pytest.mark.parametrize("chain", [agg.tree(noise_multiplier=1.0), agg.gaussian(noise_multiplier=1.0)])
def test_a_run_is_not_taken_back_to_an_earlier_round_to_draw_its_noise_again(
    chain: Aggregation, tmp_path: Path
) -> None:
    study = federation(agg.clip(1.0) >> chain, rounds=4)
    run = study.run(hs.Local(towns(), folder=tmp_path, keep=True, every=1))
    earlier = hs.Run.load(tmp_path / run.id, round=2)
    with pytest.raises(hs.errors.PrivacyError, match=r"went on beyond this state of it.*Resume its latest state"):
        study.run(hs.Local(towns(seed=3), resume=earlier))  # other rows, under the same noise
    bare = federation(agg.clip(1.0), rounds=4)  # hides nothing, and may go back
    run = bare.run(hs.Local(towns(), folder=tmp_path, keep=True, every=1))
    again = bare.run(hs.Local(towns(), resume=hs.Run.load(tmp_path / run.id, round=2)))
    assert np.array_equal(again.parameters, run.parameters)


def test_between_machines_it_runs_with_the_noise_of_the_coordinator_s_own_key(deployed: Any) -> None:
    random, tables = np.random.default_rng(2), {}
    for name in ("harbour", "north", "river", "town"):
        x = random.normal(size=(30, 2))
        tables[name] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": 1.0 * (x[:, 0] > 0)})
    chain = agg.adaptive_clip() >> agg.banded(noise_multiplier=1.0, bands=3)
    study = federation(chain, hs.Cyclic(groups=2), rounds=4)
    run, simulated = study.run(deployed(tables)), study.run(hs.Local(tables))
    assert run.status == "finished"
    assert not any(event.kind == "refused" for event in run.events)
    assert run.progress is not None
    kept = run.progress.states["stages"].values
    assert int(kept["1.step"]) == 4
    assert float(kept["0.norm"]) != 0.1
    assert not np.isclose(run.parameters, simulated.parameters).any()


def test_groups_take_turns_and_everybody_is_in_one() -> None:
    roster = tuple(f"party-{i}" for i in range(11))
    cohort, setup = hs.Cyclic(groups=4), Setup(roster, ("a",), {}, 3)
    rounds = [cohort.draw(setup, t) for t in range(1, 9)]
    assert sorted(p for drawn in rounds[:4] for p in drawn) == sorted(roster)
    assert {len(drawn) for drawn in rounds} == {2, 3}
    assert rounds[4:] == rounds[:4]
    assert (cohort.most(11), cohort.expected(11), cohort.period) == (3, 2.75, 4)
    assert cohort.draw(Setup(roster, ("a",), {}, 4), 1) != rounds[0]
    with pytest.raises(hs.errors.StudyError, match=r"6 groups of 11 parties.*Lower cohort\.groups"):
        hs.Cyclic(groups=6).draw(setup, 1)
