"""Discrete Gaussian variates from cryptographic keystreams, block by block of a table."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.gaussian.tables import BlockTables, Tops, block_tables

__all__ = ["GaussianLaw", "Integers", "Keystream", "draw_gaussian"]

Integers = NDArray[np.floating]
"""Integers as float32 or float64, whichever holds them exactly."""

_BLOCKS_IN_STD = 8
"""The logarithm of the least number of blocks in a standard deviation."""

_OFFSET_BITS = 18
"""Of a word that chooses within a block; the others say whether the choice stands."""

_SPAN = 2**15
"""Cells looked up at once: numpy widens them to 64 bits, which then stay in the cache."""

_VERDICT_BITS = 64 - _OFFSET_BITS
_DOUBT = 2.0**-40


class Keystream(Protocol):
    """Where uniform bits come from."""

    def octets(self, count: int) -> NDArray[np.uint8]:
        """Return `count` uniform octets."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words."""


@dataclass(frozen=True)
class GaussianLaw:
    """P(X = k) proportional to exp(-k^2 / (2 std^2)) over the integers, to within 2^-114.

    Parameters
    ----------
    std : float
        From 2^12 to below 2^26; below 2^20 a variate is below 2^24.
    """

    std: float

    def __post_init__(self) -> None:
        if not 2.0**12 <= self.std < 2.0**26:
            raise ValueError(f"no tables have the standard deviation {self.std}: 2^12 to 2^26")

    @property
    def tables(self) -> BlockTables:
        """What variates are looked up in."""
        return block_tables(self.std, 2 ** (math.frexp(self.std)[1] - 1 - _BLOCKS_IN_STD))

    @property
    def dtype(self) -> type[np.floating]:
        """What holds a variate: float32 or float64."""
        return self.tables.first.dtype.type


def draw_gaussian(keystreams: Sequence[Keystream], count: int, law: GaussianLaw) -> Integers:
    """Return `count` independent variates of each keystream.

    Parameters
    ----------
    keystreams : sequence of Keystream
        At least one. Each is read as far, and gives the same, as if it were alone.
    count : int
        How many of each, at least one; all at once in memory, so that some ten thousand in all are
        best.
    law : GaussianLaw
        Of each variate.

    Returns
    -------
    ndarray
        Shape (len(keystreams), count), of `law.dtype`.
    """
    tables = law.tables
    offset = np.dtype("<u2" if tables.width <= 2**16 else "<u4")
    octets = [one.octets((offset.itemsize + 2) * count) for one in keystreams]
    middle = offset.itemsize * count
    cells = _joined([one[middle:] for one in octets]).view("<u2")
    # No index is out of range; of the modes in which numpy need not say so this is the fastest.
    drawn: Integers = np.empty(len(cells), tables.first.dtype)
    for start in range(0, len(cells), _SPAN):
        span = slice(start, start + _SPAN)
        tables.first.take(cells[span], mode="wrap", out=drawn[span])
    offsets = _joined([one[:middle] for one in octets]).view(offset)
    np.bitwise_and(offsets, offset.type(tables.width - 1), out=offsets)
    np.add(drawn, offsets, out=drawn)
    is_open = np.flatnonzero(np.isnan(drawn))
    if len(is_open):
        again = _counts(is_open, [count] * len(keystreams))
        drawn[is_open] = _above(keystreams, again, tables.tops)
    return drawn.reshape(len(keystreams), count)


def _above(
    keystreams: Sequence[Keystream], counts: Sequence[int], tops: Tops
) -> NDArray[np.float64]:
    """Return variates of what the cells leave: a block by its height, accepted by the law."""
    signed = _blocks(keystreams, counts, tops)
    words = _words(keystreams, counts)
    blocks = np.abs(signed).astype(np.int64) - 1
    offsets = (words & np.uint64(tops.width - 1)).astype(np.int64)
    drawn: NDArray[np.float64] = np.copysign(blocks * tops.width + offsets, signed)
    verdicts = (words >> np.uint64(_OFFSET_BITS)).astype(np.float64) * 2.0**-_VERDICT_BITS
    odds = tops.rejected(blocks, offsets)
    is_again = verdicts < odds
    for place in np.flatnonzero(np.abs(verdicts - odds) < _DOUBT):
        more = keystreams[bisect_right(list(accumulate(counts)), int(place))].words(1)[0]
        uniform = int(words[place]) >> _OFFSET_BITS << 64 | int(more)
        is_again[place] = tops.is_rejected(
            int(blocks[place]), int(offsets[place]), uniform, _VERDICT_BITS + 64
        )
    left = np.flatnonzero(is_again)
    if len(left):
        drawn[left] = _above(keystreams, _counts(left, counts), tops)
    # No zero has a sign: an exact sum of zero would be released with the sign of what is beneath.
    drawn += 0.0
    return drawn


def _blocks(
    keystreams: Sequence[Keystream], counts: Sequence[int], tops: Tops, level: int = 0
) -> NDArray[np.float32]:
    """Return as many blocks of each keystream as `counts` says, end to end: b + 1, and a sign."""
    if level == len(tops.tables):
        ends = list(accumulate(counts))
        picked = tops.rest.pick(
            _words(keystreams, counts),
            lambda place: keystreams[bisect_right(ends, place)].words(1)[0],
        )
        return picked.astype(np.float32)
    octets = [one.octets(2 * n) for one, n in zip(keystreams, counts, strict=True) if n]
    drawn = tops.tables[level].take(_joined(octets).view("<u2"), mode="wrap")
    is_open = np.flatnonzero(np.isnan(drawn))
    if len(is_open):
        drawn[is_open] = _blocks(keystreams, _counts(is_open, counts), tops, level + 1)
    return drawn


def _words(keystreams: Sequence[Keystream], counts: Sequence[int]) -> NDArray[np.uint64]:
    return np.concatenate([one.words(n) for one, n in zip(keystreams, counts, strict=True) if n])


def _joined(octets: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return octets[0] if len(octets) == 1 else np.concatenate(octets)


def _counts(places: NDArray[np.intp], counts: Sequence[int]) -> list[int]:
    """Return how many of the places are each keystream's, of which `counts` lie end to end."""
    ends = [0, *places.searchsorted(list(accumulate(counts))).tolist()]
    return [end - start for start, end in pairwise(ends)]
