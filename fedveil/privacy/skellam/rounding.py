"""From real vectors to integer ones, with a bound on what that costs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.randomness import SecureGenerator
from fedveil.privacy.skellam.errors import VectorError

__all__ = ["project", "round_coupled", "round_within", "squared_norm"]

_TRIES = 64
"""Each succeeds with odds of at least 1 - exp(-1/2): that all fail has odds below 2^-46."""


def project(vector: NDArray[np.float64], radius: float) -> NDArray[np.float64]:
    """Return the nearest vector of at most this length.

    Parameters
    ----------
    vector : ndarray
        Shape (d,), float64, finite, d >= 1.
    radius : float
        The length.

    Returns
    -------
    ndarray
        Shape (d,), float64; the vector itself where it is short enough.
    """
    largest = float(np.abs(vector).max())
    if largest == 0.0:
        return vector
    # Squares of what is not divided by the largest could overflow, or vanish.
    direction = vector / largest
    length = math.sqrt(float(np.sum(np.square(direction))))
    return vector if length <= radius / largest else direction * (radius / length)


def round_coupled(vector: NDArray[np.float64], generator: SecureGenerator) -> NDArray[np.int64]:
    """Return ceil(x - u) with u uniform in [0, 1) for each coordinate: x on average.

    For one and the same u, two vectors that differ by c in a coordinate differ by less than
    |c| + 1 there afterwards, so by at most ||c|| + sqrt(d) altogether. It is computed without
    any rounding of x - u.

    Parameters
    ----------
    vector : ndarray
        Shape (d,), float64; magnitudes below 2^52.
    generator : SecureGenerator
        Where u comes from.

    Returns
    -------
    ndarray
        Shape (d,), int64.
    """
    below = np.floor(vector)
    # Both sides are exact: powers of two scale, and 53 bits fit a double.
    uniform = (generator.words(len(vector)) >> np.uint64(11)).astype(np.float64)
    up = uniform < (vector - below) * 2.0**53
    return below.astype(np.int64) + up


def round_within(
    vector: NDArray[np.float64], bound: int, generator: SecureGenerator
) -> NDArray[np.int64]:
    """Return a vector rounded at random, with a squared norm of at most `bound`, always.

    It is rounded anew until it fits (Kairouz, Liu & Steinke 2021, "The distributed discrete
    Gaussian mechanism for federated learning with secure aggregation", section 4); after 64 tries
    towards zero, which never lengthens it. With `bound` >= ||x||^2 + d / 4 + ||x|| + sqrt(d) / 2
    each try fits with odds of at least 1 - exp(-1/2), by Hoeffding's inequality: a rounded
    coordinate's square takes one of two values that differ by at most 2 |x_i| + 1.

    Parameters
    ----------
    vector : ndarray
        Shape (d,), float64.
    bound : int
        Largest squared norm, below 2^62.
    generator : SecureGenerator
        Where the rounding comes from.

    Returns
    -------
    ndarray
        Shape (d,), int64.

    Raises
    ------
    VectorError
        If the vector is longer than the bound before it is rounded.
    """
    for _ in range(_TRIES):
        rounded = round_coupled(vector, generator)
        if squared_norm(rounded) <= bound:
            return rounded
    rounded = np.trunc(vector).astype(np.int64)
    if squared_norm(rounded) > bound:
        raise VectorError(
            f"a vector of squared norm {float(np.sum(vector * vector)):.6g} cannot be rounded to "
            f"within {bound}"
        )
    return rounded


def squared_norm(vector: NDArray[np.int64]) -> int:
    """Return the squared L2 norm, exactly.

    Parameters
    ----------
    vector : ndarray
        Shape (d,), int64.
    """
    largest = int(np.abs(vector).max(initial=0))
    if largest**2 * len(vector) < 2**63:
        return int(np.sum(vector * vector))
    return sum(value * value for value in vector.tolist())
