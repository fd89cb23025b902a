"""FedPer: a body that is shared, and a head that never leaves."""

import math
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Array, Ask, Contribution, Total, Values
from hansa.errors import StudyError, did_you_mean
from hansa.learners.base import Layout, Learner
from hansa.methods.base import Answer, Finished, GradientMethod, Setup, State
from hansa.methods.work import At, Stack


class FedPer(GradientMethod):
    """Personalisation layers (Arivazhagan et al. 2019, arXiv 1912.00818).

    Each party trains the whole model, shared body and own head together. What leaves it covers the body alone;
    the head is its memory, and begins as that of the federation's first parameters. At the server the head stays
    as it was: the global model is of use with a head only.

    Args:
        head: shell patterns over the names of the model's arrays, such as ``"intercept"`` or ``"head.*"``."""

    kind: ClassVar[str] = "fedper"
    stacks: ClassVar[bool] = True
    personalises: ClassVar[bool] = True

    head: Annotated[tuple[str, ...], Limits(min_length=1)]

    def init(self, setup: Setup, learner: Learner) -> State:
        """Initial parameters, and which are the body's; a StudyError if a pattern matches no array, or none is left."""
        state = super().init(setup, learner)
        spans = np.flatnonzero(np.diff(np.concatenate([[1], in_head(self.head, learner.layout), [1]]))).reshape(-1, 2)
        return replace(state, facts={"body": spans.tolist()})

    def ask(self, state: State) -> Ask:
        """The fields that are like the parameters have the size of the body."""
        ask = super().ask(state)
        size = sum(end - begin for begin, end in state.facts["body"])
        return replace(ask, fields=tuple([replace(f, shape=(size,)) if f.like else f for f in ask.fields]))

    def work(self, at: At | Stack) -> Answer:
        own = Values({**at.received, "parameters": self.personal(at)})
        return self.divided(at, super().work(replace(at, received=own)))

    def finish(self, parameters: Array, received: Values, memory: Values, steps: Any) -> Finished:
        """The update and the trained parameters, as a whole; `divided` keeps what is the head's."""
        return {"update": parameters - received["parameters"]}, {"head": parameters}

    def divided(self, at: At | Stack, whole: Answer) -> Answer:
        """Of the update the body's part, of what is remembered the head's."""
        head = in_head(self.head, at.learner.layout)
        update = whole.contribution.values["update"][..., ~head]
        kept = {**whole.memory, "head": whole.memory["head"][..., head]}
        return Answer(Contribution(Values({"update": update}), whole.contribution.weight), Values(kept))

    def personal(self, at: At | Stack) -> Array:
        """The body that was received with the party's own head."""
        received = at.received["parameters"]
        if "head" not in at.memory:
            return received
        own = at.memory["head"]
        whole = np.broadcast_to(received, (*own.shape[:-1], received.size)).copy()
        whole[..., in_head(self.head, at.learner.layout)] = own
        return whole

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        body = np.concatenate([np.arange(*span) for span in state.facts["body"]])
        update = np.zeros_like(state.values["parameters"])
        update[body] = total.values["update"]
        after = state.step(self.server, update)
        # Of the head, weight decay takes nothing.
        parameters = state.values["parameters"].astype(np.float64)
        parameters[body] = after.values["parameters"][body]
        return replace(after, values=Values({**after.values, "parameters": parameters}))


@lru_cache(maxsize=16)
def in_head(patterns: tuple[str, ...], layout: Layout) -> Array:
    """Which parameters are the head's, bool ``[d]``; a StudyError if a pattern matches no array of the model,
    or if all of them are matched."""
    names = [name for name, _ in layout.leaves]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(f"method.head: the model has no array {pattern!r}", remedy=did_you_mean(pattern, names))
    chosen = [any(fnmatchcase(name, pattern) for pattern in patterns) for name in names]
    if all(chosen):
        what = f"method.head: {', '.join(patterns)} is the whole model, and nothing is left to share"
        raise StudyError(what, remedy=f"Name some of its arrays only: {', '.join(names)}")
    return np.repeat(chosen, [math.prod(shape) for _, shape in layout.leaves])
