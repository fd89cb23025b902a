"""A clip that follows a quantile of the norms, and what it costs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.aggregation import AdaptiveClip, Aggregation, Reduction, Signal
from hansa.aggregation.noise import groups
from hansa.aggregation.signal import Among
from hansa.aggregation.stage import Context
from hansa.contribution import Array, Contributions, Field, Total, Values
from hansa.privacy.claim import Privacy

pytestmark = pytest.mark.untraced

PARTIES = tuple(f"party-{i:03}" for i in range(200))
FIELD = Field("update", like="parameters", shape=(16,))
AMONG = Among(most=200, expected=200.0, honest=200)


def signal(**more: Any) -> Signal:
    return Signal((FIELD,), **{"weights": "equal", "among": AMONG, **more})


def summed(chain: Aggregation, rows: Array, state: Values, round: int = 1, secret: bytes = b"") -> tuple[Total, Values]:
    """A round of a cohort with these updates ``[k, 16]``."""
    signals, names = chain.bind(signal()), PARTIES[: len(rows)]
    context = Context(7, round, round, names, signals[0], signals[0], secret)
    stack = Contributions(names, Values({"update": rows}), np.ones(len(rows)))
    announced = chain.announce(state)
    stack, _ = chain.encode(stack, announced, Values(), signals, context)
    assert not signals[-1].faults(stack)
    reduction = Reduction(signals[-1].fields, names)
    for i, party in enumerate(names):
        reduction.add(party, stack.one(i))
    return chain.decode(reduction.total(len(PARTIES)), state, signals, context)


def updates(seed: int = 1) -> Array:
    """Directions at random, norms log-normal: the median is exp(-1)."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(len(PARTIES), 16))
    norms = np.exp(random.normal(-1.0, 0.7, (len(PARTIES), 1)))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True) * norms)


CHAINS = {
    "no noise": agg.adaptive_clip(norm=2.0),
    "central": agg.adaptive_clip(norm=2.0) >> agg.gaussian(noise_multiplier=1.0),
    "local": agg.adaptive_clip(norm=2.0, portion=0.2) >> agg.local_gaussian(noise_multiplier=1.0),
    "shares": agg.adaptive_clip(norm=0.05)
    >> agg.grid(bits=12)
    >> agg.skellam(noise_multiplier=1.0)
    >> agg.secure_sum(),
    "shared": agg.adaptive_clip(norm=2.0) >> agg.banded(noise_multiplier=1.0),
}


@pytest.mark.parametrize(
    ("name", "quantile"),
    [("no noise", 0.2), ("no noise", 0.9), ("central", 0.2), ("central", 0.9), ("shares", 0.5), ("local", 0.5)],
)
def test_it_finds_the_quantile_of_the_norms(name: str, quantile: float) -> None:
    first, *rest = CHAINS[name].stages
    chain = Aggregation(stages=(first.model_copy(update={"quantile": quantile}), *rest))
    rows, state, clips = updates(), Values(), []
    for round in range(1, 101):
        _, state = summed(chain, rows, state, round)
        clips.append(float(chain.announce(state)["0.norm"]))
    found = np.exp(np.mean(np.log(clips[-30:])))
    inside = float((np.linalg.norm(rows, axis=1) <= found).mean())
    assert inside == pytest.approx(quantile, abs=0.1 if name == "local" else 0.05)


def test_the_clip_moves_by_geometric_steps() -> None:
    chain = agg.adaptive_clip(norm=0.5, quantile=0.3, lr=0.7)
    rows = np.zeros((4, 16))
    rows[:, 0] = [0.1, 0.5, 0.50001, 7.0]  # at the clip is within it
    total, state = summed(chain, rows, Values())
    expected = 0.5 * math.exp(-0.7 * (2 / 4 - 0.3))
    assert float(state["0.norm"]) == pytest.approx(expected, rel=1e-12)
    assert total.values.keys() == {"update"}
    assert total.values["update"][0] == pytest.approx((0.1 + 3 * 0.5) / 4)
    total, _ = summed(chain, rows, state, 2)
    assert total.values["update"][0] == pytest.approx((0.1 + 3 * expected) / 4)


def test_what_leaves_is_in_units_of_the_clip_whatever_that_is() -> None:
    stage = AdaptiveClip()
    context = Context(1, 1, 1, PARTIES, signal(), stage.bind(signal()))
    given = Contributions(PARTIES, Values({"update": updates()}), np.ones(len(PARTIES)))
    for clip in (1e-300, 1e-9, 0.3, 1e9, 1e300):
        sent, _ = stage.encode(given, Values({"norm": np.asarray(clip)}), Values(), context)
        norms = np.linalg.norm(sent.values["update"], axis=1)
        assert (norms <= 1 + 1e-12).all()
        assert set(sent.values["inside"]) <= {-0.5, 0.5}
        assert not stage.bind(signal()).faults(sent)


@pytest.mark.parametrize("clip", [0.0, -1.0, math.inf, math.nan], ids=str)
def test_a_party_refuses_a_clip_that_is_none(clip: float) -> None:
    stage = AdaptiveClip()
    context = Context(1, 3, 5, PARTIES, signal(), stage.bind(signal()))
    given = Contributions(PARTIES, Values({"update": updates()}), np.ones(len(PARTIES)))
    with pytest.raises(hs.errors.ConsentError, match=r"round 3: a clip of .* is announced.*Ask"):
        stage.encode(given, Values({"norm": np.asarray(clip)}), Values(), context)


@pytest.mark.parametrize("secret", [b"", bytes(range(32))], ids=["seed", "key"])
def test_the_noise_is_split_as_in_the_paper(secret: bytes) -> None:
    """Theorem 1: with a count of spread s and vectors of multiplier z_v, z^-2 = z_v^-2 + (2 s)^-2."""
    z, portion = 1.3, 0.04
    chain = agg.adaptive_clip(norm=2.0, portion=portion) >> agg.gaussian(noise_multiplier=z)
    rows, counts, vectors = updates()[:20], [], []
    plain, still = summed(agg.adaptive_clip(norm=2.0, portion=portion), rows, Values())
    for round in range(1, 401):
        total, state = summed(chain, rows, Values(), round, secret)
        vectors.append((total.values["update"] * 200 - plain.values["update"] * 20) / 2.0)
        counts.append(math.log(state["0.norm"] / still["0.norm"]) / -0.2 * 200)
    s, z_v = float(np.std(counts)), float(np.std(vectors))
    assert s == pytest.approx(z / 2 / math.sqrt(portion), rel=0.12)
    assert z_v == pytest.approx(z / math.sqrt(1 - portion), rel=0.04)
    assert z_v == pytest.approx((z**-2 - (2 * s) ** -2) ** -0.5, rel=0.04)


def test_a_round_in_which_nobody_came_leaves_the_clip_where_it_was() -> None:
    chain = agg.adaptive_clip(norm=2.0)
    signals, kept = chain.bind(signal()), Values({"0.norm": np.asarray(0.7)})
    context = Context(7, 1, 1, (), signals[0], signals[0])
    total, state = chain.decode(Total(Values(), (), 200, 0.0), kept, signals, context)
    assert not total.values
    assert state == kept


def test_the_clip_stays_a_number_whatever_the_noise() -> None:
    stage = AdaptiveClip(norm=3.0, lr=10.0)
    bound = stage.bind(signal())
    for inside, clip in ((1e9, math.exp(-69)), (-1e9, math.exp(69))):
        values = Values({"update": np.zeros(16), "inside": np.asarray(inside)})
        total = Total(values, PARTIES, 200, 200.0)
        _, state = stage.decode(total, Values(), Context(1, 1, 1, (), signal(), bound))
        assert float(state["norm"]) == pytest.approx(clip)


def test_one_example_moves_a_party_within_the_clip_or_across_it() -> None:
    bound = agg.adaptive_clip().bind(signal(privacy=Privacy(unit="example")))[-1]
    found = {group.names: (group.bound, group.portion) for group in groups(bound, "gaussian")}
    assert found == {("update",): (2.0, 0.99), ("inside",): (1.0, 0.01)}


@pytest.mark.parametrize("name", CHAINS)
def test_a_run_goes_through_it_and_repeats(name: str) -> None:
    random, tables = np.random.default_rng(2), {}
    for party in ("harbour", "north", "river"):
        x = random.normal(size=(30, 2))
        tables[party] = hs.Table.of({"a": x[:, 0], "b": x[:, 1], "y": 1.0 * (x[:, 0] > 0)})
    study = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.methods.Scaffold(weights="equal"),
        rounds=4,
        aggregation=CHAINS[name],
    )
    run, again = study.run(hs.Local(tables)), study.run(hs.Local(tables))
    assert np.isfinite(run.parameters).all()
    assert np.array_equal(run.parameters, again.parameters)
    assert run.progress is not None
    norm = float(run.progress.states["stages"].values["0.norm"])
    assert norm not in (2.0, 0.05)
    assert not any(event.kind == "refused" for event in run.events)


def test_buffers_of_several_rounds_are_refused() -> None:
    with pytest.raises(hs.errors.PipelineError, match="adaptive-clip goes by rounds"):
        hs.Federation(
            task=hs.LogisticRegression(target="y"), method=hs.methods.FedBuff(), aggregation=agg.adaptive_clip()
        )
