"""``hansa_side.py WORK [VARIANT]``: ours, as a user would write it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np

import hansa as hs
from benchmarks.simulation import work as w
from hansa import aggregation as agg
from hansa import methods
from hansa.contribution import Ask, Contribution, Total, Values
from hansa.data.population import Population
from hansa.learners.base import Layout, Learner
from hansa.methods.base import Answer, State, UpdateMethod
from hansa.run import Event

NAME, VARIANT = sys.argv[1], " ".join(sys.argv[2:])


def follow(event: Event) -> None:
    """A mark after each round."""
    if event.kind == "arrived" and event.body["work"] == "train":
        w.mark("round")


class Arrays(Learner):
    """W3's parameters; nothing trains them."""

    dtype = "float32"
    layout = Layout((("arrays", (w.W3_ARRAYS, w.W3_LENGTH)),))

    def init(self, random: np.random.Generator) -> np.ndarray:
        """Zeros."""
        return np.zeros(self.layout.size)

    def loss(self, *of: Any) -> np.ndarray:
        """Never asked for."""
        raise NotImplementedError

    gradient = predict = loss


class Returned(UpdateMethod):
    """W3: parties return what they have; the model is its weighted mean."""

    kind = "returned"
    stacks = False

    def work(self, at: Any) -> Answer:
        """100 MB."""
        arrays = w.update(int(at.party.removeprefix("party-")) - 1)
        return Answer(Contribution(Values({"update": arrays.reshape(-1)}), self.weight(at)))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The mean itself."""
        values = Values({"parameters": total.values["update"]})
        return replace(state, round=state.round + 1, values=values)


class Returning(hs.LinearRegression):
    """W3's task."""

    kind = "returning"

    def learner(self, width: int) -> Learner:
        """The arrays."""
        return Arrays()


def returned() -> None:
    """W3."""
    sizes = [w.weight(i) for i in range(w.W3_PARTIES)]
    columns = {name: np.zeros(sum(sizes)) for name in ("x", "y")}
    federation = hs.Federation(
        name="W3",
        task=Returning(target="y"),
        method=Returned(),
        rounds=w.W3_ROUNDS,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(every=0, holdout=0.0),
    )
    run = federation.run(hs.Local(Population.of_sizes(columns, sizes), follow=follow))
    w.done(hs.__version__, list(run.parameters.reshape(w.W3_ARRAYS, -1)))


def task() -> hs.Task:
    """The softmax, which starts from zeros, or the network from its given weights."""
    if NAME != "W2":
        labels = tuple(range(w.CLASSES))
        return hs.SoftmaxRegression(target="label", classes=labels, precision="float32")
    from benchmarks.simulation.net import network

    return hs.tasks.torch(
        network(NAME),
        loss="cross_entropy",
        metrics=["accuracy"],
        target="label",
        features=["pixels"],
        precision="bfloat16" if VARIANT == "bfloat16" else "float32",
        start="given",
    )


def trained() -> None:
    """The workloads in which a model is trained."""
    data = w.Data(NAME)
    work = data.work
    local = hs.SGD(lr=work.lr, batch_size=work.batch, shuffle=NAME == "W1" and VARIANT != "ordered")
    kinds = {"scaffold": methods.Scaffold, "ditto": methods.Ditto}
    codecs = agg.clip(1.0) >> agg.rotate() >> agg.quantize(bits=8)
    federation = hs.Federation(
        name=NAME,
        task=task(),
        method=kinds.get(VARIANT, methods.FedAvg)(local=local),
        aggregation=codecs if VARIANT == "codecs" else agg.Aggregation(),
        cohort=hs.Fixed(size=work.cohort),
        rounds=work.rounds,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(central=True, every=work.rounds),
        seed=w.SEED,
    )
    own = [data.span(i) for i in range(min(work.parties, len(data.offsets) - 1))]
    repeated = np.arange(work.parties) % len(own)
    starts = np.array([span.start for span in own])[repeated]
    stops = np.array([span.stop for span in own])[repeated]
    population = Population({"pixels": data.x, "label": data.y}, starts, stops)
    test = hs.Table({"pixels": data.test_x, "label": data.test_y})
    run = federation.run(hs.Local(population, test=test, follow=follow))
    drawn = [e.body["parties"] for e in run.events if e.kind == "asked" and e.body["work"] == "train"]
    numbers = [[population.names.index(name) for name in names] for names in drawn]
    accuracy = run.progress.metrics["accuracy"] if run.progress else None
    w.done(hs.__version__, [run.parameters], accuracy, same_cohorts=np.array_equal(numbers, data.cohorts))


if __name__ == "__main__":
    returned() if NAME == "W3" else trained()
