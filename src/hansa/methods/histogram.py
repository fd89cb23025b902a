"""Federated histograms and quantiles: what is in the columns, without anybody seeing a row."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Array, Ask, Contribution, Json, Total, Values
from hansa.data.contract import OTHER, count_categories, texts
from hansa.data.preprocessing import Encoding
from hansa.learners.base import Learner
from hansa.methods.base import Answer, Method, Setup, State
from hansa.methods.work import At
from hansa.task import counted


class Histogram(Method):
    """One sum over training rows: how many lie in each of ``bins`` even bins of a number column's declared range, or
    have a gap there; how many have each declared category. Edges and categories are public, so a row moves one count of
    each of ``k`` columns, whatever it holds, and all counts by a norm of ``sqrt(k)``. They get the noise of
    ``[statistics]``; quantiles are computed from them.

    Args:
        bins: of each number column.
        levels: of the quantiles, from 0 to 1."""

    kind: ClassVar[str] = "histogram"
    exact: ClassVar[bool] = True
    statistics: ClassVar[bool] = True
    weights: ClassVar[str] = "equal"
    bins: Annotated[int, Limits(ge=1, le=10_000)] = 20
    levels: tuple[Annotated[float, Limits(ge=0, le=1)], ...] = (0.05, 0.25, 0.5, 0.75, 0.95)

    def init(self, setup: Setup, learner: Learner) -> State:
        known: dict[str, Json] = {n: [*values, OTHER] for n, values in setup.categories.items()}
        bounds = setup.bounds or {}
        edges = {n: np.linspace(*bounds[n], self.bins + 1).tolist() for n in setup.numbers}
        return State(0, Values({"parameters": np.zeros(learner.layout.size)}), {"columns": edges | known})

    def ask(self, state: State) -> Ask | None:
        """All counts at once; of a number column, the last is that of the gaps."""
        sizes = [len(of) for of in state.facts["columns"].values()]
        fields = (counted("counts", sum(sizes), example=len(sizes) ** 0.5),)
        return None if state.round else Ask("", 0, 0, Values(), fields, through="statistics")

    def work(self, at: At) -> Answer:
        rows, bounds, counts = at.train_rows, at.setup.bounds or {}, list[Array]()
        for name in at.setup.numbers:
            edges = bounds[name]
            inside = np.histogram(np.clip(rows.column(name), *edges), self.bins, edges)[0]
            counts += [inside, rows.rows - inside.sum(keepdims=True)]
        counts += [count_categories(texts(rows, n), known, 0) for n, known in at.setup.categories.items()]
        return Answer(Contribution(Values({"counts": np.concatenate(counts).astype(np.float64)})))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        facts = {**state.facts, "reason": "every column was counted"}
        return State(1, Values({**state.values, "counts": total.values["counts"]}), facts)

    def facts(self, state: State, encoding: Encoding) -> dict[str, Json]:
        """Under ``columns``, what is known of each; quantiles by their level, null if there is hardly a row."""
        columns, left = dict[str, Json](), list(state.values.get("counts", ()))
        for name, of in state.facts["columns"].items() if left else ():
            mine, left = [float(count) for count in left[: len(of)]], left[len(of) :]
            if name in encoding.categories:
                columns[name] = {"counts": dict(zip(of, mine, strict=True))}
            else:
                found = dict(zip(map(str, self.levels), quantiles(mine[:-1], of, self.levels), strict=True))
                columns[name] = {"edges": of, "counts": mine[:-1], "missing": mine[-1], "quantiles": found}
        return {"columns": columns} if columns else {}


def quantiles(counts: Sequence[float], edges: Sequence[float], levels: Sequence[float]) -> list[float | None]:
    """Quantiles of a histogram, evenly within a bin and so never closer to a value than its bin's edges; None if the
    counts are noise about nothing. Where noise makes the sums of the first counts fall, they are levelled halfway
    between the largest before and the smallest after: none is then further from a rising one than the worst was."""
    sums = np.cumsum(counts)
    if not sums[-1] >= 1:
        return [None for _ in levels]
    rising = (np.maximum.accumulate(sums) + np.minimum.accumulate(sums[::-1])[::-1]) / 2
    rising = np.concatenate([[0.0], rising[:-1].clip(0, sums[-1]), sums[-1:]])
    return [float(found) for found in np.interp(np.asarray(levels) * sums[-1], rising, edges)]
