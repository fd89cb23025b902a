"""Buffered asynchrony in virtual time: the schedule of FedBuff."""

import heapq
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hansa import keyed
from hansa.aggregation.reduce import Reduction
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Algebra, Arrival, Ask, Contribution, Contributions, Values
from hansa.errors import RunError
from hansa.federation import Federation
from hansa.methods.base import State
from hansa.methods.fedbuff import FedBuff
from hansa.run import UNDER_WAY

_TRIES = 1000  # draws of a party that is free and there, before a place stays empty


class _Flight(NamedTuple):
    """A party at work; those that end first sort first."""

    end: float
    number: int
    party: str
    version: int
    """Of the ask that it began from."""


class BufferedExchange(LocalExchange):
    """Parties begin and end when the clock says; an arrival is a full buffer, whatever its parties began from."""

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.course.method, FedBuff)
        self._method, self._begun = self.course.method, 0
        self._flights: list[_Flight] = []
        self._asks: dict[int, Ask] = {}
        if self.run and self.run.progress and UNDER_WAY in self.run.progress.states:
            self._take_up(self.run.progress.states[UNDER_WAY])

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
        self._flights = [_Flight(*flight) for flight in state.facts["flights"]]
        heapq.heapify(self._flights)
        for version, header in state.facts["asks"].items():
            self._asks[int(version)] = Ask.from_header(header, state.values.under(version))

    def _one(self, ask: Ask) -> Arrival:
        if ask.work != "train":
            return super()._one(ask)
        self._asks[ask.version] = ask
        counted, proposed = dict[str, Contribution](), dict[str, Values]()
        excluded, leaving, landed = dict[str, str](), 0, list[_Flight]()
        # Who is refused fills no place; or, behind noise, fills it with nothing: who comes instead would be one
        # contribution more by which two neighbours' sums differ, in this buffer and in all after it.
        filling = landed if self.course.aggregation.protects else counted
        while (wanted := self._method.buffer - len(filling)) > 0:
            more = self._landed(ask, excluded, landed, wanted)
            for version in dict.fromkeys(flight.version for flight in more):
                began = self._asks[version]
                mine = [flight.party for flight in more if flight.version == version]
                for outcome in self.room.answers(began, mine, self.memories):
                    excluded |= outcome.excluded
                    proposed |= outcome.memory
                    leaving += outcome.leaving
                    lag = ask.round - began.round
                    stack = self._discounted(began, outcome.counted, self._method.discount(lag))
                    counted |= {party: stack.one(i) for i, party in enumerate(stack.parties)}
            landed += more
        landed.sort(key=lambda flight: flight.number)
        lags = [ask.round - self._asks[flight.version].round for flight in landed]
        under_way = {flight.version for flight in self._flights}
        self._asks = {v: one for v, one in self._asks.items() if v in under_way}
        order = tuple(flight.party for flight in landed if flight.party in counted)
        reduction = Reduction(self.course.signals(ask)[-1].fields, order)
        for party in order:
            reduction.add(party, counted[party])
        self.remember([proposed])
        metrics = {
            "bytes_out": float(ask.send.nbytes * len(landed)),
            "bytes_in": float(leaving),
            "lag": float(np.mean(lags)),
        }
        excluded = {name: why for name, why in excluded.items() if name not in counted}
        total = reduction.total(len(self.course.setup.parties))
        return Arrival(replace(ask, parties=order), total, excluded, metrics)

    def _discounted(self, ask: Ask, stack: Contributions, factor: float) -> Contributions:
        if factor == 1.0 or not stack.parties:
            return stack
        fields = self.course.signals(ask)[-1].fields
        values = dict(stack.values)
        for field in fields:
            if field.like == "parameters" and field.algebra is not Algebra.SUM:
                values[field.name] = values[field.name] * values[field.name].dtype.type(factor)
        return stack.holding(values)

    def _landed(self, ask: Ask, excluded: dict[str, str], before: Sequence[_Flight], number: int) -> list[_Flight]:
        """Let parties begin and end until so many more, beside those before, have ended; a RunError if nobody
        is left who could.
        """
        landed: list[_Flight] = []
        clock, seed, failed = self.clock, self.course.setup.seed, 0
        while len(landed) < number:
            self._start(ask, {flight.party for flight in (*before, *landed)})
            if not self._flights:
                reasons = "; ".join(f"{party}: {why}" for party, why in sorted(excluded.items()))
                raise RunError(
                    f"nobody is there to fill the buffer of {self._method.buffer}"
                    + (f" ({reasons})" if reasons else ""),
                    round=ask.round,
                    remedy="Lower method.buffer, or let parties be available more often",
                )
            flight = heapq.heappop(self._flights)
            self._now = flight.end
            if clock is None or not clock.fails([flight.party], seed, flight.number)[0]:
                landed.append(flight)
                continue
            excluded[flight.party] = "it failed in the middle of its work"
            failed += 1
            if failed > 100 * self._method.buffer:
                raise RunError("parties fail faster than they fill the buffer", round=ask.round)
        return landed

    def _start(self, ask: Ask, waiting: set[str]) -> None:
        """Let parties begin from the newest parameters, until as many are at work as may be."""
        setup, clock = self.course.setup, self.clock
        busy = {flight.party for flight in self._flights} | waiting
        tries = 0
        while len(self._flights) < self._method.concurrency and len(busy) < len(setup.parties):
            drawn = keyed.generator(setup.seed, "begins", self._begun, tries)
            party = setup.parties[int(drawn.integers(len(setup.parties)))]
            tries += 1
            if tries > _TRIES:
                return
            turn = self._begun + tries
            if party in busy or (clock and not clock.there([party], setup.seed, turn, self._now)[0]):
                continue
            taken = float(self.durations(ask, [party], self._begun)[0])
            flight = _Flight(self._now + taken, self._begun, party, ask.version)
            heapq.heappush(self._flights, flight)
            busy.add(party)
            self._begun, tries = self._begun + 1, 0
