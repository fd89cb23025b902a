"""The contract between a model's mathematics and everything else."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from hansa.contribution import Array
from hansa.errors import StudyError


@dataclass(frozen=True)
class Layout:
    """Where each named array of a model lies in its flat parameter vector.

    Args:
        leaves: names and shapes, in the order in which they lie.
    """

    leaves: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def size(self) -> int:
        """How many numbers the vector has."""
        return sum(math.prod(shape) for _, shape in self.leaves)

    def split(self, vector: Array) -> dict[str, Array]:
        """Views of the named arrays. ``vector`` is ``[..., size]``; a leaf is ``[..., *shape]``."""
        if vector.shape[-1:] != (self.size,):
            raise StudyError(f"a vector of shape {list(vector.shape)} for {self.size} parameters")
        parts, at = {}, 0
        for name, shape in self.leaves:
            width = math.prod(shape)
            parts[name] = vector[..., at : at + width].reshape((*vector.shape[:-1], *shape))
            at += width
        return parts

    def join(self, parts: Mapping[str, Array]) -> Array:
        """The flat vector ``[size]`` of the named arrays.

        Raises:
            StudyError: if a name or a shape differs from the layout's.
        """
        if set(parts) != {name for name, _ in self.leaves}:
            raise StudyError(
                f"the arrays {sorted(parts)} where {[name for name, _ in self.leaves]} are needed"
            )
        for name, shape in self.leaves:
            if parts[name].shape != shape:
                raise StudyError(f"{name!r} has shape {parts[name].shape}, not {shape}")
        return np.concatenate([np.ravel(parts[name]) for name, _ in self.leaves])


class Learner(Protocol):
    """A model as functions of a flat parameter vector; leading axes are a stack of parties.

    Shapes: ``parameters [..., d]``, ``x [..., n, p]``, ``y [..., n]``.
    """

    @property
    def layout(self) -> Layout:
        """Names and shapes of the parameters."""
        ...

    def init(self, random: np.random.Generator) -> Array:
        """Parameters to start from, ``[d]``."""
        ...

    def loss(self, parameters: Array, x: Array, y: Array) -> Array:
        """The mean loss over the rows, penalties included, ``[...]``."""
        ...

    def gradient(self, parameters: Array, x: Array, y: Array) -> Array:
        """The gradient of `loss`, ``[..., d]``."""
        ...

    def predict(self, parameters: Array, x: Array) -> Array:
        """What the model says of each row: a value ``[..., n]`` or probabilities ``[..., n, k]``."""
        ...
