from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest

from hansa.secure import graph
from hansa.secure.terms import Rules


@pytest.mark.parametrize(
    ("n", "dropout", "degree"),
    [(300, 0.1, (56, 35)), (300, 0.3, (106, 48)), (1000, 0.1, (74, 45)), (1000, 0.3, (158, 72))],
)
def test_the_known_degrees_against_a_curious_coordinator(n, dropout, degree):
    """A fifth corrupt, privacy 2^-40, failure 2^-30."""
    assert graph.degrees(n, n // 5, dropout, "curious") == degree


@pytest.mark.parametrize(
    ("n", "dropout", "degree"),
    [(300, 0.1, (72, 40)), (300, 0.3, (148, 56)), (1000, 0.1, (184, 80)), (1000, 0.3, (444, 140))],
)
def test_a_malicious_coordinator_takes_more(n, dropout, degree):
    """The table in docs/secure-aggregation.md."""
    assert graph.degrees(n, n // 5, dropout, "malicious") == degree


def test_a_malicious_coordinator_cannot_cut_anybody_off_with_the_losses_it_may_claim():
    """Why the curious degree does not do: with 30% of 1000, it calls all honest neighbours of one lost."""
    n, corrupt, dropout = 1000, 200, 0.3
    k, _ = graph.degrees(n, corrupt, dropout, "curious")
    assert k <= graph.lost(n, dropout)
    k, _ = graph.degrees(n, corrupt, dropout, "malicious")
    assert k - graph.lost(n, dropout) > 0
    draw = np.random.default_rng(0)
    around = graph.neighbours(n, k, b"s" * 32)
    for _ in range(200):
        bad = np.zeros(n, bool)
        bad[draw.choice(n, corrupt, replace=False)] = True
        assert (k - bad[around].sum(axis=1)).min() > graph.lost(n, dropout)


def test_the_tail_is_the_hypergeometric_one():
    for n, marked, drawn in [(10, 4, 5), (7, 7, 3), (9, 2, 8), (6, 0, 3)]:
        for least in range(drawn + 2):
            every = list(combinations(range(n), drawn))
            hits = sum(sum(i < marked for i in one) >= least for one in every)
            assert graph._tail(n, marked, drawn, least) == float(Fraction(hits, len(every)))
    assert graph._tail(1000, 200, 74, 45) == pytest.approx(
        sum(Fraction(comb(200, j) * comb(800, 74 - j), comb(1000, 74)) for j in range(45, 75)), rel=1e-12
    )


@pytest.mark.parametrize(("n", "k"), [(120, 34), (9, 4), (30, 2)])
def test_the_regular_graph_is_regular_symmetric_and_parted_by_k_only(n, k):
    around = graph.neighbours(n, k, b"s" * 32)
    assert around.shape == (n, k)
    sets = [set(row.tolist()) for row in around]
    assert all(len(row) == k and i not in row for i, row in enumerate(sets))
    assert all(i in sets[j] for i in range(n) for j in sets[i])
    assert (np.diff(around, axis=1) > 0).all()
    if n <= 9:  # Harary: no k - 1 parties part it, some k do

        def connected(gone):
            left = set(range(n)) - set(gone)
            seen, front = set(), {min(left)}
            while front:
                seen |= front
                front = {j for i in front for j in sets[i]} & left - seen
            return seen == left

        assert all(connected(gone) for gone in combinations(range(n), k - 1))
        assert not all(connected(gone) for gone in combinations(range(n), k))


def test_the_graph_follows_from_its_seed():
    one, other = (graph.neighbours(120, 34, bytes([i]) * 32) for i in (1, 2))
    assert np.array_equal(one, graph.neighbours(120, 34, b"\1" * 32))
    assert not np.array_equal(one, other)
    # Every pair is as likely: k / (n - 1) of 200 draws, within six standard deviations.
    met = sum(3 in graph.neighbours(120, 34, i.to_bytes(32, "big"))[7] for i in range(1, 201))
    p = 34 / 119
    assert abs(met - 200 * p) < 6 * (200 * p * (1 - p)) ** 0.5


def test_everyone_gets_what_was_for_them():
    for n, k in [(8, 7), (11, 4)]:
        around = graph.neighbours(n, k, b"s" * 32)
        sent = np.array([[[i, j] for j in row] for i, row in enumerate(around)]).reshape(-1, 2)
        for i, where in enumerate(graph.edges(around)):
            assert sent[where].tolist() == [[j, i] for j in around[i]]


def test_small_rosters_are_complete_and_large_ones_where_they_must_be():
    assert Rules(dropout=0.1).numbers(100).degree == 99
    assert Rules(dropout=0.1, corrupt=20).numbers(101).degree < 100
    assert Rules(dropout=0.1, corrupt=20, graph="complete").numbers(101).degree == 100
    assert Rules(dropout=0.1, corrupt=2, graph="regular").numbers(50).degree < 49
    assert graph.degrees(5, 3, 0.4, "malicious") == (4, 3)


def test_the_numbers_of_a_small_roster_by_hand():
    """Ten parties, two collude, 20% drop out: T above 6, t as many as stay, 8 survivors."""
    assert Rules(corrupt=2, dropout=0.2).numbers(10) == (9, 8, 7, 8)
    assert Rules(corrupt=0, dropout=0.0, honest=2).numbers(3) == (2, 2, 2, 3)
