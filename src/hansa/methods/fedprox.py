"""FedProx: local training that is held to where it started."""

from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.contribution import Values
from hansa.learners.base import Affine
from hansa.methods.base import GradientMethod


class FedProx(GradientMethod):
    """FedAvg with a pull towards the global model (Li et al. 2020, arXiv 1812.06127, algorithm 2).

    A party minimises ``f_i(theta) + mu / 2 * |theta - theta_global|^2``: its gradient becomes
    ``g + mu * (theta - theta_global)``. All else is FedAvg's.

    Args:
        mu: strength of the pull; 0 is FedAvg."""

    kind: ClassVar[str] = "fedprox"
    mu: Annotated[float, Limits(ge=0)] = 0.01

    def affine(self, received: Values, memory: Values) -> Affine | None:
        return Affine.towards(received["parameters"], self.mu) if self.mu else None
