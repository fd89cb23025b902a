import math

import numpy as np
import pytest

from hansa.errors import PrivacyError
from hansa.privacy import mechanisms as m


def renyi(p, q, order):
    """The divergence of two distributions on the same points, both positive."""
    return math.log(np.sum(q * (p / q) ** order)) / (order - 1)


def discrete_gaussian(variance, reach):
    x = np.arange(-reach, reach + 1)
    p = np.exp(-(x**2) / (2 * variance))
    return p / p.sum()


def skellam(variance, reach):
    """By convolving two Poisson laws."""
    from scipy.stats import poisson

    p = poisson.pmf(np.arange(2 * reach + 1), variance / 2)
    both = np.convolve(p, p[::-1])
    return both[len(p) - 1 - reach : len(p) + reach]


@pytest.mark.parametrize("z", [0.3, 1.0, 5.0, 50.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-12])
def test_the_analytic_gaussian_goes_both_ways(z, delta):
    epsilon = m.gaussian_epsilon(z, delta)
    assert m.gaussian_delta(z, epsilon) <= delta
    if epsilon > 0:
        assert m.gaussian_delta(z, epsilon) == pytest.approx(delta, rel=1e-6)
        assert m.gaussian_noise_multiplier(epsilon, delta) == pytest.approx(z, rel=1e-6)


def test_the_analytic_gaussian_is_the_integral_of_its_two_densities():
    x, step = np.linspace(-12, 13, 2_000_001, retstep=True)
    p, q = np.exp(-((x - 1) ** 2) / 2), np.exp(-(x**2) / 2)
    for epsilon in (0.0, 0.5, 2.0, 4.0):
        integral = np.maximum(p - math.exp(epsilon) * q, 0).sum() * step / math.sqrt(2 * math.pi)
        assert m.gaussian_delta(1.0, epsilon) == pytest.approx(integral, rel=1e-6)


def test_the_analytic_gaussian_survives_extremes():
    assert m.gaussian_epsilon(1e6, 1e-5) == 0.0
    assert 5e3 < m.gaussian_epsilon(1e-2, 1e-5) < 6e3
    assert m.gaussian_delta(0.01, 1.0) == 1.0
    assert 0 <= m.gaussian_delta(100.0, 50.0) < 1e-300


def test_more_noise_is_never_needed_than_calibrated():
    for epsilon in (0.1, 1.0, 10.0):
        z = m.gaussian_noise_multiplier(epsilon, 1e-6)
        assert m.gaussian_delta(z, epsilon) <= 1e-6 < m.gaussian_delta(z * (1 - 1e-9), epsilon)


@pytest.mark.parametrize("order", [2, 3, 8, 32])
@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_laplace_divergences_are_those_of_its_densities(order, scale):
    x, step = np.linspace(-60 * scale, 60 * scale + 1, 4_000_001, retstep=True)
    p, q = (np.exp(-np.abs(x - shift) / scale) * step / (2 * scale) for shift in (1, 0))
    assert m.laplace_rdp(np.array([order]), scale)[0] == pytest.approx(renyi(p, q, order), rel=1e-4)


@pytest.mark.parametrize("variance", [1.0, 4.0, 50.0])
@pytest.mark.parametrize("shift", [1, 2])
def test_the_skellam_bound_holds_for_its_true_divergences(variance, shift):
    reach = 40 + int(12 * math.sqrt(variance))
    p = skellam(variance, reach)
    for order in (2, 3, 5):
        true = renyi(p[:-shift], p[shift:], order)
        bound = m.skellam_rdp(np.array([float(order)]), variance, shift, shift)[0]
        assert true <= bound * (1 + 1e-9)
        if variance >= 50:
            assert bound <= 1.1 * true


@pytest.mark.parametrize("shares", [1, 2, 5])
@pytest.mark.parametrize("variance", [0.3, 0.5, 1.0, 3.0])
def test_the_bound_on_sums_of_discrete_gaussians_holds(variance, shares):
    share = discrete_gaussian(variance, 40)
    total = share
    for _ in range(shares - 1):
        total = np.convolve(total, share)
    middle, order = len(total) // 2, np.array([2.0, 3.0, 6.0])
    reach = min(middle, int(9 * math.sqrt(variance * shares)) + 2)  # beyond, float64 is noise
    p, q = total[middle - reach : middle + reach], total[middle - reach + 1 : middle + reach + 1]
    bounds = m.discrete_gaussian_rdp(order, variance, shares, 1, 1.0, 1.0)
    for found, bound in zip((renyi(p, q, a) for a in order), bounds, strict=True):
        assert found <= bound * (1 + 1e-6)
    if shares == 1:
        assert bounds == pytest.approx(order / (2 * variance))


def test_too_coarse_a_share_of_discrete_gaussian_noise_is_refused():
    with pytest.raises(PrivacyError, match="1/4") as refused:
        m.discrete_gaussian_rdp(m.ORDERS, 0.2, 5, 1, 1.0, 1.0)
    assert "granularity" in refused.value.remedy


def test_bounds_that_hold_at_whole_orders_are_infinite_between():
    between = m.ORDERS % 1 != 0
    for rdp in (
        m.skellam_rdp(m.ORDERS, 4.0, 1.0, 1.0),
        m.discrete_gaussian_rdp(m.ORDERS, 4.0, 3, 1, 1.0, 1.0),
        m.poisson_rdp(m.ORDERS, 0.1, lambda orders: orders / 2),
    ):
        assert np.isinf(rdp[between]).all()
        assert np.isfinite(rdp[~between]).all()


def test_the_general_bound_on_samples_holds_for_the_gaussian():
    """Of which those on a sample are known exactly (Mironov, Talwar and Zhang 2019, arXiv 1908.10530)."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    whole = m.ORDERS[m.ORDERS % 1 == 0]
    for rate, z in ((0.01, 1.0), (0.2, 2.0), (0.5, 4.0)):
        step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(z))
        exact = RdpAccountant(whole).compose(step).rdp
        bound = m.poisson_rdp(whole, rate, lambda orders, z=z: orders / (2 * z * z))
        assert np.all(bound >= exact * (1 - 1e-9))
        assert np.all(bound <= whole / (2 * z * z) + math.log(3) * whole / (whole - 1))
        assert bound[0] == pytest.approx(math.log1p(rate**2 * math.expm1(1 / z**2)))  # order 2


def test_a_rate_near_one_gives_back_the_mechanism_without_sampling():
    orders = np.array([2.0, 3.0])
    bound = m.poisson_rdp(orders, 1 - 1e-9, lambda orders: orders / 2)
    assert bound == pytest.approx(orders / 2 + np.array([0.0, math.log(3) / 2]), rel=1e-6)


def test_rounding_stays_within_the_inflated_norm():
    """And where it does not, it is done again: not more often than said."""
    random = np.random.default_rng(5)
    dimension, norm = 256, 20.0
    l2, l1 = m.rounded_norms(norm, dimension)
    assert l2 < norm + math.sqrt(dimension)
    fine = 0
    for _ in range(200):
        x = random.normal(size=dimension)
        x *= norm / np.linalg.norm(x)
        rounded = np.floor(x + random.random(dimension))
        fine += (kept := np.linalg.norm(rounded) <= l2)
        assert not kept or np.abs(rounded).sum() <= l1
    assert fine >= 200 * (1 - math.exp(-0.5))
    assert m.rounded_norms(norm, dimension, beta=0)[0] == norm + 16
    assert m.rounded_norms(2.0, 10**6, beta=0)[1] == (2 + 1e3) * 1e3


def test_zcdp_goes_both_ways():
    for rho in (1e-4, 0.01, 0.5, 3.0):
        epsilon = m.zcdp_epsilon(rho, 1e-6)
        assert m.zcdp_delta(rho, epsilon) <= 1e-6
    assert m.zcdp_epsilon(0.0, 1e-6) == 0.0
    assert m.zcdp_delta(0.0, 1.0) == 0.0


def test_zcdp_is_no_worse_than_any_order():
    """The conversion at the best order is the least over a fine grid of orders."""
    rho, epsilon = 0.02, 1.3
    a = np.linspace(1.001, 200, 400_000)
    logs = (a - 1) * (a * rho - epsilon + np.log1p(-1 / a)) - np.log(a)
    assert m.zcdp_delta(rho, epsilon) == pytest.approx(math.exp(logs.min()), rel=1e-6)


def test_divergences_give_epsilon_and_delta_by_one_rule():
    rdp = m.ORDERS * 0.02
    epsilon = m.rdp_epsilon(rdp, 1e-6)
    assert m.rdp_delta(rdp, epsilon) <= 1e-6 * (1 + 1e-9)
    assert m.zcdp_epsilon(0.02, 1e-6) <= epsilon <= m.zcdp_epsilon(0.02, 1e-6) * 1.01
    assert m.rdp_epsilon(np.full(len(m.ORDERS), np.inf), 1e-6) == math.inf
    assert m.rdp_delta(np.full(len(m.ORDERS), np.inf), 1.0) == 1.0
    assert m.rdp_epsilon(np.zeros(len(m.ORDERS)), 1e-6) < 0.02


@pytest.mark.parametrize("wrong", [0.0, -1.0, math.inf, math.nan])
def test_an_epsilon_out_of_range_is_refused(wrong):
    with pytest.raises(PrivacyError, match="epsilon is") as refused:
        m.gaussian_noise_multiplier(wrong, 1e-5)
    assert refused.value.remedy
    with pytest.raises(PrivacyError, match="epsilon is"):
        m.laplace_scale(1.0, wrong)


@pytest.mark.parametrize("wrong", [0.0, -1e-9, 1.0, 2.0, math.nan])
def test_a_delta_out_of_range_is_refused(wrong):
    for call in (m.gaussian_noise_multiplier, m.gaussian_epsilon, m.zcdp_epsilon):
        with pytest.raises(PrivacyError, match="delta is") as refused:
            call(1.0, wrong)
        assert "number of records" in refused.value.remedy


def test_a_search_that_finds_nothing_ends():
    with pytest.raises(PrivacyError, match="no noise") as refused:
        m.least_noise(lambda z: False, 1e-3)
    assert refused.value.remedy
    assert m.least_noise(lambda z: True, 1e-3) == pytest.approx(2**-10, rel=2e-3)
