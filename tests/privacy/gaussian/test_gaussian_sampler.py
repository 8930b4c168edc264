"""Discrete Gaussian variates: their law exactly, by enumeration, and by tests of fit."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedveil.privacy.gaussian.sampler import GaussianLaw, draw_gaussian
from fedveil.privacy.gaussian.tables import part_tables
from fedveil.privacy.randomness import SecureGenerator
from tests.privacy.gaussian.test_gaussian_tables import odds_of

COUNT = 1_000_000
LAWS = [GaussianLaw(2.0**19), GaussianLaw(1.4 * 2.0**19), GaussianLaw(2.0**26 - 1)]


def fit(draws: np.ndarray, std: float) -> float:
    """Return the p-value of a chi-square test in 1000 bins of equal odds."""
    edges = stats.norm(scale=std).ppf(np.linspace(0.0, 1.0, 1001)[1:-1])
    found = np.bincount(np.searchsorted(edges, draws), minlength=1000)
    return float(stats.chisquare(found).pvalue)


@pytest.mark.parametrize("law", LAWS)
def test_variates_follow_the_normal_law(law: GaussianLaw) -> None:
    draws = SecureGenerator.from_seed("law", str(law.std)).gaussian(COUNT, law)
    assert draws.dtype == law.dtype
    assert np.array_equal(draws, np.rint(draws))
    assert fit(draws, law.std) > 1e-6
    z = draws.astype(np.float64) / law.std
    assert stats.kstest(z, "norm").pvalue > 1e-6
    # Of the k-th power of a normal variate: E z^2 = 1, E z^4 = 3, E z^6 = 15, E z^8 = 105.
    assert abs(z.mean()) < 5.0 / math.sqrt(COUNT)
    assert abs((z**2).mean() - 1.0) < 5.0 * math.sqrt(2.0 / COUNT)
    assert abs((z**4).mean() - 3.0) < 5.0 * math.sqrt(96.0 / COUNT)
    for far in (3.0, 4.0):
        found = int((np.abs(z) > far).sum())
        assert stats.binomtest(found, COUNT, 2.0 * stats.norm.sf(far)).pvalue > 1e-6


def test_the_test_of_fit_sees_two_per_cent() -> None:
    law = LAWS[0]
    draws = SecureGenerator.from_seed("off").gaussian(COUNT, law)
    assert fit(draws, 1.02 * law.std) < 1e-6


@pytest.mark.parametrize("law", LAWS)
def test_variates_are_independent_of_one_another(law: GaussianLaw) -> None:
    draws = SecureGenerator.from_seed("corr").gaussian(COUNT, law).astype(np.float64)
    for lag in (1, 2, 32768):
        for one in (draws, np.abs(draws)):
            assert abs(np.corrcoef(one[:-lag], one[lag:])[0, 1]) < 5.0 / math.sqrt(COUNT - lag)


@pytest.mark.parametrize("std", [2.0**19, 2.0**20 - 1])
def test_the_sum_of_parts_has_the_law_to_110_bits(std: float) -> None:
    # All the ways in which two parts make an integer, the tables' own odds: what is lost by
    # taking a sum for the law itself shows in the ratio to it, wherever one looks.
    mpmath.mp.dps = 60
    law = GaussianLaw(std)
    odds = {
        k: mpmath.mpf(p.numerator) / p.denominator
        for k, p in odds_of(part_tables(law.part_std)).items()
    }
    largest, ratio = max(odds), 64
    whole_std = mpmath.mpf(law.part_std) * mpmath.sqrt(1 + ratio**2)
    # Poisson's summation: the masses of a law this wide add up to std sqrt(2 pi).
    height = 1 / (whole_std * mpmath.sqrt(2 * mpmath.pi))
    for z in [0, 1, 31, 32, 33, 63, 64, 1000, 7777, 3 * int(whole_std) + 5, -5 * int(whole_std)]:
        above = range(math.ceil((z - largest) / ratio), math.floor((z + largest) / ratio) + 1)
        found = sum(
            (odds[z - ratio * x] * odds[x] for x in above if abs(x) <= largest), mpmath.mpf(0)
        )
        expected = height * mpmath.exp(-mpmath.mpf(z * z) / (2 * whole_std**2))
        assert abs(found / expected - 1) < mpmath.mpf(2) ** -90
        assert abs(found - expected) < mpmath.mpf(2) ** -110 * height


def test_parts_are_wide_enough_for_their_sums() -> None:
    # Micciancio & Walter's condition, as the distance of the sum from the law.
    for std in (2.0**19, 2.0**25):
        law = GaussianLaw(std)
        one, other = law.part_std, 64 * law.part_std
        joint = 1.0 / math.hypot(1.0 / one, 1.0 / other)
        off_by = 2.0 * math.exp(-2.0 * math.pi**2 * (joint / 64) ** 2)
        assert (law.parts - 1) * off_by < 2.0**-111
        sum_std = law.part_std * math.sqrt(sum(64 ** (2 * i) for i in range(law.parts)))
        assert sum_std == pytest.approx(std, rel=1e-15)


def test_three_parts_fit_into_float32() -> None:
    law = GaussianLaw(2.0**20 - 1)
    largest = len(part_tables(law.part_std).rest.high) - 1
    assert law.parts == 3
    assert largest * (1 + 64 + 64**2) < 2**24


def test_variates_are_the_parts_that_the_keystream_picks() -> None:
    law, count = LAWS[0], 501
    first, second = part_tables(law.part_std).tables
    generator = SecureGenerator(bytes(32))
    parts = first[generator.octets(6 * count).view("<u2")]
    left = np.flatnonzero(np.isnan(parts))
    parts[left] = again = second[generator.octets(2 * len(left)).view("<u2")]
    assert not np.isnan(again).any(), "choose another count"
    x0, x1, x2 = parts.reshape(3, count).astype(np.int64)
    drawn = SecureGenerator(bytes(32)).gaussian(count, law)
    assert np.array_equal(drawn, x0 + 64 * x1 + 4096 * x2)


def test_known_variates() -> None:
    # Whoever changes these changes what an insecure seed draws.
    drawn = SecureGenerator(bytes(32)).gaussian(4, GaussianLaw(2.0**19))
    assert drawn.tolist() == KNOWN


KNOWN = [-43863, 1311633, -178519, 579234]


@settings(max_examples=25)
@given(st.integers(1, 40), st.sampled_from([1, 31, 300, 5000]), st.sampled_from(LAWS))
def test_many_keystreams_draw_what_each_draws_alone(
    many: int, count: int, law: GaussianLaw
) -> None:
    together, alone = (
        [SecureGenerator.from_seed("many", i) for i in range(many)] for _ in range(2)
    )
    for _ in range(2):
        drawn = draw_gaussian(together, count, law)
        assert drawn.shape == (many, count)
        for row, one in zip(drawn, alone, strict=True):
            assert np.array_equal(row, draw_gaussian([one], count, law)[0])
    for one, other in zip(together, alone, strict=True):
        assert one.words(1) == other.words(1)
