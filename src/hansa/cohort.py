"""Who takes part in a round."""

from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field as Limits

from hansa import keyed
from hansa.contribution import Array
from hansa.errors import StudyError
from hansa.methods.base import Setup
from hansa.part import Catalogue, Part
from hansa.privacy import events


class All(Part):
    """Every party of the roster takes part in every round.

    Args:
        minimum: a run stops with an error below so many counted contributions.
        deadline: seconds after which a party that has not answered is left out of the round.
        goal: a training round or an evaluation closes as soon as so many have answered; None waits for all.
        late: rounds by which an update may be late: it then counts in the round in which it comes; 0 drops it.
        staleness: a late update counts ``1 / (1 + rounds)^staleness`` times.
        open: parties that join while the study runs take part from the next round on; none do in a simulation."""

    kind: ClassVar[str] = "all"
    minimum: Annotated[int, Limits(ge=1)] = 2
    deadline: Annotated[float, Limits(gt=0)] = 600.0
    goal: Annotated[int, Limits(ge=1)] | None = None
    late: Annotated[int, Limits(ge=0)] = 0
    staleness: Annotated[float, Limits(ge=0)] = 0.5
    open: bool = False

    def model_post_init(self, context: Any) -> None:
        """Refuse a round that would close below its minimum."""
        if self.goal is not None and self.goal < self.minimum:
            what = f"a round that closes with {self.goal} answers falls below its minimum of {self.minimum}"
            raise StudyError(what, remedy="Raise cohort.goal, or lower cohort.minimum")

    def discount(self, lag: int) -> float:
        """What an update counts for that is ``lag`` rounds late (Nguyen et al. 2022, arXiv 2106.06639)."""
        return float((1 + lag) ** -self.staleness)

    def draw(self, setup: Setup, round: int) -> tuple[str, ...]:
        """The cohort of a round, in roster order."""
        return tuple(setup.parties)

    def expected(self, parties: int) -> float:
        """How many of so many parties take part, or are expected to: a number that is public."""
        return parties / self.period

    def most(self, parties: int) -> int:
        """How many may take part at most."""
        return -(-parties // self.period)

    def sampling(self, parties: int) -> events.AnySampling:
        """The sampling that hides who took part from whoever does not see the cohort."""
        return None

    @property
    def period(self) -> int:
        """Rounds in which a party takes part lie so many apart, or a multiple of that."""
        return 1


class Fixed(All):
    """A sample of fixed size, drawn anew each round by (seed, round), without replacement.

    Args:
        size: parties a round."""

    kind: ClassVar[str] = "fixed"
    size: Annotated[int, Limits(ge=1)]

    def model_post_init(self, context: Any) -> None:
        """Refuse a cohort that could never reach its minimum."""
        super().model_post_init(context)
        if self.size < self.minimum:
            what = f"a cohort of {self.size} is smaller than its minimum of {self.minimum}"
            raise StudyError(what, remedy="Raise cohort.size, or lower cohort.minimum")

    def draw(self, setup: Setup, round: int) -> tuple[str, ...]:
        """The cohort of a round, in roster order; a StudyError if the roster is smaller than the cohort."""
        if self.size > len(setup.parties):
            remedy = "Lower cohort.size, or invite more parties"
            raise StudyError(f"a cohort of {self.size} from {len(setup.parties)} parties", remedy=remedy)
        random = keyed.generator(setup.seed, "cohort", round)
        return _named(setup, np.sort(random.choice(len(setup.parties), size=self.size, replace=False)))

    def expected(self, parties: int) -> float:
        return float(self.size)

    def most(self, parties: int) -> int:
        return self.size

    def sampling(self, parties: int) -> events.AnySampling:
        """A sample of fixed size, which hides which parties took part, and not that one is missing."""
        return events.Fixed(size=self.size, population=parties)


class Poisson(All):
    """Each party takes part by itself with the same chance, drawn anew each round by (seed, round).

    A round may be small, or empty; it then moves the model by little, or by its noise.

    Args:
        rate: the chance, above 0 and at most 1."""

    kind: ClassVar[str] = "poisson"
    rate: Annotated[float, Limits(gt=0, le=1)]
    minimum: Annotated[int, Limits(ge=0)] = 0

    def draw(self, setup: Setup, round: int) -> tuple[str, ...]:
        """The cohort of a round, in roster order; it may be empty."""
        random = keyed.generator(setup.seed, "cohort", round)
        return _named(setup, np.flatnonzero(random.random(len(setup.parties)) < self.rate))

    def expected(self, parties: int) -> float:
        """The mean number; how many came is not public."""
        return self.rate * parties

    def sampling(self, parties: int) -> events.AnySampling:
        return events.Poisson(rate=self.rate)


class Cyclic(All):
    """Groups of about the same size take turns; who is in which is drawn by the seed, once.

    Args:
        groups: how many; each party takes part in every so many-th round."""

    kind: ClassVar[str] = "cyclic"
    groups: Annotated[int, Limits(ge=1)]

    def draw(self, setup: Setup, round: int) -> tuple[str, ...]:
        """The cohort of a round, in roster order; a StudyError if a group would not reach the minimum."""
        parties = len(setup.parties)
        if parties // self.groups < self.minimum:
            said = f"{self.groups} groups of {parties} parties fall below cohort.minimum"
            raise StudyError(said, remedy="Lower cohort.groups or cohort.minimum, or invite more parties")
        order = keyed.generator(setup.seed, "cohort").permutation(parties)
        return _named(setup, np.sort(order[(round - 1) % self.groups :: self.groups]))

    @property
    def period(self) -> int:
        return self.groups


def _named(setup: Setup, chosen: Array) -> tuple[str, ...]:
    return tuple(setup.parties[i] for i in chosen.tolist())


COHORTS: Catalogue[All] = Catalogue("cohort", All, (All, Cyclic, Fixed, Poisson), default="all")
AnyCohort = Annotated[All, COHORTS]
