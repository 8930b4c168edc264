"""The digest of an encrypted stream, which takes no key and can be made on several threads.

::

    digest = SHA-256(SHA-256(piece 0) || SHA-256(piece 1) || ... || SHA-256(piece n-1))

The pieces are the stream cut every 1 MiB from its very first byte, so that piece i is segment i,
and piece 0 is the stream's header and segment 0. Two streams of one length have the same digest
only if they are the same, unless SHA-256 is broken; the length must be known from elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from fedveil.vault.buffers import SEGMENT_BYTES, BytesLike, ReadAt
from fedveil.vault.parallel import for_each

__all__ = ["HashList", "stream_digest"]


class HashList:
    """The hashes of the pieces of one stream, which may come in any order, from any thread.

    Parameters
    ----------
    stream_bytes : int
        Length of the stream.
    """

    def __init__(self, stream_bytes: int) -> None:
        self._hashes = [b""] * -(-stream_bytes // SEGMENT_BYTES)

    def add(self, index: int, *parts: BytesLike) -> None:
        """Hash a piece, given as one or several parts that follow each other."""
        state = hashlib.sha256()
        for part in parts:
            state.update(part)
        self._hashes[index] = state.digest()

    def digest(self) -> bytes:
        """Return the digest, 32 bytes.

        Raises
        ------
        ValueError
            If a piece has not been added.
        """
        if not all(self._hashes):
            missing = self._hashes.count(b"")
            raise ValueError(f"{missing} of {len(self._hashes)} pieces have not been hashed")
        return hashlib.sha256(b"".join(self._hashes)).digest()


def stream_digest(read: ReadAt, start: int, stream_bytes: int, *, threads: int = 1) -> bytes:
    """Return the digest of a stream, 32 bytes, without decrypting it.

    Parameters
    ----------
    read : ReadAt
        Where the stream is.
    start : int
        Its position there.
    stream_bytes : int
        Its length.
    threads : int
        How many threads hash; with one, the caller's own.

    Raises
    ------
    TruncatedError
        If the source ends before the stream does.
    """
    hashes = HashList(stream_bytes)

    def make() -> Callable[[int], None]:
        scratch = memoryview(bytearray(min(stream_bytes, SEGMENT_BYTES)))

        def work(index: int) -> None:
            begin = index * SEGMENT_BYTES
            size = min(SEGMENT_BYTES, stream_bytes - begin)
            hashes.add(index, read(start + begin, scratch[:size]))

        return work

    for_each(-(-stream_bytes // SEGMENT_BYTES), threads, make)
    return hashes.digest()
