"""FedRep: own heads and a shared body, trained one after the other."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.aggregation.signal import Noised
from hansa.contribution import Contribution, Values
from hansa.errors import StudyError
from hansa.learners.optimizer import AdamW, FirstOrder
from hansa.methods.base import Answer
from hansa.methods.fedper import FedPer, in_head
from hansa.methods.work import At, Stack
from hansa.privacy.claim import Privacy


class FedRep(FedPer):
    """A shared representation (Collins et al. 2021, arXiv 2102.07078, algorithm 1).

    As FedPer, in two phases: a party first trains its head on the body that it received, ``head_epochs`` passes over
    its rows, and then the body under that head, ``local.epochs`` passes. Gradients of the other part count as 0.

    Args:
        head_epochs: passes over a party's rows in the first phase."""

    kind: ClassVar[str] = "fedrep"
    stacks: ClassVar[bool] = True
    afresh: ClassVar[str] = "fedrep trains in two phases"

    head_epochs: Annotated[int, Limits(ge=1, le=10_000)] = 10

    def model_post_init(self, context: Any) -> None:
        """Refuse optimisers that would move what a phase holds still."""
        super().model_post_init(context)
        if isinstance(self.local, AdamW) and self.local.weight_decay:
            what = "method.local.weight_decay: it would shrink the part that a phase of fedrep holds still"
            raise StudyError(what, remedy="Set it to 0, or use adam")

    def noise(self, privacy: Privacy) -> tuple[Noised, ...]:
        """Twice that of a round of training: once for the head, once for the body."""
        once = super().noise(privacy)
        return tuple(replace(n, event=n.event.model_copy(update={"times": 2 * n.event.times})) for n in once)

    def work(self, at: At | Stack) -> Answer:
        head = in_head(self.head, at.learner.layout)

        def phase(start: Any, local: FirstOrder, moves: Any) -> Any:
            moving = at.learner.native(np.asarray(moves, dtype=at.learner.dtype))
            return at.train(start, local, lambda g, p: g * moving).parameters

        local = self.local.model_copy(update={"epochs": self.head_epochs})
        mine = phase(self.personal(at), local, head)
        update = {"update": phase(mine, self.local, ~head) - at.received["parameters"]}
        return self.divided(at, Answer(Contribution(Values(update), self.weight(at)), Values({"head": mine})))
