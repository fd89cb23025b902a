"""Who was learnt from: clear on a model that overfits, and never above what a guarantee allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import hansa as hs
from hansa import audit


def bare(local: Any, rounds: int, **keys: Any) -> audit.Bare:
    """Far more features than rows, without any meaning: what is learnt are the rows themselves."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(200, 4000)), random.integers(0, 2, 200)
    tables = {name: hs.Table({"x": x[i::2], "y": y[i::2].astype(float)}) for i, name in enumerate("ab")}
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=hs.FedAvg(local=local, weights="equal"),
        rounds=rounds,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0.0),
        **keys,
    )
    return audit.Bare.of(federation, tables)


def test_a_model_that_overfits_gives_its_rows_away() -> None:
    assert audit.membership(bare(hs.SGD(lr=0.1, batch_size="all"), 20), models=16) > 0.5


def test_training_that_hides_one_example_keeps_to_its_bound() -> None:
    """True positives are at most e^epsilon times the false ones, and delta."""
    for noise in (2.0, 1.0):
        local = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=noise, rate=0.1, steps=10, batch_size=20)
        audited = bare(local, 5, privacy=hs.Privacy(unit="example", delta=1e-5))
        epsilon = audited.federation.guarantee["coordinator"].epsilon
        found = audit.membership(audited, models=16)
        assert epsilon < 6
        assert found <= math.exp(epsilon) * audit.FALSE + 1e-5
        assert found < 0.01


def test_behind_noise_that_drowns_everything_the_attack_guesses() -> None:
    """As many true as false alarms, one in a thousand, but for chance."""
    local = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=1e3, rate=0.1, steps=2, batch_size=20)
    assert audit.membership(bare(local, 1), models=16) < 0.005
