"""Ditto: a model of one's own beside the common one."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, ClassVar

from pydantic import Field as Limits

from hansa.contribution import Array, Values
from hansa.learners.base import Affine
from hansa.methods.base import Answer, GradientMethod
from hansa.methods.work import At, Stack


class Ditto(GradientMethod):
    """Fair and robust personalisation (Li et al. 2021, arXiv 2012.04221, algorithm 1).

    The common model is FedAvg's. In each round a party also trains a model ``v_i`` of its own, which begins as
    the first parameters that it receives and never leaves, on ``f_i(v_i) + lam / 2 * |v_i - theta|^2`` around the
    common parameters ``theta`` that it received: with the same optimiser, on the same batches.

    Args:
        lam: strength of the pull towards the common model; 0 is training alone."""

    kind: ClassVar[str] = "ditto"
    stacks: ClassVar[bool] = True
    personalises: ClassVar[bool] = True
    afresh: ClassVar[str] = "ditto trains two models"

    lam: Annotated[float, Limits(ge=0)] = 0.1

    def work(self, at: At | Stack) -> Answer:
        answer, pull = super().work(at), Affine.towards(at.received["parameters"], self.lam)
        return replace(answer, memory=Values({"personal": at.train(self.personal(at), self.local, pull).parameters}))

    def begins(self, received: Values) -> Mapping[str, Array]:
        return {"personal": received["parameters"]}

    def personal(self, at: At | Stack) -> Array:
        """The party's own model; until it has trained one, the common one."""
        return at.memory.get("personal", at.received["parameters"])
