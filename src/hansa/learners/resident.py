"""PyTorch modules at work, in two engines.

*Stacked*: the parameters of many parties as ``[k, d]``, the forward pass vectorised over parties (`torch.func`), one
backward pass for all. *Resident*: one module whose parameters are views into a party's row of the result, updated in
place, without padding; convolutions run channels-last. A party trains on one core, and parties share the cores, so that
neither their number nor whose rows lie beside a party's own changes its bits."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as nnf
from torch import nn

from hansa.contribution import Array
from hansa.errors import HansaError, RunError, StudyError
from hansa.learners.base import Correction, Feed, Slots
from hansa.learners.optimizer import SGD, FirstOrder

if TYPE_CHECKING:
    from hansa.learners.torch import Torch

LARGE = 1 << 17  # parameters; above it a step of one party outweighs what stacking saves
_RANDOM = threading.RLock()  # PyTorch draws from one generator for the whole process
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # else a row's place moves its last bits on some processors


def first_line(error: Exception) -> str:
    """Of what it says; its kind, if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw under this seed, alone in the process."""
    with _RANDOM, torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def failures() -> Iterator[None]:
    """What goes wrong in somebody's module is told as such; memory that ran out with what to lower."""
    try:
        yield
    except HansaError:
        raise
    except Exception as error:
        if isinstance(error, MemoryError) or "memory" in first_line(error):
            remedy = "Lower local.batch_size, or the number of workers, or make the module smaller"
            raise RunError(f"out of memory: {first_line(error)}", remedy=remedy) from error
        remedy = "Correct the module, or `features` and `target` of the task"
        raise StudyError(f"the module fails: {type(error).__name__}: {first_line(error)}", remedy=remedy) from error


@contextmanager
def at_work(
    learner: Torch, theta: Array | None = None, training: bool = False, key: int | None = None, few: bool = True
) -> Iterator[Resident]:
    """A resident module, of which there are as many as threads that ask at once; with these parameters,
    drawing under this key if it draws, and on one core unless it has more than a few rows."""
    with failures(), nullcontext() if key is None or not learner.draws else seeded(key):
        resident, threads = learner.idle.pop() if learner.idle else Resident(learner), torch.get_num_threads()
        try:
            if few:
                torch.set_num_threads(1)
            if theta is not None:
                resident.hold(learner.views(learner.native(theta)), training)
            yield resident
        finally:
            torch.set_num_threads(threads)
            resident.rest()
            learner.idle.append(resident)


class _Factored(torch.autograd.Function):  # type: ignore[misc]  # PyTorch is not read by mypy
    """A linear layer whose weight's gradient stays in its two factors, outputs' gradient and inputs."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, factors: list[Any]) -> Any:
        """As `nn.Linear`."""
        ctx.save_for_backward(x, weight)
        ctx.factors = factors
        return nnf.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        """Those of the inputs and the bias."""
        x, weight = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        ctx.factors.append((flat.t(), x.reshape(-1, x.shape[-1])))
        inputs = gradient @ weight if ctx.needs_input_grad[0] else None
        return inputs, None, flat.sum(0), None


class Resident:
    """One module of a thread, whose parameters are views into a party's vector while it works."""

    def __init__(self, learner: Torch) -> None:
        self.learner, self.module = learner, copy.deepcopy(learner.template).to(learner.device)
        parameters = dict(self.module.named_parameters())
        self.leaves = [parameters[name] for name in learner.names]
        self.own: dict[int, Any] = {}  # leaves that lie in another order than the layout's
        if learner.convolves:
            self.module.to(memory_format=torch.channels_last)
            self.own = {i: leaf.data for i, leaf in enumerate(self.leaves) if leaf.ndim == 4}
        buffers = self.module.named_buffers()
        self._tracked = [b for name, b in buffers if name.endswith("num_batches_tracked")]
        self.factors: dict[int, list[Any]] = {}  # of weights that are so large that it pays
        self.factoring = False
        for layer in self.module.modules():
            for i, leaf in enumerate(self.leaves) if type(layer) is nn.Linear else ():
                large = leaf is layer.weight and leaf.numel() > LARGE
                if large and layer.bias in set(self.leaves):
                    layer.forward = partial(self._linear, layer, self.factors.setdefault(i, []))

    def _linear(self, layer: Any, factors: list[Any], x: Any) -> Any:
        if not self.factoring or self.learner.bfloat:
            return nnf.linear(x, layer.weight, layer.bias)
        return _Factored.apply(x, layer.weight.detach(), layer.bias, factors)

    def rest(self) -> None:
        """Let go of the party's vector."""
        self.factoring = False
        for leaf in self.leaves:
            leaf.data = leaf.data.new_empty(0)
        self._run_on([None] * len(self.learner.running))

    def hold(self, views: list[Any], training: bool, copies: bool = True) -> None:
        """Make the module's state these views, or copies of them where it has its own order."""
        self.module.train(training)
        for i, leaf in enumerate(self.leaves):
            leaf.data = self.own.get(i, views[i])
            if copies and i in self.own:
                leaf.data.copy_(views[i])
        self._run_on(views[len(self.leaves) :])

    def _run_on(self, statistics: list[Any]) -> None:
        for name, value in zip(self.learner.running, statistics, strict=True):
            owner, _, which = name.rpartition(".")
            setattr(self.module.get_submodule(owner), which, value)

    def outputs(self, x: Any, leaves: dict[str, Any] | None = None) -> Any:
        """The forward pass, with these leaves instead of the module's own if they are given."""
        with torch.autocast(self.learner.device.type, torch.bfloat16, enabled=self.learner.bfloat):
            return self.module(x) if leaves is None else torch.func.functional_call(self.module, leaves, (x,))

    def mean(self, x: Array, y: Array, weights: Array | None = None) -> Any:
        """The weighted mean loss."""
        losses = self.learner.losses(self.outputs(self.learner.features(x)), self.learner.labels(y))
        if weights is None or losses.ndim == 0:
            return losses.mean()
        return (losses * self.learner.native(weights)).sum()

    def slopes(self, mean: Any) -> Any:
        """The gradients of the leaves; None of those that take no part."""
        return torch.autograd.grad(mean, self.leaves, allow_unused=True)

    def train_stack(
        self, result: Array, feed: Feed, local: FirstOrder, correct: Correction | None, kept: Slots
    ) -> None:
        """Train all parties of a feed at once, from ``result [k, d]``; ``kept`` becomes their state."""
        learner = self.learner
        whole = torch.from_numpy(result).to(learner.device)
        begun = None if kept else -1  # whose slots are not fresh
        for parties, x, y, weights in feed.stacked(learner.takes):
            theta, batch = whole[parties], (learner.features(x), learner.labels(y))
            gradient = self.stacked(theta, *batch, learner.native(weights))
            if correct is not None:
                gradient = correct(gradient, theta, parties)
            if type(local) is SGD and not local.momentum:  # the same, without its temporaries
                theta.add_(gradient, alpha=-local.lr)
                continue
            fresh = begun is not None and begun != parties.start
            begun = parties.start if fresh else begun
            mine = {} if fresh else {name: value[parties] for name, value in kept.items()}
            moved, after = local.step(theta, -gradient, mine)
            whole[parties] = moved
            for name, value in after.items():
                if name not in kept:
                    kept[name] = torch.zeros_like(whole[:, : value.shape[1]])
                kept[name][parties] = value
        if learner.device.type != "cpu":
            result[:] = whole.cpu().numpy()

    def stacked(self, theta: Any, x: Any, y: Any, weights: Any) -> Any:
        """Gradients ``[m, d]``: the forward pass is vectorised, the sum over parties differentiated."""

        def one(leaves: dict[str, Any], x: Any, y: Any, weights: Any) -> Any:
            return (self.learner.losses(self.outputs(x, leaves), y) * weights).sum()

        self.module.train()
        flat = theta.detach().requires_grad_()
        leaves = dict(zip(self.learner.names, self.learner.views(flat), strict=True))
        return torch.autograd.grad(torch.func.vmap(one, randomness="error")(leaves, x, y, weights).sum(), flat)[0]

    def train_one(
        self, row: Array, start: Array, feed: Feed, i: int, local: FirstOrder, correct: Correction | None, slots: Slots
    ) -> Slots:
        """Train a feed's i-th party by itself, from ``start [d]`` into ``row [d]``; its optimiser's state after it."""
        for tracked in self._tracked:
            tracked.fill_(feed.part[0])
        result, before = torch.from_numpy(row).to(self.learner.device), self.learner.native(start)
        if type(local) is SGD and not local.momentum and correct is None:
            self._descend(before, result, feed.batches(i), local.lr)
        else:
            result.copy_(before)
            slots = self._step(result, feed, i, local, correct, slots)
        if self.learner.device.type != "cpu":
            row[:] = result.cpu().numpy()
        return slots

    def _descend(self, before: Any, row: Any, batches: Iterator[Any], lr: float) -> None:
        """Plain SGD in place; its first step reads the start and writes the row."""
        source, views = self.learner.views(before), self.learner.views(row)
        learnt = len(self.leaves)
        for value, view in zip(source[learnt:], views[learnt:], strict=True):
            view.copy_(value)
        targets = [self.own.get(i, view) for i, view in enumerate(views)]
        self.hold([*source[:learnt], *views[learnt:]], training=True)
        values = [leaf.data for leaf in self.leaves]
        self.factoring = True
        for x, y in batches:
            for factors in self.factors.values():
                factors.clear()
            slopes = self.slopes(self.mean(x, y))
            for i, (value, slope, target) in enumerate(zip(values, slopes, targets, strict=False)):
                if slope is not None:
                    value = torch.add(value, slope, alpha=-lr, out=target)
                for left, right in self.factors.get(i, ()):
                    value = torch.addmm(value, left, right.detach(), alpha=-lr, out=target)
                if value is not target:
                    target.copy_(value)
            if values is not targets:
                self.hold(targets, training=True, copies=False)
                values = targets
        for i, own in self.own.items():
            views[i].copy_(own)

    def _step(self, row: Any, feed: Feed, i: int, local: FirstOrder, correct: Correction | None, slots: Slots) -> Slots:
        """Any optimiser and any correction, on the i-th party's flat vector; the optimiser's state after it."""
        views, theta, gradient = self.learner.views(row), row[None], torch.zeros_like(row)
        leaves, learnt = self.learner.views(gradient), self.learner.learnt
        self.hold(views, training=True)
        for x, y in feed.batches(i):
            for leaf, slope in zip(leaves, self.slopes(self.mean(x, y)), strict=False):
                leaf.copy_(torch.zeros_like(leaf) if slope is None else slope)
            used = gradient[None] if correct is None else correct(gradient[None], theta, slice(i, i + 1))
            statistics = row[learnt:].clone()
            moved, slots = local.step(theta, -used, slots)
            theta.copy_(moved)
            row[learnt:] = statistics  # they move by the forward pass alone
            for i, own in self.own.items():
                own.copy_(views[i])
        return slots
