"""What happened to a protected population: frozen descriptions of releases, apart from what they cost.

Noise is given relative to what one record (or party, whichever is protected) adds to the result at most.
Neighbours under ``"replace"`` are twice as far apart, for one contribution leaves and another, perhaps its
opposite, comes: the accountant applies the 2. A ledger writes ``canonical(EVENTS.spec(event))``."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field as Limits

from hansa.errors import PrivacyError
from hansa.part import Catalogue, Part

Adjacency = Literal["add-remove", "replace"]
Positive = Annotated[float, Limits(gt=0)]
Count = Annotated[int, Limits(ge=1)]


class Poisson(Part):
    """A sample that each record joins by itself, with the same probability ``rate``."""

    kind: ClassVar[str] = "poisson"
    rate: Annotated[float, Limits(gt=0, le=1)]


class Fixed(Part):
    """A sample of ``size`` records of a ``population``, without replacement."""

    kind: ClassVar[str] = "fixed"
    size: Count
    population: Count

    @property
    def rate(self) -> float:
        """The chance of a record to be in the sample."""
        return self.size / self.population


SAMPLINGS: Catalogue[Part] = Catalogue("sampling", Part, (Poisson, Fixed))
AnySampling = Annotated[Poisson | Fixed, SAMPLINGS] | None


class Event(Part):
    """A release about a protected population.

    Args:
        adjacency: neighbours differ by one record more or less, or by one record in place of another.
        sampling: None if every record took part, or if the observer knows which did.
        times: how often it happened, each time with fresh noise and a fresh sample.
        failure: the chance that the noise of a release strays from its distribution, at any of its coordinates."""

    adjacency: Adjacency
    sampling: AnySampling = None
    times: Count = 1
    failure: Annotated[float, Limits(ge=0, lt=1)] = 0.0

    def model_post_init(self, context: Any) -> None:
        """Refuse a sample that is none, and an adjacency that does not match the sampler."""
        if self.rate > 1:
            said = f"the sample is {self.rate:g} times its population"
            raise PrivacyError(said, remedy="Give the size of the whole population")
        if isinstance(self.sampling, Fixed) and self.adjacency == "add-remove":
            said = "a sample of fixed size tells whether there is one record more or less"
            raise PrivacyError(said, remedy='Use adjacency "replace", or Poisson sampling')

    @property
    def apart(self) -> int:
        """How many contributions two neighbours' results lie apart at most."""
        return 2 if self.adjacency == "replace" else 1

    @property
    def rate(self) -> float:
        """The chance of a record to take part; 1 without sampling."""
        return self.sampling.rate if self.sampling is not None else 1.0


class Gaussian(Event):
    """Normal noise; its multiplier is its standard deviation over the L2 norm of one contribution."""

    kind: ClassVar[str] = "gaussian"
    noise_multiplier: Positive

    @property
    def effective(self) -> float:
        """The multiplier of the single Gaussian of the same cost, before any sampling."""
        return self.noise_multiplier


class MatrixMechanism(Gaussian):
    """Sums ``A x`` released as ``B (C x + z)``, ``A = B C``: DP-FTRL by trees or by banded matrices. All steps
    are one Gaussian release (Denisov et al. 2022, arXiv 2202.08312), and no sampling amplifies it here.

    Args:
        noise_multiplier: standard deviation of an entry of ``z`` over the norm of one contribution to a step.
        sensitivity: the largest L2 norm of what a record adds to ``C x`` in all its steps together."""

    kind: ClassVar[str] = "matrix"
    sampling: None = None
    sensitivity: Positive

    @property
    def effective(self) -> float:
        return self.noise_multiplier / self.sensitivity


class Laplace(Event):
    """Laplace noise; its multiplier is its scale over the L1 norm of one contribution."""

    kind: ClassVar[str] = "laplace"
    noise_multiplier: Positive


class Skellam(Event):
    """Integer noise in shares: differences of two Poisson variables (Agarwal et al. 2021, arXiv 2110.04995).

    Args:
        variance: of one share, in squares of the integer grid.
        shares: of honest parties that surely added theirs; 1 for noise that is added in one place.
        dimension: entries of the vector.
        l2: bound on the L2 norm of one contribution on the integer grid, after rounding; see `rounded_norms`.
        l1: the same for the L1 norm."""

    kind: ClassVar[str] = "skellam"
    variance: Positive
    shares: Count
    dimension: Count
    l2: Positive
    l1: Positive


class DiscreteGaussian(Skellam):
    """The same with discrete Gaussians, of which a sum is nearly one (Kairouz et al. 2021, arXiv 2102.06387)."""

    kind: ClassVar[str] = "discrete-gaussian"


class Exact(Event):
    """A release without noise: its epsilon is infinite."""

    kind: ClassVar[str] = "exact"


EVENTS: Catalogue[Event] = Catalogue(
    "privacy event", Event, (Gaussian, MatrixMechanism, Laplace, Skellam, DiscreteGaussian, Exact)
)
