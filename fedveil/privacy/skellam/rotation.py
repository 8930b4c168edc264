"""A random rotation from a public seed: signs and Hadamard blocks, from either end."""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.randomness import SecureGenerator

__all__ = ["block_size", "rotate", "unrotate"]

_LARGEST_BLOCK = 2**16
_PASSES = 2
_LABEL = b"fedveil/skellam/rotation/1\0"


def block_size(dimension: int) -> int:
    """Return the length of a Hadamard block: the largest power of two that fits, up to 2^16.

    Every coordinate of a rotated vector is sub-Gaussian over the random signs, with a variance
    proxy of the vector's squared norm over this length.
    """
    return min(_LARGEST_BLOCK, 1 << (dimension.bit_length() - 1))


def rotate(vector: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """Return a vector rotated: H D_2 R H D_1 R, with D random signs and R the reversal.

    H is an orthonormal Walsh-Hadamard transform in as many blocks of `block_size` as fit, from the
    first coordinate on; the last ones, fewer than a block, stay. The second pass begins at the
    other end, so that nothing is padded and each coordinate that comes out has been in a block.
    Orthogonal but for rounding, which changes a vector by at most 40 x 2^-53 of its norm.

    Parameters
    ----------
    vector : ndarray
        Shape (d,), float64.
    seed : bytes
        Public; it must not depend on the vector for the spreading to hold. Nothing secret rests
        on it.

    Returns
    -------
    ndarray
        Shape (d,), float64; a new array.
    """
    rotated = vector
    for signs in _signs(len(vector), seed):
        rotated = rotated[::-1] * signs
        _transform(rotated)
    return rotated


def unrotate(vector: NDArray[np.float64], seed: bytes) -> NDArray[np.float64]:
    """Return a vector rotated back: the inverse of `rotate` with the same seed."""
    back = vector.copy()
    for signs in reversed(_signs(len(vector), seed)):
        _transform(back)
        back = (back * signs)[::-1].copy()
    return back


def _signs(dimension: int, seed: bytes) -> list[NDArray[np.float64]]:
    generator = SecureGenerator(hashlib.sha256(_LABEL + seed).digest())
    passes = []
    for _ in range(_PASSES):
        octets = generator.words(-(-dimension // 64)).astype("<u8").view(np.uint8)
        bits = np.unpackbits(octets, count=dimension)
        passes.append(1.0 - 2.0 * bits.astype(np.float64))
    return passes


def _transform(vector: NDArray[np.float64]) -> None:
    """Transform as many blocks as fit, in place; its own inverse."""
    size = block_size(len(vector))
    for end in range(size, len(vector) + 1, size):
        block = vector[end - size : end]
        block[:] = _hadamard(block)


def _hadamard(block: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the transform of one block, whose length is a power of two.

    Each stage transforms the lowest bit of the index and makes it the highest (Pease 1968), so
    that all stages write in order and the last one leaves the natural order.
    """
    size = len(block)
    half = size // 2
    done, spare = block.copy(), np.empty_like(block)
    for _ in range(size.bit_length() - 1):
        np.add(done[0::2], done[1::2], out=spare[:half])
        np.subtract(done[0::2], done[1::2], out=spare[half:])
        done, spare = spare, done
    done *= 1.0 / math.sqrt(size)
    return done
