"""Sums of clipped gradients of a PyTorch module, without a gradient per row of its large layers.

A linear layer's gradient of a row is ``l^T r``: what came back to its outputs ``[t, q]``, times its inputs
``[t, p]``. Its squared norm, the sum of ``(l l^T) * (r r^T)`` (Goodfellow 2015, arXiv 1510.01799; Li et al. 2022,
arXiv 2110.05679), and the clipped sum (Bu et al. 2023, arXiv 2210.00038) need one backward pass. An embedding's
``l`` are rows of the unit matrix; for other layers each row's gradient is made. A row is a batch of its own under
`torch.func.vmap`, and only what was measured is added: the bound holds for any module."""

import logging
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from hansa.contribution import Array
from hansa.errors import HansaError, StudyError
from hansa.learners.resident import at_work

_ROWS, _KEPT = 32, 1 << 24  # at once, and numbers of their gradients
_SLACK = 2.0**-36  # of what a norm is a difference of: far more than float64 loses, far less than matters
_MORE = "a weight does more than one layer's product"


def unable(learner: Any, one_by_one: Any, x: Array, y: Array) -> str:
    """Why it cannot be done, found out on rows and weights that are no secret, and logged; empty if it can."""
    theta, random = learner.flat(learner.template), np.random.default_rng(0)
    x = (random.normal(size=(2, *x.shape[1:])) * (x.dtype.kind == "f")).astype(x.dtype)
    y = np.zeros((2, *y.shape[1:]), y.dtype)
    try:
        expected = one_by_one(theta, x, y, np.inf)
        if np.linalg.norm(clipped(learner, theta, x, y, np.inf) - expected) <= 1e-3 * np.linalg.norm(expected):
            one, many = (clipped(learner, theta, x[rows], y[rows], np.inf) for rows in ([0], [0] * _ROWS))
            if np.allclose(many, one * _ROWS, rtol=1e-10, atol=1e-10 * np.linalg.norm(many)):
                return ""
            reason = "this processor rounds a row by its place among others; MKL_CBWR=AUTO,STRICT may help"
        else:
            reason = _MORE
    except HansaError as problem:
        reason = problem.message
    logging.getLogger("hansa").warning("gradients are clipped row by row, which is slow: %s", reason)
    return reason


def clipped(learner: Any, theta: Array, x: Any, y: Any, norm: float) -> Array:
    """As `Learner.clipped`, of a `hansa.learners.torch.Torch`; a StudyError if a weight does more than that.
    There it is a constant, so a gradient that reaches it came another way: under vmap, for all rows or for none."""
    calls, probes = dict[str, Any](), dict[str, Any]()

    def note(name: str, layer: Any, inputs: Any, out: Any = None) -> Any:
        if name in layers:
            layer._parameters["weight"] = leaves[name].detach() if out is None else leaves[name]
        if out is None:  # before the layer's work
            return None
        calls[name] = None if name in calls else (inputs[0], out)
        return out + probes[name] if probes and name in layers else out

    def run(given: dict[str, Any], x: Any, y: Any) -> Any:
        calls.clear()
        probes.update(given)
        own = leaves | {name: value for name, value in given.items() if name not in layers}
        out = torch.func.functional_call(resident.module, own, x[None])
        return learner.losses(out, y[None]).mean(), {n: calls[n][0] for n in given if n in layers}

    with at_work(learner) as resident, ExitStack() as hooks:
        leaves = dict(zip(learner.names, learner.views(learner.native(theta)), strict=True))
        layers = {f"{path}.weight".lstrip("."): layer for path, layer in resident.module.train().named_modules()}
        layers = {n: m for n, m in layers.items() if n in leaves and type(m) in (nn.Linear, nn.Embedding)}
        x, y = learner.features(x), learner.labels(y)
        for name, layer in layers.items():
            leaves[name].requires_grad_()
            hooks.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
            hooks.callback(layer.register_forward_hook(partial(note, name), prepend=True).remove)
        with torch.no_grad():
            run({}, x.new_zeros(x.shape[1:]), y.new_zeros(y.shape[1:]))
        for name in tuple(layers):  # that are called more than once, or whose factors outweigh the gradient
            if not (call := calls.get(name)) or 2 * call[1][..., 0].numel() ** 2 > leaves[name].numel():
                del layers[name]
        wanted = {n: torch.zeros_like(calls[n][1]) if n in layers else v.detach() for n, v in leaves.items()}
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in leaves.items()}
        many = min(_ROWS, max(1, _KEPT // (x[:1].numel() + sum(value.numel() for value in wanted.values()))))
        for at in range(0, len(y), many):
            few = min(many, len(y) - at)
            rows = np.resize(np.arange(at, at + few), many)  # so that no rounding depends on how many there are
            given = {name: value.expand(many, *value.shape).requires_grad_() for name, value in wanted.items()}
            losses, inputs = torch.func.vmap(run)(given, x[rows], y[rows])
            some = [*given.values(), *map(leaves.get, layers)]
            slopes = torch.autograd.grad(losses.sum(), some, allow_unused=True)
            if any(slope is not None for slope in slopes[len(given) :]):
                raise StudyError(_MORE)
            back = {name: v for name, v in zip(given, slopes, strict=False) if v is not None}
            _add(total, {n: _factors(layers.get(n), inputs.get(n), v) for n, v in back.items()}, few, norm)
        return np.asarray(torch.cat([value.reshape(-1) for value in total.values()]).cpu())


def _factors(layer: Any, x: Any, back: Any) -> tuple[Any, Any]:
    """``l [n, t, q]``, or tokens ``[n, t, 1]``, and ``r [n, t, p]``; ones, and a gradient that is made."""
    if layer is None:
        return back.new_ones(len(back), 1, 1, dtype=torch.float64), back.flatten(1)[:, None].double()
    embeds = isinstance(layer, nn.Embedding)
    left, right = (x[..., None], back) if embeds else (back.double(), x.detach())
    left, right = (v.reshape(len(v), -1, v.shape[-1]) for v in (left, right.double()))
    return left, right * (left != layer.padding_idx) if embeds and layer.padding_idx is not None else right


def _add(total: dict[str, Any], pairs: dict[str, tuple[Any, Any]], rows: int, norm: float) -> None:
    """Add the first rows' gradients, clipped."""
    squares: Any = 0
    for left, right in pairs.values():
        terms = (left @ left.mT if left.is_floating_point() else left == left.mT) * (right @ right.mT)
        squares += terms.sum((1, 2)) + _SLACK * terms.diagonal(dim1=1, dim2=2).sqrt().sum(1) ** 2
    fine = squares[:rows].isfinite().nonzero()[:, 0]  # a row that has no gradient adds nothing
    scale = (norm / squares[fine].sqrt()).clamp(max=1)[:, None, None]
    for name, (left, right) in pairs.items():
        left, right = left[fine].flatten(0, 1), (right[fine] * scale).flatten(0, 1)
        if left.is_floating_point():
            total[name] += (left.mT @ right).view_as(total[name])
        else:
            total[name].index_put_((left[:, 0],), right, accumulate=True)
