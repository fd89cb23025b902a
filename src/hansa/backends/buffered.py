"""Buffered asynchrony in virtual time: the schedule of FedBuff."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import numpy as np

from hansa import keyed
from hansa.aggregation.reduce import Reduction
from hansa.backends.local import LocalExchange, Options
from hansa.contribution import Algebra, Arrival, Ask, Contributions, Values
from hansa.errors import RunError
from hansa.federation import Federation
from hansa.methods.base import State
from hansa.methods.course import Course
from hansa.methods.fedbuff import FedBuff
from hansa.party import Crowd
from hansa.run import UNDER_WAY, Run

_TRIES = 1000  # draws of a party that is free and there, before a place stays empty


class BufferedExchange(LocalExchange):
    """Parties begin and end when the clock says; an arrival is a full buffer, whatever its parties began from.

    Args:
        run: and, in its progress, what was under way when it was checkpointed.
        method: how many train at a time, and how many fill the buffer.
    """

    def __init__(
        self,
        course: Course,
        crowd: Crowd,
        run: Run,
        options: Options,
        method: FedBuff,
    ) -> None:
        super().__init__(course, crowd, run, options)
        self._method, self._begun = method, 0
        self._flights: list[
            tuple[float, int, str, int]
        ] = []  # end, number, party, version of its ask
        self._asks: dict[int, Ask] = {}
        if run.progress and UNDER_WAY in run.progress.states:
            self._take_up(run.progress.states[UNDER_WAY])

    def draw(self, federation: Federation, ask: Ask) -> Ask:
        """Nobody yet: who begins when is decided on the way."""
        return ask if ask.work == "train" else super().draw(federation, ask)

    def under_way(self) -> State | None:
        """Who is at work since when, and the asks that they work on."""
        values = {f"{v}.{n}": a for v, ask in self._asks.items() for n, a in ask.send.items()}
        facts: dict[str, Any] = {
            "now": self._now,
            "begun": self._begun,
            "flights": [list(flight) for flight in sorted(self._flights)],
            "asks": {str(version): ask.header() for version, ask in self._asks.items()},
        }
        return State(values=Values(values), facts=facts)

    def _take_up(self, state: State) -> None:
        self._now, self._begun = state.facts["now"], state.facts["begun"]
        self._flights = [(e, n, party, v) for e, n, party, v in state.facts["flights"]]
        heapq.heapify(self._flights)
        for version, header in state.facts["asks"].items():
            self._asks[int(version)] = Ask.from_header(header, state.values.under(version))

    def _one(self, ask: Ask) -> Arrival:
        if ask.work != "train":
            return super()._one(ask)
        self._asks[ask.version] = ask
        excluded: dict[str, str] = {}
        filled: list[tuple[float, int, str, int]] = []
        counted: dict[str, Contributions] = {}
        proposed: dict[str, Values] = {}
        leaving = 0
        while len(counted) < self._method.buffer:  # an answer that is refused fills no place
            more = self._fill(ask, excluded, filled, self._method.buffer - len(counted))
            asks = {version: self._asks[version] for _, _, _, version in more}
            answered, left, remembered = self._work(asks, more, excluded)
            counted |= answered
            proposed |= remembered
            leaving, filled = leaving + left, filled + more
        filled.sort(key=lambda flight: flight[1])
        used = {version: self._asks[version] for _, _, _, version in filled}
        under_way = {version for _, _, _, version in self._flights}
        self._asks = {v: one for v, one in self._asks.items() if v in under_way}
        order = tuple(party for _, _, party, _ in filled if party in counted)
        reduction = Reduction(self._course.signals(ask)[-1].fields, order)
        for party in order:
            reduction.add(party, counted[party].one(0))
        self.remember([proposed])
        lags = [ask.round - self._asks.get(v, used.get(v, ask)).round for _, _, _, v in filled]
        metrics = {
            "bytes_out": float(ask.send.nbytes * len(filled)),
            "bytes_in": float(leaving),
            "lag": float(np.mean(lags)) if lags else 0.0,
        }
        excluded = {name: why for name, why in excluded.items() if name not in counted}
        total = reduction.total(len(self._course.setup.parties))
        return Arrival(replace(ask, parties=order), total, excluded, metrics)

    def _work(
        self,
        asks: dict[int, Ask],
        filled: list[tuple[float, int, str, int]],
        excluded: dict[str, str],
    ) -> tuple[dict[str, Contributions], int, dict[str, Values]]:
        """What the parties answer, each to the ask that it began from, discounted by its age."""
        counted: dict[str, Contributions] = {}
        proposed: dict[str, Values] = {}
        leaving, newest = 0, max(one.round for one in self._asks.values())
        for version, ask in asks.items():
            mine = [party for _, _, party, began in filled if began == version]
            factor = self._method.discount(newest - ask.round)
            for outcome in self.room.answers(ask, mine, self.memories):
                excluded |= outcome.excluded
                proposed |= outcome.memory
                leaving += outcome.leaving
                scaled = self._discounted(ask, outcome.counted, factor)
                for i, party in enumerate(scaled.parties):
                    counted[party] = scaled.part(i, i + 1)
        return counted, leaving, proposed

    def _discounted(self, ask: Ask, stack: Contributions, factor: float) -> Contributions:
        if factor == 1.0 or not stack.parties:
            return stack
        fields = self._course.signals(ask)[-1].fields
        vectors = {
            f.name for f in fields if f.like == "parameters" and f.algebra is not Algebra.SUM
        }
        values = {
            n: v * v.dtype.type(factor) if n in vectors else v for n, v in stack.values.items()
        }
        return stack.holding(values)

    def _fill(
        self,
        ask: Ask,
        excluded: dict[str, str],
        before: list[tuple[float, int, str, int]],
        number: int,
    ) -> list[tuple[float, int, str, int]]:
        """Let parties begin and end until so many more, beside those before, have ended; a RunError if nobody
        is left who could fill it.
        """
        filled: list[tuple[float, int, str, int]] = []
        clock, seed, failed = self._options.clock, self._course.setup.seed, 0
        while len(filled) < number:
            self._start(ask, {flight[2] for flight in (*before, *filled)})
            if not self._flights:
                reasons = "; ".join(f"{party}: {why}" for party, why in sorted(excluded.items()))
                raise RunError(
                    f"nobody is there to fill the buffer of {self._method.buffer}"
                    + (f" ({reasons})" if reasons else ""),
                    round=ask.round,
                    remedy="Lower method.buffer, or let parties be available more often",
                )
            flight = heapq.heappop(self._flights)
            self._now = flight[0]
            if clock is not None and clock.fails([flight[2]], seed, flight[1])[0]:
                excluded[flight[2]] = "it failed in the middle of its work"
                failed += 1
                if failed > 100 * self._method.buffer:
                    raise RunError("parties fail faster than they fill the buffer", round=ask.round)
                continue
            filled.append(flight)
        return filled

    def _start(self, ask: Ask, waiting: set[str]) -> None:
        """Let parties begin from the newest parameters, until as many are at work as may be."""
        roster, clock, seed = (
            self._course.setup.parties,
            self._options.clock,
            self._course.setup.seed,
        )
        busy = {flight[2] for flight in self._flights} | waiting
        tries = 0
        while len(self._flights) < self._method.concurrency and len(busy) < len(roster):
            drawn = keyed.generator(seed, "begins", self._begun, tries)
            party = roster[int(drawn.integers(len(roster)))]
            tries += 1
            if tries > _TRIES:
                return
            if party in busy:
                continue
            if clock and not clock.there([party], seed, self._begun + tries, self._now)[0]:
                continue
            taken = float(self.durations(ask, [party], self._begun)[0])
            heapq.heappush(self._flights, (self._now + taken, self._begun, party, ask.version))
            busy.add(party)
            self._begun, tries = self._begun + 1, 0
