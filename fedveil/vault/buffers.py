"""Bytes in pieces: where they come from, where they go, and how they are cut anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from fedveil.vault.errors import TruncatedError

__all__ = [
    "SEGMENT_BYTES",
    "ArraySink",
    "BytesLike",
    "Sink",
    "Source",
    "buffer_source",
    "regroup",
    "wipe",
]

SEGMENT_BYTES = 1 << 20
"""The most bytes that move at once: one segment of ciphertext."""

BytesLike: TypeAlias = bytes | bytearray | memoryview

Source: TypeAlias = Callable[[int], memoryview]
"""Returns exactly the next n bytes, n <= `SEGMENT_BYTES`; they hold until the next call."""


class Sink(Protocol):
    """Where ciphertext goes: takes all bytes of every call, or raises."""

    def write(self, data: memoryview, /) -> object:
        """Take the bytes; they may change after the call."""


def buffer_source(data: BytesLike) -> Source:
    """Return a source of the bytes of a buffer, from its start, without copying them.

    Raises
    ------
    TruncatedError
        From the source: if fewer bytes are left than asked for.
    """
    view = _flat(data)
    position = 0

    def read(size: int) -> memoryview:
        nonlocal position
        part = view[position : position + size]
        if len(part) < size:
            raise TruncatedError(f"{size} bytes expected at {position}, only {len(part)} are left")
        position += size
        return part

    return read


class ArraySink:
    """Fills a bytearray of the exact size from its start.

    Parameters
    ----------
    size : int
        Number of bytes that will be written in all.

    Attributes
    ----------
    array : bytearray
        What was written so far, then zeros.
    """

    def __init__(self, size: int) -> None:
        self.array = bytearray(size)
        self._position = 0

    def write(self, data: memoryview) -> None:
        """Copy the bytes to the next free place."""
        end = self._position + len(data)
        self.array[self._position : end] = data
        self._position = end


def regroup(chunks: Iterable[BytesLike], sizes: Sequence[int]) -> Iterator[memoryview]:
    """Cut pieces of any lengths anew; only a part that spans pieces is copied.

    Parameters
    ----------
    chunks : iterable of bytes, bytearray or memoryview
        The pieces in order.
    sizes : sequence of int
        Lengths of the parts in bytes, at least one; none is zero unless it is the only one.

    Yields
    ------
    memoryview
        The next part, to be used before the one after it is asked for.

    Raises
    ------
    ValueError
        If the pieces are longer or shorter than the parts, before the last part is out.
    """
    total = sum(sizes)
    staging = memoryview(bytearray(max(sizes)))
    upcoming = iter(sizes)
    wanted, staged, taken = next(upcoming), 0, 0
    try:
        for chunk in chunks:
            left = _flat(chunk)
            taken += len(left)
            if taken > total:
                raise ValueError(f"the chunks have more than the announced {total} bytes")
            while len(left) > 0:
                if staged == 0 and len(left) >= wanted:
                    part, left = left[:wanted], left[wanted:]
                else:
                    step = min(wanted - staged, len(left))
                    staging[staged : staged + step] = left[:step]
                    staged, left = staged + step, left[step:]
                    if staged < wanted:
                        continue
                    part = staging[:wanted]
                yield part
                wanted, staged = next(upcoming, 0), 0
        if taken < total:
            raise ValueError(f"the chunks have {taken} bytes, not the announced {total}")
        if total == 0:
            yield staging
    finally:
        wipe(staging)


def wipe(view: memoryview) -> None:
    """Overwrite a buffer of bytes with zeros."""
    zeros = bytes(min(len(view), SEGMENT_BYTES))
    for begin in range(0, len(view), SEGMENT_BYTES):
        part = view[begin : begin + SEGMENT_BYTES]
        part[:] = zeros[: len(part)]


def _flat(data: BytesLike) -> memoryview:
    """Return the bytes of a contiguous buffer; an empty one cannot always be cast."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")
