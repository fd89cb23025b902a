"""Federated gradient descent."""

from typing import ClassVar

from hansa.contribution import Contribution, Values
from hansa.learners.optimizer import SGD, Optimizer
from hansa.methods.base import Answer, At, UpdateMethod


class FedSGD(UpdateMethod):
    """One full gradient from every party, one step at the server (McMahan et al. 2017, section 2).

    ``theta(t+1) = theta(t) - alpha * sum(w_i g_i) / sum(w_i)``, where ``alpha`` is ``server.lr`` and
    ``w_i`` is a party's number of examples, or 1. With weights by examples and no penalty it is
    gradient descent on the pooled rows.
    """

    kind: ClassVar[str] = "fedsgd"
    stacks: ClassVar[bool] = True
    server: Optimizer = SGD(lr=0.1)

    def work(self, at: At) -> Answer:
        """Minus the gradient over all of the party's training rows."""
        gradient = at.gradient(at.received["parameters"])
        return Answer(Contribution(Values({"update": -gradient}), self.weight(at)))
