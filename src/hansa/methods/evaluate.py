"""Federated evaluation: metrics of the global model from sums over held-out rows."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.contribution import Ask, Contribution, Total, Values, check
from hansa.errors import ContributionError
from hansa.learners.base import Learner
from hansa.methods.base import Answer, At, Method, Setup, State


class Evaluate(Method):
    """Every party scores the global model on rows it never trained on and sends the task's sums.

    Args:
        every: evaluate after each so many rounds, and after the last; 0 for never.
        holdout: share of a party's rows that is held out, drawn by (seed, party). With 0, and no
            ``split``, there is nothing to evaluate on, and nothing is evaluated.
        split: a column that says it instead: rows whose value is ``test`` are held out.
    """

    kind: ClassVar[str] = "evaluate"
    every: Annotated[int, Limits(ge=0)] = 1
    holdout: Annotated[float, Limits(ge=0, lt=1)] = 0.25
    split: str | None = None

    def due(self, round: int, last: bool) -> bool:
        """Whether the model is scored after this round."""
        holds_out = self.holdout > 0 or self.split is not None
        return holds_out and self.every > 0 and (last or round % self.every == 0)

    def init(self, setup: Setup, learner: Learner) -> State:
        """Nothing was measured."""
        return State()

    def ask(self, state: State) -> Ask | None:
        """The run's driver adds the parameters and the task's tallies."""
        return Ask("", 0, 0, Values(), ())

    def work(self, at: At) -> Answer:
        """The task's sums over the party's held-out rows."""
        x, y = at.held_out()
        predicted = at.learner.predict(at.received["parameters"], x)
        contribution = Contribution(at.task.tally(predicted, y))
        try:
            check(contribution, at.task.tallies())
        except ContributionError:
            raise ContributionError(
                "the model has diverged: its errors are beyond counting",
                remedy="Lower the learning rates, or add a clip to the aggregation",
            ) from None
        return Answer(contribution)

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The totals, from which the task makes metrics."""
        return State(ask.round, total.values)
