import math
import subprocess
import sys

import pytest

from hansa.errors import PrivacyError
from hansa.privacy import mechanisms
from hansa.privacy.accountant import delta, epsilon, noise_multiplier, spent
from hansa.privacy.events import DiscreteGaussian, Exact, Fixed, Gaussian, Laplace, MatrixMechanism, Poisson, Skellam

pytestmark = pytest.mark.untraced

ONE, OTHER = {"adjacency": "add-remove"}, {"adjacency": "replace"}
TENTH, FIXED = Poisson(rate=0.1), Fixed(size=10, population=100)
GRID = {"variance": 400.0, "shares": 10, "dimension": 64, "l2": 30.0, "l1": 200.0}


def gaussian(z=2.0, **rest):
    return Gaussian(noise_multiplier=z, **ONE | rest)


def test_accountants_are_imported_when_they_are_needed():
    code = "import sys, hansa.privacy.accountant, hansa.privacy.noise; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"scipy", "dp_accounting", "absl", "mpmath"} & set(loaded.stdout.split())


def test_nothing_costs_nothing():
    for accountant in ("pld", "rdp", "zcdp"):
        assert epsilon([], 1e-5, accountant) == pytest.approx(0.0, abs=0.02)
    assert epsilon([], 1e-5) == 0.0
    assert delta([], 1.0) == 0.0


def test_gaussians_without_a_sample_compose_exactly():
    """Squares of 1/z add up: four releases of z = 2 are one of z = 1."""
    four = spent([gaussian(times=3), gaussian()], 1e-5)
    assert four.epsilon == pytest.approx(mechanisms.gaussian_epsilon(1.0, 1e-5), rel=1e-9)
    assert (four.accountant, four.discretisation, four.failure) == ("pld", 0.0, 0.0)
    assert delta([gaussian(times=4)], 1.5) == pytest.approx(mechanisms.gaussian_delta(1.0, 1.5))


def test_a_replaced_record_counts_twice_without_a_sample():
    twice, once = gaussian(**OTHER), gaussian(1.0)
    for accountant in ("pld", "rdp", "zcdp"):
        assert epsilon([twice], 1e-5, accountant) == epsilon([once], 1e-5, accountant)
    laplace = [Laplace(noise_multiplier=2.0, **OTHER)], [Laplace(noise_multiplier=1.0, **ONE)]
    integer = [Skellam(**OTHER, **GRID)], [Skellam(**ONE, **GRID | {"l2": 60.0, "l1": 400.0})]
    for one, other in (laplace, integer):
        assert epsilon(one, 1e-5) == pytest.approx(epsilon(other, 1e-5))


def test_equal_events_are_counted_however_they_are_written():
    event = gaussian(sampling=TENTH)
    assert spent([event] * 5, 1e-5) == spent([event.model_copy(update={"times": 5})], 1e-5)


def test_the_order_of_events_does_not_matter():
    events = [gaussian(sampling=TENTH, times=9), Laplace(noise_multiplier=8, **ONE), gaussian(3.0)]
    assert epsilon(events, 1e-5) == pytest.approx(epsilon(events[::-1], 1e-5), rel=1e-9)


@pytest.mark.parametrize(
    "events",
    [
        [gaussian(times=3)],
        [gaussian(0.8, sampling=TENTH, times=20)],
        [gaussian(0.8, sampling=TENTH, times=20, **OTHER)],
        [gaussian(2.0, sampling=FIXED, times=20, **OTHER)],
        [Laplace(noise_multiplier=5.0, sampling=TENTH, times=4, **ONE), gaussian(3.0)],
        [Laplace(noise_multiplier=5.0, times=4, **OTHER)],
        [Skellam(**ONE, **GRID, times=3), gaussian(sampling=TENTH)],
        [DiscreteGaussian(**ONE, **GRID, sampling=TENTH, times=3)],
        [MatrixMechanism(noise_multiplier=5, sensitivity=3.5, **OTHER)],
    ],
    ids=lambda events: "+".join(e.kind + (f"-{e.sampling.kind}" if e.sampling else "") for e in events),
)
def test_delta_at_the_epsilon_of_a_delta_is_that_delta(events):
    for wanted in (1e-3, 1e-6):
        found = epsilon(events, wanted)
        assert 0 < found < math.inf
        assert delta(events, found) == pytest.approx(wanted, rel=2e-2)
        assert delta(events, found + 0.5) < wanted < delta(events, found * 0.7)


def test_a_sample_never_costs_more_than_everybody():
    for event in (gaussian(), Laplace(noise_multiplier=3, **ONE), Skellam(**ONE, **GRID)):
        everybody = [event.model_copy(update={"times": 50})]
        sample = [everybody[0].model_copy(update={"sampling": Poisson(rate=0.05)})]
        assert epsilon(sample, 1e-5, "rdp") < epsilon(everybody, 1e-5, "rdp") / 3
        whole = [everybody[0].model_copy(update={"sampling": Poisson(rate=1)})]
        assert epsilon(whole, 1e-5, "rdp") == epsilon(everybody, 1e-5, "rdp")


def test_the_tighter_accountant_is_tighter():
    events = [gaussian(1.0, sampling=TENTH, times=100), Laplace(noise_multiplier=20, times=9, **ONE)]
    tight = epsilon(events, 1e-5)
    assert 0.8 * epsilon(events, 1e-5, "rdp") < tight < epsilon(events, 1e-5, "rdp")
    coarse = spent(events, 1e-5, step=1e-2)
    assert tight <= coarse.epsilon < tight * 1.01
    assert coarse.discretisation == 1e-2


def test_laplace_noise_over_many_entries_costs_no_more_than_over_one():
    """The L1 norm may be spread over entries: two releases at half the distance are such a case."""
    one, spread = ([Laplace(noise_multiplier=0.5, **ONE)], [Laplace(noise_multiplier=1.0, times=2, **ONE)])
    for at in (0.1, 0.5, 1.0, 1.5, 1.9):
        assert delta(spread, at) <= delta(one, at) + 1e-9


def test_one_release_on_a_fixed_sample_is_what_amplification_says():
    """Balle, Barthe and Gaboardi 2018, arXiv 1807.01647: delta' = q delta, at log(1 + q (exp(epsilon) - 1))."""
    once = [gaussian(1.0, sampling=FIXED, **OTHER)]
    for inner in (1.0, 3.0, 6.0):
        outer = math.log1p(0.1 * math.expm1(inner))
        amplified = 0.1 * mechanisms.gaussian_delta(0.5, inner)
        assert delta(once, outer) == pytest.approx(amplified, rel=1e-4)
        assert epsilon(once, amplified) == pytest.approx(outer, rel=1e-4)


def test_a_fixed_sample_of_everybody_is_everybody():
    everybody = gaussian(3.0, times=10, sampling=Fixed(size=9, population=9), **OTHER)
    assert epsilon([everybody], 1e-5) == epsilon([gaussian(1.5, times=10)], 1e-5)
    nearly = gaussian(3.0, times=10, sampling=Fixed(size=99_999, population=100_000), **OTHER)
    assert epsilon([nearly], 1e-5) == pytest.approx(epsilon([everybody], 1e-5), rel=1e-3)


@pytest.mark.parametrize("accountant", [None, "pld", "rdp", "zcdp"])
def test_an_exact_release_is_infinite_whatever_else_happened(accountant):
    events = [gaussian(), Exact(**ONE)]
    assert epsilon(events, 1e-5, accountant) == math.inf
    assert delta(events, 10.0, accountant) == 1.0


def test_kinds_of_neighbours_do_not_mix():
    for call in (epsilon, delta):
        with pytest.raises(PrivacyError, match="some events hide") as refused:
            call([gaussian(), gaussian(**OTHER)], 1e-5)
        assert "one adjacency" in refused.value.remedy


@pytest.mark.parametrize(
    ("accountant", "event", "said"),
    [
        ("pld", Skellam(**ONE, **GRID), "pld accountant has no bound for skellam noise"),
        ("pld", DiscreteGaussian(**ONE, **GRID), "discrete-gaussian"),
        ("pld", Laplace(noise_multiplier=1, sampling=TENTH, **OTHER), "on a poisson sample under"),
        ("rdp", gaussian(sampling=TENTH, **OTHER), "rdp accountant has no bound for gaussian"),
        ("rdp", Skellam(**OTHER, **GRID, sampling=FIXED), "on a fixed sample under replace"),
        (None, Laplace(noise_multiplier=1, sampling=FIXED, **OTHER), "laplace noise on a fixed"),
        ("zcdp", gaussian(sampling=TENTH), "zcdp accountant has no bound"),
        ("zcdp", Skellam(**ONE, **GRID), "zcdp accountant has no bound"),
    ],
)
def test_what_an_accountant_does_not_know_it_refuses(accountant, event, said):
    with pytest.raises(PrivacyError, match=said) as refused:
        epsilon([event], 1e-5, accountant)
    assert "always a bound" in refused.value.remedy
    without = event.model_copy(update={"sampling": None})
    assert 0 < epsilon([without], 1e-5, "rdp") < math.inf


@pytest.mark.parametrize("wrong", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_out_of_range_is_refused(wrong):
    with pytest.raises(PrivacyError, match="delta is"):
        epsilon([gaussian()], wrong)


def test_an_epsilon_out_of_range_is_refused():
    with pytest.raises(PrivacyError, match="epsilon is"):
        delta([gaussian()], -1.0)
    with pytest.raises(PrivacyError, match="epsilon is"):
        noise_multiplier(lambda z: [gaussian(z)], 0.0, 1e-5)


def test_a_sampler_that_strays_takes_its_part_of_delta():
    clean, stray = [gaussian(times=10)], [gaussian(times=10, failure=1e-12)]
    found = spent(stray, 1e-5)
    at = epsilon(clean, 1e-5)
    assert found.failure == pytest.approx(10 * 1e-12 * (1 + math.exp(at + 1)))
    assert found.epsilon == epsilon(clean, 1e-5 - found.failure) > at
    more = delta(stray, 2.0) - delta(clean, 2.0)
    assert more == pytest.approx(1e-11 * (1 + math.exp(2.0)), rel=1e-3)
    # What is set aside is enough for the epsilon that is claimed.
    assert delta(stray, found.epsilon) <= 1e-5
    assert epsilon([gaussian(failure=1e-4)], 1e-5) == math.inf
    assert delta([gaussian(failure=0.9)], 2.0) == 1.0


def test_noise_is_calibrated_to_an_epsilon():
    def run(z):
        return [gaussian(z, sampling=Poisson(rate=0.01), times=300), gaussian(10 * z)]

    z = noise_multiplier(run, 1.0, 1e-5)
    assert epsilon(run(z), 1e-5) <= 1.0 < epsilon(run(z * 0.998), 1e-5)


def test_integer_noise_is_calibrated_as_well():
    l2, l1 = mechanisms.rounded_norms(100.0, 256)

    def run(z):
        share = {"variance": (100.0 * z) ** 2 / 20, "shares": 20, "dimension": 256}
        return [Skellam(**ONE, **share, l2=l2, l1=l1, sampling=TENTH, times=50)]

    z = noise_multiplier(run, 2.0, 1e-5)
    assert epsilon(run(z), 1e-5) <= 2.0 < epsilon(run(z * 0.998), 1e-5)


def test_a_target_out_of_reach_is_refused():
    with pytest.raises(PrivacyError, match="no noise"):
        noise_multiplier(lambda z: [gaussian(z), Exact(**ONE)], 1.0, 1e-5)


def test_little_noise_is_accounted_for_in_bounded_memory():
    """On a grid that is wider then, and says so."""
    found = spent([gaussian(0.02, sampling=TENTH)], 1e-5)
    assert found.discretisation > 1e-4
    assert 1e3 < found.epsilon < epsilon([gaussian(0.02)], 1e-5)
