"""Bytes in pieces: where they come from, where they go, and how they are cut anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

import numpy as np

from fedveil.vault.errors import TruncatedError

__all__ = [
    "SEGMENT_BYTES",
    "BytesLike",
    "PatchableSink",
    "ReadAt",
    "Shadow",
    "Sink",
    "buffer_reader",
    "cut",
    "new_buffer",
    "wipe",
]

SEGMENT_BYTES = 1 << 20
"""The most bytes that move at once: one segment of ciphertext."""

BytesLike: TypeAlias = bytes | bytearray | memoryview

ReadAt: TypeAlias = Callable[[int, memoryview], memoryview]
"""``read(position, scratch)`` returns exactly the next ``len(scratch)`` bytes from the position.

They are put into `scratch`, or are a view of memory of the source's own. Several threads may call
it at once. It raises `TruncatedError` if there are fewer bytes.
"""


class Sink(Protocol):
    """Where ciphertext goes: takes all bytes of every call, or raises."""

    def write(self, data: memoryview, /) -> object:
        """Take the bytes; they may change after the call."""


class PatchableSink(Sink, Protocol):
    """A sink in which what was written can be written over."""

    def write_at(self, position: int, data: memoryview, /) -> object:
        """Take the bytes in the place of those that were written at a position of the sink."""


def buffer_reader(data: BytesLike) -> ReadAt:
    """Return a source of the bytes of a buffer at any position, without copying them.

    Raises
    ------
    TruncatedError
        From the source: if the buffer ends before.
    """
    view = _flat(data)

    def read(position: int, scratch: memoryview) -> memoryview:
        part = view[position : position + len(scratch)]
        if len(part) < len(scratch):
            raise TruncatedError(f"the data ends {len(scratch) - len(part)} bytes early")
        return part

    return read


def new_buffer(size: int) -> memoryview:
    """Return writable memory of some bytes with any content.

    Unlike a bytearray it is not filled with zeros first, which takes longer than decrypting into
    it does.
    """
    return np.empty(size, np.uint8).data


class Shadow:
    """Memory for plaintext that is kept from one load to the next.

    The operating system hands out new memory page by page; memory that is kept has all of its own.
    One load at a time may use it.
    """

    def __init__(self) -> None:
        self._memory = new_buffer(0)

    def take(self, size: int) -> memoryview:
        """Return some bytes of it, with any content; what was taken before must not be in use."""
        if len(self._memory) < size:
            self.wipe()
            self._memory = new_buffer(size)
        return self._memory[:size]

    def wipe(self) -> None:
        """Overwrite all of it with zeros."""
        wipe(self._memory)


def cut(chunks: Iterable[BytesLike], sizes: Sequence[int]) -> Iterator[list[memoryview]]:
    """Cut chunks of any lengths anew, without copying anything.

    Parameters
    ----------
    chunks : iterable of bytes, bytearray or memoryview
        The chunks in order.
    sizes : sequence of int
        Lengths of the parts in bytes, at least one; none is zero unless it is the only one.

    Yields
    ------
    list of memoryview
        The pieces of the next part in order: views of the chunks.

    Raises
    ------
    ValueError
        If the chunks are longer or shorter than the parts, after the last part at the latest.
    """
    total, taken = sum(sizes), 0
    upcoming = iter(sizes)
    wanted = next(upcoming)
    part: list[memoryview] = []
    for chunk in chunks:
        left = _flat(chunk)
        taken += len(left)
        if taken > total:
            raise ValueError(f"the chunks have more than the announced {total} bytes")
        while len(left) > 0:
            piece, left = left[:wanted], left[wanted:]
            part.append(piece)
            wanted -= len(piece)
            if wanted == 0:
                yield part
                part, wanted = [], next(upcoming, 0)
    if taken < total:
        raise ValueError(f"the chunks have {taken} bytes, not the announced {total}")
    if total == 0:
        yield part


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
