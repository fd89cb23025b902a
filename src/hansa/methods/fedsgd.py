"""Federated gradient descent."""

import math
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Ask, Contribution, Field, Total, Values
from hansa.errors import StudyError
from hansa.learners.base import Learner
from hansa.learners.optimizer import SGD, Optimizer, Positive
from hansa.methods.base import Answer, Setup, State, UpdateMethod
from hansa.methods.work import At


class FedSGD(UpdateMethod):
    """One full gradient from every party, one step at the server (McMahan et al. 2017, section 2).

    ``theta(t+1) = theta(t) - alpha * sum(w_i g_i) / sum(w_i)``, where ``alpha`` is ``server.lr`` and ``w_i`` is a
    party's number of examples, or 1. With weights by examples and no penalty it is gradient descent on the pooled rows.

    With ``clip`` it is DP-FedSGD on full batches, if the aggregation adds noise: a party's ``g_i`` is the sum of
    its rows' gradients, each scaled down to a norm (Abadi et al. 2016, arXiv 1607.00133), over a public number.
    A penalty is then the server's: before the noise, that of large parameters would round a row away.

    Args:
        clip: the largest L2 norm of one row's gradient.
        batch_size: what the sum of a party is divided by, if it is clipped: about the number of its rows, and
            public, as the exact number is a secret, too."""

    kind: ClassVar[str] = "fedsgd"
    stacks: ClassVar[bool] = True
    server: Optimizer = SGD(lr=0.1)
    clip: Positive | None = None
    batch_size: Annotated[int, Limits(ge=1)] | None = None

    def model_post_init(self, context: Any) -> None:
        """Refuse one of the two without the other."""
        super().model_post_init(context)
        if (self.clip is None) != (self.batch_size is None):
            raise StudyError("method.clip and method.batch_size belong together", remedy="Say both, or neither")

    def init(self, setup: Setup, learner: Learner) -> State:
        """Initial weights and, where rows are clipped, what a penalty multiplies each of them with."""
        state, ones = super().init(setup, learner), np.ones(learner.layout.size)
        kept = {"server.penalty": np.asarray(learner.penalty(ones))} if self.clip else {}
        return replace(state, values=Values({**state.values, **kept}))

    def declared(self, size: int) -> tuple[Field, ...]:
        most = (self.clip or math.inf) / (self.batch_size or 1)
        return tuple(replace(field, example=most) for field in super().declared(size))

    def work(self, at: At) -> Answer:
        theta = at.received["parameters"]
        if self.clip is None or self.batch_size is None:
            update = -at.gradient(theta)
        else:
            update = -at.clipped(theta, self.clip) / self.batch_size
        return Answer(Contribution(Values({"update": update}), self.weight(at)))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        penalty = state.values.get("server.penalty", 0.0) * state.values["parameters"]
        return state.step(self.server, total.values["update"] - penalty)
