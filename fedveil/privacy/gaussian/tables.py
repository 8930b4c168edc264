"""The Gaussian law on the integers, as blocks of them that 16 random bits are looked up in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.thresholds import Thresholds

__all__ = ["BlockTables", "Tops", "block_tables"]

_REACH = 12.5
"""Magnitudes beyond as many standard deviations, of odds below 2^-115 altogether, do not occur."""

_MASS_BITS = 200
_DIGITS = 90
_CELLS = 2**15
_DEPTH = 2

_PI = Decimal(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534"
)


@dataclass(frozen=True, eq=False)
class Tops:
    """What the cells leave of the blocks: the law of blocks, and how much of each is taken.

    Parameters
    ----------
    std : float
        Of the law.
    width : int
        Integers in a block, a power of two.
    shares : tuple of int
        Cells of the block of magnitudes from b * width, of either sign, for b = 0, 1, ...
    tables : tuple of ndarray
        Each float32, (65536,): b + 1 with a sign, or NaN in cells that are open. They say which
        block, digit by digit in base 2^16 (Knuth & Yao 1976): whoever hits an open cell asks the
        next table, which is made in the same way for the odds that are left.
    rest : Thresholds
        The law behind the last table.
    heights : ndarray
        Of the part of a block above its cells, over the height of the block: float64, (blocks,).
    """

    std: float
    width: int
    shares: tuple[int, ...]
    tables: tuple[NDArray[np.float32], ...]
    rest: Thresholds
    heights: NDArray[np.float64]

    def rejected(
        self, blocks: NDArray[np.int64], offsets: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Return the odds, to within 2^-45, with which an integer below the top is drawn again.

        Parameters
        ----------
        blocks, offsets : ndarray
            b and what is added to b * width; same shape, which is the result's.
        """
        # 1 - h(k) / h(b width), where h is the law times a constant.
        fall = (2.0 * self.width * blocks + offsets) * offsets
        below = -np.expm1(fall * (-0.5 / self.std**2))
        # Zero has half the odds: of either sign there is one.
        below[(blocks == 0) & (offsets == 0)] = 0.5
        odds: NDArray[np.float64] = below / self.heights[blocks]
        return odds

    def is_rejected(self, block: int, offset: int, uniform: int, bits: int) -> bool:
        """Return whether uniform / 2^bits rejects the integer, in 90 digits."""
        with localcontext() as context:
            context.prec = _DIGITS
            rate = 1 / (2 * Decimal(self.std) ** 2)
            first = block * self.width
            top = (-rate * first**2).exp()
            height = (-rate * (first + offset) ** 2).exp() if first + offset else Decimal(1) / 2
            taken = Decimal(self.shares[block]) * _whole(self.std) / (2 * _CELLS * self.width)
            return bool(Decimal(uniform) / 2**bits * (top - taken) < top - height)


@dataclass(frozen=True, eq=False)
class BlockTables:
    """A symmetric law on the integers: an even one over each block, and what is above it.

    Parameters
    ----------
    first : ndarray
        The least integer of a block in each of 65,536 cells that are equally likely, NaN in those
        that are open: float32, or float64 where that is needed.
    tops : Tops
        Where the open cells lead.
    """

    first: NDArray[np.floating]
    tops: Tops

    @property
    def width(self) -> int:
        """Integers in a block."""
        return self.tops.width


@lru_cache(maxsize=16)
def block_tables(std: float, width: int) -> BlockTables:
    """Return the tables of P(X = k) proportional to exp(-k^2 / (2 std^2)).

    A block has as many cells as its least likely integer allows, so that no integer is drawn more
    often by them than it should be. They are within 2^-114 of the law in total variation:
    magnitudes beyond the largest have odds below 2^-115 altogether, and the rounding of masses and
    thresholds is less by far.

    Parameters
    ----------
    std : float
        At least 16 widths.
    width : int
        Integers in a block, a power of two.
    """
    masses = _masses(std, width)
    with localcontext() as context:
        context.prec = _DIGITS
        whole = int(_whole(std) * 2**_MASS_BITS)
    # The least of a block is more than the first of the next; in the first it is zero's half.
    least = [masses[0] // 2, *masses[2:]]
    shares = [2 * _CELLS * width * mass // whole for mass in least]
    # In units of which 2^16 width make one of the masses.
    units = 2 * _CELLS * width
    above = [units * mass - share * whole for mass, share in zip(masses[:-1], shares, strict=True)]
    tables = []
    left = [0, *above]
    for _ in range(_DEPTH):
        table, left = _table(left)
        tables.append(table)
    heights = [top / (units * mass) for top, mass in zip(above, masses[:-1], strict=True)]
    tops = Tops(
        std,
        width,
        tuple(shares),
        tuple(tables),
        Thresholds.of(left, sum(left)),
        np.array(heights),
    )
    return BlockTables(_first(shares, width, np.float32 if std < 2.0**20 else np.float64), tops)


def _whole(std: float) -> Decimal:
    """Return the sum of exp(-k^2 / (2 std^2)) over all integers, of which 1e-90 may be missing."""
    # Poisson's summation: 1 + 2 exp(-2 pi^2 std^2) + ... is one in as many digits from 4 on.
    return Decimal(std) * (2 * _PI).sqrt()


def _masses(std: float, width: int) -> list[int]:
    """Return 2^200 exp(-(b width)^2 c) with c = 1 / (2 std^2), for b = 0, 1, ...

    By exp(-(b + 1)^2 c) = exp(-b^2 c) exp(-(2 b + 1) c), in 90 digits, of which some ten are lost.
    """
    with localcontext() as context:
        context.prec = _DIGITS
        mass = Decimal(2) ** _MASS_BITS
        factor = (-(Decimal(width) ** 2) / (2 * Decimal(std) ** 2)).exp()
        growth = factor * factor
        masses = []
        for _ in range(math.ceil(_REACH * std / width) + 2):
            masses.append(int(mass))
            mass, factor = mass * factor, factor * growth
    return masses


def _first(
    shares: Sequence[int], width: int, dtype: type[np.float32 | np.float64]
) -> NDArray[np.floating]:
    starts = np.repeat(np.arange(len(shares)) * width, shares)
    table = np.full((_CELLS, 2), np.nan, dtype=dtype)
    # The block of the negatives of start, ..., start + width - 1.
    table[: len(starts)] = np.stack([starts, 1 - width - starts], axis=1)
    return table.reshape(-1)


def _table(masses: Sequence[int]) -> tuple[NDArray[np.float32], list[int]]:
    """Return the table for odds in the proportion of masses, and the masses that it leaves.

    The lowest bit is the sign, so that a magnitude has two cells for each of its shares of 2^-15.
    """
    whole = sum(masses)
    shares = [mass * _CELLS // whole for mass in masses]
    magnitudes = np.repeat(np.arange(len(masses), dtype=np.float32), shares)
    table = np.full((_CELLS, 2), np.nan, dtype=np.float32)
    table[: len(magnitudes)] = np.stack([magnitudes, -magnitudes], axis=1)
    left = [mass * _CELLS - share * whole for mass, share in zip(masses, shares, strict=True)]
    return table.reshape(-1), left
