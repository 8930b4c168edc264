"""Skellam variates against SciPy's law, and the table against it to the last decided bit."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special, stats

from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam import sampler
from fedveil.privacy.skellam.errors import SkellamError
from fedveil.privacy.skellam.sampler import draw_skellam

COUNT = 400_000


class Words(SecureGenerator):
    """A generator that says what it is told."""

    def __init__(self, *values: int) -> None:
        super().__init__(bytes(32))
        self._left = list(values)

    def words(self, count: int) -> NDArray[np.uint64]:
        said, self._left = self._left[:count], self._left[count:]
        assert len(said) == count
        return np.array(said, dtype=np.uint64)


def chi_square(draws: NDArray[np.int64], variance: float) -> float:
    """Return the p-value of the draws under SciPy's law, in bins of at least 20 expected."""
    law = stats.skellam(variance / 2, variance / 2)
    reach = int(3.0 * math.sqrt(variance)) + 2
    step = max(1, reach // 40)
    edges = np.arange(-reach, reach + 1, step)
    expected = len(draws) * np.diff(np.concatenate([[0.0], law.cdf(edges), [1.0]]))
    found = np.bincount(np.searchsorted(edges, draws, side="left"), minlength=len(edges) + 1)
    keep = expected >= 20
    assert expected[keep].sum() > 0.99 * len(draws)
    pooled = (expected[~keep].sum(), found[~keep].sum())
    if pooled[0] >= 20:
        expected, found = np.append(expected[keep], pooled[0]), np.append(found[keep], pooled[1])
    else:
        expected, found = expected[keep], found[keep]
        expected = expected * found.sum() / expected.sum()
    return float(stats.chisquare(found, expected * found.sum() / expected.sum()).pvalue)


def masses(variance: float) -> tuple[list[int], list[int]]:
    """Return the thresholds, and 2^127 times the odds of each magnitude, as the table has them."""
    table = sampler._thresholds(variance)
    thresholds = [int(h) << 64 | int(x) for h, x in zip(table.high, table.low, strict=True)]
    return thresholds, [b - a for a, b in zip([0, *thresholds[:-1]], thresholds, strict=True)]


@pytest.mark.parametrize("variance", [0.3, 5.0, 400.0, 123_456.7])
def test_variates_follow_the_law(variance: float) -> None:
    draws = draw_skellam(COUNT, variance, SecureGenerator.from_seed("law", str(variance)))
    assert draws.dtype == np.int64
    assert chi_square(draws, variance) > 1e-3
    error = math.sqrt(variance / COUNT)
    assert abs(draws.mean()) < 4.5 * error
    # The fourth central moment is 3 v^2 + v.
    spread = math.sqrt((2 * variance**2 + variance) / COUNT)
    assert abs(draws.astype(float).var() - variance) < 4.5 * spread


def test_the_goodness_of_fit_sees_a_variance_that_is_two_per_cent_off() -> None:
    draws = draw_skellam(COUNT, 5.1, SecureGenerator.from_seed("off"))
    assert chi_square(draws, 5.0) < 1e-3


def test_variates_are_independent_of_one_another() -> None:
    draws = draw_skellam(COUNT, 9.0, SecureGenerator.from_seed("corr")).astype(float)
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4.5 / math.sqrt(COUNT)
    assert abs(np.corrcoef(np.abs(draws[:-1]), np.abs(draws[1:]))[0, 1]) < 4.5 / math.sqrt(COUNT)


def test_shares_add_up_to_one_variate_of_the_whole_variance() -> None:
    generator = SecureGenerator.from_seed("shares")
    total = sum(draw_skellam(COUNT, 40.0 / 7, generator) for _ in range(7))
    assert isinstance(total, np.ndarray)
    assert chi_square(total, 40.0) > 1e-3


def test_a_large_variance_is_the_sum_of_several_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampler, "LARGEST_TABLE_VARIANCE", 64.0)
    asked: list[float] = []
    real = sampler._thresholds
    monkeypatch.setattr(sampler, "_thresholds", lambda v: asked.append(v) or real(v))
    draws = draw_skellam(COUNT, 200.0, SecureGenerator.from_seed("parts"))
    assert asked == [50.0]
    assert chi_square(draws, 200.0) > 1e-3


@pytest.mark.parametrize("variance", [1e-3, 0.3, 5.0, 1000.0, 2.0**20])
def test_the_table_has_the_odds_of_each_magnitude(variance: float) -> None:
    thresholds, found = masses(variance)
    k = np.arange(len(found))
    expected = special.ive(k, variance) * np.where(k > 0, 2.0, 1.0)
    found_odds = np.array([mass / 2**127 for mass in found])
    seen = expected > 2.0**-70
    # Rounding a threshold is worth 2^-127 of odds; the rest is SciPy's own error.
    assert found_odds[seen] == pytest.approx(expected[seen], rel=1e-11)
    # Odds that the table leaves out stand at its end: below 2^-112.
    assert 0 < 2**127 - thresholds[-1] < 2 ** (127 - 112)
    assert thresholds == sorted(thresholds)


def test_the_table_is_symmetric_in_no_more_than_the_sign() -> None:
    # The tail of the binomial-like sum: sum over k of k^2 p_k is the variance, to 30 digits.
    _, found = masses(7.25)
    second = sum(k * k * mass for k, mass in enumerate(found))
    assert abs(second / 2**127 - 7.25) < 1e-14


def test_words_pick_the_magnitude_whose_odds_they_fall_into() -> None:
    thresholds, _ = masses(5.0)
    for k in (0, 1, 3, 6):
        edge = thresholds[k] >> 64
        below, above = (edge - 1) << 1, (edge + 1) << 1
        drawn = draw_skellam(4, 5.0, Words(below, above, below | 1, above | 1))
        assert drawn.tolist() == [k, k + 1, -k, -k - 1]


def test_a_second_word_decides_where_the_first_does_not() -> None:
    thresholds, _ = masses(5.0)
    for k in (0, 2, 5):
        edge, rest = thresholds[k] >> 64, thresholds[k] & (2**64 - 1)
        assert draw_skellam(1, 5.0, Words(edge << 1, rest - 1)).tolist() == [k]
        assert draw_skellam(1, 5.0, Words(edge << 1, rest)).tolist() == [k + 1]


def test_the_far_tail_is_reached_through_the_second_word() -> None:
    thresholds, _ = masses(5.0)
    first_word = 2**64 - 1
    nearest = next(k for k, t in enumerate(thresholds) if t >> 64 == 2**63 - 1)
    assert draw_skellam(1, 5.0, Words(first_word, 0)).tolist() == [-nearest]
    assert draw_skellam(1, 5.0, Words(first_word, 2**64 - 1)).tolist() == [-len(thresholds)]
    assert stats.skellam(2.5, 2.5).sf(nearest - 1) < 2.0**-62


def test_equal_keys_give_equal_variates_and_others_do_not() -> None:
    one, two, other = (
        draw_skellam(100_000, 30.0, SecureGenerator.from_seed(seed)) for seed in ("a", "a", "b")
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_none_are_drawn_where_none_are_wanted() -> None:
    assert draw_skellam(0, 1.0, SecureGenerator()).shape == (0,)


@pytest.mark.parametrize("variance", [0.0, -1.0, math.nan, math.inf, 2.0**39])
def test_impossible_variances_are_refused(variance: float) -> None:
    with pytest.raises(SkellamError, match="variance of noise must lie in"):
        draw_skellam(1, variance, SecureGenerator())
