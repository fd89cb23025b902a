"""IFCA: several models, each party with the one that fits it best."""

from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field as Limits

from hansa import keyed
from hansa.aggregation.signal import Noised
from hansa.contribution import Array, Ask, Contribution, Field, Total, Values
from hansa.learners.base import Learner
from hansa.learners.optimizer import Positive
from hansa.methods.base import Answer, GradientMethod, Setup, State
from hansa.methods.work import At, Stack
from hansa.privacy.claim import Privacy


class IFCA(GradientMethod):
    """Iterative federated clustering (Ghosh et al. 2020, arXiv 2006.04088, algorithm 1, model averaging).

    The server sends ``clusters`` models. A party computes the loss of each on its training rows, trains the one of the
    lowest, and answers with an update for every model: its own for that one, zeros for the others. Each model moves by
    the weighted mean of those who chose it. The global model is the one that most weight chose in the latest round.

    Where all initial models are equal, as with linear ones, normal noise tells them apart.

    Args:
        clusters: how many models.
        spread: standard deviation of that noise."""

    kind = "ifca"
    reducible = False
    stacks = True
    personalises = True
    afresh = "a party of ifca may train another model in every round"
    fields = (Field("update", like="parameters"), Field("chosen", shape=(1,), low=0.0, high=1.0))

    clusters: Annotated[int, Limits(ge=2, le=1000)] = 2
    spread: Positive = 0.1

    def init(self, setup: Setup, learner: Learner) -> State:
        state = super().init(setup, learner)
        randoms = [keyed.generator(setup.seed, "init", j) for j in range(self.clusters)]
        models = np.stack([np.asarray(learner.init(r), dtype=np.float64) for r in randoms])
        if (models == models[0]).all():
            models = models + self.spread * keyed.generator(setup.seed, "init", "spread").normal(size=models.shape)
        return replace(state, values=Values({"parameters": models[0], "models": models}))

    def declared(self, size: int) -> tuple[Field, ...]:
        update, chosen = super().declared(size)
        return replace(update, shape=(self.clusters * size,)), replace(chosen, shape=(self.clusters,))

    def noise(self, privacy: Privacy) -> tuple[Noised, ...]:
        """None that would do: a party also tells which model has the least loss on its rows."""
        return ()

    def work(self, at: At | Stack) -> Answer:
        chosen = self._chosen(at)
        start = at.received["models"][chosen.argmax(axis=-1)]
        trained = at.train(start, self.local).parameters
        update = (trained - start)[..., None, :] * chosen[..., None].astype(trained.dtype)
        values = {"update": update.reshape(*chosen.shape[:-1], -1), "chosen": chosen.astype(np.float64)}
        return Answer(Contribution(Values(values), self.weight(at)))

    def personal(self, at: At | Stack) -> Array:
        return np.asarray(at.received["models"][self._chosen(at).argmax(axis=-1)])

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        models, share = state.values["models"], total.values["chosen"]
        mean = total.values["update"].reshape(models.shape) / np.where(share > 0, share, 1)[:, None]
        flat = Values({**state.values, "parameters": models.ravel()})
        after = replace(state, values=flat).step(self.server, mean.ravel())
        models = after.values["parameters"].reshape(models.shape)
        return replace(after, values=Values({**after.values, "models": models, "parameters": models[share.argmax()]}))

    def _chosen(self, at: At | Stack) -> Array:
        """Which model each party chooses, bool ``[*lead, clusters]``."""
        losses = np.stack([at.loss(model) for model in at.received["models"]], axis=-1)
        losses = np.where(np.isfinite(losses), losses, np.inf)  # or the smallest would be no number
        return np.asarray(losses.argmin(axis=-1)[..., None] == np.arange(self.clusters))
