"""What is published about accounting, each number with the digits it was given."""

import math

import numpy as np
import pytest

from hansa.privacy import accountant, mechanisms
from hansa.privacy.events import DiscreteGaussian, Fixed, Gaussian, Laplace, Poisson

DELTA = 1e-5


def steps(rate, sigma, times, adjacency="add-remove", fixed=False):
    sample = Fixed(size=round(rate * 10_000), population=10_000) if fixed else Poisson(rate=rate)
    return [Gaussian(noise_multiplier=sigma, sampling=sample, adjacency=adjacency, times=times)]


def classic(rate, sigma, times):
    """The conversion of the moments accountant (Abadi et al. 2016, arXiv 1607.00133, theorem 2)."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import RdpAccountant

    step = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma))
    rdp = RdpAccountant(mechanisms.ORDERS).compose(step, times).rdp
    return float((rdp - math.log(DELTA) / (mechanisms.ORDERS - 1)).min())


@pytest.mark.parametrize(
    ("run", "moments", "rdp", "pld"),
    [
        ((256 / 60_000, 1.1, 14_062), 3.008, 2.597, 2.382),  # TensorFlow Privacy's tutorial on MNIST
        ((0.004, 0.7, 11_250), 6.860, 6.094, 5.431),
        ((0.004, 1.1, 15_000), 2.905, 2.503, 2.296),
    ],
)
def test_a_sampled_gaussian_by_three_accountants(run, moments, rdp, pld):
    assert classic(*run) == pytest.approx(moments, abs=6e-4)
    assert accountant.epsilon(steps(*run), DELTA, "rdp") == pytest.approx(rdp, abs=6e-4)
    tightest = accountant.spent(steps(*run), DELTA)
    assert tightest.epsilon == pytest.approx(pld, abs=6e-4)
    assert (tightest.accountant, tightest.discretisation) == ("pld", 1e-4)


def test_a_sampled_gaussian_beside_the_prv_accountant():
    """Gopi, Lee and Wutschitz 2021, arXiv 2106.02848: 6.777 with its error bound, so ours is a little less."""
    run = steps(0.04, 1.5, 2250)
    assert accountant.epsilon(run, DELTA, "rdp") == pytest.approx(7.329, abs=6e-4)
    assert accountant.epsilon(run, DELTA) == pytest.approx(6.777, abs=0.01)


def test_the_analytic_gaussian():
    """Balle and Wang 2018, arXiv 1805.06530."""
    assert mechanisms.gaussian_noise_multiplier(1.0, DELTA) == pytest.approx(3.7306, abs=6e-5)
    assert mechanisms.gaussian_epsilon(1.0, DELTA) == pytest.approx(4.377, abs=6e-4)
    once = [Gaussian(noise_multiplier=1.0, adjacency="add-remove")]
    assert accountant.epsilon(once, DELTA) == pytest.approx(4.377, abs=6e-4)
    classic = math.sqrt(2 * math.log(1.25 / DELTA))  # Dwork and Roth 2014, theorem A.1
    assert mechanisms.gaussian_noise_multiplier(1.0, DELTA) < classic == pytest.approx(4.845, abs=6e-4)


def test_what_neighbours_are_changes_the_cost():
    add_remove, replace = steps(0.01, 1.0, 1000), steps(0.01, 1.0, 1000, "replace")
    assert accountant.epsilon(add_remove, DELTA, "rdp") == pytest.approx(2.101, abs=6e-4)
    assert accountant.epsilon(add_remove, DELTA) == pytest.approx(1.828, abs=6e-4)
    assert accountant.epsilon(replace, DELTA) == pytest.approx(2.843, abs=6e-4)


def test_a_replaced_record_of_a_fixed_sample_moves_the_sum_by_two_contributions():
    """dp-accounting 0.6, given the noise over one contribution, answers 3.576; two neighbours that may well occur
    are told apart by 13.4.
    """
    from dp_accounting import NeighboringRelation, dp_event
    from dp_accounting.pld import privacy_loss_distribution
    from dp_accounting.rdp import RdpAccountant

    sampled = dp_event.SampledWithoutReplacementDpEvent(10_000, 100, dp_event.GaussianDpEvent(1.0))
    naive = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    wrong = naive.compose(sampled, 1000).get_epsilon(DELTA)
    assert wrong == pytest.approx(3.576, abs=6e-4)

    # All records contribute +1, one is replaced by -1: the sum is m, or m - 2 if that one was drawn.
    attained = privacy_loss_distribution.from_gaussian_mechanism(0.5, sampling_prob=0.01)
    attained = attained.self_compose(1000).get_epsilon_for_delta(DELTA)
    assert attained == pytest.approx(13.4, abs=0.05)

    ours = steps(0.01, 1.0, 1000, "replace", fixed=True)
    by_rdp = accountant.epsilon(ours, DELTA, "rdp")
    assert by_rdp == pytest.approx(20.99, abs=6e-3)
    by_losses = accountant.epsilon(ours, DELTA)
    assert by_losses == pytest.approx(14.82, abs=6e-3)
    assert wrong < attained < by_losses < by_rdp


@pytest.mark.parametrize(("granularity", "epsilon"), [(1e-2, 8.410), (1e-3, 4.797), (1e-4, 4.753)])
def test_the_distributed_discrete_gaussian(granularity, epsilon):
    """Kairouz, Liu and Steinke 2021, arXiv 2102.06387: 100 parties, 2^16 entries, noise of the clip's size."""
    l2, l1 = mechanisms.rounded_norms(1 / granularity, 2**16, beta=math.exp(-0.5))
    release = DiscreteGaussian(
        adjacency="add-remove", variance=1 / (granularity**2 * 100), shares=100, dimension=2**16, l2=l2, l1=l1
    )
    found = accountant.spent([release], DELTA)
    assert found.epsilon == pytest.approx(epsilon, abs=6e-4)
    assert found.accountant == "rdp"


def test_laplace_noise_has_the_scale_of_sensitivity_over_epsilon():
    """Not epsilon over delta, as a widespread slip has it."""
    assert mechanisms.laplace_scale(sensitivity=2.0, epsilon=0.5) == 4.0
    scale = mechanisms.laplace_scale(sensitivity=1.0, epsilon=0.5)
    release = [Laplace(noise_multiplier=scale, adjacency="add-remove")]
    assert accountant.delta(release, 0.5) < 1e-12
    slip = [Laplace(noise_multiplier=0.5 / DELTA, adjacency="add-remove")]
    assert accountant.epsilon(slip, DELTA) < 1e-4  # its noise is 25,000 times too large
    assert accountant.delta(release, 0.499) == pytest.approx(1 - math.exp(-0.0005), rel=1e-3)


def test_zcdp_of_a_gaussian():
    """Bun and Steinke 2016, arXiv 1605.02065: rho = 1/(2 z^2), epsilon at most rho + 2 sqrt(rho ln(1/delta))."""
    once = [Gaussian(noise_multiplier=2.0, adjacency="add-remove")]
    loose = 0.125 + 2 * math.sqrt(0.125 * math.log(1 / DELTA))
    exact = mechanisms.gaussian_epsilon(2.0, DELTA)
    assert exact < accountant.epsilon(once, DELTA, "zcdp") < loose
    assert accountant.epsilon(once, DELTA, "zcdp") <= accountant.epsilon(once, DELTA, "rdp")


def test_the_skellam_mechanism_approaches_the_gaussian():
    """Agarwal, Kairouz and Liu 2021, arXiv 2110.04995, theorem 3.5: its second term fades with variance."""
    orders = np.array([2.0, 8.0, 32.0])
    for sigma, excess in ((1e2, 1e-1), (1e4, 1e-3)):
        scaled = mechanisms.skellam_rdp(orders, sigma**2, sigma, sigma * 10)
        assert np.all(scaled >= orders / 2)
        assert np.all(scaled <= orders / 2 * (1 + excess) + 15 / sigma)
