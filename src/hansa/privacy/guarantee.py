"""What is protected, from whom, and what it costs: derived, never typed in."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hansa.contribution import Json
from hansa.privacy import accountant
from hansa.privacy.accountant import Spent
from hansa.privacy.claim import Adversary, Privacy
from hansa.privacy.events import AnySampling, Event, Exact, Gaussian, MatrixMechanism

SEED = "noise and samples of a simulation come from its seed: who knows the seed knows them"


@dataclass(frozen=True)
class Observer:
    """Who sees what of a unit."""

    name: str  # ``"coordinator"``, ``"party"`` (another one than the unit's) or ``"public"``
    sees: tuple[str, ...]  # in words
    # what happens to a unit, in this observer's eyes; None if something leaves as it is
    events: tuple[Event, ...] | None
    exact: tuple[str, ...]  # what leaves as it is
    spent: Spent  # what the events cost at the delta of the guarantee; infinite if something leaves as it is

    @property
    def epsilon(self) -> float:
        """Of everything together."""
        return self.spent.epsilon

    def to_json(self) -> dict[str, Json]:
        """The same as JSON values; an infinite epsilon is null."""
        said: dict[str, Json] = {"sees": list(self.sees), "unprotected": list(self.exact)}
        epsilon = self.epsilon if math.isfinite(self.epsilon) else None
        return {"epsilon": epsilon, "accountant": self.spent.accountant, **said}


@dataclass(frozen=True)
class Guarantee:
    """What holds for one unit, for each observer; ``str`` says it in words."""

    privacy: Privacy  # unit, adjacency, delta
    adversary: Adversary  # against whom
    observers: tuple[Observer, ...]  # the coordinator, another party, the public

    def __getitem__(self, name: str) -> Observer:
        return next(one for one in self.observers if one.name == name)

    def to_json(self) -> dict[str, Json]:
        """The same as JSON values; an infinite epsilon is null."""
        said: dict[str, Json] = {name: getattr(self.privacy, name) for name in ("unit", "adjacency", "delta")}
        said |= {name: getattr(self.adversary, name) for name in ("coordinator", "colluding")}
        return {**said, "observers": {one.name: one.to_json() for one in self.observers}}

    def __str__(self) -> str:
        unit = "a party with all its rows" if self.privacy.unit == "party" else "one example"
        how = {"add-remove": "added or removed", "replace": "replaced by another"}
        lines = [
            f"Protected: {unit}, {how[self.privacy.adjacency]}; delta {self.privacy.delta:g}. "
            f"Coordinator {self.adversary.coordinator}, {self.adversary.colluding} parties colluding."
        ]
        for one in self.observers:
            name = {"coordinator": "The coordinator", "party": "Another party", "public": "The public"}
            spent = one.spent
            if math.isfinite(spent.epsilon):
                grid = f", grid {spent.discretisation:g}" if spent.discretisation else ""
                cost = f"epsilon {spent.epsilon:.3f} ({spent.accountant}{grid})"
            else:
                cost = f"not protected: {'; '.join(one.exact)}"
            lines.append(f"{name[one.name]} sees {' and '.join(one.sees)}: {cost}.")
        return "\n".join([*lines, f"({SEED[0].upper()}{SEED[1:]}.)"])


@dataclass(frozen=True)
class Release:
    """Something that is made of what leaves the parties."""

    what: str  # in words, such as ``"the models of 30 rounds"``
    times: int  # how often
    # where each noise is added (``"party"``, ``"shares"``, ``"coordinator"``), and its event
    noise: tuple[tuple[str, Event], ...]
    hidden: bool = False  # whether only sums reach the coordinator
    sampling: AnySampling = None  # which hides from the public whose rows it is made of
    held_out: bool = False  # whether it is made of the rows held out, and not of those that the models learn from
    bucket: int = 0  # if several sums reach the coordinator, the fewest parties in one

    def event(self, observer: str, delta: float) -> Event | None:
        """What it costs in the eyes of an observer: of the noises that this one cannot know, the one that
        protects best; None if there is none."""
        events = []
        for where, event in self.noise:
            mine: Event | None = event
            if observer == "coordinator" and (where == "coordinator" or not self.hidden):
                mine = event if where == "party" else None
            elif observer == "party":  # it knows its own share
                mine = less_one(event)
            if mine is not None:
                hides = self.sampling if observer == "public" else None
                events.append(_sampled(mine, self.times, hides))
        return min(events, key=lambda e: accountant.epsilon([e], delta), default=None)


def guarantee(privacy: Privacy, adversary: Adversary, releases: Sequence[Release]) -> Guarantee:
    """What the observers of these releases learn of a unit; of a row, which is either learnt from or held out, the
    dearer of the two kinds of releases counts."""
    observers = []
    for name in ("coordinator", "party", "public"):
        kinds: dict[bool, list[Event]] = {False: [], True: []}
        missing, sees = [], []
        for release in releases:
            sums = f"totals over {release.bucket} or more parties each" if release.bucket else "the total"
            how = f"only {sums} of " if release.hidden else "each party's part of "
            sees.append(how + release.what if name == "coordinator" else release.what)
            event = release.event(name, privacy.delta)
            if event is None:
                missing.append(f"there is no noise in {sees[-1]}")
            else:
                together = privacy.unit == "party"
                kinds[release.held_out and not together].append(event)
        dearer: list[Event] = [Exact(adjacency=privacy.adjacency)]
        if not missing:
            costs = {k: accountant.epsilon(e, privacy.delta) for k, e in kinds.items() if e}
            dearer = kinds[max(costs, key=lambda k: costs[k])] if costs else []
        nothing = Gaussian(adjacency=privacy.adjacency, noise_multiplier=1e6)
        spent = accountant.spent(dearer or [nothing], privacy.delta)
        events = None if missing else tuple(dearer)
        said = (tuple(dict.fromkeys(words)) for words in (sees, missing))  # two steps of one release are one
        observers.append(Observer(name, next(said), events, next(said), spent))
    return Guarantee(privacy, adversary, tuple(observers))


def less_one(event: Event) -> Event | None:
    """The event for somebody who knows one of its shares; None if that was all."""
    shares = getattr(event, "shares", None)
    if shares is None:
        return event
    return type(event)(**{**event.model_dump(), "shares": shares - 1}) if shares > 1 else None


def _sampled(event: Event, times: int, sampling: AnySampling) -> Event:
    """The event, so many times, on a sample; where no bound is known for the sample, without it."""
    if isinstance(event, MatrixMechanism):  # of all rounds already, whoever is in which
        return event
    more: dict[str, Any] = {"times": times * event.times}
    if event.sampling is None and event.times == 1:  # else the cohort is drawn once for all steps of a round
        fits = sampling is None or (sampling.kind == "fixed") == (event.adjacency == "replace")
        more["sampling"] = sampling if fits else None
    return type(event)(**{**event.model_dump(), **more})
