"""What federated gradient descent must be, worked out beforehand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import hansa as hs
from hansa.aggregation import Reduction
from hansa.contribution import Contribution, Field, Values
from hansa.learners import Learner
from hansa.learners.glm import Glm, Linear, Logistic, Softmax
from hansa.methods import Answer, At, State, UpdateMethod

Federate = Callable[..., hs.Run]
Floats = NDArray[np.float64]

SIZES = {"north": 3, "harbour": 40, "river": 17}
TASKS = {
    "linear": hs.LinearRegression(target="y"),
    "logistic": hs.LogisticRegression(target="y"),
    "softmax": hs.SoftmaxRegression(target="y", classes=(0, 1, 2)),
}


def rows(task: str, seed: int = 1) -> dict[str, hs.Table]:
    """Parties of unequal size and different distribution."""
    random = np.random.default_rng(seed)
    parties = {}
    for shift, (name, size) in enumerate(SIZES.items()):
        a, b = random.normal(shift, 1.0, size), random.normal(-shift, 2.0, size)
        if task == "linear":
            y = 1 + 2 * a - b + random.normal(0, 0.3, size)
        else:
            y = (random.integers(0, 3, size) if task == "softmax" else a + b > 1).astype(float)
        parties[name] = hs.Table.of({"a": a, "b": b, "y": y})
    return parties


def pooled(parties: dict[str, hs.Table]) -> tuple[Floats, Floats]:
    """All rows, parties in roster order."""
    tables = [parties[name] for name in sorted(parties)]
    x = np.concatenate([np.stack([t.column("a"), t.column("b")], axis=1) for t in tables])
    return x, np.concatenate([t.column("y") for t in tables])


def descend(model: Learner, x: Floats, y: Floats, lr: float, steps: int) -> Floats:
    """Gradient descent as in a textbook."""
    theta = np.zeros(model.layout.size)
    for _ in range(steps):
        theta = theta - lr * model.gradient(theta, x, y)
    return theta


@pytest.mark.parametrize("name", TASKS)
def test_full_batch_fedsgd_is_pooled_gradient_descent(name: str, federate: Federate) -> None:
    parties = rows(name)
    run = federate(TASKS[name], hs.FedSGD(server=hs.SGD(lr=0.05)), parties, rounds=40)
    expected = descend(TASKS[name].learner(2), *pooled(parties), lr=0.05, steps=40)
    np.testing.assert_allclose(run.parameters, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("weights", ["examples", "equal"])
@pytest.mark.parametrize("name", TASKS)
def test_fedavg_with_one_full_batch_step_is_fedsgd(
    name: str, weights: Literal["examples", "equal"], federate: Federate
) -> None:
    parties = rows(name)
    local = hs.SGD(lr=0.05, epochs=1, batch_size="all")
    average = hs.FedAvg(local=local, server=hs.SGD(lr=1.0), weights=weights)
    gradient = hs.FedSGD(server=hs.SGD(lr=0.05), weights=weights)
    one = federate(TASKS[name], average, parties, rounds=10)
    other = federate(TASKS[name], gradient, parties, rounds=10)
    np.testing.assert_allclose(one.parameters, other.parameters, rtol=0, atol=1e-12)


def test_both_weightings_worked_out_by_hand(federate: Federate) -> None:
    # At theta = 0 the gradient of (x w + b - y)^2 / 2 is (-x y, -y) in each row.
    # big: rows (1, 2), (1, 4), (1, 6): mean y is 4, so g = (-4, -4).
    # small: row (1, 10), so g = (-10, -10).
    parties = {
        "big": hs.Table.of({"x": [1.0, 1.0, 1.0], "y": [2.0, 4.0, 6.0]}),
        "small": hs.Table.of({"x": [1.0], "y": [10.0]}),
    }
    task = hs.LinearRegression(target="y")
    by_rows = federate(task, hs.FedSGD(server=hs.SGD(lr=0.5), weights="examples"), parties)
    plain = federate(task, hs.FedSGD(server=hs.SGD(lr=0.5), weights="equal"), parties)
    assert by_rows.parameters.tolist() == [2.75, 2.75]  # 0.5 (3 x 4 + 1 x 10) / 4
    assert plain.parameters.tolist() == [3.5, 3.5]  # 0.5 (4 + 10) / 2


def test_server_momentum_is_heavy_ball(federate: Federate) -> None:
    parties = {"only": hs.Table.of({"x": [1.0, 2.0, 3.0], "y": [2.0, 4.0, 6.0]})}
    task = hs.LinearRegression(target="y")
    run = federate(task, hs.FedSGD(server=hs.SGD(lr=0.02, momentum=0.9)), parties, rounds=12)
    x, y = np.array([[1.0], [2.0], [3.0]]), np.array([2.0, 4.0, 6.0])
    theta, velocity, model = np.zeros(2), np.zeros(2), Linear(1)
    for _ in range(12):
        velocity = 0.9 * velocity - model.gradient(theta, x, y)
        theta = theta + 0.02 * velocity
    np.testing.assert_allclose(run.parameters, theta, rtol=1e-13)


def test_opposite_gradients_of_equal_parties_leave_the_model_where_it_is() -> None:
    reduction = Reduction((Field("update", like="parameters", shape=(2,)),), "ab")
    for party, gradient in (("a", [1.0, 2.0]), ("b", [-1.0, -2.0])):
        reduction.add(party, Contribution(Values({"update": -np.array(gradient)})))
    state = State(values=Values({"parameters": np.zeros(2)}))
    after = state.step(hs.SGD(lr=0.1), reduction.total(2).values.update)
    assert after.values.parameters.tolist() == [0.0, 0.0]
    assert after.round == 1


def test_opposite_gradients_leave_the_model_where_it_is_in_a_whole_run(federate: Federate) -> None:
    # The gradient at zero is (-x y, -y): rows (2, -1) and (2, 1) give (2, 1) and (-2, -1).
    parties = {"a": hs.Table.of({"x": [2.0], "y": [-1.0]}), "b": hs.Table.of({"x": [2.0], "y": [1.0]})}
    task = hs.LinearRegression(target="y")
    for method in (hs.FedSGD(), hs.FedAvg(local=hs.SGD(lr=0.1))):
        assert federate(task, method, parties, rounds=5).parameters.tolist() == [0.0, 0.0]


class Told(UpdateMethod):
    """Parties that answer what their name says: the smallest method there is."""

    kind: ClassVar[str] = "told"
    stacks: ClassVar[bool] = False
    gradients: dict[str, tuple[float, float]]

    def work(self, at: At) -> Answer:
        update = -np.array(self.gradients[at.party])
        return Answer(Contribution(Values({"update": update}), self.weight(at)))


def test_the_smallest_method_moves_by_the_mean_of_what_the_parties_say(federate: Federate) -> None:
    table = hs.Table.of({"x": [1.0], "y": [0.0]})
    parties, task = {"a": table, "b": table}, hs.LinearRegression(target="y")
    opposite = Told(gradients={"a": (1.0, 2.0), "b": (-1.0, -2.0)})
    assert federate(task, opposite, parties, rounds=3).parameters.tolist() == [0.0, 0.0]
    aligned = Told(gradients={"a": (1.0, 2.0), "b": (3.0, -4.0)}, server=hs.SGD(lr=0.5))
    assert federate(task, aligned, parties).parameters.tolist() == [-1.0, 0.5]


@pytest.mark.parametrize(
    "method", [hs.FedSGD(server=hs.SGD(lr=0.1, momentum=0.8)), hs.FedAvg(local=hs.SGD(lr=0.1, epochs=10))]
)
def test_a_line_through_the_origin_is_found(method: hs.methods.Method, federate: Federate) -> None:
    parties = {"a": hs.Table.of({"x": [1.0], "y": [2.0]}), "b": hs.Table.of({"x": [2.0, 3.0], "y": [4.0, 6.0]})}
    run = federate(hs.LinearRegression(target="y"), method, parties, rounds=250)
    np.testing.assert_allclose(run.parameters, [2.0, 0.0], atol=1e-6)
    unseen = hs.Table.of({"x": [10.0, -1.0]})
    np.testing.assert_allclose(run.model.predict(unseen), [20.0, -2.0], atol=1e-5)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("model", [Linear(3), Logistic(3), Softmax(3, 4)], ids=lambda m: type(m).__name__)
def test_the_gradient_is_that_of_the_loss(model: Glm, l2: float) -> None:
    model = type(model)(model.width, model.outputs, l2)
    random = np.random.default_rng(3)
    x, theta = random.normal(size=(9, 3)), random.normal(size=model.layout.size)
    y = random.integers(0, 2 if model.outputs == 1 else 4, 9).astype(float)
    step = 1e-6
    numeric = [
        (model.loss(theta + step * e, x, y) - model.loss(theta - step * e, x, y)) / (2 * step)
        for e in np.eye(theta.size)
    ]
    np.testing.assert_allclose(model.gradient(theta, x, y), numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("model", [Linear(2, l2=0.7), Logistic(2, l2=0.7), Softmax(2, 3, l2=0.7)], ids=str)
def test_the_intercept_is_not_penalised(model: Glm) -> None:
    x, theta = np.zeros((1, 2)), np.zeros(model.layout.size)
    theta[2 * model.outputs :] = 5.0
    bare = type(model)(model.width, model.outputs)
    y = np.zeros(1)
    assert model.loss(theta, x, y) == bare.loss(theta, x, y)
    np.testing.assert_array_equal(model.gradient(theta, x, y), bare.gradient(theta, x, y))


def test_losses_and_gradients_do_not_overflow_far_out() -> None:
    x, y = np.array([[1e4], [-1e4]]), np.array([0.0, 1.0])
    for model in (Logistic(1), Softmax(1, 2)):
        theta = np.full(model.layout.size, 3.0) * np.array([1.0, -1.0] * 2)[: model.layout.size]
        assert np.isfinite(model.loss(theta, x, y))
        assert np.isfinite(model.gradient(theta, x, y)).all()
        assert np.isfinite(model.predict(theta, x)).all()


@pytest.fixture(scope="module")
def linear_model() -> Any:
    """scikit-learn's, where it is installed."""
    return pytest.importorskip("sklearn.linear_model")


def test_logistic_regression_finds_the_optimum_that_scikit_learn_finds(federate: Federate, linear_model: Any) -> None:
    parties, l2 = rows("logistic"), 0.05
    x, y = pooled(parties)
    # scikit-learn minimises C sum(loss) + |w|^2 / 2; ours is mean(loss) + l2 |w|^2 / 2.
    reference = linear_model.LogisticRegression(C=1 / (l2 * len(y)), tol=1e-10, max_iter=10_000)
    reference.fit(x, y)
    task = hs.LogisticRegression(target="y", l2=l2)
    run = federate(task, hs.FedSGD(server=hs.SGD(lr=0.4, momentum=0.9)), parties, rounds=600)
    expected = [*reference.coef_[0], reference.intercept_[0]]
    np.testing.assert_allclose(run.parameters, expected, rtol=1e-6)


def test_linear_regression_finds_the_ridge_optimum(federate: Federate, linear_model: Any) -> None:
    parties, l2 = rows("linear"), 0.1
    x, y = pooled(parties)
    reference = linear_model.Ridge(alpha=l2 * len(y)).fit(x, y)  # sum(e^2) + alpha |w|^2
    task = hs.LinearRegression(target="y", l2=l2)
    run = federate(task, hs.FedSGD(server=hs.SGD(lr=0.1, momentum=0.9)), parties, rounds=800)
    np.testing.assert_allclose(run.parameters, [*reference.coef_, reference.intercept_], rtol=1e-9)
