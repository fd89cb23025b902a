"""A method of one's own, in one file: FedProx, next to FedAvg, at hospitals that differ.

``python examples/own_method.py``. A method of one's own runs in simulation; an agent takes part in studies
of built-in parts only, such as ``hansa.methods.FedProx``, which is this one.
"""

from typing import Annotated, Any, ClassVar

from pydantic import Field as Limits

import hansa as hs
from hansa.methods import GradientMethod
from hansa.methods.base import METHODS


@METHODS.register
class FedProx(GradientMethod):
    """FedAvg with a pull towards the global model (Li et al. 2020, arXiv 1812.06127, algorithm 2).

    A party minimises ``f(theta) + mu / 2 * |theta - theta_global|^2``, so that its gradient becomes
    ``g + mu * (theta - theta_global)``. Nothing else is different: the fields that leave, the weights,
    the server's step and the batches are FedAvg's.

    Args:
        mu: strength of the pull; 0 is FedAvg.
    """

    kind: ClassVar[str] = "own-fedprox"
    mu: Annotated[float, Limits(ge=0)] = 0.1

    def correct(self, gradient: Any, parameters: Any, received: Any, memory: Any) -> Any:
        """Elementwise, so that it works on one party ``[d]`` and on a stack ``[parties, d]``."""
        return gradient + self.mu * (parameters - received.parameters)


def losses(method: GradientMethod) -> list[float]:
    """The log loss on all held-out rows after each round."""
    federation = hs.Federation(
        task=hs.LogisticRegression(target="malignant"), method=method, rounds=10, evaluation=hs.Evaluate(split="split")
    )
    run = federation.run(hs.Local(hs.wisconsin.hospitals()))
    return [row["loss"] for row in run.metrics()]


if __name__ == "__main__":
    # Many local steps drift apart; the pull holds them together.
    local = hs.SGD(lr=0.5, epochs=10, batch_size=8)
    plain = losses(hs.FedAvg(local=local))
    pulled = losses(FedProx(local=local, mu=0.1))
    for number, (a, b) in enumerate(zip(plain, pulled, strict=True), start=1):
        print(f"round {number:2}: log loss {a:.4f} by FedAvg, {b:.4f} by FedProx")
