"""What the verbs of a method draw at a party."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import hansa as hs
from hansa.contribution import Array, Values
from hansa.learners import private
from hansa.methods.base import GradientMethod
from hansa.methods.ditto import Ditto
from hansa.party import Party
from hansa.privacy import noise

X = np.random.default_rng(0).normal(size=(60, 2))
TABLE = hs.Table.of({"a": X[:, 0], "b": X[:, 1], "y": (X[:, 0] > 0).astype(float)})
LOCAL = hs.DPSGD(lr=0.5, clip=1.0, noise_multiplier=1.0, rate=0.5, steps=3, batch_size=20)
METHODS = (hs.methods.FedRep(local=LOCAL, head=("intercept",), weights="equal"), Ditto(local=LOCAL, weights="equal"))


@pytest.mark.parametrize("secret", [b"", bytes(32)], ids=["seed", "key"])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.kind)
def test_each_training_of_an_answer_draws_its_own_sample_and_noise(
    method: GradientMethod, secret: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sums over one sample with one noise tell more than two releases, which is what they are charged as."""
    drawn, noises = list[Array](), list[Array]()

    def uniform(*of: Any) -> Array:
        drawn.append(private_uniform(*of))
        return drawn[-1]

    def noised(values: Array, *of: Any) -> Array:
        noises.append(private_noised(np.zeros_like(values), *of))
        return values + noises[-1]

    private_uniform, private_noised = noise.uniform, noise.noised
    monkeypatch.setattr(private, "uniform", uniform)
    monkeypatch.setattr(private, "noised", noised)
    federation = hs.Federation(
        task=hs.LogisticRegression(target="y"),
        method=method,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0),
        cohort=hs.All(minimum=1),
        privacy=hs.Privacy(unit="example"),
    )
    course = federation.course(federation.resolve({"p": TABLE.schema()}), secret)
    ask = course.ask(course.begin())
    assert ask is not None
    answers = [Party("p", TABLE, course).answer(ask, Values()).contribution.values["update"] for _ in range(2)]
    np.testing.assert_array_equal(answers[0], answers[1])  # the same answer draws the same again
    of_one = 2 * LOCAL.steps
    assert len(drawn) == len(noises) == 2 * of_one
    for some in (drawn, noises):
        assert len({each.tobytes() for each in some[:of_one]}) == of_one
        np.testing.assert_array_equal(some[:of_one], some[of_one:])
