"""``hansa_side.py WORK [VARIANT]``: ours, as a user would write it."""

from __future__ import annotations

import sys

import hansa as hs
from benchmarks.simulation import work as w
from hansa import aggregation as agg
from hansa import methods
from hansa.data.population import Population
from hansa.run import Event

NAME, VARIANT = sys.argv[1], " ".join(sys.argv[2:])


def follow(event: Event) -> None:
    """A mark after each round."""
    if event.kind == "arrived" and event.body["work"] == "train":
        w.mark("round")


def trained() -> None:
    """The workloads in which a model is trained."""
    data = w.Data(NAME)
    work = data.work
    local = hs.SGD(lr=work.lr, batch_size=work.batch, shuffle=VARIANT != "ordered")
    kinds = {"scaffold": methods.Scaffold, "ditto": methods.Ditto}
    codecs = agg.clip(1.0) >> agg.rotate() >> agg.quantize(bits=8)
    federation = hs.Federation(
        name=NAME,
        task=hs.SoftmaxRegression(
            target="label", classes=tuple(range(w.CLASSES)), precision="float32"
        ),
        method=kinds.get(VARIANT, methods.FedAvg)(local=local),
        aggregation=codecs if VARIANT == "codecs" else agg.Aggregation(),
        cohort=hs.Fixed(size=work.cohort),
        rounds=work.rounds,
        preprocessing=hs.Moments(standardise=False),
        evaluation=hs.Evaluate(central=True, every=work.rounds),
        seed=w.SEED,
    )
    own = [data.span(i) for i in range(min(work.parties, len(data.offsets) - 1))]
    repeated = w.np.arange(work.parties) % len(own)
    starts = w.np.array([span.start for span in own])[repeated]
    stops = w.np.array([span.stop for span in own])[repeated]
    population = Population({"pixels": data.x, "label": data.y}, starts, stops)
    test = hs.Table({"pixels": data.test_x, "label": data.test_y})
    run = federation.run(hs.Local(population, test=test, follow=follow))
    drawn = [e.body["parties"] for e in run.events if e.kind == "asked" and e.body["work"] == "train"]
    numbers = [[population.names.index(name) for name in names] for names in drawn]
    accuracy = run.progress.metrics["accuracy"] if run.progress else None
    w.done(
        hs.__version__,
        [run.parameters],
        accuracy,
        same_cohorts=w.np.array_equal(numbers, data.cohorts),
    )


if __name__ == "__main__":
    trained()
