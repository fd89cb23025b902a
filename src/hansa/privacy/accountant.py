"""What events cost together: epsilon at a delta, delta at an epsilon, and the noise for both.

- ``"pld"``: privacy loss distributions, the tightest; for Gaussian, matrix and Laplace mechanisms. Unsampled
  Gaussians compose exactly; the rest goes through dp-accounting, on a grid that never rounds down (Doroshenko
  et al. 2022, arXiv 2207.04380).
- ``"rdp"``: Rényi divergences; for all events, so also for mixtures with Skellam and discrete Gaussian noise.
- ``"zcdp"``: concentrated differential privacy, without sampling."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from hansa.contribution import Array
from hansa.errors import PrivacyError
from hansa.privacy import mechanisms as m
from hansa.privacy.events import DiscreteGaussian, Event, Exact, Fixed, Gaussian, Laplace

Accountant = Literal["pld", "rdp", "zcdp"] | int | None
"""None is ``"pld"`` where it knows all the events, else ``"rdp"``; a number is ``"rdp"`` of that order alone."""
DISCRETISATION = 1e-4
"""Width of the grid of privacy losses; more in the search for noise, and if too many points would span them."""
ROUNDING = 1e-13  # kept back from delta for the Fourier transforms that compose distributions


class Spent(NamedTuple):
    """What events cost together, and how that was found: by which accountant, on how wide a grid of privacy
    losses (0 for none), with which part of delta set aside for samplers that stray."""

    epsilon: float
    delta: float
    adjacency: str
    accountant: str
    discretisation: float
    failure: float


class _Curve(NamedTuple):
    epsilon: Callable[[float], float]
    delta: Callable[[float], float]
    accountant: str
    discretisation: float = 0.0


def spent(events: Iterable[Event], delta: float, accountant: Accountant = None, step: float = DISCRETISATION) -> Spent:
    """What they cost together at a delta, all of whatever went wrong included. If events were chosen as a run went, a
    filter has to say when to stop: ``"rdp"`` of one order that was chosen before (Feldman and Zrnic 2021, arXiv
    2008.11193). Raises PrivacyError: delta is out of range, adjacencies differ, or there is no bound for an event."""
    m.within(delta=delta)
    merged, failure, adjacency = _merged(events)
    curve = _curve(merged, accountant, step)
    highest = curve.epsilon(delta) + 1
    aside = _aside(failure, highest)
    epsilon = curve.epsilon(delta - aside) if aside < delta else math.inf
    epsilon = epsilon if epsilon <= highest else math.inf  # more is not set aside
    return Spent(epsilon, delta, adjacency, curve.accountant, curve.discretisation, aside)


def epsilon(events: Iterable[Event], delta: float, accountant: Accountant = None) -> float:
    """The epsilon of `spent`."""
    return spent(events, delta, accountant).epsilon


def delta(events: Iterable[Event], epsilon: float, accountant: Accountant = None) -> float:
    """Their delta at an epsilon, at most 1; errors as for `spent`."""
    m.within(epsilon=epsilon)
    merged, failure, _ = _merged(events)
    return min(1.0, _curve(merged, accountant, DISCRETISATION).delta(epsilon) + _aside(failure, epsilon))


def noise_multiplier(
    events_of: Callable[[float], Iterable[Event]],
    epsilon: float,
    delta: float,
    accountant: Accountant = None,
    tolerance: float = 1e-3,
) -> float:
    """The smallest noise multiplier, or one up to ``tolerance`` (relative) above it, whose events cost at most
    epsilon at delta. Of ``events_of(z)``, more noise must not cost more."""
    m.within(epsilon=epsilon, delta=delta)

    def holds(z: float) -> bool:
        return spent(events_of(z), delta, accountant, 10 * DISCRETISATION).epsilon <= epsilon

    return m.least_noise(holds, tolerance)


def _aside(failure: float, epsilon: float) -> float:
    """What samplers that stray with some chance add to delta, whichever of two neighbours theirs is."""
    return failure * (1 + math.exp(min(epsilon, 700)))


def _merged(events: Iterable[Event]) -> tuple[tuple[Event, ...], float, str]:
    """Equal events as one, the chance that any sampler strays, and the adjacency of all."""
    times, failure = Counter[Event](), 0.0
    for event in events:
        times[event.model_copy(update={"times": 1, "failure": 0.0})] += event.times
        failure += event.times * event.failure
    if len(adjacencies := {event.adjacency for event in times}) > 1:
        remedy = 'State all under one adjacency; under "replace" the same noise hides half as much'
        raise PrivacyError("some events hide whether a record is there, and others which of two it is", remedy=remedy)
    merged = tuple(event.model_copy(update={"times": count}) for event, count in times.items())
    return merged, failure, "".join(adjacencies)


@lru_cache(maxsize=16)
def _curve(events: tuple[Event, ...], accountant: Accountant, step: float) -> _Curve:
    if any(isinstance(event, Exact) for event in events):
        return _Curve(lambda d: math.inf, lambda e: 1.0, str(accountant or "pld"))
    if accountant == "zcdp":
        rho = sum(event.times * _rho(event) for event in events)
        return _Curve(lambda d: m.zcdp_epsilon(rho, d), lambda e: m.zcdp_delta(rho, e), "zcdp")
    if accountant == "pld" or (accountant is None and all(map(_has_pld, events))):
        return _pld(events, step)
    rdp = sum((event.times * _rdp(event) for event in events), np.zeros(len(m.ORDERS)))
    rdp = np.where(accountant == m.ORDERS, rdp, np.inf) if isinstance(accountant, int) else rdp
    return _Curve(lambda d: m.rdp_epsilon(rdp, d), lambda e: m.rdp_delta(rdp, e), "rdp")


def _refused(event: Event, accountant: str) -> PrivacyError:
    sample = f" on a {event.sampling.kind} sample" if event.sampling else ""
    said = f"the {accountant} accountant has no bound for {event.kind} noise{sample}"
    remedy = 'Use accountant "rdp", or leave the sampling out, which is always a bound'
    return PrivacyError(f"{said} under {event.adjacency}", remedy=remedy)


def _rho(event: Event) -> float:
    if event.rate < 1 or event.kind == "skellam":
        raise _refused(event, "zcdp")
    if isinstance(event, Laplace):  # Bun and Steinke 2016, arXiv 1605.02065, proposition 1.4
        return (event.apart / event.noise_multiplier) ** 2 / 2
    return float(_unsampled(event, np.ones(1))[0])  # at order a it is at most a times as much


def _unsampled(event: Any, orders: Array) -> Array:
    if isinstance(event, Gaussian):
        return orders * (event.apart / event.effective) ** 2 / 2
    if isinstance(event, Laplace):
        return m.laplace_rdp(orders, event.noise_multiplier / event.apart)
    distances = event.apart * event.l2, event.apart * event.l1
    if isinstance(event, DiscreteGaussian):
        shape = event.variance, event.shares, event.dimension
        return m.discrete_gaussian_rdp(orders, *shape, *distances)
    return m.skellam_rdp(orders, event.shares * event.variance, *distances)


def _rdp(event: Event) -> Array:
    if event.rate == 1:
        return _unsampled(event, m.ORDERS)
    fixed = isinstance(event.sampling, Fixed)
    if fixed != (event.adjacency == "replace") or (fixed and not isinstance(event, Gaussian)):
        raise _refused(event, "rdp")
    if not isinstance(event, Gaussian):
        return m.poisson_rdp(m.ORDERS, event.rate, lambda orders: _unsampled(event, orders))
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.rdp import RdpAccountant

    # dp-accounting takes the noise over the distance of neighbours, which under replacement is 2 contributions.
    noise = dp_event.GaussianDpEvent(event.effective / event.apart)
    if isinstance(event.sampling, Fixed):  # Wang, Balle and Kasiviswanathan 2019, arXiv 1808.00087
        sample = event.sampling.population, event.sampling.size
        sampled = dp_event.SampledWithoutReplacementDpEvent(*sample, noise)
        accountant = RdpAccountant(m.ORDERS, NeighboringRelation.REPLACE_ONE)
    else:  # Mironov, Talwar and Zhang 2019, arXiv 1908.10530
        sampled, accountant = dp_event.PoissonSampledDpEvent(event.rate, noise), RdpAccountant(m.ORDERS)
    return np.asarray(accountant.compose(sampled).rdp)


def _has_pld(event: Event) -> bool:
    alone = event.rate == 1 or event.adjacency == "add-remove"
    return isinstance(event, Gaussian) or (isinstance(event, Laplace) and alone)


def _pld(events: tuple[Any, ...], step: float) -> _Curve:
    from dp_accounting.pld import privacy_loss_distribution as pld

    square, span, others = 0.0, 0.0, []
    for event in events:
        if not _has_pld(event):
            raise _refused(event, "pld")
        far = event.apart / getattr(event, "effective", event.noise_multiplier)
        if isinstance(event, Gaussian) and event.rate == 1:
            square += event.times * far**2
        else:
            others.append(event)
            span += 3 * (11 * far + far**2 / 2) + event.times * event.rate * far**2 / 2
    z = 1 / math.sqrt(square) if square else 1e100  # which costs nothing
    if not others:
        return _Curve(lambda d: m.gaussian_epsilon(z, d), lambda e: m.gaussian_delta(z, e), "pld")
    step = max(step, span / 1e6)
    whole = pld.identity(step)
    if square:
        whole = pld.from_gaussian_mechanism(z, value_discretization_interval=step)
    for event in others:
        whole = whole.compose(_losses(event, step).self_compose(event.times))

    def epsilon(delta: float) -> float:
        return float(whole.get_epsilon_for_delta(max(0.0, delta - ROUNDING)))

    return _Curve(epsilon, lambda e: float(whole.get_delta_for_epsilon(e)) + ROUNDING, "pld", step)


def _losses(event: Any, step: float) -> Any:
    """The distribution of the privacy losses of an event, once."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import pld_pmf
    from dp_accounting.pld import privacy_loss_distribution as pld

    grid = {"value_discretization_interval": step, "sampling_prob": event.rate}
    if isinstance(event, Laplace):
        return pld.from_laplace_mechanism(event.noise_multiplier / event.apart, **grid)
    if not isinstance(event.sampling, Fixed):
        replace, either = NeighboringRelation.REPLACE_ONE, NeighboringRelation.ADD_OR_REMOVE_ONE
        relation = replace if event.adjacency == "replace" else either
        return pld.from_gaussian_mechanism(event.effective, neighboring_relation=relation, **grid)
    # Dong, Roth and Su 2019, arXiv 1905.02383, theorem 9; see docs/privacy-accounting.md.
    z = event.effective / event.apart
    largest = math.log1p(event.rate * math.expm1(min(1 / (2 * z * z) + 11 / z, 700)))
    losses = np.arange(math.ceil(largest / step) + 1) * step
    above = event.rate * m.gaussian_delta(z, np.log1p(np.expm1(losses) / event.rate))
    both = np.concatenate([(-np.expm1(-losses) + np.exp(-losses) * above)[:0:-1], above])
    top = len(losses) - 1
    return pld.PrivacyLossDistribution(pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(step, -top, top, both))
