"""Any PyTorch module as functions of one flat parameter vector; what trains it is in `hansa.learners.resident`."""

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as nnf
from blake3 import blake3
from torch import nn

from hansa.contribution import Array
from hansa.errors import DataError, HansaError, StudyError, UsageError
from hansa.learners import ghost
from hansa.learners.base import Correction, Engine, Feed, Layout, Learner, Slots
from hansa.learners.optimizer import FirstOrder
from hansa.learners.resident import LARGE, Resident, at_work, failures, first_line, seeded

with warnings.catch_warnings():  # what is sent is read-only; PyTorch warns of that once a process
    warnings.simplefilter("ignore")
    torch.from_numpy(np.broadcast_to(np.zeros(1, np.float32), 2))

Precision = Literal["float32", "float64", "bfloat16"]
Buffers = Literal["refuse", "average", "local"]

_ROWS = 500  # in one forward pass of a prediction


def _log_loss(p: Any, y: Any, reduction: str) -> Any:
    return nnf.nll_loss(p.clamp(min=1e-12).log(), y, reduction=reduction)


_as_it_is = nn.Identity()
_binary = (nnf.binary_cross_entropy_with_logits, nnf.binary_cross_entropy)
LOSSES: dict[str, tuple[Any, Any, Any]] = {
    "cross_entropy": (nnf.cross_entropy, _log_loss, lambda out: out.softmax(-1)),
    "nll": (nnf.nll_loss, _log_loss, torch.exp),
    "bce_with_logits": (*_binary, torch.sigmoid),
    "mse": (nnf.mse_loss, nnf.mse_loss, _as_it_is),
    "l1": (nnf.l1_loss, nnf.l1_loss, _as_it_is),
    "smooth_l1": (nnf.smooth_l1_loss, nnf.smooth_l1_loss, _as_it_is),
}
"""The loss of outputs, and of predictions; and what makes predictions of outputs."""


class Torch(Learner):
    """A module, a loss, and two engines.

    Args:
        build: makes a new module, with weights drawn from PyTorch's generator.
        loss: a name in `LOSSES`, or a function of outputs and labels that gives a loss per row ``[n]``; one
            that gives a single number is taken for the mean, and cannot be stacked.
        precision: of parameters, float32 or float64; ``"bfloat16"`` keeps parameters in float32 and computes
            in bfloat16 where the machine multiplies it faster (a GPU, or a CPU with AMX).
        buffers: what becomes of BatchNorm's running statistics: ``"average"`` makes them part of the parameter
            vector, ``"local"`` normalises by the rows at hand, in training and in prediction, ``"refuse"``
            refuses the module. Other buffers are constants.
        given: whether training starts from the weights that ``build`` gives, instead of keyed ones.
        device: where it runs.

    Raises StudyError if it is no module, has nothing to learn, or its buffers are refused."""

    def __init__(
        self,
        build: Callable[[], Any],
        loss: str | Callable[[Any, Any], Any] = "cross_entropy",
        *,
        precision: Precision = "float32",
        buffers: Buffers = "refuse",
        given: bool = False,
        device: str = "cpu",
    ) -> None:
        self.dtype = "float64" if precision == "float64" else "float32"
        self.type = torch.float64 if precision == "float64" else torch.float32
        self.build, self.precision, self.buffers, self.given = build, precision, buffers, given
        self.named = loss if isinstance(loss, str) else ""
        self.of_classes = self.named in ("cross_entropy", "nll")
        self._losses: tuple[Any, Any, Any] = LOSSES[self.named] if self.named else (loss, loss, _as_it_is)
        self.template = self._drawn(0)
        self.names = [n for n, p in self.template.named_parameters() if p.requires_grad]
        if not self.names:
            raise StudyError("the module has no parameter to learn")
        self.running = self._statistics()
        state = {**dict(self.template.named_parameters()), **dict(self.template.named_buffers())}
        names = (*self.names, *self.running)
        self._layout = Layout(tuple((name, tuple(state[name].shape)) for name in names))
        self.sizes = [state[name].numel() for name, _ in self._layout.leaves]
        self.learnt = sum(self.sizes[: len(self.names)])
        parts = list(self.template.modules())
        self.convolves = any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in parts)
        self._norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in parts)
        # A layer that drops, or the rate at which a recurrent layer or attention does.
        drops = nn.modules.dropout._DropoutNd, float
        some = (d for m in parts for d in (m, getattr(m, "dropout", 0.0)))
        self.draws = any(isinstance(d, drops) and d for d in some)
        self._shape: tuple[int, ...] = ()
        self._probed: dict[tuple[Any, ...], int] = {}
        self._unstackable: str | None = None
        self.by_row: str | None = None  # why rows are clipped one by one; unknown before their shape is
        self.axis = 0  # of the classes in the outputs; unknown before labels were seen
        self.on(device)

    def on(self, device: str) -> None:
        """Run on this device from now on; no part of the federation; raises UsageError if PyTorch does not reach it."""
        try:
            self.device = torch.device(device)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            what = f"PyTorch does not reach the device {device!r}: {first_line(error)}"
            remedy = 'Say device="cpu", or install a PyTorch that is built for the device'
            raise UsageError(what, remedy=remedy) from None
        self.idle: list[Resident] = []  # no thread works with them

    def expect(self, shape: tuple[int, ...]) -> None:
        self._shape = shape

    @property
    def layout(self) -> Layout:
        """The module's own names, then the running statistics that are averaged."""
        return self._layout

    def init(self, random: np.random.Generator) -> Array:
        """The weights that ``build`` draws under a key, or gives; float64 ``[d]``."""
        drawn = self._drawn(int(random.integers(2**63)))
        return self.flat(self.template if self.given else drawn).astype(np.float64)

    def flat(self, module: Any) -> Array:
        """The parameter vector ``[d]`` of a module of this architecture."""
        state = module.state_dict()
        leaves = [state[name].detach().reshape(-1).cpu() for name, _ in self._layout.leaves]
        return np.asarray(torch.cat(leaves).to(self.type).numpy())

    def takes(self, dtype: Any) -> Any:
        """Floating point as the parameters are; whole numbers, such as tokens, stay what they are."""
        return np.dtype(self.dtype) if np.dtype(dtype).kind == "f" else np.dtype(dtype)

    def native(self, array: Array) -> Any:
        return torch.from_numpy(np.asarray(array, self.dtype)).to(self.device)

    @property
    def threads(self) -> bool:  # type: ignore[override]  # a module decides
        """Not on a GPU, nor if the module draws from the one generator of the process."""
        return self.device.type == "cpu" and not self.draws

    @property
    def prefers(self) -> tuple[Engine, str]:
        """Stacked for small modules without convolutions; resident for all others."""
        tail = "" if self.precision != "bfloat16" else "; in bfloat16"
        if tail and not self.bfloat:
            tail = "; in float32, as this CPU has no AMX, without which bfloat16 is slower"
        why = self.unstackable
        if not why and self.convolves:
            why = "convolutions are faster one party at a time"
        elif not why and self.learnt > LARGE:
            why = f"{self.learnt:,} parameters outweigh what a stack saves"
        return ("resident", why + tail) if why else ("stacked", "many small modules at once" + tail)

    @property
    def unstackable(self) -> str:
        """Why parties cannot be stacked: found out on a throw-away copy, once a row's shape is known."""
        if self._unstackable is None and self._shape:
            self._unstackable = self._try_stacked()
        return self._unstackable or ""

    @property
    def bfloat(self) -> bool:
        """Whether the forward pass is computed in bfloat16."""
        amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        return self.precision == "bfloat16" and (self.device.type != "cpu" or bool(amx()))

    def loss(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        each = []
        for theta, rows in self._each(parameters, x, y, weights):
            with at_work(self, theta) as resident, torch.no_grad():
                each.append(float(resident.mean(*rows)))
        return np.asarray(each).reshape(parameters.shape[:-1])

    def gradient(self, parameters: Array, x: Array, y: Array, weights: Array | None = None) -> Array:
        """The gradient of the loss in training mode, ``[..., d]``; what it draws depends on what it is given; raises
        StudyError if running statistics are averaged: they move by training alone."""
        if self.running:
            remedy = "Use a method that trains locally, such as FedAvg, or GroupNorm in the module"
            raise StudyError("BatchNorm's running statistics have no gradient to send", remedy=remedy)
        gradients = np.zeros(parameters.shape, self.dtype)
        flat = torch.from_numpy(gradients).reshape(-1, self._layout.size)
        for i, (theta, rows) in enumerate(self._each(parameters, x, y, weights)):
            given = theta.tobytes() + rows[0].tobytes() if self.draws else b""
            key = int.from_bytes(blake3(given).digest(7), "little")
            with at_work(self, theta.copy(), True, key) as resident:  # which a forward pass may change
                slopes = resident.slopes(resident.mean(*rows))
            for view, slope in zip(self.views(flat[i]), slopes, strict=True):
                if slope is not None:
                    view.copy_(slope)
        return gradients

    def clipped(self, parameters: Array, x: Array, y: Array, norm: float) -> Array:
        """As for any model, many rows at once where `ghost` can; a StudyError for embeddings with max_norm."""
        embeds = (m for m in self.template.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
        if any(layer.max_norm is not None for layer in embeds):
            what = "an embedding with max_norm changes the weights that examples ask for, without noise"
            raise StudyError(what, remedy="Leave max_norm out, and normalise what the embedding gives")
        self.check(x, y)
        if self.by_row is None:
            self.by_row = ghost.unable(self, super().clipped, x, y)
        clipped = super().clipped if self.by_row else partial(ghost.clipped, self)
        return clipped(parameters.copy(), x, y, norm)

    def predict(self, parameters: Array, x: Array) -> Array:
        """Probabilities of classes ``[..., n, ..., k]``, a probability or a value ``[..., n, ...]``; the
        module's outputs, if the loss is a function."""
        if parameters.ndim > 1:
            return np.stack([self.predict(p, rows) for p, rows in zip(parameters, x, strict=True)])
        if not len(x):
            return self.predict(parameters, np.zeros((1, *x.shape[1:]), x.dtype))[:0]
        rows = len(x) if self.buffers == "local" else _ROWS  # all at once, if normalised together
        with at_work(self, parameters, few=len(x) <= _ROWS) as resident, torch.no_grad():
            parts = (resident.outputs(self.features(x[i : i + rows])) for i in range(0, len(x), rows))
            predicted: Array = torch.cat([self.activated(part).cpu() for part in parts]).numpy()
        return predicted

    def row_losses(self, predicted: Array, y: Array) -> Array:
        """The loss of each row from its prediction, float64 ``[n]``; that of all, if it gives one number."""
        losses = self._compared(1, torch.from_numpy(np.array(predicted)).to(self.type), self.labels(y).cpu())
        losses = losses.double().expand(losses.shape or len(y)).reshape(len(y), -1)
        return np.asarray(losses.mean(1).numpy())

    def train(
        self,
        start: Array,
        feed: Feed,
        local: FirstOrder,
        correct: Correction | None = None,
        slots: Slots | None = None,
        stacked: bool = True,
    ) -> tuple[Array, Slots]:
        for x, y in feed.rows:
            self.check(x, y)
        parameters = np.empty((len(feed.rows), self._layout.size), self.dtype)
        kept = {name: self.native(value).clone() for name, value in (slots or {}).items()}
        if stacked and not self.unstackable:
            parameters[:] = start
            with at_work(self) as resident:
                resident.train_stack(parameters, feed, local, correct, kept)
            return parameters, {name: value.cpu().numpy() for name, value in kept.items()}
        ends: Slots = {}
        for i, row in enumerate(parameters):
            mine = {name: value[i : i + 1] for name, value in kept.items()}
            with at_work(self, key=int(feed.keys[i]) >> 1) as resident:
                mine = resident.train_one(row, start[i] if start.ndim == 2 else start, feed, i, local, correct, mine)
            for name, value in mine.items():
                ends.setdefault(name, []).append(value.cpu().numpy())
        return parameters, {name: np.concatenate(values) for name, values in ends.items()}

    def losses(self, out: Any, y: Any) -> Any:
        """A loss per row, ``[n]``; of a loss that gives one number, that."""
        losses = self._compared(0, out.to(self.type), y)
        return losses.flatten(1).mean(1) if losses.ndim > 1 else losses

    def _compared(self, which: int, out: Any, y: Any) -> Any:
        """The loss of every label, from outputs or from predictions; as it comes, from a function."""
        loss = self._losses[which]
        if not self.named:
            return loss(out, y)
        if not self.of_classes:
            return loss(out.reshape(y.shape), y, reduction="none")
        if out.shape[:-1] != y.shape:  # PyTorch's own order for sequences and images: [n, k, ...]
            out = out.movedim(1, -1)
        return loss(out.reshape(-1, out.shape[-1]), y.reshape(-1), reduction="none").reshape(y.shape)

    def views(self, flat: Any) -> list[Any]:
        """The leaves of flat vectors ``[..., d]``."""
        leaves = zip(self._layout.leaves, flat.split(self.sizes, dim=-1), strict=True)
        return [part.view((*flat.shape[:-1], *shape)) for (_, shape), part in leaves]

    def features(self, x: Array) -> Any:
        """Features on the device; whole numbers as `nn.Embedding` wants them."""
        wanted = np.int64 if x.dtype.kind in "iub" and x.dtype.itemsize < 4 else self.takes(x.dtype)
        return torch.from_numpy(np.ascontiguousarray(x, wanted)).to(self.device)

    def labels(self, y: Array) -> Any:
        """Labels on the device: class numbers as int64, others as the parameters are."""
        whole = self.of_classes or (not self.named and y.dtype.kind != "f")
        return torch.from_numpy(np.asarray(y, np.int64 if whole else self.dtype)).to(self.device)

    def activated(self, out: Any) -> Any:
        """What the module says of each row, from its outputs."""
        if self.of_classes:
            out = out.movedim(self.axis or (1 if out.ndim > 3 else -1), -1)
        elif self.named and out.shape[1:] == (1,):
            out = out[:, 0]
        return self._losses[2](out.to(self.type))

    def _drawn(self, seed: int) -> Any:
        with failures(), seeded(seed):
            module = self.build()
        if not isinstance(module, nn.Module):
            remedy = "Give a class derived from torch.nn.Module, a function that makes one, or one"
            raise StudyError(f"what was to be a module is {type(module).__name__}", remedy=remedy)
        if any(isinstance(p, nn.UninitializedParameter) for p in module.parameters()):
            what = "the module has lazy layers, whose sizes are unknown before a forward pass"
            raise StudyError(what, remedy="Give the layers their sizes, as in nn.Linear(784, 10)")
        return module.to(self.type).train()

    def _statistics(self) -> list[str]:
        """Names of the running statistics that are averaged, after the rule for buffers."""
        parts = [(n, m) for n, m in self.template.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        norms = {name: part for name, part in parts if part.running_mean is not None}
        if norms and self.buffers == "refuse":
            name, part = next(iter(norms.items()))
            wrong = "wrong as a mean over parties whose data differ"
            what = f"the module's {type(part).__name__} {name!r} keeps running statistics, which are {wrong}"
            ways = 'buffers="local", to normalise by each party\'s own rows, or buffers="average"'
            raise StudyError(what, remedy=f"Use GroupNorm or LayerNorm; or say {ways}")
        if self.buffers == "local":
            for part in norms.values():
                part.running_mean = part.running_var = part.num_batches_tracked = None
            return []
        before = [f"{name}." if name else "" for name in norms]
        return [name + which for name in before for which in ("running_mean", "running_var")]

    def _each(self, parameters: Array, x: Array, y: Array, weights: Array | None) -> Iterator[tuple[Array, Any]]:
        """One party's after the other's, without the rows that only fill up."""
        if parameters.ndim == 1:
            parameters, x, y = parameters[None], x[None], y[None]
            weights = None if weights is None else weights[None]
        for i, theta in enumerate(parameters):
            rows, labels, mine = x[i], y[i], None if weights is None else weights[i]
            if mine is not None:
                rows, labels, mine = rows[mine > 0], labels[mine > 0], mine[mine > 0]
            self.check(rows, labels)
            yield theta, (rows, labels, None if mine is None or np.ptp(mine) == 0 else mine)

    def check(self, x: Array, y: Array) -> None:
        """Refuse rows that the module or the loss cannot take: found out on one of them, once a shape."""
        if not len(y):
            return
        self._shape = self._shape or x.shape[1:]
        key = (x.shape[1:], x.dtype, y.shape[1:], y.dtype.kind)
        if key not in self._probed:
            self._probed[key] = self._probe(x[:1], y[:1])
        classes = self._probed[key]
        if classes and (y.min() < 0 or y.max() >= classes):
            row = int(np.argmax(((y < 0) | (y >= classes)).reshape(len(y), -1).any(axis=1))) + 1
            what = f"a label in row {row} is none of 0 to {classes - 1}: the module has {classes} outputs"
            remedy = "Number the labels from 0, or give the module as many outputs as there are labels"
            raise DataError(what, remedy=remedy)

    def _try_stacked(self) -> str:
        """Compare the stacked gradient of two parties, one of whose rows is padding, with the resident's."""
        if self.draws:
            return "the module draws at random in training (dropout)"
        if self.running or self._norms:
            return "BatchNorm looks at all rows of a batch, padding included"
        shape, problem = (2, 3, *self._shape), ""
        for x in (np.random.default_rng(0).normal(size=shape), np.zeros(shape, np.int64)):
            try:
                return self._compare(x)
            except HansaError as error:  # perhaps the module takes the other kind of features
                problem = problem or error.message
        return problem

    def _probe(self, x: Array, y: Array) -> int:
        """Refuse rows that the module or the loss cannot take; the number of classes, 0 if there are none."""
        out = self._tried(x)
        if not self.named:
            return 0
        last, first = tuple(out.shape[:-1]), (out.shape[0], *out.shape[2:])
        fits = out.numel() == y.size and out.ndim <= y.ndim + 1
        takes = "outputs and labels of one shape, or [n, 1] and [n]"
        if self.of_classes:
            fits = out.ndim > 1 and y.shape in (last, first)
            takes = "[n, k] and [n], or [n, t, k] and [n, t]"
        if not fits:
            given, labels = list(out.shape[1:]), list(y.shape[1:])
            what = f"{self.named} cannot compare outputs of shape {given} a row with labels of shape {labels}"
            raise StudyError(what, remedy=f"It takes {takes}")
        if not self.of_classes:
            return 0
        self.axis = -1 if y.shape == last else 1
        return int(out.shape[self.axis])

    def _tried(self, x: Array) -> Any:
        """The outputs for some rows, with the weights of the template; a StudyError if the module cannot take
        them, or changes a buffer."""
        rows, known = self.features(x), ("running_mean", "running_var", "num_batches_tracked")
        start = self.flat(self.template)
        with seeded(0), at_work(self, start, training=True) as resident, torch.no_grad():
            buffers = dict(resident.module.named_buffers())
            before = {n: b.clone() for n, b in buffers.items() if not n.endswith(known)}
            try:
                if before:
                    resident.outputs(torch.cat([rows, rows]))
                resident.module.eval()
                out = resident.outputs(rows)
            except Exception as error:
                why = f"{type(error).__name__}: {first_line(error)}"
                what = f"the module cannot take rows of shape {list(x.shape[1:])} and type {x.dtype}: {why}"
                raise StudyError(what, remedy="Correct the module, or `features` of the task") from error
            for name, buffer in resident.module.named_buffers():
                if name in before and not torch.equal(buffer, before[name]):
                    what = f"the module changes its buffer {name!r} in training, which no rule covers"
                    raise StudyError(what, remedy="Make it a parameter, or leave it as it is")
        shape = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        if not isinstance(out, torch.Tensor) or out.shape[:1] != (len(x),):
            remedy = "Return one tensor whose first axis is the rows"
            raise StudyError(f"the module gives {shape} for {len(x)} rows", remedy=remedy)
        return out

    def _labels_like(self, x: Array) -> Array | None:
        """Labels that fit what the module says of these rows; None if the loss gives one number."""
        out = self._tried(x)
        if self.named:
            shape = out.shape[:-1] if out.ndim < 4 else (out.shape[0], *out.shape[2:])
            return np.zeros(shape, np.int64) if self.of_classes else np.zeros(out.shape)
        problem: Exception = StudyError("the loss is not known")
        for shape, dtype in ((len(x), int), (out.shape, float), (out.shape[:-1], int)):
            y = np.zeros(shape, dtype)
            try:
                return y if self.losses(out, self.labels(y)).ndim else None
            except Exception as error:  # the author's own; other labels may do
                problem = error
        raise problem

    def _compare(self, x: Array) -> str:
        with failures():
            y = self._labels_like(x[0])
        if y is None:
            return "the loss gives one number for a batch, not one per row"
        theta, labels = np.stack([self.flat(self.template)] * 2), np.stack([y, y])
        weights = np.array([[1 / 3] * 3, [1 / 2, 1 / 2, 0]], self.dtype)
        alone = self.gradient(theta[1], x[1], y, weights[1])
        args = (self.native(theta), self.features(x), self.labels(labels), self.native(weights))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch warns of what is slow when vectorised
                with at_work(self) as resident:
                    beside = resident.stacked(*args)[1].cpu().numpy()
        except StudyError as error:
            return f"torch.func cannot stack it: {error.message}"
        same = np.allclose(beside, alone, rtol=1e-2, atol=1e-4 * np.abs(alone).max())
        return "" if same else "a row's output depends on the rows beside it"
