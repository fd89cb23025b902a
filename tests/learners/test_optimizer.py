"""Optimisers against their formulas, written out in plain loops, and against PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hansa.errors import StudyError
from hansa.learners.optimizer import OPTIMIZERS, SGD, Adagrad, Adam, AdamW, FirstOrder, Yogi

Floats = NDArray[np.float64]
LOCAL: dict[str, FirstOrder] = {
    "sgd": SGD(lr=0.1),
    "momentum": SGD(lr=0.1, momentum=0.9),
    "adagrad": Adagrad(lr=0.1),
    "adam": Adam(lr=0.1, beta1=0.8, beta2=0.95),
    "adam, defaults": Adam(lr=0.01),
    "adamw": AdamW(lr=0.1, weight_decay=0.3),
    "yogi": Yogi(lr=0.1, beta2=0.9),
}
UPDATES = np.random.default_rng(4).normal(size=(12, 5)) * np.geomspace(1, 1e-3, 5)
START = np.array([1.0, -2.0, 0.5, 0.0, 3.0])


def locally(optimizer: FirstOrder, start: Any, updates: Any, slots: Any = None) -> tuple[Any, Any]:
    slots = slots or {}
    for update in updates:
        start, slots = optimizer.step(start, update, slots)
    return start, slots


def written_out(name: str, start: Floats, updates: Floats) -> Floats:
    """The formulas, one number after the other."""
    end = []
    for theta, steps in zip(start, updates.T, strict=True):
        m = v = 0.0
        for t, u in enumerate(steps, start=1):
            if name == "sgd":
                theta += 0.1 * u
            elif name == "momentum":
                m = 0.9 * m + u
                theta += 0.1 * m
            elif name == "adagrad":
                v += u * u
                theta += 0.1 * u / (math.sqrt(v) + 1e-8)
            else:
                lr, b1, b2 = {
                    "adam": (0.1, 0.8, 0.95),
                    "adam, defaults": (0.01, 0.9, 0.999),
                    "adamw": (0.1, 0.9, 0.999),
                    "yogi": (0.1, 0.9, 0.9),
                }[name]
                m = b1 * m + (1 - b1) * u
                if name == "yogi":
                    v -= (1 - b2) * (v > u * u) * u * u - (1 - b2) * (v < u * u) * u * u
                else:
                    v = b2 * v + (1 - b2) * u * u
                if name == "adamw":
                    theta *= 1 - 0.1 * 0.3
                theta += lr * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-8)
        end.append(theta)
    return np.array(end)


@pytest.mark.parametrize("name", LOCAL)
def test_a_party_steps_as_the_formula_says(name: str) -> None:
    end, _ = locally(LOCAL[name], START, UPDATES)
    np.testing.assert_allclose(end, written_out(name, START, UPDATES), rtol=1e-11)


@pytest.mark.parametrize("name", LOCAL)
def test_a_stack_is_each_party_by_itself_at_whatever_step_it_is(name: str) -> None:
    optimizer = LOCAL[name]
    ahead = locally(optimizer, START, UPDATES[:4])  # this party has already taken four steps
    fresh = START, {slot: np.zeros_like(value) for slot, value in ahead[1].items()}
    slots = {slot: np.stack([ahead[1][slot], fresh[1][slot]]) for slot in ahead[1]}
    stack = np.stack([ahead[0], fresh[0]])
    both = np.stack([UPDATES[4:], UPDATES[:8]], axis=1)
    end, kept = locally(optimizer, stack, both, slots)
    np.testing.assert_array_equal(end[0], locally(optimizer, START, UPDATES)[0])
    np.testing.assert_allclose(end[1], locally(optimizer, START, UPDATES[:8])[0], rtol=1e-15)
    assert all(value.shape in {(2, 5), (2, 1)} for value in kept.values())


@pytest.mark.parametrize("name", LOCAL)
def test_a_step_changes_nothing_in_place(name: str) -> None:
    start, updates = START.copy(), UPDATES[:3].copy()
    for array in (start, updates):
        array.flags.writeable = False
    _, slots = locally(LOCAL[name], start, updates)
    for value in slots.values():
        value.flags.writeable = False
    locally(LOCAL[name], start, updates, slots)


@pytest.mark.parametrize("name", LOCAL)
def test_float32_stays_float32_and_loses_nothing_but_its_digits(name: str) -> None:
    end, slots = locally(LOCAL[name], START.astype(np.float32), UPDATES.astype(np.float32))
    assert {end.dtype, *(value.dtype for value in slots.values())} == {np.dtype(np.float32)}
    np.testing.assert_allclose(end, locally(LOCAL[name], START, UPDATES)[0], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", LOCAL)
def test_a_tensor_takes_the_same_steps_as_an_array(name: str) -> None:
    torch = pytest.importorskip("torch")
    end, slots = locally(LOCAL[name], torch.tensor(START), torch.tensor(UPDATES))
    assert all(isinstance(value, torch.Tensor) for value in slots.values())
    np.testing.assert_allclose(end.numpy(), locally(LOCAL[name], START, UPDATES)[0], rtol=1e-13)


@pytest.mark.parametrize(
    ("name", "theirs", "options"),
    [
        ("momentum", "SGD", {"lr": 0.1, "momentum": 0.9}),
        ("adagrad", "Adagrad", {"lr": 0.1, "eps": 1e-8}),
        ("adam", "Adam", {"lr": 0.1, "betas": (0.8, 0.95)}),
        ("adamw", "AdamW", {"lr": 0.1, "weight_decay": 0.3}),
    ],
)
def test_pytorch_takes_the_same_steps(name: str, theirs: str, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    theta = torch.tensor(START, requires_grad=True)
    optimizer = getattr(torch.optim, theirs)([theta], **options)
    for update in UPDATES:
        theta.grad = torch.tensor(-update)
        optimizer.step()
    end, _ = locally(LOCAL[name], START, UPDATES)
    np.testing.assert_allclose(end, theta.detach().numpy(), rtol=1e-11)


@pytest.mark.parametrize(
    ("optimizer", "b1", "b2", "tau"),
    [
        (Adagrad(lr=0.3), 0.0, 0.0, 1e-3),
        (Adagrad(lr=0.3, epsilon=0.1), 0.0, 0.0, 0.1),
        (Adam(lr=0.3), 0.9, 0.99, 1e-3),
        (Adam(lr=0.3, beta1=0.5, beta2=0.6, epsilon=0.01), 0.5, 0.6, 0.01),
        (Yogi(lr=0.3), 0.9, 0.99, 1e-3),
        (Yogi(lr=0.3, beta2=0.7), 0.9, 0.7, 1e-3),
    ],
    ids=lambda value: value.kind if isinstance(value, FirstOrder) else None,
)
def test_the_server_steps_as_in_reddi_et_al(optimizer: FirstOrder, b1: float, b2: float, tau: float) -> None:
    """Algorithm 2 of arXiv 2003.00295, line by line: v starts from tau^2, and nothing is corrected."""
    x, m, v = START, np.zeros(5), np.full(5, tau**2)
    theta, slots = START, dict[str, Any]()
    for delta in UPDATES:
        m = b1 * m + (1 - b1) * delta
        if isinstance(optimizer, Yogi):
            v = v - (1 - b2) * delta**2 * np.sign(v - delta**2)
        elif isinstance(optimizer, Adam):
            v = b2 * v + (1 - b2) * delta**2
        else:
            v = v + delta**2
        x = x + 0.3 * m / (np.sqrt(v) + tau)
        theta, slots = optimizer.serve(theta, delta, slots)
        np.testing.assert_allclose(theta, x, rtol=1e-12)


def test_weight_decay_is_decoupled_at_the_server_as_well() -> None:
    adamw = AdamW(lr=0.5, weight_decay=0.1).serve(START, UPDATES[0], {})[0]
    np.testing.assert_allclose(adamw, Adam(lr=0.5).serve(START * 0.95, UPDATES[0], {})[0], rtol=1e-15)


def test_an_optimizer_is_found_by_its_name_and_a_misspelt_one_is_answered_with_the_nearest() -> None:
    assert list(OPTIMIZERS) == ["adagrad", "adam", "adamw", "dp-adam", "dp-sgd", "sgd", "yogi"]
    assert OPTIMIZERS.build({"optimizer": "adamw", "lr": 0.1}) == AdamW(lr=0.1)
    with pytest.raises(StudyError, match=r"unknown optimizer 'adan'. Did you mean 'adam'"):
        OPTIMIZERS.build({"optimizer": "adan", "lr": 0.1})
    with pytest.raises(StudyError, match=r'momentum.*It belongs to optimizer = "sgd"'):
        OPTIMIZERS.build({"optimizer": "adam", "lr": 0.1, "momentum": 0.9})
    for wrong in ({"beta1": 1.0}, {"beta2": -0.1}, {"epsilon": 0.0}, {"lr": 0.0}):
        with pytest.raises(StudyError, match=next(iter(wrong))):
            Adam.model_validate({"lr": 0.1, **wrong})
