"""The law of one part of a Gaussian variate, as tables that 16 random bits are looked up in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.thresholds import Thresholds

__all__ = ["PartTables", "part_tables"]

_REACH = 12.5
"""Magnitudes beyond as many standard deviations, of odds below 2^-115 altogether, do not occur."""

_MASS_BITS = 200
_DIGITS = 90
_CELLS = 2**15
_DEPTH = 2


@dataclass(frozen=True, eq=False)
class PartTables:
    """A symmetric law on the integers, digit by digit in base 2^16 (Knuth & Yao 1976).

    Each cell of a table is as likely as any other, and an integer has as many cells as its odds
    are whole multiples of 2^-16. The odds that are left belong to the cells that hold NaN: whoever
    hits one asks the next table, which is made for those odds in the same way, and behind the last
    one the thresholds.

    Parameters
    ----------
    tables : tuple of ndarray
        Each float32, (65536,).
    rest : Thresholds
        The law behind the last table.
    """

    tables: tuple[NDArray[np.float32], ...]
    rest: Thresholds


@lru_cache(maxsize=4)
def part_tables(std: float) -> PartTables:
    """Return the tables of P(X = k) proportional to exp(-k^2 / (2 std^2)).

    They are within 2^-114 of it in total variation: magnitudes beyond the largest have odds below
    2^-115 altogether, and the rounding of masses and thresholds is less by far.
    """
    masses = _masses(std)
    # A magnitude is that of two integers, but zero.
    left = [masses[0], *(2 * mass for mass in masses[1:])]
    tables = []
    for _ in range(_DEPTH):
        table, left = _table(left)
        tables.append(table)
    return PartTables(tuple(tables), Thresholds.of(left, sum(left)))


def _masses(std: float) -> list[int]:
    """Return 2^200 exp(-k^2 c) with c = 1 / (2 std^2), for k = 0, 1, ...

    By exp(-(k + 1)^2 c) = exp(-k^2 c) exp(-(2 k + 1) c), in 90 digits, of which some ten are lost.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        mass = Decimal(2) ** _MASS_BITS
        factor = (-1 / (2 * Decimal(std) ** 2)).exp()
        growth = factor * factor
        masses = []
        for _ in range(math.ceil(_REACH * std) + 1):
            masses.append(int(mass))
            mass, factor = mass * factor, factor * growth
    return masses


def _table(masses: Sequence[int]) -> tuple[NDArray[np.float32], list[int]]:
    """Return the table for odds in the proportion of masses, and the masses that it leaves.

    The lowest bit is the sign, so that a magnitude has two cells for each of its shares of 2^-15.
    """
    whole = sum(masses)
    shares = [mass * _CELLS // whole for mass in masses]
    magnitudes = np.repeat(np.arange(len(masses), dtype=np.float32), shares)
    table = np.full((_CELLS, 2), np.nan, dtype=np.float32)
    # No zero has a sign: an exact sum of zero would be released with the sign of what is beneath.
    table[: len(magnitudes)] = np.stack([magnitudes, 0.0 - magnitudes], axis=1)
    left = [mass * _CELLS - share * whole for mass, share in zip(masses, shares, strict=True)]
    return table.reshape(-1), left
