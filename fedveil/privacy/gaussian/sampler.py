"""Discrete Gaussian variates from cryptographic keystreams, as sums of parts of small tables."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fedveil.privacy.gaussian.tables import PartTables, part_tables
from fedveil.privacy.thresholds import Thresholds

__all__ = ["GaussianLaw", "Integers", "Keystream", "draw_gaussian"]

Integers = NDArray[np.floating]
"""Integers as float32 or float64, whichever holds them exactly."""

_RATIO = 64

_SPAN = 2**15
"""Cells looked up at once: numpy widens them to 64 bits, which then stay in the cache."""


class Keystream(Protocol):
    """Where uniform bits come from."""

    def octets(self, count: int) -> NDArray[np.uint8]:
        """Return `count` uniform octets."""

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return `count` uniform 64-bit words."""


@dataclass(frozen=True)
class GaussianLaw:
    """P(X = k) proportional to exp(-k^2 / (2 std^2)) over the integers.

    A variate is x0 + 64 x1 + 64^2 x2, or with 64^3 x3, of independent parts with the same law
    of another parameter. The sum has it again (Micciancio & Walter 2017, "Gaussian sampling over
    the integers", theorem 2), to within 2^-111 in total variation, since a part's parameter is at
    least twice 64; to within 2^-110 with what the parts' tables are off by.

    Parameters
    ----------
    std : float
        In [2^19, 2^20) or, of four parts, [2^25, 2^26).
    """

    std: float

    @cached_property
    def parts(self) -> int:
        """How many parts a variate has: 3 or 4."""
        return 3 if self.std < 2.0**22 else 4

    @cached_property
    def part_std(self) -> float:
        """A part's parameter."""
        return self.std / math.sqrt(sum(_RATIO ** (2 * part) for part in range(self.parts)))

    @property
    def tables(self) -> PartTables:
        """The tables of a part."""
        return part_tables(self.part_std)

    @property
    def dtype(self) -> type[np.float32 | np.float64]:
        """What holds a variate: one of three parts is below 2^24."""
        return np.float32 if self.parts == 3 else np.float64


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
    flat = _parts(keystreams, [law.parts * count] * len(keystreams), law.tables)
    shape = len(keystreams), law.parts, count
    parts: Integers = flat.reshape(shape).astype(law.dtype, copy=False)
    drawn: Integers = parts[:, -1]
    for part in reversed(range(law.parts - 1)):
        np.multiply(drawn, _RATIO, out=drawn)
        np.add(drawn, parts[:, part], out=drawn)
    return drawn


def _parts(
    keystreams: Sequence[Keystream], counts: Sequence[int], law: PartTables, level: int = 0
) -> NDArray[np.float32]:
    """Return as many parts of each keystream as `counts` says, end to end."""
    if level == len(law.tables):
        return _rest(keystreams, counts, law.rest)
    octets = [one.octets(2 * n) for one, n in zip(keystreams, counts, strict=True) if n]
    cells = (octets[0] if len(octets) == 1 else np.concatenate(octets)).view("<u2")
    drawn = np.empty(len(cells), dtype=np.float32)
    for start in range(0, len(cells), _SPAN):
        span = slice(start, start + _SPAN)
        # No index is out of range; of the modes in which numpy need not say so this is the fastest.
        law.tables[level].take(cells[span], mode="wrap", out=drawn[span])
    is_open = np.flatnonzero(np.isnan(drawn))
    if len(is_open):
        ends = [0, *is_open.searchsorted(list(accumulate(counts))).tolist()]
        again = [end - start for start, end in pairwise(ends)]
        drawn[is_open] = _parts(keystreams, again, law, level + 1)
    return drawn


def _rest(
    keystreams: Sequence[Keystream], counts: Sequence[int], rest: Thresholds
) -> NDArray[np.float32]:
    words = np.concatenate([one.words(n) for one, n in zip(keystreams, counts, strict=True) if n])
    ends = list(accumulate(counts))
    picked = rest.pick(words, lambda place: keystreams[bisect_right(ends, place)].words(1)[0])
    return picked.astype(np.float32)
