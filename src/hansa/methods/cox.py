"""Cox's proportional hazards (Cox 1972) among parties: the partial likelihood of the pooled table, from sums."""

from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field as Limits

from hansa.contribution import Algebra, Array, Ask, Contribution, Field, Json, Total, Values
from hansa.data.preprocessing import Encoding
from hansa.errors import ContributionError, RunError, StudyError
from hansa.methods.base import Answer, State
from hansa.methods.newton import FARTHEST, Curve, Newton, complete, summed, unpenalised
from hansa.methods.work import At
from hansa.task import CoxRegression, Task


class Cox(Newton):
    """Hazard ratios with standard errors, and the baseline hazard.

    First each party names the distinct times of its events, and hears of everybody's. Then, once a round, it sends sums
    over its rows at risk at each of these times: of ``exp(x w)``, ``x exp(x w)`` and ``x x' exp(x w)`` (Lu et al. 2015,
    WebDISCO). These are the sums of the pooled table, so the estimates are the pooled ones. The differences of a single
    party's sums between two times belong to the few rows that leave the risk set in between; ``grid`` makes them many.

    Args:
        ties: ``"efron"`` (Efron 1977), or ``"breslow"`` (Breslow 1974), which is cruder.
        grid: times are rounded up to multiples of it; exact if not said.
        limit: a party with more distinct times of events is refused."""

    kind: ClassVar[str] = "cox"
    intercept: ClassVar[bool] = False
    ties: Literal["efron", "breslow"] = "efron"
    grid: Annotated[float, Limits(gt=0)] | None = None
    limit: Annotated[int, Limits(ge=1, le=1_000_000)] = 10_000

    def require(self, task: Task) -> None:
        if not isinstance(task, CoxRegression):
            remedy = 'Write task.kind = "cox-regression", or choose another method'
            raise StudyError(f"the method cox fits cox-regression, not {task.kind}", remedy=remedy)
        unpenalised(self.kind, task.learner(1))

    def phases(self, start: State, ask: Ask) -> tuple[State, ...]:
        """The times are asked for first; how many there are, only the ask can say."""
        count = ask.send["times"].size if "times" in ask.send else 1
        return start, State(start.round, Values({**start.values, "times": np.zeros(count)}), start.facts)

    def ask(self, state: State) -> Ask | None:
        """The times of events, then one set of sums a round until the estimates stand."""
        if state.facts["converged"]:
            return None
        if "times" not in state.values:
            times = Field("times", shape=(self.limit,), algebra=Algebra.GATHER, low=-1.0)
            return Ask("", 0, 0, Values(), (times,), through="update")
        free, count = len(state.facts["free"]), len(state.values["times"])
        wide = _width(free)
        fields = [summed("risk", count, wide), summed("events", count, low=0.0, high=_MOST)]
        fields += [summed("observed", free), summed("rows", low=0.0)]
        if self.ties == "efron":
            fields.append(summed("tied", count, wide))
        send = {name: state.values[name] for name in ("parameters", "times")}
        return Ask("", 0, 0, Values(send), tuple(fields), through="update")

    def work(self, at: At) -> Answer:
        """Times of events, or sums over the rows at risk; complete rows only. A ContributionError if there are
        too many times, if what was sent are none, or if a time was not named before."""
        x, signed = complete(at)
        event, time = ~np.signbit(signed), np.abs(signed)
        if self.grid is not None:
            time = np.ceil(time / self.grid) * self.grid
        if "times" not in at.received:
            seen = np.unique(time[event])
            if len(seen) > self.limit:
                remedy = "Say method.grid, to round times, or raise method.limit"
                raise ContributionError(f"its events are at more than {self.limit} distinct times", remedy=remedy)
            padded = np.pad(seen, (0, self.limit - len(seen)), constant_values=-1.0)
            return Answer(Contribution(Values({"times": padded})))
        times, free = at.received["times"], self.free(at.setup)
        x, count = x[:, free], len(times)
        if not 0 < count <= self.limit * len(at.setup.parties) or (np.diff(times) <= 0).any():
            raise ContributionError("the times that it was sent are none that parties name")
        position = np.minimum(np.searchsorted(times, time[event]), count - 1)
        if (times[position] != time[event]).any():
            raise ContributionError("an event of it is at a time that was not named before")
        hazard = np.exp((x @ at.received["parameters"][free]).clip(-FARTHEST, FARTHEST))
        first, (one, other) = x.T * hazard, np.triu_indices(len(free))
        terms = np.concatenate([hazard[None], first, first[one] * x.T[other]])  # of each row, ``[width, n]``
        # A row whose time is the k-th is at risk at the first k times.
        left = _by(np.searchsorted(times, time, side="right"), terms, count + 1)[1:]
        events = np.bincount(position, minlength=count).astype(np.float64)
        sums = {"risk": left[::-1].cumsum(axis=0)[::-1], "events": events, "observed": x[event].sum(axis=0)}
        sums["rows"] = np.asarray(float(len(time)))
        if self.ties == "efron":
            sums["tied"] = _by(position, terms[:, event], count)
        return Answer(Contribution(Values(sums)))

    def apply(self, state: State, ask: Ask, total: Total) -> State:
        if "times" not in state.values:
            times = np.unique(total.values["times"])
            times = times[times >= 0]
            if not len(times):
                remedy = "Correct task.event: a column that is 1 where the event was seen"
                raise RunError("no party has seen an event", remedy=remedy)
            return State(0, Values({**state.values, "times": times}), state.facts)
        curve, hazard = self._curve(state, total.values)
        after = self.newton(state, total, curve)
        return State(after.round, Values({**after.values, "hazard": hazard}), after.facts)

    def facts(self, state: State, encoding: Encoding) -> dict[str, Json]:
        """As every Newton method's, and the ``baseline``, the cumulative hazard where all features are 0: at the
        federation's means if columns are standardised, and in the first categories."""
        found = super().facts(state, encoding)
        if found:
            times, hazard = state.values["times"], state.values["hazard"]
            baseline = {"times": times.tolist(), "hazard": hazard.cumsum().tolist()}
            found["inference"] |= {"ties": self.ties, "baseline": baseline}
        return found

    def _curve(self, state: State, sums: Values) -> tuple[Curve, Array]:
        """The partial log likelihood at the parameters that were asked about, and the baseline's steps. Of d events at
        one time, Efron's l-th sees ``l / d`` of their own hazards gone; Breslow's see none."""
        free = len(state.facts["free"])
        theta = state.values["parameters"][state.facts["free"]]
        risk, events = sums["risk"], sums["events"]
        efron = self.ties == "efron"
        gradient, deviance = sums["observed"].copy(), -2 * float(sums["observed"] @ theta)
        second, outer = np.zeros(_width(free) - 1 - free), np.zeros((free, free))
        hazard = np.zeros(len(events))
        if (events != np.round(events)).any() or not (risk[events > 0, 0] > 0).all():
            remedy = "Find the party whose sums are wrong: every party's answers are in the record"
            raise RunError("the events and hazards that arrived are none of any rows", remedy=remedy)
        for rank in range(int(events.max()) if efron else 1):
            some = events > rank
            left, weight = risk[some], np.ones(some.sum()) if efron else events[some]
            if rank:
                left = left - (rank / events[some])[:, None] * sums["tied"][some]
            at_risk = left[:, 0]
            mean = left[:, 1 : 1 + free] / at_risk[:, None]
            deviance += 2 * float(weight @ np.log(at_risk))
            gradient -= weight @ mean
            second += (weight / at_risk) @ left[:, 1 + free :]
            outer += (mean.T * weight) @ mean
            hazard[some] += weight / at_risk
        square = np.zeros((free, free))
        square[np.triu_indices(free)] = second
        square = square + square.T - np.diag(np.diagonal(square))
        facts = {"rows": int(sums["rows"]), "events": int(events.sum())}
        return Curve(gradient, square - outer, np.diagonal(square), deviance, 1.0, facts), hazard


_MOST = float(2**16)  # events of one party at one time: each takes a step of Efron's sum


def _width(free: int) -> int:
    """How many sums there are at one time: of the hazard, times each column, times each pair of them."""
    return 1 + free + free * (free + 1) // 2


def _by(position: Array, terms: Array, count: int) -> Array:
    """Sums of the terms of the rows at each position, ``[count, width]``."""
    return np.stack([np.bincount(position, term, minlength=count) for term in terms], axis=1)
