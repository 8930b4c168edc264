"""Shamir's secret sharing over the prime field of 2^256 + 297 (Shamir 1979)."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

from fedveil.secagg.errors import ShareError

__all__ = ["PRIME", "SECRET_BYTES", "SHARE_BYTES", "combine", "split"]

PRIME = 2**256 + 297
"""The smallest prime above 2^256, so that every 32-byte secret is an element of the field."""

SECRET_BYTES = 32
SHARE_BYTES = 33


def split(
    secret: bytes, threshold: int, points: Sequence[int], prime: int = PRIME
) -> dict[int, int]:
    """Share a secret so that any `threshold` shares give it, and fewer say nothing about it.

    Parameters
    ----------
    secret : bytes
        32 bytes; as a big-endian integer, below `prime`.
    threshold : int
        Number of shares that give the secret, at least 1.
    points : sequence of int
        Where the shares lie: distinct integers in 1 .. prime - 1.
    prime : int
        Order of the field; smaller ones serve tests that try every polynomial.

    Returns
    -------
    dict of int to int
        Point to share.

    Raises
    ------
    ShareError
        If there are fewer points than `threshold`, or a point is 0 or occurs twice.
    """
    if not 1 <= threshold <= len(points):
        raise ShareError(f"a threshold of {threshold} is impossible with {len(points)} shares")
    if len(set(points)) != len(points) or not all(0 < point < prime for point in points):
        raise ShareError("shares must lie at distinct points, and none at 0")
    constant = int.from_bytes(secret, "big")
    if constant >= prime:
        raise ShareError("the secret is no element of the field")
    coefficients = [constant, *(secrets.randbelow(prime) for _ in range(threshold - 1))]
    return {point: _evaluate(coefficients, point, prime) for point in points}


def combine(shares: Mapping[int, int], threshold: int, prime: int = PRIME) -> bytes:
    """Return the secret, from the `threshold` shares at the lowest points.

    Parameters
    ----------
    shares : Mapping of int to int
        Point to share.
    threshold : int
        The one that they were made with.
    prime : int
        Order of the field.

    Returns
    -------
    bytes
        32 bytes. Whether they are the right ones, only a commitment to the secret can tell.

    Raises
    ------
    ShareError
        If there are too few shares, or they give no 32-byte secret.
    """
    points = tuple(sorted(shares))[:threshold]
    if len(points) < threshold:
        raise ShareError(f"{len(points)} shares are there, {threshold} are needed")
    weights = _weights_at_zero(points, prime)
    value = sum(w * shares[p] for w, p in zip(weights, points, strict=True)) % prime
    try:
        return value.to_bytes(SECRET_BYTES, "big")
    except OverflowError:
        raise ShareError("the shares give no 32-byte secret") from None


def _evaluate(coefficients: Sequence[int], point: int, prime: int) -> int:
    value = 0
    for coefficient in reversed(coefficients):
        # Points are small, so that one division in the end is cheaper than one a step.
        value = value * point + coefficient
    return value % prime


# The same clients answer for every secret of a round.
@lru_cache(maxsize=64)
def _weights_at_zero(points: tuple[int, ...], prime: int) -> tuple[int, ...]:
    """Return Lagrange's coefficients of the interpolation at 0."""
    weights = []
    for point in points:
        above, below = 1, 1
        for other in points:
            if other != point:
                above = above * other % prime
                below = below * (other - point) % prime
        weights.append(above * pow(below, -1, prime) % prime)
    return tuple(weights)
