"""Federated histograms and quantiles: what is in the columns, without anybody seeing a row."""

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Array, Ask, Contribution, Json, Total, Values
from hansa.data.contract import OTHER, count_categories, texts
from hansa.data.preprocessing import Encoding
from hansa.errors import StudyError
from hansa.learners.base import Learner
from hansa.methods.base import Answer, Method, Setup, State
from hansa.methods.work import At
from hansa.task import counted

Share = Annotated[float, Limits(ge=0, le=1)]


class Histogram(Method):
    """One sum: of each number column, how many rows lie in each of ``bins`` even bins of its declared range, and
    how many have a gap; of each category column, how many have each declared value. Training rows only.

    The edges are public, so a row is in one bin of each of ``k`` columns, whatever it holds, and moves the counts
    by a norm of ``sqrt(k)``. With ``[statistics]`` they get noise; what is computed from them costs nothing more.

    Args:
        bins: of each number column.
        levels: of the quantiles, from 0 to 1; see `quantiles`.
    """

    kind: ClassVar[str] = "histogram"
    exact: ClassVar[bool] = True
    statistics: ClassVar[bool] = True
    weights: ClassVar[str] = "equal"

    bins: Annotated[int, Limits(ge=1, le=10_000)] = 20
    levels: tuple[Share, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)

    def init(self, setup: Setup, learner: Learner) -> State:
        """Nothing was counted; the model stays at zeros.

        Raises:
            StudyError: if there is nothing to count.
        """
        columns: dict[str, Json] = {
            name: np.linspace(*setup.bounds[name], self.bins + 1).tolist() for name in setup.numbers
        }
        columns |= {name: [*values, OTHER] for name, values in setup.categories.items()}
        if not columns:
            raise StudyError("there is no column to count", remedy="Correct `features` in the study")
        return State(0, Values({"parameters": np.zeros(learner.layout.size)}), {"columns": columns})

    def ask(self, state: State) -> Ask | None:
        """All counts at once; of a number column, the last is that of the gaps."""
        if state.round:
            return None
        columns = state.facts["columns"]
        size = sum(map(len, columns.values()))
        fields = (counted("counts", size, example=len(columns) ** 0.5),)
        return Ask("", 0, 0, Values(), fields, through="statistics")

    def work(self, at: At) -> Answer:
        """Counts over the party's training rows."""
        counts: list[Array] = []
        for name in at.setup.numbers:
            low, high = at.setup.bounds[name]
            x = at.train_rows.column(name)
            x = np.clip(x[(there := ~np.isnan(x))], low, high)
            counts += [np.histogram(x, self.bins, (low, high))[0], np.sum(~there, keepdims=True)]
        for name, values in at.setup.categories.items():
            counts.append(count_categories(texts(at.train_rows, name), values, 0))
        return Answer(Contribution(Values({"counts": np.concatenate(counts).astype(np.float64)})))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """The counts, and the end."""
        facts = {**state.facts, "reason": "every column was counted"}
        return State(1, Values({**state.values, "counts": total.values["counts"]}), facts)

    def facts(self, state: State, encoding: Encoding) -> dict[str, Json]:
        """Under ``columns``, of each column its ``counts``; and of a number column its public ``edges``, its
        ``missing`` rows, and the ``quantiles`` by their level, null if there is hardly a row.
        """
        columns, left = {}, state.values.get("counts")
        if left is None:
            return {}
        for name, of in state.facts["columns"].items():
            mine, left = left[: len(of)], left[len(of) :]
            if name not in encoding.numbers:
                columns[name] = {"counts": dict(zip(of, mine.tolist(), strict=True))}
                continue
            found = quantiles(mine[:-1], of, self.levels)
            said = {str(level): value for level, value in zip(self.levels, found, strict=True)}
            known = {"edges": of, "counts": mine[:-1].tolist(), "missing": float(mine[-1])}
            columns[name] = {**known, "quantiles": said}
        return {"columns": columns}


def quantiles(counts: Array, edges: Sequence[float], levels: Sequence[float]) -> list[float | None]:
    """Quantiles of a histogram, evenly within a bin, never closer to a value than its bin's edges; None if the
    counts are noise about nothing.

    What noise makes fall in the sums of the first counts is levelled: halfway between the largest sum before and
    the smallest after. That moves no sum further from a rising one than the worst was before.

    Args:
        counts: ``[bins]``, negative ones among them.
        edges: ``[bins + 1]``.
        levels: from 0 to 1.
    """
    sums = np.cumsum(counts)
    if not sums[-1] >= 1:
        return [None for _ in levels]
    rising = (np.maximum.accumulate(sums) + np.minimum.accumulate(sums[::-1])[::-1]) / 2
    rising = np.concatenate([[0.0], rising.clip(0, sums[-1])])
    rising[-1] = sums[-1]
    return [float(found) for found in np.interp(np.asarray(levels) * sums[-1], rising, edges)]
