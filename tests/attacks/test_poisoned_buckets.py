"""Parties that cheat under a secure sum: nobody can look at what they give, and buckets bound what it does.

A cheating party does not clip; here it sends a hundred times its update, turned about or learnt from wrong labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa import aggregation as agg
from hansa.aggregation.ring import SecureSum

CHAIN = agg.clip(1.0) >> agg.grid(bits=12)
MEAN = CHAIN >> agg.secure_sum()
REDUCERS = {
    "geometric median": agg.geometric_median(),
    "median": agg.median(),
    "trimmed mean": agg.trimmed_mean(fraction=0.34),
}
BUCKETS = CHAIN >> agg.bucket(size=3) >> agg.secure_sum()
LIES = {"signs": (-100, False), "labels": (100, True)}


def tables(parties: int, flipped: tuple[str, ...] = ()) -> dict[str, hs.Table]:
    """Rows on either side of a plane; of the flipped, on the wrong one."""
    random, made = np.random.default_rng(8), {}
    for i in range(parties):
        x = random.normal(size=(60, 4))
        y = (x @ [1.0, -1.0, 0.5, 0.0] + 0.3 * random.normal(size=60) > 0) ^ (f"party-{i:02d}" in flipped)
        made[f"party-{i:02d}"] = hs.Table({"x": x, "y": y.astype(float)})
    return made


def accuracy(
    chain: hs.Aggregation, cheat: pytest.MonkeyPatch, liars: int = 0, parties: int = 12, lie: str = "signs"
) -> float:
    """Of the model of ten rounds on honest rows, where the first parties cheat."""
    cheats = tuple(f"party-{i:02d}" for i in range(liars))
    factor, flips = LIES[lie]
    encode = SecureSum.encode

    def lying(self: SecureSum, stack: Any, *more: Any) -> Any:
        times = np.array([factor if name in cheats else 1 for name in stack.parties], np.int64)[:, None]
        values = {name: (value * times).astype(np.int32) for name, value in stack.values.items()}
        return encode(self, stack.holding(values), *more)

    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.FedAvg(local=hs.SGD(lr=0.3), weights="equal"),
        aggregation=chain,
        rounds=10,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=10, central=True),
    )
    with cheat.context() as here:
        here.setattr(SecureSum, "encode", lying)
        test = hs.Table({n: np.concatenate([t.columns[n] for t in tables(9).values()]) for n in ("x", "y")})
        run = federation.run(hs.Local(tables(parties, cheats if flips else ()), test=test, seed=3))
    return float(run.metrics()[-1]["accuracy"])


@pytest.mark.parametrize("reducer", REDUCERS)
@pytest.mark.parametrize("lie", LIES)
def test_one_party_destroys_the_mean_and_not_what_is_robust_to_its_bucket(
    lie: str, reducer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = accuracy(MEAN, monkeypatch)
    assert clean > 0.9
    assert accuracy(MEAN, monkeypatch, liars=1, lie=lie) < 0.5
    assert accuracy(BUCKETS >> REDUCERS[reducer], monkeypatch, liars=1, lie=lie) > clean - 0.02


@pytest.mark.parametrize("lie", LIES)
def test_it_bears_as_many_as_spoil_fewer_than_half_of_the_buckets_and_no_more(
    lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = BUCKETS >> agg.geometric_median()  # seven buckets of three
    clean = accuracy(MEAN, monkeypatch, parties=21)
    assert accuracy(chain, monkeypatch, liars=3, parties=21, lie=lie) > clean - 0.03
    assert accuracy(chain, monkeypatch, liars=4, parties=21, lie=lie) < 0.5


def test_two_in_four_buckets_are_too_many_for_a_median(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer than half is fewer than half: of four buckets one."""
    assert accuracy(BUCKETS >> agg.geometric_median(), monkeypatch, liars=2) < 0.5
