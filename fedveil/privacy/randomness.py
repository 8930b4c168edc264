"""A cryptographic generator of uniform, Bernoulli and Gaussian variates."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["SecureGenerator", "gaussians"]

_TWO_64 = 2**64

_BLOCK = 8192
"""Gaussian variates drawn at once: as many as stay in the processor's cache."""


class SecureGenerator:
    """Variates from an AES-256-CTR keystream (NIST SP 800-38A, section 6.5).

    Opacus' secure mode needs a package that no longer installs, and torch's own generators
    are no cryptographic ones: their state can be computed from their output, and with it the
    noise that protects a record.

    Parameters
    ----------
    key : bytes, optional
        32 bytes. By default from the operating system.

    Raises
    ------
    ValueError
        If the key is not 32 bytes long.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = os.urandom(32) if key is None else key
        if len(key) != 32:
            raise ValueError(f"the key must have 32 bytes, not {len(key)}")
        self._stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    @classmethod
    def from_seed(cls, *parts: int | str) -> SecureGenerator:
        """Return a generator that anybody who knows `parts` can repeat.

        For what need not be secret, and for noise under ``insecure_seed`` alone.
        """
        label = "\x1f".join(["fedveil generator", *(f"{type(p).__name__}:{p}" for p in parts)])
        return cls(hashlib.sha256(label.encode()).digest())

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words."""
        return np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8").astype(np.uint64)

    def bernoulli(self, count: int, probability: float) -> NDArray[np.bool_]:
        """Return `count` independent draws, true with `probability`.

        A word is compared with floor(probability * 2^64), so that the probability is never
        exceeded and falls short by less than 2^-64 (2^-53 where a double says no more).

        Raises
        ------
        ValueError
            If the probability is not in [0, 1].
        """
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"a probability must lie in [0, 1], not {probability}")
        if probability == 1.0:
            return np.ones(count, dtype=np.bool_)
        return self.words(count) < np.uint64(int(probability * _TWO_64))

    def permutation(self, count: int) -> NDArray[np.int64]:
        """Return a uniformly random permutation of 0 .. count - 1."""
        return np.argsort(self.words(count), kind="stable").astype(np.int64)

    def gaussian(self, count: int, std: float) -> NDArray[np.float64]:
        """Return `count` independent Gaussian variates of mean 0.

        Each is the mean-preserving sum of four Box-Muller variates, halved: the gaps of one
        double-precision variate betray its exponent (Mironov 2012); recovering four summands
        is out of reach (Holohan & Braghin 2021, section 4.2).

        Parameters
        ----------
        count : int
            Number of variates.
        std : float
            Standard deviation.

        Returns
        -------
        ndarray
            Shape (count,), float64.
        """
        # Here, since it takes a second: whoever draws noise has torch loaded, whose logarithm and
        # cosine are several times as fast as numpy's.
        import torch

        noise = torch.empty(count, dtype=torch.float64)
        size = min(count, _BLOCK)
        # All in the same few buffers: fresh memory costs more than the variates.
        zeros, raw = bytes(32 * size), bytearray(32 * size + 15)
        words = np.frombuffer(raw, dtype="<u8", count=4 * size)
        signed = torch.from_numpy(words.view("<i8"))
        buffer = torch.empty(4 * size, dtype=torch.float64)
        for start in range(0, count, _BLOCK):
            here = min(_BLOCK, count - start)
            self._stream.update_into(memoryview(zeros)[: 32 * here], raw)
            np.right_shift(words[: 4 * here], np.uint64(11), out=words[: 4 * here])
            grid = buffer[: 4 * here].copy_(signed[: 4 * here]).view(2, 2, here)
            noise[start : start + here] = _box_muller(grid)
        return noise.mul_(std / 2.0).numpy()


def gaussians(generators: Sequence[SecureGenerator], count: int, std: float) -> NDArray[np.float64]:
    """Return what each generator's own `gaussian` returns, of many in fewer steps.

    Returns
    -------
    ndarray
        Shape (len(generators), count), float64.
    """
    import torch

    noise = torch.empty(len(generators), count, dtype=torch.float64)
    together = _BLOCK // max(count, 1)
    if together < 2 or any(type(one) is not SecureGenerator for one in generators):
        for row, one in zip(noise, generators, strict=True):
            row.copy_(torch.from_numpy(one.gaussian(count, std)))
        return noise.numpy()
    zeros = bytes(32 * count)
    for start in range(0, len(generators), together):
        some = generators[start : start + together]
        drawn = b"".join([one._stream.update(zeros) for one in some])
        words = np.frombuffer(drawn, dtype="<u8") >> np.uint64(11)
        grid = torch.from_numpy(words.astype(np.float64)).view(len(some), 2, 2, count)
        noise[start : start + together] = _box_muller(grid)
    return noise.mul_(std / 2.0).numpy()


def _box_muller(grid: Tensor) -> Tensor:
    """Return sums of four Gaussian variates of variance 1, shape (..., count).

    Parameters
    ----------
    grid : Tensor
        Integers below 2^53 as float64, shape (..., 2, 2, count): of two pairs, what radius and
        angle are made of. Overwritten.
    """
    # The logarithm's argument is exact and in (0, 1]: zero must not occur.
    radius = grid[..., 0, :].mul_(-(2.0**-53)).add_(1.0).log_().mul_(-2.0).sqrt_()
    angle = grid[..., 1, :].mul_(2.0 * math.pi * 2.0**-53)
    pairs = (radius * angle.cos()).addcmul_(radius, angle.sin_())
    return pairs[..., 0, :] + pairs[..., 1, :]
