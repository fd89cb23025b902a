"""Sums of clipped gradients of a PyTorch module, without a gradient per row of its large layers.

A linear layer's gradient of a row is ``l^T r``: what came back to its outputs, ``l [t, q]``, times its inputs,
``r [t, p]``. Its norm, ``|l^T r|^2 = sum of (l l^T) * (r r^T)`` (Goodfellow 2015, arXiv 1510.01799; Li et al.
2022, arXiv 2110.05679), and the clipped sum (Bu et al. 2023, arXiv 2210.00038) follow after one backward pass. An
embedding's ``l`` are rows of the unit matrix. For other layers each row's gradient is made. A row is a batch of
its own under `torch.func.vmap`, and only what was measured is added: the bound holds for any module.
"""

import logging
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from hansa.contribution import Array
from hansa.errors import HansaError
from hansa.learners.base import factors

_ROWS, _KEPT = 32, 1 << 25  # at once, and numbers of their gradients
_SLACK = 2.0**-36  # of what a norm is a difference of: far more than float64 loses, far less than matters


def unable(learner: Any, theta: Array, x: Array, y: Array, expected: Array) -> str:
    """Why it cannot be done, found out on rows whose plain sum is known, and logged; empty if it can."""
    try:
        error = np.linalg.norm(clipped(learner, theta, x, y, np.inf) - expected)
        reason = "a weight does more than one layer's product" if error > 1e-3 * np.linalg.norm(expected) else ""
    except HansaError as problem:
        reason = problem.message
    if reason:
        logging.getLogger("hansa").warning("gradients are clipped row by row, which is slow: %s", reason)
    return reason


def clipped(learner: Any, theta: Array, x: Array, y: Array, norm: float) -> Array:
    """As `Learner.clipped`, of a `hansa.learners.torch.Torch`."""
    with learner._at_work() as resident:
        leaves = dict(zip(learner.names, learner.views(learner.native(theta)), strict=True))
        layers = {f"{path}.weight".lstrip("."): layer for path, layer in resident.module.train().named_modules()}
        layers = {n: m for n, m in layers.items() if n in leaves and type(m) in (nn.Linear, nn.Embedding)}
        run = partial(_run, learner, resident.module, layers, leaves)
        with torch.no_grad():
            _, calls = run({}, learner.features(x[:1])[0], learner.labels(y[:1])[0])
        for name in tuple(layers):  # that are called more than once, or whose factors outweigh the gradient
            if not (call := calls.get(name)) or 2 * call[1][..., 0].numel() ** 2 > leaves[name].numel():
                del layers[name]
        kept = x[0].size + sum(value.numel() for name, value in leaves.items() if name not in layers)
        many = min(_ROWS, max(1, _KEPT // kept))
        total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in leaves.items()}
        for at in range(0, len(y), many):
            few = len(y[at : at + many])  # filled up: no row's rounding depends on how many others there are
            rows = [np.resize(v[at : at + few], (many, *v.shape[1:])) for v in (x, y)]
            given = {n: v.expand(many, *v.shape) for n, v in leaves.items() if n not in layers}
            given |= {n: calls[n][1].new_zeros(many, *calls[n][1].shape) for n in layers}
            inner = [value.requires_grad_() for value in given.values()]
            losses, noted = torch.func.vmap(run)(given, learner.features(rows[0]), learner.labels(rows[1]))
            slopes = torch.autograd.grad(losses.sum(), inner, allow_unused=True)
            made = {n: v[:few] for n, v in zip(given, slopes, strict=True) if v is not None}
            pairs = {n: _factors(layers[n], noted[n][0][:few], made.pop(n)) for n in layers if n in made}
            _add(total, {n: v.flatten(1) for n, v in made.items()}, pairs, norm)
        return np.asarray(torch.cat([value.reshape(-1) for value in total.values()]).cpu())


def _run(learner: Any, module: Any, layers: Any, leaves: Any, given: Any, x: Any, y: Any) -> Any:
    """A row's loss, and the inputs and outputs of these layers, to which is added what is given for them."""
    calls: dict[str, Any] = {}

    def note(name: str, layer: Any, inputs: Any, out: Any) -> Any:
        calls[name] = None if name in calls else (inputs[0], out)
        return out + given[name] if given else out

    hooks = [layer.register_forward_hook(partial(note, name), prepend=True) for name, layer in layers.items()]
    try:
        own = {name: given.get(name, value) for name, value in leaves.items() if name not in layers}
        return learner.losses(torch.func.functional_call(module, leaves | own, x[None]), y[None]).mean(), calls
    finally:
        for hook in hooks:
            hook.remove()


def _factors(layer: Any, x: Any, back: Any) -> tuple[Any, Any]:
    """``l [n, t, q]``, or tokens ``[n, t, 1]``, and ``r [n, t, p]``, in float64."""
    embeds = isinstance(layer, nn.Embedding)
    left, right = (x[..., None], back) if embeds else (back.double(), x.detach())
    left, right = (v.reshape(len(v), -1, v.shape[-1]) for v in (left, right.double()))
    return left, right * (left != layer.padding_idx) if embeds and layer.padding_idx is not None else right


def _add(total: dict[str, Any], made: dict[str, Any], pairs: dict[str, tuple[Any, Any]], norm: float) -> None:
    """Add rows' gradients, clipped, from what was made ``[n, width]`` and from factors."""
    squares = sum(torch.linalg.vector_norm(slope, dim=1, dtype=torch.float64) ** 2 for slope in made.values())
    for left, right in pairs.values():
        alike = left @ left.mT if left.is_floating_point() else left == left.mT
        terms = alike * (right @ right.mT)
        squares += terms.sum((1, 2)) + _SLACK * terms.diagonal(dim1=1, dim2=2).sqrt().sum(1) ** 2
    fine = squares.isfinite()  # a row that has no gradient adds nothing
    scale = torch.from_numpy(factors(squares[fine].sqrt().cpu().numpy(), norm)).to(squares)
    for name, slope in made.items():
        total[name] += (scale @ slope[fine].double()).view_as(total[name])
    for name, (left, right) in pairs.items():
        left, right = left[fine].flatten(0, 1), (right[fine] * scale[:, None, None]).flatten(0, 1)
        if left.is_floating_point():
            total[name].addmm_(left.mT, right)
        else:
            total[name].index_put_((left[:, 0],), right, accumulate=True)
