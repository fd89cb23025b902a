import json
import math

import pytest
from pydantic import ValidationError

from hansa.contribution import canonical
from hansa.errors import PrivacyError, StudyError
from hansa.privacy.events import (
    EVENTS,
    DiscreteGaussian,
    Exact,
    Fixed,
    Gaussian,
    Laplace,
    MatrixMechanism,
    Poisson,
    Skellam,
)

INTEGERS = {"variance": 2.5, "shares": 8, "dimension": 16, "l2": 3.0, "l1": 9.0}
ALL = [
    Gaussian(adjacency="add-remove", noise_multiplier=1.1, sampling=Poisson(rate=0.01), times=7),
    Gaussian(adjacency="replace", noise_multiplier=1, sampling=Fixed(size=3, population=9)),
    MatrixMechanism(adjacency="replace", noise_multiplier=2, sensitivity=3),
    Laplace(adjacency="add-remove", noise_multiplier=0.5),
    Skellam(adjacency="add-remove", **INTEGERS, failure=1e-20),
    DiscreteGaussian(adjacency="replace", **INTEGERS),
    Exact(adjacency="add-remove"),
]


@pytest.mark.parametrize("event", ALL, ids=lambda event: event.kind)
def test_an_event_is_written_as_canonical_json_and_read_back(event):
    written = canonical(EVENTS.spec(event))
    again = EVENTS.build(json.loads(written))
    assert again == event
    assert hash(again) == hash(event)
    assert type(again) is type(event)
    assert canonical(EVENTS.spec(again)) == written


def test_a_ledger_can_rely_on_the_bytes():
    assert canonical(EVENTS.spec(ALL[0])) == (
        b'{"adjacency":"add-remove","failure":0.0,"kind":"gaussian","noise_multiplier":1.1,'
        b'"sampling":{"kind":"poisson","rate":0.01},"times":7}'
    )


def test_an_event_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        ALL[0].times = 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"kind": "gaussian", "noise_multiplier": 1.0}, "adjacency is missing"),
        ({"kind": "gausian", "adjacency": "replace"}, "unknown privacy event 'gausian'"),
        ({"kind": "laplace", "adjacency": "replace", "noise_multiplier": 0}, "greater than 0"),
        ({"kind": "laplace", "adjacency": "either", "noise_multiplier": 1}, "adjacency must be"),
        ({"kind": "exact", "adjacency": "replace", "times": 0}, "at least 1"),
        ({"kind": "exact", "adjacency": "replace", "times": True}, "times"),
        ({"kind": "exact", "adjacency": "replace", "failure": 1}, "less than 1"),
        ({"kind": "exact", "adjacency": "replace", "failure": math.nan}, "finite"),
        (
            {"kind": "gaussian", "adjacency": "add-remove", "noise_multiplier": 1}
            | {"sampling": {"kind": "poisson", "rate": 1.5}},
            "at most 1",
        ),
    ],
)
def test_an_event_that_cannot_be_is_refused_with_its_place(body, said):
    with pytest.raises(StudyError, match=said):
        EVENTS.build(body)


def test_an_adjacency_that_does_not_match_the_sampler_is_refused():
    with pytest.raises(PrivacyError, match="fixed size") as refused:
        Gaussian(adjacency="add-remove", noise_multiplier=1, sampling=Fixed(size=3, population=9))
    assert "Poisson" in refused.value.remedy


def test_a_sample_larger_than_its_population_is_refused():
    with pytest.raises(PrivacyError, match=r"1\.5 times its population"):
        Gaussian(adjacency="replace", noise_multiplier=1, sampling=Fixed(size=3, population=2))


def test_sampling_is_not_taken_to_amplify_correlated_noise():
    with pytest.raises(StudyError, match="sampling"):
        MatrixMechanism(adjacency="add-remove", noise_multiplier=1, sensitivity=1, sampling=Poisson(rate=0.1))


def test_a_matrix_mechanism_costs_one_gaussian_over_its_sensitivity():
    tree = MatrixMechanism(adjacency="add-remove", noise_multiplier=10, sensitivity=math.sqrt(11 * 4))
    assert tree.effective == pytest.approx(10 / math.sqrt(44))
