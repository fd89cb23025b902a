"""What a party's rows have cost: events, charged before anything leaves, and never given back.

All tables of an agent are one population: whose rows they are is not known here, and a table that is renamed or offered
twice is charged like any other. The sum is taken anew from the events whenever it is asked for, by Rényi divergences,
which hold for studies that are chosen in the light of earlier ones (Feldman and Zrnic 2021, arXiv 2008.11193).

If the coordinator counted an answer that has no row, the ledger was restored from an old backup: it allows
nothing until its owner confirms that, and what is missing may have cost anything.

Under a budget it also allows nothing more after work that failed, or was refused for what is in the rows: a bit
that no noise hides. Asked again and again such bits spell a maximum, so an owner looks at each."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

from hansa.aggregation.signal import Noised
from hansa.errors import PrivacyError
from hansa.part import reading
from hansa.privacy import accountant, mechanisms
from hansa.privacy.claim import Privacy
from hansa.privacy.events import EVENTS, Event, Exact, Gaussian
from hansa.privacy.guarantee import less_one

EXACT = Exact(adjacency="add-remove")  # what leaves without noise of its own

MISSING, CONFIRMED, TOLD, HEARD, RESTORED = -1, 0, -2, -3, -4
"""In place of an attempt, before and after its owner confirmed it: of a charge that was lost; and of work that
failed, where Exact stands for a refusal before any charge, since under a budget none is; and of a backup that
its owner came back from, as the run."""


@dataclass(frozen=True)
class Budget:
    """What an owner allows, for one row, for ever."""

    epsilon: float  # of everything together
    delta: float = 1e-5  # at which it is taken
    # the order of the first budget, if this is a later one: moved after answers, it would be no filter
    kept: int | None = None

    @cached_property
    def order(self) -> int:
        """Of the divergence that charges are added up in: the best for a Gaussian of the cost of the first."""
        if self.kept is not None:
            return self.kept
        z = mechanisms.gaussian_noise_multiplier(self.epsilon, self.delta)
        event = Gaussian(adjacency="add-remove", noise_multiplier=z)
        return min(range(2, 64), key=lambda order: accountant.epsilon([event], self.delta, order))


class Ledger:
    """The charges of one agent, and its budget.

    Args:
        rows: of the table ``charge``, in the order in which they were made.
        budget: None lets everything through, and writes it down."""

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), budget: Budget | None = None) -> None:
        self.budget = budget
        self.answers, self.last = 0, ("", "")
        self._number, self._lock = 0, Lock()  # the link's thread counts, too, and no number is used again
        self.missing: dict[str, int] = {}
        self.refused: dict[str, int] = {}
        self.restored = ""  # since when it may have forgotten
        self.latest: dict[str, int] = {}  # the latest exchange of each run; the run that was charged last is the last
        self._events: Counter[Event] = Counter()
        with reading("ledger"):
            for row in rows:
                self._count(row, EVENTS.build(row["event"]))

    def _count(self, row: Mapping[str, Any], event: Event) -> None:
        self._number = max(row["number"], self._number)
        if row["attempt"] == TOLD:
            self.refused[row["run"]] = row["version"]
        if row["attempt"] == RESTORED:
            self.restored = row["run"]
        if row["attempt"] in (TOLD, HEARD, RESTORED) and isinstance(event, Exact):
            return
        # Two tables that differ by a row have other sizes, of which what replaces rows may tell anything.
        self._events[event if event.adjacency == "add-remove" else EXACT] += 1
        self.answers, self.last = self.answers + 1, (row["run"], row["at"])
        self.latest[row["run"]] = max(row["version"], self.latest.pop(row["run"], -1))
        if row["attempt"] == MISSING:
            self.missing[row["run"]] = row["version"]

    def counted(self, run: str, version: int, at: str) -> dict[str, Any] | None:
        """Hear that an answer was counted; the row for it and those before it, if it has none."""
        event = EXACT
        with self._lock:
            if version <= self.latest.get(run, -1):
                return None
            row = {"number": self._number + 1, "run": run, "version": version, "attempt": MISSING, "at": at}
            self._count(row, event)
        return {**row, "event": EVENTS.spec(event)}

    def told(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """Hear that work failed, by its charge, or by a key if it was refused before; and what to write of it."""
        if self.budget is None:
            return row if "event" in row else {}
        with self._lock:
            row = {"number": self._number + 1, "event": EVENTS.spec(EXACT), **row}
            self._number, self.refused[row["run"]] = max(row["number"], self._number), row["version"]
        return {**row, "attempt": TOLD}

    def require_whole(self) -> None:
        """Refuse (PrivacyError) to go on while the owner has not confirmed what is missing, or was told."""
        if self.restored:
            since = "may not know of answers that it gave since"
            said = f"this party came back from a backup of {self.restored}, and {since}"
            remedy = "Its owner can stop the agent, and take that as spent by `hansa agent status --confirm`"
            raise PrivacyError(said, remedy=remedy)
        for run, version in self.refused.items():
            said = f"this party could not do exchange {version} of run {run}, and that tells of its rows"
            way = "Its owner finds the reason in the log of the agent, and can stop it and go on by "
            raise PrivacyError(said, remedy=f"{way}`hansa agent status --confirm`")
        for run, version in self.missing.items():
            said = f"this party's ledger is older than its answers: exchange {version} of run {run} is missing"
            way = "stop the agent, and say `hansa agent status --confirm`, which takes the ledger as spent"
            raise PrivacyError(said, remedy=f"Restore the newest backup of the agent's folder; or {way}")

    def spent(self, delta: float = 1e-5, more: Event | None = None, by: accountant.Accountant = "rdp") -> float:
        """The epsilon of everything, and of one event more, at the best of all orders or at one; infinite if
        something left without noise."""
        all_ = self._all(more)
        return accountant.epsilon(all_, delta, by) if all_ else 0.0

    def _all(self, more: Event | None = None, **but: float) -> list[Event]:
        events = (self._events + Counter([more] if more else [])).items()
        return [event.model_copy(update={"times": event.times * count, **but}) for event, count in events]

    def charge(
        self, key: Mapping[str, Any], privacy: Privacy, noise: Sequence[Noised], hidden: bool = False
    ) -> dict[str, Any]:
        """Charge an answer before it is worked on, and return the row. Bytes that are sent again were worked on
        once; whatever is worked on again is charged again.

        Args:
            key: run, version, attempt, and when (``at``).
            privacy: what the study protects.
            noise: what is in the answer.
            hidden: whether only a secure sum of it is seen, in which others' shares of noise count. Another
                party knows its own, so that one is not counted.

        Raises PrivacyError if it would cost more than is left, protects something else, or charges are missing."""
        self.require_whole()
        own = [noised.event for noised in noise if noised.where == "party"]
        shares = [noised.event for noised in noise if hidden and noised.where == "shares"]
        own += [event for event in map(less_one, shares) if event is not None]
        event: Event = EXACT
        if own and (privacy.unit, privacy.adjacency) == ("example", "add-remove"):
            event = min(own, key=lambda e: accountant.epsilon([e], 1e-5, "rdp")) if own[1:] else own[0]
        with self._lock:
            if self.budget is not None:
                self._within(self.budget, privacy, event)
            row = {"number": self._number + 1, **key, "event": EVENTS.spec(event)}
            self._count(row, event)
        return row

    def _within(self, budget: Budget, privacy: Privacy, event: Event) -> None:
        if privacy.unit != "example":
            what = "this party's budget is of examples, and the study protects whole parties"
            raise PrivacyError(what, remedy='Say privacy.unit = "example" in the study')
        if privacy.adjacency != "add-remove":
            what = "this party's budget hides whether a row is there, and the study hides which it is"
            raise PrivacyError(what, remedy='Say privacy.adjacency = "add-remove" in the study')
        found = accountant.spent(self._all(event), budget.delta, budget.order)
        if found.epsilon > budget.epsilon:
            run, at = self.last
            before = f"; the last of {self.answers} charges was run {run} at {at}" if run else ""
            total, remedy = found.epsilon, "Its owner can raise it with `hansa agent start --budget`"
            if total == math.inf:  # what it would be if noise never strayed
                total = accountant.epsilon(self._all(event, failure=0.0), budget.delta, budget.order)
            would = f"it would come to {total:.4g}"
            if total == math.inf:
                would = "the answer has no noise" if isinstance(event, Exact) else "an answer before it had no noise"
                remedy = "No budget is enough for that; an answer that has noise, and none without before it, may be"
            elif total <= budget.epsilon:
                took = f"the chance that noise strays would take {min(found.failure, 1):.2g} of it"
                would = f"its delta, {budget.delta:g}, is used up: {took}"
                larger = f"its owner can allow a larger one: `hansa agent start --budget {budget.epsilon:g} --delta D`"
                remedy = f"A study with more noise takes less; or {larger}"
            what = f"this party's privacy budget is epsilon {budget.epsilon:g}, and {would}{before}"
            raise PrivacyError(what, remedy=remedy)
