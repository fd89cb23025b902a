"""Where each method must end, worked out beforehand on quadratics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import hansa as hs
from hansa.cohort import All
from hansa.contribution import Values
from hansa.errors import StudyError
from hansa.methods import IFCA, Ditto, FedBuff, FedNova, FedPer, FedProx, FedRep, Scaffold
from hansa.methods.base import METHODS
from hansa.party import Party

Federate = Callable[..., hs.Run]
Floats = NDArray[np.float64]
Weights = Literal["examples", "equal"]
TASK = hs.LinearRegression(target="y")


def quadratics() -> dict[str, hs.Table]:
    """Three parties of unequal size, with other curvatures and other minima."""
    random, parties = np.random.default_rng(2), {}
    truths = {"a": (9, (2.0, 0.3), (3.0, -1.0)), "b": (20, (0.4, 1.5), (-2.0, 4.0))}
    for name, (size, scales, truth) in {**truths, "c": (5, (1.0, 1.0), (0.0, 9.0))}.items():
        x = random.normal(size=(size, 2)) * scales
        parties[name] = hs.Table.of({"u": x[:, 0], "v": x[:, 1], "y": x @ np.array(truth) + 1.0})
    return parties


def forms(parties: Mapping[str, hs.Table], weights: Weights) -> list[tuple[float, Floats, Floats]]:
    """Of each party its share, and (H, b) of its loss ``theta' H theta / 2 - b' theta``."""
    found = []
    for name in sorted(parties):
        table = parties[name]
        x = np.column_stack([table.column("u"), table.column("v"), np.ones(table.rows)])
        share = float(table.rows) if weights == "examples" else 1.0
        found.append((share, x.T @ x / table.rows, x.T @ table.column("y") / table.rows))
    total = sum(share for share, _, _ in found)
    return [(share / total, h, b) for share, h, b in found]


def still(terms: list[tuple[Floats, Floats]]) -> Floats:
    """Where ``sum(b - H theta)`` is 0."""
    h, b = (np.sum([term[i] for term in terms], axis=0) for i in (0, 1))
    return np.asarray(np.linalg.solve(h, b))


def optimum(parties: Mapping[str, hs.Table], weights: Weights) -> Floats:
    return still([(p * h, p * b) for p, h, b in forms(parties, weights)])


WEIGHTS = pytest.mark.parametrize("weights", ["examples", "equal"])
LOCAL = hs.SGD(lr=0.1, epochs=5, batch_size="all")


@WEIGHTS
def test_fedavg_ends_where_its_drift_balances_and_scaffold_at_the_optimum(weights: Weights, federate: Federate) -> None:
    parties = quadratics()
    best = optimum(parties, weights)
    # After K steps of lr a party has moved by S (b - H theta), S = lr * sum_k (1 - lr H)^k.
    biased = []
    for p, h, b in forms(parties, weights):
        moved = 0.1 * sum(np.linalg.matrix_power(np.eye(3) - 0.1 * h, k) for k in range(5))
        biased.append((p * moved @ h, p * moved @ b))
    average = federate(TASK, hs.FedAvg(local=LOCAL, weights=weights), parties, rounds=500)
    np.testing.assert_allclose(average.parameters, still(biased), atol=1e-10)
    assert np.abs(average.parameters - best).max() > 0.1
    scaffold = federate(TASK, Scaffold(local=LOCAL, weights=weights), parties, rounds=700)
    np.testing.assert_allclose(scaffold.parameters, best, atol=1e-10)
    assert scaffold.progress is not None
    np.testing.assert_allclose(scaffold.progress.states["train"].values.control, 0, atol=1e-10)


@WEIGHTS
def test_scaffold_reaches_the_optimum_though_parties_are_missing_in_each_round(weights: Weights) -> None:
    parties = quadratics()
    federation = hs.Federation(
        task=TASK,
        method=Scaffold(local=LOCAL, weights=weights, server=hs.SGD(lr=0.5)),
        rounds=1500,
        cohort=hs.Fixed(size=2),
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(holdout=0),
    )
    run = federation.run(hs.Local(parties))
    np.testing.assert_allclose(run.parameters, optimum(parties, weights), atol=1e-9)


def lone_numbers() -> tuple[dict[str, hs.Table], Floats, Floats]:
    """Parties with the loss ``(b - y)^2 / 2`` that take 1, 4 and 9 steps of one row each."""
    steps, targets = np.array([1, 4, 9]), np.array([6.0, 0.0, -3.0])
    tables = {
        name: hs.Table.of({"x": np.zeros(n), "y": np.full(n, y)})
        for name, n, y in zip("abc", steps, targets, strict=True)
    }
    return tables, steps, targets


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_fednova_removes_the_bias_of_unequal_local_steps(momentum: float, federate: Federate) -> None:
    parties, steps, targets = lone_numbers()
    lr = 1e-5
    local = hs.SGD(lr=lr, batch_size=1, momentum=momentum)
    # |a|: what a gradient of 1 throughout adds up to, worked out step by step.
    sizes = np.array([sum(sum(momentum**j for j in range(k + 1)) for k in range(n)) for n in steps])
    server = hs.SGD(lr=0.9 / (lr * sizes.mean()))

    def end(kind: type[hs.FedAvg]) -> float:
        method = kind(local=local, server=server, weights="equal")
        return float(federate(TASK, method, parties, rounds=60).parameters[-1])

    assert end(hs.FedAvg) == pytest.approx(sizes @ targets / sizes.sum(), abs=1e-3)
    assert end(FedNova) == pytest.approx(targets.mean(), abs=1e-3)
    assert abs(sizes @ targets / sizes.sum() - targets.mean()) > 2


def test_fednova_among_parties_of_equal_steps_is_fedavg(federate: Federate) -> None:
    one, other = (federate(TASK, kind(local=LOCAL), quadratics(), rounds=20) for kind in (hs.FedAvg, FedNova))
    np.testing.assert_allclose(one.parameters, other.parameters, rtol=1e-12)


def test_fedprox_without_a_pull_is_fedavg_bit_for_bit(federate: Federate) -> None:
    local = hs.SGD(lr=0.1, epochs=3, batch_size=4)
    fedavg = federate(TASK, hs.FedAvg(local=local), quadratics(), rounds=20)
    run = federate(TASK, FedProx(local=local, mu=0.0), quadratics(), rounds=20)
    assert run.parameters.tobytes() == fedavg.parameters.tobytes()


def test_fedprox_that_trains_to_the_end_is_the_proximal_point_method(federate: Federate) -> None:
    # theta_i = argmin f_i + mu/2 |. - theta|^2 = (H + mu)^-1 (b + mu theta), and theta their mean.
    parties, mu = quadratics(), 0.5
    method = FedProx(local=hs.SGD(lr=0.15, epochs=300, batch_size="all"), mu=mu)
    run = federate(TASK, method, parties, rounds=60)
    terms = []
    for p, h, b in forms(parties, "examples"):
        inverse = np.linalg.inv(h + mu * np.eye(3))
        terms.append((p * (np.eye(3) - mu * inverse), p * inverse @ b))
    np.testing.assert_allclose(run.parameters, still(terms), atol=1e-8)


def test_ditto_without_a_pull_is_training_alone(federate: Federate) -> None:
    parties = quadratics()
    run = federate(TASK, Ditto(local=LOCAL, lam=0.0), parties, rounds=12)
    common = federate(TASK, hs.FedAvg(local=LOCAL), parties, rounds=12)
    assert run.parameters.tobytes() == common.parameters.tobytes()
    for name, table in parties.items():
        alone = federate(TASK, hs.FedAvg(local=LOCAL), {name: table}, rounds=12)
        np.testing.assert_allclose(own(run, name, "personal"), alone.parameters, rtol=1e-12)


def test_ditto_ends_between_a_party_and_the_federation(federate: Federate) -> None:
    # v_i = argmin f_i + lam/2 |. - theta|^2 around the fixed point theta of FedAvg.
    parties, lam = quadratics(), 0.4
    run = federate(TASK, Ditto(local=LOCAL, lam=lam), parties, rounds=900)
    for name, (_, h, b) in zip(sorted(parties), forms(parties, "equal"), strict=True):
        expected = np.linalg.solve(h + lam * np.eye(3), b + lam * run.parameters)
        np.testing.assert_allclose(own(run, name, "personal"), expected, atol=1e-8)


def own(run: hs.Run, party: str, name: str) -> Floats:
    """What a party remembers."""
    found: Floats = run.memories[party][f"train.{name}"]
    return found


INTERCEPTS = {"a": -4.0, "b": 0.5, "c": 7.0}


def same_slope() -> dict[str, hs.Table]:
    """Parties on parallel lines, ``y = 2 x + c``."""
    random = np.random.default_rng(3)
    return {
        name: hs.Table.of({"x": (x := random.normal(0.2 * shift, 1.0, 15)), "y": 2 * x + shift})
        for name, shift in INTERCEPTS.items()
    }


HEADS: list[FedPer] = [
    FedPer(local=hs.SGD(lr=0.1, epochs=3), head=("intercept",)),
    FedRep(local=hs.SGD(lr=0.1), head=("inter*",)),
]


@pytest.mark.parametrize("method", HEADS, ids=lambda m: m.kind)
def test_a_shared_slope_is_found_under_intercepts_of_ones_own(method: FedPer, federate: Federate) -> None:
    run = federate(TASK, method, same_slope(), rounds=300)
    assert run.parameters[0] == pytest.approx(2.0, abs=1e-6)
    for party, intercept in INTERCEPTS.items():
        assert own(run, party, "head").item() == pytest.approx(intercept, abs=1e-6)
    common = federate(TASK, hs.FedAvg(local=method.local), same_slope(), rounds=300)
    assert abs(common.parameters[0] - 2.0) > 0.1


@pytest.mark.parametrize("method", HEADS, ids=lambda m: m.kind)
def test_a_head_never_leaves(method: FedPer, federate: Federate) -> None:
    run = federate(TASK, method, same_slope(), rounds=3)
    assert run.setup is not None
    assert run.progress is not None
    assert run.parameters[1] == 0.0  # the server's head is the one it began with
    course = run.federation.course(run.setup)
    before = course.ask(course.begin())
    assert before is not None
    [field] = before.fields
    assert (field.name, field.shape) == ("update", (1,))
    for name, table in same_slope().items():
        answer = Party(name, table, course).answer(before, Values())
        assert {n: v.shape for n, v in answer.contribution.values.items()} == {"update": (1,)}
        assert {n: v.shape for n, v in answer.memory.items()} == {"train.head": (1,)}


@pytest.mark.parametrize("kind", [FedPer, FedRep])
def test_a_head_that_is_nothing_or_everything_is_refused(kind: type[FedPer], federate: Federate) -> None:
    with pytest.raises(StudyError, match=r"no array 'intercpt'. Did you mean 'intercept'"):
        federate(TASK, kind(head=("intercpt",)), same_slope())
    with pytest.raises(StudyError, match="nothing is left to share"):
        federate(TASK, kind(head=("coef", "i*")), same_slope())
    with pytest.raises(StudyError, match="head"):
        METHODS.build({"kind": kind.kind, "head": []})


def test_ifca_finds_two_planted_clusters(federate: Federate) -> None:
    random = np.random.default_rng(6)
    truth = {f"p{i}": 3.0 if i % 2 else -3.0 for i in range(8)}
    parties = {}
    for i, (name, slope) in enumerate(truth.items()):
        x = random.normal(size=10 + i)
        parties[name] = hs.Table.of({"x": x, "y": slope * x})
    run = federate(TASK, IFCA(local=hs.SGD(lr=0.1, epochs=2)), parties, rounds=150)
    assert run.progress is not None
    models = run.progress.states["train"].values.models
    assert sorted(models[:, 0]) == pytest.approx([-3.0, 3.0], abs=1e-6)
    assert run.parameters.tobytes() in {model.tobytes() for model in models}


@pytest.mark.parametrize("moments", ["keep", "reset"])
def test_kept_moments_go_on_where_the_last_round_ended(moments: Any, federate: Federate) -> None:
    parties = {"a": quadratics()["a"]}
    adam = hs.Adam(lr=0.05, epochs=3, batch_size="all", moments=moments)
    run = federate(TASK, hs.FedAvg(local=adam), parties, rounds=4)
    [(_, h, b)] = forms(parties, "equal")
    theta, slots = np.zeros(3), dict[str, Any]()
    for step in range(12):
        if moments == "reset" and step % 3 == 0:
            slots = {}
        theta, slots = adam.step(theta, b - h @ theta, slots)
    np.testing.assert_allclose(run.parameters, theta, rtol=1e-9)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"kind": "scaffold", "local": {"lr": 0.1, "momentum": 0.9}}, "scaffold needs plain SGD"),
        ({"kind": "scaffold", "local": {"optimizer": "adam", "lr": 0.1}}, "SGD, not adam"),
        ({"kind": "fednova", "local": {"optimizer": "yogi", "lr": 0.1}}, "effective steps of SGD"),
        ({"kind": "fednova", "local": {"lr": 0.1, "moments": "keep"}}, "effective steps of SGD"),
        ({"kind": "ditto", "local": {"lr": 0.1, "moments": "keep"}}, "trains two models"),
        ({"kind": "ifca", "local": {"lr": 0.1, "moments": "keep"}}, "another model"),
        ({"kind": "fedrep", "head": ["a"], "local": {"lr": 0.1, "moments": "keep"}}, "two phases"),
        (
            {"kind": "fedrep", "head": ["a"], "local": {"optimizer": "adamw", "lr": 0.1}},
            r"weight_decay.*Set it to 0, or use adam",
        ),
        ({"kind": "fedprox", "mu": -1.0}, r"mu must be at least 0"),
        ({"kind": "fedper"}, "head is missing"),
        ({"kind": "ifca", "clusters": 1}, "clusters must be at least 2"),
        ({"kind": "fedavg", "server": {"lr": 1.0, "moments": "keep"}}, r"method\.server\.moments"),
        ({"kind": "fedadam"}, "unknown method 'fedadam'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_method_cannot_be_is_refused_with_the_reason(body: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        METHODS.build(body)


def test_fedbuff_discounts_by_the_root_of_the_lag_unless_told_otherwise() -> None:
    def pace(**method: float) -> All:
        return hs.Federation(task=TASK, method=FedBuff(**method)).pace

    assert [pace().discount(lag) for lag in (0, 3, 8)] == pytest.approx([1, 1 / 2, 1 / 3])
    assert pace(staleness=0.0).discount(7) == 1.0
    assert pace(staleness=2.0).discount(1) == 0.25
