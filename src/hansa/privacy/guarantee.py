"""What is protected, from whom, and what it costs: derived, never typed in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hansa.contribution import Json
from hansa.privacy import accountant
from hansa.privacy.accountant import Spent
from hansa.privacy.claim import Adversary, Privacy
from hansa.privacy.events import AnySampling, Event, Exact

SEED = "noise and samples of a simulation come from its seed: who knows the seed knows them"


@dataclass(frozen=True)
class Observer:
    """Who sees what of a unit.

    Args:
        name: ``"coordinator"``, ``"party"`` (another one than the unit's) or ``"public"``.
        sees: in words.
        events: what happens to a unit, in this observer's eyes; None if something leaves as it is.
        exact: what leaves as it is.
        spent: what the events cost at the delta of the guarantee; infinite if something leaves as it is.
    """

    name: str
    sees: tuple[str, ...]
    events: tuple[Event, ...] | None
    exact: tuple[str, ...]
    spent: Spent

    @property
    def epsilon(self) -> float:
        """Of everything together."""
        return self.spent.epsilon


@dataclass(frozen=True)
class Guarantee:
    """What holds for one unit, for each observer; ``str`` says it in words.

    Args:
        privacy: unit, adjacency, delta.
        adversary: against whom.
        observers: the coordinator, another party, the public.
    """

    privacy: Privacy
    adversary: Adversary
    observers: tuple[Observer, ...]

    def __getitem__(self, name: str) -> Observer:
        return next(one for one in self.observers if one.name == name)

    def to_json(self) -> dict[str, Json]:
        """The same as JSON values; an infinite epsilon is null."""
        return {
            "unit": self.privacy.unit,
            "adjacency": self.privacy.adjacency,
            "delta": self.privacy.delta,
            "coordinator": self.adversary.coordinator,
            "colluding": self.adversary.colluding,
            "observers": {
                one.name: {
                    "epsilon": one.epsilon if math.isfinite(one.epsilon) else None,
                    "accountant": one.spent.accountant,
                    "sees": list(one.sees),
                    "unprotected": list(one.exact),
                }
                for one in self.observers
            },
        }

    def __str__(self) -> str:
        unit = "a party with all its rows" if self.privacy.unit == "party" else "one example"
        how = {"add-remove": "added or removed", "replace": "replaced by another"}
        lines = [
            f"Protected: {unit}, {how[self.privacy.adjacency]}; delta {self.privacy.delta:g}. "
            f"Coordinator {self.adversary.coordinator}, {self.adversary.colluding} parties colluding."
        ]
        for one in self.observers:
            name = {
                "coordinator": "The coordinator",
                "party": "Another party",
                "public": "The public",
            }
            spent = one.spent
            if math.isfinite(spent.epsilon):
                grid = f", grid {spent.discretisation:g}" if spent.discretisation else ""
                cost = f"epsilon {spent.epsilon:.3f} ({spent.accountant}{grid})"
            else:
                cost = f"not protected: {'; '.join(one.exact)}"
            lines.append(f"{name[one.name]} sees {' and '.join(one.sees)}: {cost}.")
        return "\n".join([*lines, f"({SEED[0].upper()}{SEED[1:]}.)"])


def guarantee(
    privacy: Privacy,
    adversary: Adversary,
    *,
    rounds: int,
    noise: Sequence[tuple[str, Event, str]],
    hidden: bool,
    sampling: AnySampling,
    exact: Sequence[str],
) -> Guarantee:
    """What the observers of a federation see of a unit.

    Args:
        privacy: what is to be protected.
        adversary: against whom.
        rounds: releases of the model.
        noise: where each noise is added (``"party"``, ``"shares"``, ``"coordinator"``), its event, its stage.
        hidden: whether only sums reach the coordinator.
        sampling: which hides the cohort from the public; parties and coordinator know it.
        exact: sums that are released without noise, beside the model, to everybody.
    """
    models = f"the models of {rounds} rounds"
    against_all = [e for where, e, _ in noise if where == "party" or (where == "shares" and hidden)]
    against_others = [e for _, e, _ in noise]
    single = "sums of contributions" if hidden else "every contribution by itself"
    unprotected = "it is summed without noise" if hidden else "nothing is added before it leaves"
    observers = []
    for name, sees, mine, hides in (
        ("coordinator", (single, models), against_all, None),
        ("party", (models,), against_others, None),
        ("public", (models,), against_others, sampling),
    ):
        if name == "party":  # it knows its own share of the noise
            mine = [e for e in map(_less_one, mine) if e is not None]
        missing = () if mine else ((unprotected if name == "coordinator" else "no noise is added"),)
        mine = [_sampled(event, rounds, hides) for event in mine]
        costs = [accountant.spent([event], privacy.delta) for event in mine]
        best = min(range(len(costs)), key=lambda i: costs[i].epsilon, default=None)
        left = (*missing, *exact)
        infinite = accountant.spent([Exact(adjacency=privacy.adjacency)], privacy.delta)
        events = None if left or best is None else (mine[best],)
        spent = infinite if left or best is None else costs[best]
        observers.append(Observer(name, (*sees, *exact), events, left, spent))
    return Guarantee(privacy, adversary, tuple(observers))


def _less_one(event: Event) -> Event | None:
    shares = getattr(event, "shares", None)
    if shares is None:
        return event
    return type(event)(**{**event.model_dump(), "shares": shares - 1}) if shares > 1 else None


def _sampled(event: Event, times: int, sampling: AnySampling) -> Event:
    """The event, so many times, on a sample; where no bound is known for the sample, without it."""
    times *= event.times
    if event.sampling is not None:  # a party's own rows; one sample of another is not counted
        return type(event)(**{**event.model_dump(), "times": times})
    fits = sampling is None or (sampling.kind == "fixed") == (event.adjacency == "replace")
    more = {"times": times, "sampling": sampling if fits else None}
    return type(event)(**{**event.model_dump(), **more})
