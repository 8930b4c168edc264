"""Where the segments of a stream lie: lengths and places, no cryptography."""

from __future__ import annotations

from dataclasses import dataclass

from fedveil.vault.buffers import SEGMENT_BYTES

__all__ = ["HEADER_BYTES", "SALT_BYTES", "TAG_BYTES", "Segments", "ciphertext_size"]

SALT_BYTES = 32

HEADER_BYTES = 1 + SALT_BYTES + 7
"""The stream's own header: its length, the salt, the nonce prefix."""

TAG_BYTES = 16

_FIRST_PLAIN = SEGMENT_BYTES - HEADER_BYTES - TAG_BYTES
_NEXT_PLAIN = SEGMENT_BYTES - TAG_BYTES
_MAX_SEGMENTS = 1 << 32


@dataclass(frozen=True)
class Segments:
    """Where the segments of a stream lie.

    Parameters
    ----------
    plaintext_bytes : int
        Length of the whole plaintext.

    Raises
    ------
    ValueError
        If it is negative or needs more than 2^32 segments.
    """

    plaintext_bytes: int

    def __post_init__(self) -> None:
        if self.plaintext_bytes < 0:
            raise ValueError(f"a plaintext cannot have {self.plaintext_bytes} bytes")
        if self.count > _MAX_SEGMENTS:
            raise ValueError(
                f"{self.plaintext_bytes} bytes need more than {_MAX_SEGMENTS} segments"
            )

    @property
    def count(self) -> int:
        """How many there are, at least one."""
        return 1 + -(-max(0, self.plaintext_bytes - _FIRST_PLAIN) // _NEXT_PLAIN)

    def plain(self, index: int) -> slice:
        """Return what a segment holds of the plaintext."""
        begin = _FIRST_PLAIN + (index - 1) * _NEXT_PLAIN if index else 0
        end = _FIRST_PLAIN + index * _NEXT_PLAIN
        return slice(begin, min(end, self.plaintext_bytes))

    def holding(self, begin: int, end: int) -> range:
        """Return the segments that hold a part of the plaintext that is not empty."""
        first, last = (
            0 if place < _FIRST_PLAIN else 1 + (place - _FIRST_PLAIN) // _NEXT_PLAIN
            for place in (begin, end - 1)
        )
        return range(first, last + 1)


def ciphertext_size(plaintext_bytes: int) -> int:
    """Return the exact length of the stream of a plaintext, both in bytes.

    Raises
    ------
    ValueError
        If the length is negative or needs more than 2^32 segments.
    """
    return HEADER_BYTES + plaintext_bytes + Segments(plaintext_bytes).count * TAG_BYTES
