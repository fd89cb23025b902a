"""SCAFFOLD: local training whose drift is corrected."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from hansa.contribution import Array, Ask, Field, Total, Values
from hansa.errors import StudyError
from hansa.learners.base import Affine
from hansa.learners.optimizer import SGD
from hansa.methods.base import Finished, GradientMethod, State


class Scaffold(GradientMethod):
    """Drift correction by control variates (Karimireddy et al. 2020, arXiv 1910.06378, option II).

    A party steps along ``g - c_i + c`` and then sets ``c_i <- c_i - c + (theta - theta_i) / (steps * lr)``, which
    is the mean gradient along its way; the server's ``c`` is the weighted mean of all ``c_i``, those of parties
    not yet asked being 0. In the paper all parties weigh the same, and ``c <- c + sum(change of c_i) / N``. With
    weights by examples the weight of all ``N`` parties is estimated from those counted so far; the weighted sum
    of the ``c_i`` is kept exactly, so the fixed point is the optimum of the weighted objective either way.

    It holds for plain local SGD only: ``(theta - theta_i) / (steps * lr)`` is a gradient for no other optimiser."""

    kind: ClassVar[str] = "scaffold"
    fields: ClassVar[tuple[Field, ...]] = (Field("update", like="parameters"), Field("control", like="parameters"))
    memory: ClassVar[tuple[str, ...]] = ("control",)

    def model_post_init(self, context: Any) -> None:
        """Refuse a local optimiser for which the control is no gradient."""
        super().model_post_init(context)
        if not isinstance(self.local, SGD):
            remedy = 'Write local = { optimizer = "sgd", lr = ... }; adaptive steps can be the server\'s'
            raise StudyError(f"method.local: scaffold needs plain SGD, not {self.local.kind}", remedy=remedy)
        if self.local.momentum:
            what = f"method.local.momentum is {self.local.momentum:g}: scaffold needs plain SGD"
            raise StudyError(what, remedy="Set it to 0; the momentum can be the server's")

    def more(self, parameters: Array) -> dict[str, Array]:
        return {"control": np.zeros_like(parameters)}

    def affine(self, received: Values, memory: Values) -> Affine:
        """The gradient without the party's own direction and with everybody's."""
        return Affine(received["control"] - memory["control"])

    def finish(self, parameters: Array, received: Values, memory: Values, steps: Any) -> Finished:
        update = np.subtract(parameters, received["parameters"], out=parameters)
        control = update * np.asarray(-1.0 / (steps * self.local.lr), parameters.dtype)
        control -= received["control"]
        return {"update": update, "control": control}, {"control": memory["control"] + control}

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        counted, weight, all_ = (float(state.facts.get(name, 0.0)) for name in ("counted", "weight", "parties"))
        before = (all_ or total.population) * weight / counted if counted else 1.0  # parties may have joined since
        counted, weight = counted + len(total.parties), weight + total.weight
        all_parties = total.population * weight / counted
        control = state.values["control"] * (before / all_parties)
        control = control + total.values["control"] * (total.weight / all_parties)
        after = state.step(self.server, total.values["update"], control=control)
        return replace(after, facts={**state.facts, "counted": counted, "weight": weight, "parties": total.population})
