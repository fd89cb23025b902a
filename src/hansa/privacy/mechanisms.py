"""What single mechanisms cost, as functions of numbers.

A noise multiplier is the standard deviation of the noise (for Laplace, its scale) over the distance of two
neighbours' results. Functions of orders give Rényi divergences; bounds at integers only are infinite between."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from hansa.contribution import Array
from hansa.errors import PrivacyError

_HIGH = [72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 768, 1024]
ORDERS: Array = np.array([1 + x / 10 for x in range(1, 100)] + [*range(11, 64), *_HIGH])
"""The orders of Rényi divergence that are tried."""


def within(*, epsilon: float = 1.0, delta: float = 0.5) -> None:
    """A PrivacyError unless epsilon is positive and finite and delta is between 0 and 1."""
    if not 0 < epsilon < math.inf:
        raise PrivacyError(f"epsilon is {epsilon:g}", remedy="Choose one above 0; 1 to 8 are usual")
    if not 0 < delta < 1:
        raise PrivacyError(f"delta is {delta:g}", remedy="Choose one above 0 and well below 1 / (number of records)")


def least(holds: Callable[[float], bool], low: float, high: float, tolerance: float) -> float:
    """The smallest number of ``[low, high]`` from which on it holds, or up to a relative tolerance above it."""
    while high - low > tolerance * abs(high) and low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def least_noise(holds: Callable[[float], bool], tolerance: float) -> float:
    """The smallest noise multiplier above 2^-10 that is enough; a PrivacyError if none is."""
    high = 1.0
    while not holds(high):
        high *= 2
        if high > 2**40:
            said = "no noise brings epsilon down so far at that delta"
            raise PrivacyError(said, remedy="Raise epsilon or delta, or release less")
    while high > 2**-9 and holds(high / 2):
        high /= 2
    return least(holds, high / 2, high, tolerance)


def gaussian_delta(noise_multiplier: float, epsilon: Any) -> Any:
    """The delta of a Gaussian release (Balle and Wang 2018, arXiv 1805.06530, theorem 8); also of an array."""
    from scipy.special import log_ndtr

    above = log_ndtr(1 / (2 * noise_multiplier) - epsilon * noise_multiplier)
    below = log_ndtr(-1 / (2 * noise_multiplier) - epsilon * noise_multiplier) + epsilon
    return np.exp(above) * -np.expm1(np.minimum(below - above, 0))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The epsilon of a Gaussian release."""
    within(delta=delta)
    if gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    highest = zcdp_epsilon(1 / (2 * noise_multiplier**2), delta)
    return least(lambda e: gaussian_delta(noise_multiplier, e) <= delta, 0.0, highest, 1e-12)


def gaussian_noise_multiplier(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier with which a Gaussian release is (epsilon, delta)-private."""
    within(epsilon=epsilon, delta=delta)
    return least_noise(lambda z: bool(gaussian_delta(z, epsilon) <= delta), 1e-12)


def laplace_scale(sensitivity: float, epsilon: float) -> float:
    """The L1 sensitivity over epsilon (Dwork et al. 2006); delta has no part in it."""
    within(epsilon=epsilon)
    return sensitivity / epsilon


def laplace_rdp(orders: Array, noise_multiplier: float) -> Array:
    """Divergences of Laplace noise (Mironov 2017, arXiv 1702.07476, table II)."""
    first = np.log(orders / (2 * orders - 1)) + (orders - 1) / noise_multiplier
    second = np.log((orders - 1) / (2 * orders - 1)) - orders / noise_multiplier
    return np.asarray(np.logaddexp(first, second) / (orders - 1))


def skellam_rdp(orders: Array, variance: float, l2: float, l1: float) -> Array:
    """Divergences of Skellam noise of that variance in all, in squares of the integer grid, for neighbours at
    those distances on it (Agarwal, Kairouz and Liu 2021, arXiv 2110.04995, theorem 3.5)."""
    more = ((2 * orders - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    rdp = orders * l2**2 / (2 * variance) + np.minimum(more, 3 * l1 / (2 * variance))
    return np.where(orders % 1 == 0, rdp, np.inf)


def discrete_gaussian_rdp(orders: Array, variance: float, shares: int, dimension: int, l2: float, l1: float) -> Array:
    """Divergences of a sum of discrete Gaussians of that variance each, by the least of three bounds (Kairouz,
    Liu and Steinke 2021, arXiv 2102.06387, proposition 14)."""
    if shares > 1 and variance < 0.25:
        said = f"sums of discrete Gaussians are understood from a variance of 1/4, not {variance:g}"
        raise PrivacyError(said, remedy="Use a finer granularity, or Skellam noise")
    k = np.arange(1, shares)
    tau = 10 * float(np.exp(-2 * math.pi**2 * variance * k / (k + 1)).sum())
    l2, l1 = l2 / math.sqrt(shares * variance), l1 / math.sqrt(shares * variance)
    one = orders / 2 * l2**2 + tau * dimension
    other = orders / 2 * (l2**2 + 2 * l1 * tau + tau**2 * dimension)
    third = orders / 2 * (l2 + tau * math.sqrt(dimension)) ** 2
    return np.where(orders % 1 == 0, np.minimum(np.minimum(one, other), third), np.inf)


def rounded_norms(norm: float, dimension: int, beta: float = math.exp(-0.5)) -> tuple[float, float]:
    """Bounds ``(L2, L1)`` on a vector of that L2 norm, on the integer grid, after stochastic rounding, done again
    while it exceeds the first; it does so with a chance of at most ``beta``, or of none if that is 0
    (Kairouz, Liu and Steinke 2021, arXiv 2102.06387, section 4.1)."""
    l2 = norm + math.sqrt(dimension)
    if beta > 0:
        spread = math.sqrt(2 * math.log(1 / beta)) * (norm + math.sqrt(dimension) / 2)
        l2 = min(l2, math.sqrt(norm**2 + dimension / 4 + spread))
    return l2, l2 * min(math.sqrt(dimension), l2)


def poisson_rdp(orders: Array, rate: float, rdp: Callable[[Array], Array]) -> Array:
    """Divergences of any mechanism on a Poisson sample, add-remove: the general bound, with its factor 3 (Zhu and
    Wang 2019, PMLR 97, theorem 5). ``rdp`` gives those without sampling, at integers."""
    found = np.full(len(orders), np.inf)
    j = np.arange(2, int(orders.max()) + 1)
    logs = np.concatenate([[0.0, 0.0], np.cumsum(np.log(j))])  # of factorials
    moments = (j - 1) * rdp(j.astype(float)) + j * math.log(rate) + np.where(j > 2, math.log(3), 0)
    for position in np.flatnonzero(orders % 1 == 0):
        a = int(orders[position])
        first = (a - 1) * math.log1p(-rate) + math.log1p((a - 1) * rate)
        choose = logs[a] - logs[2 : a + 1] - logs[a - 2 :: -1]
        rest = choose + moments[: a - 1] + (a - j[: a - 1]) * math.log1p(-rate)
        found[position] = max(0.0, np.logaddexp.reduce(np.append(rest, first))) / (a - 1)
    return found


def rdp_epsilon(rdp: Array, delta: float) -> float:
    """Epsilon from the divergences at `ORDERS` (Canonne, Kamath and Steinke 2020, arXiv 2004.00010, prop. 12)."""
    bounds = rdp + np.log1p(-1 / ORDERS) - np.log(delta * ORDERS) / (ORDERS - 1)
    return max(0.0, float(bounds.min()))


def rdp_delta(rdp: Array, epsilon: float) -> float:
    """Delta from the divergences at `ORDERS`, by the same proposition."""
    logs = (ORDERS - 1) * (rdp - epsilon + np.log1p(-1 / ORDERS)) - np.log(ORDERS)
    return math.exp(min(0.0, float(logs.min())))


def zcdp_delta(rho: float, epsilon: float) -> float:
    """Delta of rho-zCDP, by the same proposition at the best of all orders."""
    if rho == 0:
        return 0.0
    high = (epsilon + 1) / rho + 2
    a = least(lambda a: (2 * a - 1) * rho + math.log1p(-1 / a) > epsilon, 1 + 1e-6, high, 1e-12)
    return math.exp(min(0.0, (a - 1) * (a * rho - epsilon + math.log1p(-1 / a)) - math.log(a)))


def zcdp_epsilon(rho: float, delta: float) -> float:
    """The smallest epsilon of rho-zCDP at a delta."""
    within(delta=delta)
    highest = rho + 2 * math.sqrt(-rho * math.log(delta))
    return least(lambda e: zcdp_delta(rho, e) <= delta, 0.0, highest, 1e-12)
