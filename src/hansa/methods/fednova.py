"""FedNova: averaging that does not favour those who take more steps."""

from typing import Any

import numpy as np

from hansa.contribution import Array, Ask, Field, Total, Values
from hansa.errors import StudyError
from hansa.learners.optimizer import SGD
from hansa.methods.base import Finished, GradientMethod, State


class FedNova(GradientMethod):
    """Normalised averaging (Wang et al. 2020, arXiv 2007.07481, equations 8 and 10).

    A party sends its update divided by its effective number of steps ``|a_i|``, and that number; the server moves by
    the mean of the first times the mean of the second: ``theta <- theta + (sum p_i |a_i|) * sum p_i (theta_i - theta) /
    |a_i|``. FedAvg, where more steps count for more, converges to the optimum of another objective. ``|a_i|`` is the
    sum of the weights with which the party's gradients entered its update: ``steps`` for plain SGD, and ``(steps - m (1
    - m^steps) / (1 - m)) / (1 - m)`` with momentum ``m``. Where all take as many steps, it is FedAvg."""

    kind = "fednova"
    reducible = False
    fields = (Field("update", like="parameters"), Field("steps", shape=(1,), low=0.0, high=float(2**20)))

    def model_post_init(self, context: Any) -> None:
        """Refuse a local optimiser whose updates are no weighted sums of gradients."""
        super().model_post_init(context)
        if not isinstance(self.local, SGD) or self.local.moments == "keep":
            knows = "the effective steps of SGD that begins afresh in every round, with or without momentum"
            remedy = 'Write local = { optimizer = "sgd", lr = ..., momentum = ... }; the server may adapt steps'
            raise StudyError(f"method.local: fednova knows {knows}, and of nothing else", remedy=remedy)

    def effective(self, steps: Any) -> Any:
        """``|a_i|`` for a number of local steps; elementwise."""
        m = self.local.momentum if isinstance(self.local, SGD) else 0.0
        return (steps - m * (1 - m**steps) / (1 - m)) / (1 - m)

    def finish(self, parameters: Array, received: Values, memory: Values, steps: Any) -> Finished:
        size = np.atleast_1d(np.asarray(self.effective(steps), dtype=np.float64))
        return {"update": (parameters - received["parameters"]) / size.astype(parameters.dtype), "steps": size}, {}

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        return state.step(self.server, total.values["steps"] * total.values["update"])
