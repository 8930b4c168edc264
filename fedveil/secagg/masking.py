"""Masks: AES-256-CTR keystreams, added to or taken from words in the ring."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from fedveil.secagg.transcript import kdf

__all__ = ["BLOCK_BYTES", "Keystream", "Mask", "apply_masks", "pair_mask", "self_mask"]

BLOCK_BYTES = 128 * 1024
"""A block of words and one of keystream stay in a core's cache together."""

_ZEROS = memoryview(bytes(BLOCK_BYTES))


@dataclass(frozen=True)
class Mask:
    """One mask.

    Parameters
    ----------
    key : bytes
        32 bytes, used for this mask alone.
    sign : {1, -1}
        Whether it is added or taken away.
    """

    key: bytes = field(repr=False)
    sign: int


class Keystream:
    """The keystream of AES-256-CTR, as GCM runs it (NIST SP 800-38D, section 7.1).

    The nonce is zero and the counter starts at 2. It is asked of GCM because OpenSSL uses the
    processor's widest AES instructions there and not in CTR mode alone.

    Parameters
    ----------
    key : bytes
        32 bytes, for one stream only; by default from the operating system.
    """

    def __init__(self, key: bytes | None = None) -> None:
        key = secrets.token_bytes(32) if key is None else key
        self._cipher: CipherContext = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()

    def fill(self, buffer: memoryview, size: int) -> None:
        """Write the next `size` bytes, at most `BLOCK_BYTES`, at the start of `buffer`.

        The buffer must be 16 bytes longer than that, as the cipher asks.
        """
        self._cipher.update_into(_ZEROS[:size], buffer[: size + 16])


def apply_masks(
    masks: Sequence[Mask], vector: NDArray[np.unsignedinteger], tail: NDArray[np.uint64]
) -> None:
    """Add masks to the words of a vector and of its tail, in place, modulo their ring.

    Parameters
    ----------
    masks : sequence of Mask
        Each with a key of its own.
    vector : ndarray
        Shape (d,), little-endian words of the ring; contiguous.
    tail : ndarray
        Shape (m,), uint64; takes the keystreams on from where the vector ends.
    """
    # Unsigned words wrap, which is the ring's arithmetic.
    streams = [(Keystream(m.key), np.add if m.sign > 0 else np.subtract) for m in masks]
    size = min(BLOCK_BYTES, max(vector.nbytes, tail.nbytes))
    buffer = bytearray(size + 16)
    view = memoryview(buffer)
    for words in (vector, tail):
        step = BLOCK_BYTES // words.itemsize
        for start in range(0, len(words), step):
            block = words[start : start + step]
            mask = np.frombuffer(buffer, dtype=words.dtype, count=len(block))
            for stream, apply in streams:
                stream.fill(view, block.nbytes)
                apply(block, mask, out=block)
    view[:size] = _ZEROS[:size]


def self_mask(seed: bytes, sid: bytes, index: int, sign: int) -> Mask:
    """Return a client's own mask."""
    return Mask(kdf(seed, "self", sid, index.to_bytes(4, "big")), sign)


def pair_mask(shared: bytes, sid: bytes, index: int, other: int) -> Mask:
    """Return the mask that `index` shares with `other`: the lower one adds, the higher takes."""
    low, high = sorted((index, other))
    key = kdf(shared, "pair", sid, low.to_bytes(4, "big"), high.to_bytes(4, "big"))
    return Mask(key, 1 if index == low else -1)
