"""What is known about the values between two stages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from hansa.contribution import Field


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

    @property
    def vectors(self) -> tuple[str, ...]:
        """Names of the parameter-like fields, which stages treat jointly."""
        return tuple(field.name for field in self.fields if field.like == "parameters")
