"""What is known about the values between two stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hansa.contribution import Array, Contribution, Field, check
from hansa.errors import ContributionError


def joint_norm(arrays: Sequence[Array]) -> float:
    """The L2 norm of all entries together, without overflow: scaled by the largest one first."""
    largest = max((float(np.abs(array).max(initial=0.0)) for array in arrays), default=0.0)
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(sum(float(np.square(array / largest).sum()) for array in arrays))


@dataclass(frozen=True)
class Signal:
    """The type of what flows through a pipeline; a stage maps one to the next or refuses.

    Args:
        fields: the declared fields, shapes bound.
        view: ``"party"`` while single contributions exist, ``"sum"`` once only their sum does.
        domain: ``"real"``, or the modulus of an integer ring.
        norm: bound on the joint L2 norm of the parameter-like fields of one party; infinite if none.
        weights: ``"examples"`` if a party's weight depends on its data, ``"equal"`` if it is public.
        linear: whether the aggregate is still a linear function of the contributions.
        noise: standard deviation of the noise already in the parameter-like fields.
    """

    fields: tuple[Field, ...]
    view: Literal["party", "sum"] = "party"
    domain: Literal["real"] | int = "real"
    norm: float = math.inf
    weights: Literal["examples", "equal"] = "examples"
    linear: bool = True
    noise: float = 0.0

    def check(self, contribution: Contribution) -> None:
        """Refuse a contribution that breaks what its party's stages promise.

        Raises:
            ContributionError: if it is not what was declared, if its joint norm is above the bound, or if
                its weight is not 1 where all count the same.
        """
        check(contribution, self.fields)
        if self.weights == "equal" and contribution.weight != 1:
            raise ContributionError(
                f"the weight is {contribution.weight:g} where all count the same"
            )
        if math.isfinite(self.norm):
            size = joint_norm([contribution.values[name] for name in self.vectors])
            if size > self.norm * (1 + 1e-9):  # the party's rounding is not ours
                raise ContributionError(
                    f"the norm is {size:g} where at most {self.norm:g} is allowed"
                )

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the parameter-like fields, which stages treat jointly."""
        return tuple(field.name for field in self.fields if field.like == "parameters")
