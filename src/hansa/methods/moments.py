"""Federated preprocessing: means, variances, missing counts, counts over categories."""

import math
from functools import partial
from typing import ClassVar

import numpy as np

from hansa.contribution import Ask, Contribution, Total, Values
from hansa.data.contract import count_categories, texts
from hansa.data.preprocessing import Encoding
from hansa.learners.base import Learner
from hansa.methods.base import Answer, Method, Setup, State
from hansa.methods.work import At
from hansa.task import counted

WIDE = float(2**400)  # no sum of a column, nor of its squares, is larger; an overflow to infinity is refused anyway
_field = partial(counted, low=-WIDE, high=WIDE)


class Moments(Method):
    """Two sums that standardise features without anybody seeing a row.

    The first ask sums each number column (`rows`, `missing`, `total`) and counts each declared category; the second
    sums squared distances from the federated mean, which is exact where ``E[x^2] - E[x]^2`` cancels (Chan, Golub and
    LeVeque 1983). A category with fewer than ten rows at a party counts there as ``other``. Training rows only.

    Where the sums get noise (`bounds` of the setup), there is one ask only: each number is moved from its declared
    range to [-1, 1], so that a row adds no more than that, and squares are summed at once.

    Args:
        standardise: whether features are scaled to mean 0 and variance 1 of the federation."""

    kind: ClassVar[str] = "moments"
    standardise: bool = True

    def init(self, setup: Setup, learner: Learner) -> State:
        categories = {name: list(values) for name, values in setup.categories.items()}
        facts = {"step": 0, "numbers": list(setup.numbers), "categories": categories}
        bounds = {"bounds": [list(setup.bounds[n]) for n in setup.numbers]} if setup.bounds is not None else {}
        return State(facts={**facts, **bounds})

    def ask(self, state: State) -> Ask | None:
        step = state.facts["step"]
        if step == 2 or not self.wanted(state):
            return None
        if step == 1:
            squares = _field("squares", len(state.values["mean"]), low=0.0)
            return Ask("", 0, 0, Values({"mean": state.values["mean"]}), (squares,))
        numbers, categories = state.facts["numbers"], state.facts["categories"]
        width = len(numbers)
        known = sum(len(values) + 1 for values in categories.values())
        each, more = math.sqrt(width), "bounds" in state.facts
        fields = [_field("rows", low=0.0, example=1.0), _field("missing", width, low=0.0, example=each)]
        fields.append(_field("total", width, example=each if more else math.inf))
        fields.append(_field("categories", known, low=0.0, example=math.sqrt(len(categories))))
        fields += [_field("squares", width, low=0.0, example=each)] if more else []
        return Ask("", 0, 0, Values(), tuple(f for f in fields if not more or 0 not in (f.shape or ())))

    def work(self, at: At) -> Answer:
        rows = at.train_rows
        columns = [rows.column(name) for name in at.setup.numbers]
        x = np.stack(columns, axis=1) if columns else np.empty((rows.rows, 0))
        if "mean" in at.received:
            return Answer(Contribution(Values({"squares": np.nansum(np.square(x - at.received["mean"]), axis=0)})))
        declared, more = at.setup.categories.items(), {}
        rare = 10
        if at.setup.bounds is not None:
            low, high = np.reshape([at.setup.bounds[name] for name in at.setup.numbers], (-1, 2)).T
            x, rare = np.clip(2 * (x - low) / (high - low) - 1, -1, 1), 0
            more = {"squares": np.nansum(np.square(x), axis=0)}
        counts = [count_categories(texts(rows, name), values, rare) for name, values in declared]
        missing, total = np.isnan(x).sum(axis=0).astype(np.float64), np.nansum(x, axis=0)
        values = {"rows": np.asarray(float(rows.rows)), "missing": missing, "total": total, **more}
        values["categories"] = np.concatenate(counts) if counts else np.empty(0)
        return Answer(Contribution(Values({n: v for n, v in values.items() if not more or v.size})))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        """Means, then scales; a column without a value anywhere keeps mean 0 and scale 1."""
        if state.facts["step"] == 0:
            empty = np.zeros(len(state.facts["numbers"]))
            sums = {"missing": empty, "total": empty, **total.values}
            count = sums["rows"] - sums["missing"]
            mean = sums["total"] / np.maximum(count, 1.0)
            values = {**sums, "count": count, "mean": mean}
            if "bounds" in state.facts:
                low, high = np.reshape(state.facts["bounds"], (-1, 2)).T
                half, mean = (high - low) / 2, np.clip(mean, -1, 1)
                variance = sums.get("squares", empty) / np.maximum(count, 1.0) - np.square(mean)
                # Noise may leave less than nothing: a scale is at least a twentieth of the range.
                values |= {"mean": low + (mean + 1) * half, "scale": np.sqrt(np.clip(variance, 1e-2, 1)) * half}
                return State(0, Values(values), {**state.facts, "step": 2})
            return State(0, Values(values), {**state.facts, "step": 1})
        variance = total.values["squares"] / np.maximum(state.values["count"], 1.0)
        # What rounding leaves of a constant column is no variance (the bound of scikit-learn's scaler).
        rounding = state.values["count"] * np.finfo(np.float64).eps
        bound = rounding * variance + np.square(rounding * state.values["mean"])
        scale = np.where(variance <= bound, 1.0, np.sqrt(variance))
        return State(0, Values({**state.values, "scale": scale}), {**state.facts, "step": 2})

    def wanted(self, state: State) -> bool:
        """Whether there is anything to sum."""
        return self.standardise and bool(state.facts["numbers"] or state.facts["categories"])

    def phases(self, start: State, ask: Ask) -> tuple[State, ...]:
        if not self.wanted(start):
            return ()
        if "bounds" in start.facts:
            return (start,)
        return start, State(0, Values({"mean": np.zeros(len(start.facts["numbers"]))}), {**start.facts, "step": 1})

    def encoding(self, state: State, setup: Setup) -> Encoding:
        """What turns a table into features, as far as it is known."""
        if "scale" not in state.values:
            return setup.encoding
        return setup.scaled(state.values["mean"], state.values["scale"])
