"""The tables of a part against the true law, enumerated exactly."""

from fractions import Fraction

import mpmath
import numpy as np
import pytest

from fedveil.privacy.gaussian.sampler import GaussianLaw
from fedveil.privacy.gaussian.tables import PartTables, part_tables

STDS = [1.5, GaussianLaw(2.0**19).part_std, 181.3, GaussianLaw(2.0**20 - 1).part_std]


def odds_of(law: PartTables) -> dict[int, Fraction]:
    """Return the odds of each integer that is ever drawn, as the tables have them."""
    odds: dict[int, Fraction] = {}
    weight = Fraction(1)
    for table in law.tables:
        assert table.shape == (65536,)
        known = table[~np.isnan(table)]
        for value, cells in zip(*np.unique(known, return_counts=True), strict=True):
            share = weight * Fraction(int(cells), 65536)
            odds[int(value)] = odds.get(int(value), Fraction(0)) + share
        weight *= Fraction(len(table) - len(known), 65536)
    below = 0
    for k, (high, low) in enumerate(zip(law.rest.high, law.rest.low, strict=True)):
        threshold = int(high) << 64 | int(low)
        for value in (k, -k):
            share = weight * Fraction(threshold - below, 2**128)
            odds[value] = odds.get(value, Fraction(0)) + share
        below = threshold
    return odds


def true_odds(std: float, largest: int) -> dict[int, mpmath.mpf]:
    """Return the odds of the discrete Gaussian law, to 60 digits; those beyond 20 are nothing."""
    mpmath.mp.dps = 60
    weights = {
        k: mpmath.exp(-mpmath.mpf(k * k) / (2 * mpmath.mpf(std) ** 2)) for k in range(largest + 1)
    }
    tail = mpmath.nsum(
        lambda k: mpmath.exp(-k * k / (2 * mpmath.mpf(std) ** 2)),
        [largest + 1, largest + 8 * int(std + 1)],
    )
    whole = 2 * sum(weights.values()) - 1 + 2 * tail
    return {k: weights[abs(k)] / whole for k in range(-largest, largest + 1)}


@pytest.mark.parametrize("std", STDS)
def test_the_tables_are_within_two_to_the_minus_114_of_the_law(std: float) -> None:
    found = odds_of(part_tables(std))
    assert sum(found.values()) == 1
    true = true_odds(std, max(found))
    distances = [
        abs(mpmath.mpf(found[k].numerator) / found[k].denominator - p) for k, p in true.items()
    ]
    beyond = 1 - sum(true.values())
    assert (sum(distances) + beyond) / 2 < mpmath.mpf(2) ** -114
    # Where odds are not tiny the ratio is right too, to far below any epsilon.
    for k, p in true.items():
        if p > mpmath.mpf(2) ** -60:
            assert (
                abs(mpmath.log(mpmath.mpf(found[k].numerator) / found[k].denominator / p)) < 1e-15
            )


def test_parts_are_symmetric() -> None:
    found = odds_of(part_tables(STDS[1]))
    assert all(found[k] == found[-k] for k in found)


def test_no_zero_has_a_sign() -> None:
    # The sum of a zero beneath the noise and of no noise would show which zero it was.
    for table in part_tables(STDS[1]).tables:
        assert not np.signbit(table[table == 0.0]).any()


def test_few_cells_are_open() -> None:
    for std in STDS[1:]:
        assert np.isnan(part_tables(std).tables[0]).mean() < 0.016
