"""The tables against the true law: small laws enumerated exactly, large ones where one looks."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedveil.privacy.gaussian.sampler import GaussianLaw
from fedveil.privacy.gaussian.tables import BlockTables, Tops, block_tables

SMALL = [(16.0, 1), (50.0, 2), (181.3, 8), (300.5, 16)]
LARGE = [2.0**19, 1.4 * 2.0**19, 2.0**20 - 1, 2.0**26 - 1]

mpmath.mp.dps = 60


def odds_of(tops: Tops) -> dict[int, Fraction]:
    """Return the odds of each block that open cells lead to, b + 1 with a sign."""
    odds: dict[int, Fraction] = {}
    weight = Fraction(1)
    for table in tops.tables:
        assert table.shape == (65536,)
        known = table[~np.isnan(table)]
        for value, cells in zip(*np.unique(known, return_counts=True), strict=True):
            share = weight * Fraction(int(cells), 65536)
            odds[int(value)] = odds.get(int(value), Fraction(0)) + share
        weight *= Fraction(len(table) - len(known), 65536)
    below = 0
    for k, (high, low) in enumerate(zip(tops.rest.high, tops.rest.low, strict=True)):
        threshold = int(high) << 64 | int(low)
        for value in (k, -k):
            share = weight * Fraction(threshold - below, 2**128)
            odds[value] = odds.get(value, Fraction(0)) + share
        below = threshold
    return odds


def real(fraction: Fraction) -> mpmath.mpf:
    return mpmath.mpf(fraction.numerator) / fraction.denominator


def true_odds(std: float, k: int) -> mpmath.mpf:
    """Return the odds of an integer; those of 0 are shared by the blocks of either sign."""
    # Poisson's summation: the masses of a law this wide add up to std sqrt(2 pi).
    std = mpmath.mpf(std)
    return mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * std**2)) / (std * mpmath.sqrt(2 * mpmath.pi))


def rejected(tables: BlockTables, block: int, offset: int) -> mpmath.mpf:
    """Return the odds with which what is below the top must be drawn again."""
    tops, std = tables.tops, tables.tops.std
    first = block * tops.width
    top = true_odds(std, first)
    taken = mpmath.mpf(tops.shares[block]) / (65536 * tops.width)
    height = true_odds(std, first + offset) / (1 if first + offset else 2)
    return (top - height) / (top - taken)


@pytest.mark.parametrize(("std", "width"), SMALL)
def test_what_is_drawn_is_within_two_to_the_minus_114_of_the_law(std: float, width: int) -> None:
    tables = block_tables(std, width)
    found: dict[int, mpmath.mpf] = {}
    starts = tables.first[~np.isnan(tables.first)]
    for start, cells in zip(*np.unique(starts, return_counts=True), strict=True):
        for k in range(int(start), int(start) + width):
            found[k] = found.get(k, mpmath.mpf(0)) + mpmath.mpf(int(cells)) / (65536 * width)
    blocks = odds_of(tables.tops)
    assert sum(blocks.values()) == 1
    assert blocks.pop(0, 0) == 0
    accepted: dict[int, mpmath.mpf] = {}
    for signed, odds in blocks.items():
        block, sign = abs(signed) - 1, 1 if signed > 0 else -1
        for offset in range(width):
            k = sign * (block * width + offset)
            stays = real(odds) / width * (1 - rejected(tables, block, offset))
            accepted[k] = accepted.get(k, mpmath.mpf(0)) + stays
    is_open = mpmath.mpf(65536 - len(starts)) / 65536
    whole = sum(accepted.values())
    for k, odds in accepted.items():
        found[k] = found.get(k, mpmath.mpf(0)) + is_open * odds / whole
    distances = [abs(odds - true_odds(std, k)) for k, odds in found.items()]
    beyond = 1 - sum(true_odds(std, k) for k in found)
    assert (sum(distances) + abs(beyond)) / 2 < mpmath.mpf(2) ** -114
    # Where odds are not tiny the ratio is right too, to far below any epsilon.
    for k, odds in found.items():
        if true_odds(std, k) > mpmath.mpf(2) ** -60:
            assert abs(mpmath.log(odds / true_odds(std, k))) < 1e-15


@pytest.mark.parametrize("std", LARGE)
def test_no_integer_has_more_cells_than_odds_and_tops_have_what_is_left(std: float) -> None:
    tables = GaussianLaw(std).tables
    tops, width = tables.tops, tables.width
    assert tables.first.shape == (65536,)
    odds = odds_of(tops)
    is_open = mpmath.mpf(int(np.isnan(tables.first).sum())) / 65536
    above = {
        block: width * (true_odds(std, block * width) - mpmath.mpf(share) / (65536 * width))
        for block, share in enumerate(tops.shares)
    }
    whole = 2 * sum(above.values())
    counted = dict(zip(*np.unique(tables.first, return_counts=True), strict=True))
    for block, share in enumerate(tops.shares):
        start = block * width
        assert counted.get(start, 0) == counted.get(1 - width - start, 0) == share
        least = true_odds(std, start + width - 1) if block else true_odds(std, 0) / 2
        assert mpmath.mpf(share) / (65536 * width) <= least
        for sign in (1, -1):
            distance = abs(real(odds[sign * (block + 1)]) - above[block] / whole)
            assert distance < mpmath.mpf(2) ** -120
    assert is_open < 0.04
    # The least likely integers that are left out.
    assert tops.width * len(tops.shares) > 12.5 * std


@given(st.sampled_from(LARGE), st.data())
def test_odds_of_a_rejection_are_right_to_45_bits(std: float, data: st.DataObject) -> None:
    tables = GaussianLaw(std).tables
    blocks = st.integers(0, len(tables.tops.shares) - 1)
    block = data.draw(st.sampled_from([0, 1, 255, 600]) | blocks)
    offset = data.draw(st.sampled_from([0, 1]) | st.integers(0, tables.width - 1))
    odds = float(tables.tops.rejected(np.array([block]), np.array([offset]))[0])
    exact = rejected(tables, block, offset)
    assert 0 <= exact <= 1
    assert abs(odds - exact) < 2.0**-45
    bits = 150
    at = int(exact * mpmath.mpf(2) ** bits)
    if 1 < at < 2**bits:
        assert tables.tops.is_rejected(block, offset, at - 1, bits)
    assert not tables.tops.is_rejected(block, offset, at + 2, bits)


def test_open_cells_of_tops_are_few_too() -> None:
    for std in LARGE:
        for table in GaussianLaw(std).tables.tops.tables:
            assert np.isnan(table).mean() < 0.05
