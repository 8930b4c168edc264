"""What is said of Skellam beside rounded Gaussian noise, against both laws themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special, stats

from fedveil.privacy.accounting import IntegerSensitivity, Release, pld_epsilon
from fedveil.privacy.skellam.near_gaussian import SkellamNoise, log_ratio_bound

Floats = NDArray[np.float64]
VARIANCES = [3.0, 40.0, 700.0, 2e4, 3e6]


def skellam(k: NDArray[np.int_], variance: float) -> Floats:
    found: Floats = np.log(special.ive(np.abs(k), variance))
    return found


def rounded(k: NDArray[np.int_], variance: float) -> Floats:
    """Return log P(round(X) = k) of a Gaussian X, from the tail, where it is exact."""
    low, high = (np.abs(k) - 0.5) / math.sqrt(variance), (np.abs(k) + 0.5) / math.sqrt(variance)
    near, far = stats.norm.logsf(low), stats.norm.logsf(high)
    found: Floats = near + np.log(-np.expm1(far - near))
    return found


@pytest.mark.parametrize("variance", VARIANCES)
def test_the_log_ratio_varies_within_its_range_and_the_range_is_not_wide(variance: float) -> None:
    noise = SkellamNoise(variance, 1)
    for deviations in (1.0, 3.0, 8.0):
        reach = max(1, int(deviations * math.sqrt(variance)))
        k = np.arange(reach + 1)
        ratio = skellam(k, variance) - rounded(k, variance)
        # What SciPy leaves of a Bessel function's logarithm.
        blur = 4e-12 * max(1.0, float(np.abs(skellam(k, variance)).max()))
        width = float(ratio.max() - ratio.min())
        assert width <= noise.log_ratio_range(reach) + blur
        above, below = reach**4 / (24 * variance**3), 5 * reach * (reach + 1) / (8 * variance**2)
        assert np.all(ratio - ratio[0] <= above + blur)
        assert np.all(ratio - ratio[0] >= -below - blur)
        if deviations == 8.0 and variance >= 700.0:
            assert width >= 0.5 * noise.log_ratio_range(reach) - blur


@pytest.mark.parametrize("variance", VARIANCES)
def test_no_moment_is_larger_than_the_bound(variance: float) -> None:
    reach = int(20 * math.sqrt(variance)) + 20
    k = np.arange(-reach, reach + 1)
    ratio = skellam(k, variance) - rounded(k, variance)
    from_middle = np.square(ratio - ratio[reach])
    for law in (skellam, rounded):
        odds = np.exp(law(k, variance))
        likely = odds > 1e-30
        mean = float(np.sum((odds * from_middle)[likely]))
        assert mean <= SkellamNoise(variance, 1).log_ratio_square() * (1 + 1e-6)


@given(st.floats(0.5, 1e6), st.integers(4, 60))
def test_both_laws_stay_within_reach(variance: float, bits: int) -> None:
    reach = SkellamNoise(variance, 1).reach(bits)
    assert 2.0 * stats.norm.sf((math.floor(reach) + 0.5) / math.sqrt(variance)) <= 2.0**-bits
    # P(X > m) of Skellam noise by the exact law, as far as it is summed.
    k = np.arange(math.floor(reach) + 1, math.floor(reach) + 2000)
    assert 2.0 * float(np.sum(special.ive(k, variance))) <= 2.0**-bits


def log_ratios(variance: float) -> tuple[Floats, Floats, Floats]:
    """Return the log-ratio of every likely integer, and its odds under both laws."""
    reach = int(14 * math.sqrt(variance)) + 20
    k = np.arange(-reach, reach + 1)
    p, q = skellam(k, variance), rounded(k, variance)
    return p - q, np.exp(p), np.exp(q)


@pytest.mark.parametrize("variance", [40.0, 700.0, 2e4])
@pytest.mark.parametrize("log_odds", [-3.0, -8.0, -20.0])
def test_one_variate_passes_the_bound_with_the_odds_only(variance: float, log_odds: float) -> None:
    ratio, p, q = log_ratios(variance)
    bound = log_ratio_bound([SkellamNoise(variance, 1)], log_odds)
    assert float(np.sum(p[ratio > bound])) <= math.exp(log_odds)
    assert float(np.sum(q[-ratio > bound])) <= math.exp(log_odds)


@pytest.mark.parametrize("counts", [(3000, 0), (500, 2500)])
def test_many_variates_pass_the_bound_with_the_odds_only_and_it_is_no_idle_one(
    counts: tuple[int, int],
) -> None:
    random = np.random.default_rng(7)
    kinds = [SkellamNoise(v, n) for v, n in zip((2e4, 5e4), counts, strict=True)]
    bound = log_ratio_bound(kinds, math.log(0.01))
    sums = np.zeros((2, 2000))
    for kind in kinds:
        ratio, p, q = log_ratios(kind.variance)
        for side, (odds, sign) in enumerate(((p, 1.0), (q, -1.0))):
            # The counts of each value are multinomial: no need for every variate.
            drawn = random.multinomial(kind.variates, odds / odds.sum(), size=2000)
            sums[side] += sign * (drawn @ np.where(odds > 0, ratio, 0.0))
    assert np.all(np.mean(sums > bound, axis=1) <= 0.01)
    # It is a bound for odds as small as delta, and no estimate.
    assert bound <= 100.0 * float(np.std(sums[0]))


def test_more_noise_and_fewer_variates_are_nearer() -> None:
    def bound(variance: float, variates: int, log_odds: float = -30.0) -> float:
        return log_ratio_bound([SkellamNoise(variance, variates)], log_odds)

    assert bound(1e6, 100) < bound(1e5, 100) < bound(1e5, 1000)
    assert bound(1e5, 100) < bound(1e5, 100, -60.0)
    # Twice the variates are two kinds, and none are none.
    twice = log_ratio_bound([SkellamNoise(1e5, 100), SkellamNoise(1e5, 100)], -30.0)
    assert twice == pytest.approx(bound(1e5, 200), rel=1e-12)
    assert log_ratio_bound([SkellamNoise(1e5, 0)], -30.0) == 0.0


def test_what_overflows_is_no_bound() -> None:
    assert log_ratio_bound([SkellamNoise(1e-200, 5)], -30.0) == math.inf
    assert log_ratio_bound([SkellamNoise(1e200, 5)], -30.0) == math.inf


@pytest.mark.parametrize("shift", [(300,), (3000,), (60, -80), (70, 70)], ids=str)
@pytest.mark.parametrize("rate", [0.05, 0.5, 1.0])
def test_epsilon_lies_above_the_exact_one(shift: tuple[int, ...], rate: float) -> None:
    """Of a release whose every outcome is enumerated: no shift is told apart better than said."""
    l2 = math.sqrt(sum(x * x for x in shift))
    variance = (1.1 * l2) ** 2
    release = Release(rate, 1.1, 1, IntegerSensitivity(float(sum(map(abs, shift))), l2, len(shift)))
    reach = math.ceil(7 * math.sqrt(variance)) + max(shift)
    k = np.arange(-reach, reach + 1)
    still, moved = np.zeros(1), np.zeros(1)
    for step in shift:
        still = np.add.outer(still, skellam(k, variance)).ravel()
        moved = np.add.outer(moved, skellam(k - step, variance)).ravel()
    mixed = moved
    if rate < 1.0:
        mixed = np.logaddexp(math.log1p(-rate) + still, math.log(rate) + moved)

    def delta(epsilon: float) -> float:
        def one_way(first: Floats, second: Floats) -> float:
            over = first - second > epsilon
            loss = (first - second)[over]
            return float(np.sum(np.exp(first[over]) * -np.expm1(epsilon - loss)))

        return max(one_way(mixed, still), one_way(still, mixed))

    ours = pld_epsilon([release], 1e-5)
    assert delta(ours) <= 1e-5
    # The nearer the more integers the noise spans.
    assert delta(0.98 * ours - (2.0 if l2 < 200.0 else 0.03)) > 1e-5
