"""How fine the integers must be for rounding to cost little."""

from __future__ import annotations

import math

__all__ = ["least_resolution", "longest_before_rounding", "rounded_square"]

_ROUNDING_COST = 0.01
_LEAST_RESOLUTION = 512.0
"""Integer units of the clip norm. With fewer, Skellam noise of the least noise multiplier, 0.1,
would cost a thousandth more than Gaussian noise."""


def least_resolution(unit: str, dimension: int) -> float:
    """Return how many integer units long the clip norm must be for rounding to cost 1 %."""
    if unit == "record":
        return max(math.sqrt(dimension) / _ROUNDING_COST, _LEAST_RESOLUTION)
    # The root of x^2 + x + d / 4 + sqrt(d) / 2 = (1 + cost)^2 x^2; see `rounded_square`.
    excess = (1.0 + _ROUNDING_COST) ** 2 - 1.0
    constant = dimension / 4.0 + math.sqrt(dimension) / 2.0
    root = (1.0 + math.sqrt(1.0 + 4.0 * excess * constant)) / (2.0 * excess)
    return max(root, _LEAST_RESOLUTION)


def rounded_square(norm: float, dimension: int) -> int:
    """Return a squared norm within which a vector of this norm is soon rounded.

    See `round_within`.
    """
    return math.ceil(norm**2 + norm + dimension / 4.0 + math.sqrt(dimension) / 2.0)


def longest_before_rounding(square: int, dimension: int) -> float:
    """Return the norm whose `rounded_square` is `square`; 0 if there is none."""
    left = square - dimension / 4.0 - math.sqrt(dimension) / 2.0
    return max(0.0, (math.sqrt(max(0.0, 1.0 + 4.0 * left)) - 1.0) / 2.0)
