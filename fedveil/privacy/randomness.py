"""A cryptographic generator of uniform, Bernoulli and discrete Gaussian variates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from fedveil.privacy.gaussian.sampler import GaussianLaw, Integers, draw_gaussian

__all__ = ["SecureGenerator", "gaussians"]

_TWO_64 = 2**64

_ZEROS = memoryview(bytes(2**20))
"""What is encrypted, in as many octets as are mostly wanted; fresh zeros would cost a quarter."""

_SPARE = 15
"""`cryptography` wants room for a block more, which it does not use."""


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

    def octets(self, count: int) -> NDArray[np.uint8]:
        """Return `count` uniform octets."""
        octets = np.empty(count + _SPARE, dtype=np.uint8)
        zeros = _ZEROS[:count] if count <= len(_ZEROS) else bytes(count)
        self._stream.update_into(zeros, octets.data)
        return octets[:count]

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words."""
        return self.octets(8 * count).view("<u8").astype(np.uint64, copy=False)

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

    def gaussian(self, count: int, law: GaussianLaw) -> Integers:
        """Return `count` independent discrete Gaussian variates, shape (count,).

        `GaussianMechanism` makes noise of them.
        """
        drawn: Integers = draw_gaussian([self], count, law)[0]
        return drawn


def gaussians(generators: Sequence[SecureGenerator], count: int, law: GaussianLaw) -> Integers:
    """Return what each generator's own `gaussian` returns, of many in fewer steps.

    Returns
    -------
    ndarray
        Shape (len(generators), count).
    """
    if any(type(one) is not SecureGenerator for one in generators):
        return np.stack([one.gaussian(count, law) for one in generators])
    return draw_gaussian(generators, count, law)
