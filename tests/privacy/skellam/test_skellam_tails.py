"""Tail bounds against exact tails and against simulated sums."""

import math

import numpy as np
import pytest
from scipy import special, stats

from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam.rotation import block_size, rotate
from fedveil.privacy.skellam.sampler import draw_skellam
from fedveil.privacy.skellam.tails import log_tail, reach, wrap_bound


def exact_tail(threshold: int, variance: float) -> float:
    """Return P(X >= threshold) as the sum of exp(-v) I_k(v): SciPy's own is one minus the rest."""
    k = np.arange(threshold, threshold + math.ceil(15 * math.sqrt(variance)) + 60)
    return float(np.sum(special.ive(k, variance)))


@pytest.mark.parametrize("variance", [0.01, 1.0, 50.0, 1e6])
@pytest.mark.parametrize("deviations", [0.5, 2.0, 5.0, 8.0])
def test_the_skellam_tail_is_bounded_and_not_by_much(variance: float, deviations: float) -> None:
    threshold = math.ceil(deviations * math.sqrt(variance))
    exact = exact_tail(threshold, variance)
    bound = math.exp(log_tail(threshold, variance))
    assert exact <= bound * (1 + 1e-9)
    # Chernoff loses a factor of about the number of deviations, or the lattice's.
    assert bound <= exact * 60 * max(1.0, deviations)


def test_the_tail_of_a_sum_with_a_gaussian_is_bounded() -> None:
    # A Gaussian is sub-Gaussian, and a wide Skellam variate is nearly one.
    variance, spread = 1e4, 3e4
    for deviations in (1.0, 3.0, 6.0):
        exact = stats.norm.sf(deviations)
        bound = math.exp(log_tail(deviations * 200.0, variance, spread))
        assert exact <= bound <= 20 * exact


def test_nothing_is_said_of_thresholds_at_or_below_zero() -> None:
    assert log_tail(0.0, 1.0) == log_tail(-5.0, 1.0) == 0.0


@pytest.mark.parametrize("variance", [1e-6, 0.3, 40.0, 1e8])
def test_reach_is_passed_with_lower_odds_than_it_says(variance: float) -> None:
    found = reach(variance, 40)
    assert 2 * exact_tail(found, variance) < 2.0**-40
    # Magnitudes far below it are not that rare, or the table would be too long.
    assert 2 * exact_tail(int(0.85 * found) - 1, variance) > 2.0**-40


@pytest.mark.parametrize("signal", ["one coordinate", "even", "last block"])
def test_sums_pass_the_limit_no_more_often_than_bounded(signal: str) -> None:
    dimension, norm, variance, trials = 300, 2000.0, 900.0, 400
    vector = np.zeros(dimension)
    if signal == "one coordinate":
        vector[7] = norm
    elif signal == "even":
        vector[:] = norm / math.sqrt(dimension)
    else:
        vector[256:] = norm / math.sqrt(dimension - 256)
    generator = SecureGenerator.from_seed("wrap", signal)
    share = 1.0 / block_size(dimension)
    largest = np.array(
        [
            np.abs(
                rotate(vector, trial.to_bytes(4)) + draw_skellam(dimension, variance, generator)
            ).max()
            for trial in range(trials)
        ]
    )
    for limit in (300.0, 400.0, 500.0, 600.0, 700.0):
        passed = np.mean(largest >= limit)
        error = 4 * math.sqrt(0.25 / trials)
        assert passed <= wrap_bound(limit, norm, variance, dimension, share) + error
    # Not vacuous: what is bounded by one in a thousand is within twice what is seen.
    least = next(x for x in range(1, 10_000) if wrap_bound(x, norm, variance, 300, share) < 1e-3)
    assert least < 3 * np.quantile(largest, 0.99)


def test_a_small_sum_is_bounded_by_its_norm() -> None:
    assert wrap_bound(1e6, 10.0, 4.0, 10**6, 1.0) < 1e-300
    assert wrap_bound(10.0, 1e6, 4.0, 10, 1.0) == 1.0
