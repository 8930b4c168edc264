"""Discrete Gaussian variates: their law exactly, by enumeration, and by tests of fit."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedveil.privacy.gaussian import sampler
from fedveil.privacy.gaussian.sampler import GaussianLaw, draw_gaussian
from fedveil.privacy.gaussian.tables import BlockTables, Tops, block_tables
from fedveil.privacy.randomness import SecureGenerator

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


def test_variates_of_the_smaller_laws_fit_into_float32() -> None:
    law = GaussianLaw(2.0**20 - 1)
    tops = law.tables.tops
    assert law.dtype is np.float32
    assert law.tables.first.dtype == np.float32
    assert tops.width * len(tops.shares) < 2**24


@pytest.mark.parametrize("law", LAWS)
def test_variates_are_the_blocks_and_offsets_that_the_keystream_picks(law: GaussianLaw) -> None:
    count, tables, generator = 5001, law.tables, SecureGenerator(bytes(32))
    offsets = generator.octets(4 * count if tables.width > 2**16 else 2 * count)
    offsets = offsets.view("<u4" if tables.width > 2**16 else "<u2") % tables.width
    picked = tables.first[generator.octets(2 * count).view("<u2")] + offsets
    drawn = SecureGenerator(bytes(32)).gaussian(count, law)
    is_known = ~np.isnan(picked)
    assert np.array_equal(drawn[is_known], picked[is_known])
    # The others are from the law of the tops: mostly within three standard deviations.
    others = np.abs(drawn[~is_known]) / law.std
    assert 0 < len(others) < 0.04 * count
    assert 0.3 < others.mean() < 3.0


def left_by_cells(tables: BlockTables) -> dict[int, float]:
    """Return the law of what the open cells lead to, integer by integer."""
    std, width = tables.tops.std, tables.width
    left = {}
    for block, share in enumerate(tables.tops.shares):
        for k in range(block * width, (block + 1) * width):
            odds = stats.norm.pdf(k, scale=std) / (1 if k else 2) - share / (65536 * width)
            for signed in (k, -k):
                left[signed] = left.get(signed, 0.0) + odds
    whole = sum(left.values())
    return {k: odds / whole for k, odds in left.items()}


@pytest.mark.parametrize(("doubt", "count", "coarse"), [(2.0**-40, 500_000, 1), (2.0, 20_000, 8)])
def test_what_cells_leave_is_accepted_by_the_law(
    monkeypatch: pytest.MonkeyPatch, doubt: float, count: int, coarse: int
) -> None:
    # In doubt, all of it is decided exactly.
    monkeypatch.setattr(sampler, "_DOUBT", doubt)
    tables = block_tables(300.5, 16)
    drawn = sampler._above([SecureGenerator.from_seed("left", count)], [count], tables.tops)
    expected: dict[int, float] = {}
    for k, odds in left_by_cells(tables).items():
        expected[k // coarse] = expected.get(k // coarse, 0.0) + count * odds
    found = Counter((drawn // coarse).astype(int).tolist())
    often = [k for k, mean in expected.items() if mean >= 10]
    rare = count - sum(expected[k] for k in often)
    seen = [found[k] for k in often]
    result = stats.chisquare([*seen, count - sum(seen)], [*(expected[k] for k in often), rare])
    assert result.pvalue > 1e-6


def test_without_rejection_the_test_of_the_law_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tops, "rejected", lambda _, blocks, __: np.zeros(blocks.shape))
    with pytest.raises(AssertionError):
        test_what_cells_leave_is_accepted_by_the_law(monkeypatch, 0.0, 500_000, 1)


def test_streams_of_other_lengths_draw_what_each_draws_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampler, "_DOUBT", 0.01)
    counts, tops = [400, 0, 300], LAWS[0].tables.tops
    together, alone = ([SecureGenerator.from_seed("doubt", i) for i in range(3)] for _ in range(2))
    drawn = np.split(sampler._above(together, counts, tops), [400, 400])
    for row, one, count in zip(drawn, alone, counts, strict=True):
        if count:
            assert np.array_equal(row, sampler._above([one], [count], tops))


@pytest.mark.parametrize("std", [2.0**12 - 1, 2.0**26, math.nan])
def test_laws_without_tables_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match="no tables have the standard deviation"):
        GaussianLaw(std)


def test_no_zero_has_a_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    # The sum of a zero beneath the noise and of no noise would show which zero it was.
    monkeypatch.setattr(Tops, "rejected", lambda _, blocks, __: np.zeros(blocks.shape))
    monkeypatch.setattr(sampler, "_DOUBT", 0.0)
    tops = block_tables(16.0, 1).tops
    drawn = sampler._above([SecureGenerator.from_seed("zeros")], [5000], tops)
    assert (drawn == 0.0).any()
    assert not np.signbit(drawn[drawn == 0.0]).any()
    for law in LAWS:
        width = law.tables.width
        for start in (0, 1 - width):
            assert not np.signbit(law.dtype(start) + law.dtype(0 if start == 0 else width - 1))


def test_known_variates() -> None:
    # Whoever changes these changes what an insecure seed draws.
    drawn = SecureGenerator(bytes(32)).gaussian(4, GaussianLaw(2.0**19))
    assert drawn.tolist() == KNOWN


KNOWN = [-193059, 53440, 370850, 381321]


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
