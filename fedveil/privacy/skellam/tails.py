"""Bounds of how far Skellam noise and a rotated sum reach."""

from __future__ import annotations

import math

__all__ = ["log_tail", "reach", "wrap_bound"]

_HALVINGS = 80


def log_tail(threshold: float, variance: float, spread: float = 0.0) -> float:
    """Bound log P(X + Y >= threshold) by Chernoff.

    E exp(h X) = exp(variance (cosh h - 1)) for a symmetric Skellam variate X, and
    E exp(h Y) <= exp(h^2 spread / 2) for a sub-Gaussian one Y, independent of X.

    Parameters
    ----------
    threshold : float
        Above zero; below or at it the bound is log 1.
    variance : float
        Of X, > 0.
    spread : float
        Variance proxy of Y, >= 0.

    Returns
    -------
    float
        At most 0. True for any h, hence whatever precision the best h is found with.
    """
    if threshold <= 0.0:
        return 0.0
    low, high = 0.0, math.asinh(threshold / variance)
    for _ in range(_HALVINGS):
        h = (low + high) / 2.0
        low, high = (h, high) if h * spread + variance * math.sinh(h) < threshold else (low, h)
    # cosh h - 1 = 2 sinh(h / 2)^2, without the cancellation.
    growth = 2.0 * variance * math.sinh(low / 2.0) ** 2 + low * low * spread / 2.0
    return min(0.0, growth - low * threshold)


def reach(variance: float, bits: int) -> int:
    """Return a magnitude that Skellam noise of this variance passes with odds below 2^-`bits`."""
    target = -(bits + 1) * math.log(2.0)
    high = 1
    while log_tail(high, variance) > target:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if log_tail(middle, variance) > target else (low, middle)
    return high


def wrap_bound(limit: float, norm: float, variance: float, coordinates: int, share: float) -> float:
    """Bound the probability that any coordinate of a rotated sum with noise reaches `limit`.

    Parameters
    ----------
    limit : float
        Magnitude that must not be reached.
    norm : float
        Largest L2 norm of the sum before noise.
    variance : float
        Of the noise in a coordinate.
    coordinates : int
        How many.
    share : float
        Variance proxy of a rotated coordinate over the squared norm; 1 where nothing is rotated.

    Returns
    -------
    float
        In [0, 1]: the union bound over coordinates and both signs.
    """
    # No coordinate is larger than the norm, which is the better bound where there is room.
    log_odds = min(log_tail(limit - norm, variance), log_tail(limit, variance, share * norm * norm))
    return min(1.0, 2.0 * coordinates * math.exp(log_odds))
