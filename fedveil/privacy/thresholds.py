"""A symmetric law on the integers as 127-bit thresholds, and how uniform words pick from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Thresholds"]

_FRACTION_BITS = 127


@dataclass(frozen=True, eq=False)
class Thresholds:
    """The law of an integer whose sign is a fair coin and whose magnitude has a table.

    Parameters
    ----------
    high, low : ndarray
        floor(2^127 P(magnitude <= k)) for k = 0, 1, ..., as its high 63 and its low 64 bits:
        uint64, (magnitudes,). What the last leaves out is the magnitude behind it.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]

    @classmethod
    def of(cls, masses: Sequence[int], whole: int) -> Self:
        """Return the law whose magnitude is k with odds masses[k] / whole, for those that are told.

        Parameters
        ----------
        masses : sequence of int
            At least one; their sum is at most `whole`.
        whole : int
            What the odds are counted in.
        """
        below, parts = 0, []
        for mass in masses:
            below += mass
            parts.append(((below << _FRACTION_BITS) // whole).to_bytes(16, "little"))
        table = np.frombuffer(b"".join(parts), dtype="<u8").reshape(-1, 2)
        low, high = (np.ascontiguousarray(column, dtype=np.uint64) for column in table.T)
        return cls(high, low)

    def pick(
        self, words: NDArray[np.uint64], another: Callable[[int], np.uint64]
    ) -> NDArray[np.int64]:
        """Return one integer a word.

        A word gives the sign and 63 bits of a uniform variate; where those equal the first 63 bits
        of a threshold, so that they do not decide, a second word does.

        Parameters
        ----------
        words : ndarray
            Uniform, shape (count,).
        another : callable
            From the place of an integer among them to a fresh word for it.
        """
        uniform = words >> np.uint64(1)
        magnitude = np.searchsorted(self.high, uniform, side="right")
        undecided = (magnitude > 0) & (self.high[np.maximum(magnitude, 1) - 1] == uniform)
        for place in np.flatnonzero(undecided):
            first, last = np.searchsorted(self.high, uniform[place], side="left"), magnitude[place]
            behind = np.searchsorted(self.low[first:last], another(int(place)), side="right")
            magnitude[place] = first + behind
        is_negative = (words & np.uint64(1)).astype(np.bool_)
        return np.where(is_negative, -magnitude, magnitude).astype(np.int64)
