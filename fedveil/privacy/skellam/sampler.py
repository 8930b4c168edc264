"""Skellam variates from a cryptographic keystream, through a table of 127-bit thresholds."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam.errors import SkellamError
from fedveil.privacy.skellam.tails import reach
from fedveil.privacy.thresholds import Thresholds

__all__ = ["LARGEST_TABLE_VARIANCE", "LARGEST_VARIANCE", "draw_skellam"]

LARGEST_TABLE_VARIANCE = 2.0**30
"""Above it a variate is the sum of several of one table, which holds 0.4 million magnitudes."""

LARGEST_VARIANCE = 2.0**38
"""Above it a variate would take more than 256 draws, which nobody would wait for."""

_CUT_BITS = 112
_START_BITS = 160
_GUARD_BITS = 128
_STEP = 2**16
"""Variates at a time: what is between stays in cache."""


def draw_skellam(count: int, variance: float, generator: SecureGenerator) -> NDArray[np.int64]:
    """Return independent variates, each the difference of two Poisson variates of equal mean.

    P(X = k) = exp(-v) I_|k|(v) with v the variance, to 127 bits. Magnitudes of odds below 2^-112
    altogether count as the largest in the table. What is drawn from a table is so within 2^-109 of
    the true law in total variation; 2^50 such draws in all, neighbours compared, add
    (1 + exp(epsilon)) 2^-59 to delta.

    Parameters
    ----------
    count : int
        How many.
    variance : float
        In (0, 2^38]. Above `LARGEST_TABLE_VARIANCE` each variate is the sum of as many as keep
        the table so small; sums of Skellam variates are Skellam variates.
    generator : SecureGenerator
        The keystream.

    Returns
    -------
    ndarray
        Shape (count,), int64.

    Raises
    ------
    SkellamError
        If the variance is out of range.
    """
    if not 0.0 < variance <= LARGEST_VARIANCE:
        raise SkellamError(f"the variance of noise must lie in (0, 2^38], not {variance:.4g}")
    parts = math.ceil(variance / LARGEST_TABLE_VARIANCE)
    table = _thresholds(variance / parts)
    drawn = np.zeros(count, dtype=np.int64)
    for start in range(0, count, _STEP):
        some = drawn[start : start + _STEP]
        for _ in range(parts):
            some += table.pick(generator.words(len(some)), lambda _: generator.words(1)[0])
    return drawn


@lru_cache(maxsize=8)
def _thresholds(variance: float) -> Thresholds:
    """Return the table of a law.

    By Miller's backward recurrence I_{k-1}(v) = I_{k+1}(v) + (2 k / v) I_k(v) in integers, begun
    where the odds are below 2^-160, and normalised by sum_k exp(-v) I_k(v) = 1 (Olver 1964; DLMF
    10.29.1, 10.35.1, 3.6(iii)).
    """
    numerator, denominator = variance.as_integer_ratio()
    start, cut = reach(variance, _START_BITS), reach(variance, _CUT_BITS)
    above, mass = 0, 1 << _GUARD_BITS
    masses = [0] * (start + 1)
    for k in range(start, 0, -1):
        masses[k] = mass
        above, mass = mass, above + 2 * k * denominator * mass // numerator
    masses[0] = mass
    whole = 2 * sum(masses) - masses[0]
    return Thresholds.of([masses[0], *(2 * one for one in masses[1:cut])], whole)
