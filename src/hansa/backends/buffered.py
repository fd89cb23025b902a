"""Rounds in virtual time: deadlines, k of n, late updates, and the schedule of FedBuff."""

import heapq
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from hansa import keyed
from hansa.aggregation.reduce import Reduction, discounted
from hansa.backends.clock import Clock
from hansa.backends.exchange import LocalExchange
from hansa.contribution import Arrival, Ask, Contribution, Values
from hansa.errors import RunError
from hansa.federation import Federation
from hansa.methods.base import State
from hansa.run import UNDER_WAY

_TRIES = 1000  # draws of a party that is free and there, before a place stays empty


class _Flight(NamedTuple):
    """A party at work; those that end first sort first."""

    end: float
    number: int
    party: str
    version: int  # of the ask that it began from


class BufferedExchange(LocalExchange):
    """Parties begin and end when the clock says; an arrival is of those who landed, whatever they began from. Or
    all of that is as it was decided before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._most, self._begun = getattr(self.course.method, "concurrency", 0), 0
        self._reach = max((lag for made in self.decisions.values() for lag in made.lags.values()), default=0)
        self._flights: list[_Flight] = []
        self._asks: dict[int, Ask] = {}
        if self.run and self.run.progress and UNDER_WAY in self.run.progress.states:
            state = self.run.progress.states[UNDER_WAY]
            self._now, self._begun = state.facts["now"], state.facts["begun"]
            self._flights = sorted(_Flight(*flight) for flight in state.facts["flights"])
            for version, header in state.facts["asks"].items():
                self._asks[int(version)] = Ask.from_header(header, state.values.under(version))

    def draw(self, federation: Federation, ask: Ask) -> Ask:
        """Nobody yet, in a buffered run: who begins when is decided on the way."""
        return ask if ask.work == "train" and self._most else super().draw(federation, ask)

    def under_way(self) -> State | None:
        """Who is at work since when, and the asks that they work on."""
        values = {f"{v}.{n}": a for v, ask in self._asks.items() for n, a in ask.send.items()}
        asks = {str(version): ask.header() for version, ask in self._asks.items()}
        flights = [list(flight) for flight in sorted(self._flights)]
        facts = {"now": self._now, "begun": self._begun, "flights": flights, "asks": asks}
        return State(values=Values(values), facts=facts)

    def _absent(self, ask: Ask) -> dict[str, str]:
        """Who is not counted, also by the clock, where nobody's answer counts later."""
        if ask.work != "train" or ask.version in self.decisions:
            return super()._absent(ask)
        self._asks, excluded, began = {ask.version: ask}, dict[str, str](), dict[str, Ask]()
        for more in self._turns(ask, excluded, began, {}):
            began |= more
        return {party: excluded.get(party, "others were first") for party in ask.parties if party not in began}

    def _one(self, ask: Ask) -> Arrival:
        if ask.work != "train" or not self.pace.late:
            return super()._one(ask)
        self._asks[ask.version] = ask
        counted, proposed = dict[str, Contribution](), dict[str, Values]()
        excluded, leaving, began = dict[str, str](), 0, dict[str, Ask]()
        for more in self._turns(ask, excluded, began, counted):
            began |= more
            for version in dict.fromkeys(one.version for one in more.values()):
                mine = [party for party, one in more.items() if one.version == version]
                since = self._asks[version]
                for outcome in self.room.answers(since, mine, self.memories):
                    excluded |= outcome.excluded
                    proposed |= outcome.memory
                    leaving += outcome.leaving
                    factor = self.pace.discount(ask.round - since.round)
                    stack = discounted(outcome.counted, self.course.signals(since)[-1].fields, factor)
                    counted |= {party: stack.one(i) for i, party in enumerate(stack.parties)}
        under_way = {flight.version for flight in self._flights}
        self._asks = {v: o for v, o in self._asks.items() if v in under_way or o.round > ask.round - self._reach}
        order = (*ask.parties, *sorted(set(counted).difference(ask.parties)))
        reduction = Reduction(self.course.signals(ask)[-1].fields, order)
        for party in order:
            if party in counted:
                reduction.add(party, counted[party])
        self.remember([proposed])
        lags = {party: ask.round - one.round for party, one in began.items()}
        lag, sent = float(np.mean(list(lags.values()) or [0])), float(ask.send.nbytes * len(began))
        metrics = {"bytes_out": sent, "bytes_in": float(leaving), "lag": lag}
        excluded = {name: why for name, why in excluded.items() if name not in counted}
        total = reduction.total(ask.among or len(self.course.setup.parties))
        lags = {party: lag for party, lag in lags.items() if lag and party in counted}
        asked = replace(ask, parties=order) if self._most else ask
        return Arrival(asked, total, excluded, metrics, lags)

    def _turns(
        self, ask: Ask, excluded: dict[str, str], began: dict[str, Ask], counted: dict[str, Contribution]
    ) -> Iterable[dict[str, Ask]]:
        """Who lands and is to be counted, each with the ask that it began from, until the exchange closes."""
        if (made := self.decisions.get(ask.version)) is not None:
            excluded |= made.excluded
            rounds = {one.round: one for one in self._asks.values()}
            yield {party: rounds[ask.round - made.lags.get(party, 0)] for party in made.counted}
            return
        if not self._most:
            self._begin(ask, excluded)
        # Who is refused fills no place; or, behind noise, fills it with nothing: who comes instead would be one
        # contribution more by which two neighbours' sums differ, in this buffer and in all after it.
        filling = counted if self._most and not self.course.aggregation.protects else began
        closes, goal = self._now + self.deadline, self.pace.goal or math.inf
        while (more := goal - len(filling)) > 0 and (landed := self._landed(ask, excluded, set(began), more, closes)):
            yield landed
        self._flights = self._flights if self.pace.late else []

    def _begin(self, ask: Ask, excluded: dict[str, str]) -> None:
        """Let all who are asked, free and there begin, and wait no more for who is too late."""
        clock, seed, late = self.clock or Clock(), self.course.setup.seed, self.pace.late
        for flight in [f for f in self._flights if ask.round - self._asks[f.version].round > late]:
            self._flights.remove(flight)
            excluded[flight.party] = f"it is more than {late} rounds late"
        busy = {flight.party for flight in self._flights}
        free = [party for party in ask.parties if party not in busy]
        there = clock.there(free, seed, ask.version, self._now)
        for party, here, taken in zip(free, there, self.durations(ask, free, ask.version), strict=True):
            if here:
                self._flights.append(_Flight(self._now + float(taken), self._begun, party, ask.version))
                self._begun += 1
            else:
                excluded[party] = "it was not available"
        heapq.heapify(self._flights)

    def _landed(
        self, ask: Ask, excluded: dict[str, str], before: set[str], number: float, closes: float
    ) -> dict[str, Ask]:
        """Let parties begin and end until so many more, beside those before, have ended, or nobody is waited for; a
        RunError if nobody is left who could fill a buffer."""
        landed: dict[str, Ask] = {}
        clock, seed, failed = self.clock, self.course.setup.seed, 0
        while len(landed) < number:
            if self._most:
                self._start(ask, before | set(landed))
            elif number == math.inf and (landed or before) and all(f.version < ask.version for f in self._flights):
                break
            elif self._flights and min(self._flights).end > closes:
                self._now, late = closes, () if self.pace.late else self._flights
                excluded |= {flight.party: f"no answer within {self.deadline:g} s" for flight in late}
                break
            if not self._flights:
                if not self._most:
                    break
                reasons = "; ".join(f"{party}: {why}" for party, why in sorted(excluded.items()))
                what = f"nobody is there to fill the buffer of {self.pace.goal}" + (f" ({reasons})" if reasons else "")
                remedy = "Lower method.buffer, or let parties be available more often"
                raise RunError(what, round=ask.round, remedy=remedy)
            flight = heapq.heappop(self._flights)
            self._now = flight.end
            if clock is None or not clock.fails([flight.party], seed, flight.number)[0]:
                landed[flight.party] = self._asks[flight.version]
                continue
            excluded[flight.party] = "it failed in the middle of its work"
            failed += 1
            if failed > 100 * (self.pace.goal or len(ask.parties)):
                raise RunError("parties fail faster than they fill the buffer", round=ask.round)
        return landed

    def _start(self, ask: Ask, waiting: set[str]) -> None:
        """Let parties begin from the newest parameters, until as many are at work as may be."""
        setup, clock = self.course.setup, self.clock
        busy, tries = {flight.party for flight in self._flights} | waiting, 0
        while len(self._flights) < self._most and len(busy) < len(setup.parties):
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
