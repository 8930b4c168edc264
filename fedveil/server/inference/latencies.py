"""How fast requests were answered in the last minutes, in memory of a fixed size."""

from __future__ import annotations

import math
import threading
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

__all__ = ["Latencies", "LatencyHistory"]

_LEAST = 10e-6
_PARTS = 8
_BUCKETS = 184
_BOUNDS = tuple(_LEAST * 2 ** (bucket / _PARTS) for bucket in range(_BUCKETS - 1))
_STEPS = 120
_STEP_SECONDS = 5.0


@dataclass(frozen=True)
class Latencies:
    """What was measured, step by step; the last whole step comes last.

    Parameters
    ----------
    step_seconds : float
        Length of a step.
    answered, refused : tuple of int
        Requests of each step.
    p50, p99 : tuple of float or None
        Seconds within which half, and 99 of 100, of those answered were; None where there were
        none. They are at most 9 % above the true figure.
    """

    step_seconds: float
    answered: tuple[int, ...]
    refused: tuple[int, ...]
    p50: tuple[float | None, ...]
    p99: tuple[float | None, ...]


class _Step:
    __slots__ = ("counts", "number", "refused")

    def __init__(self, number: int) -> None:
        self.number = number
        self.counts = array("L", bytes(_BUCKETS * array("L").itemsize))
        self.refused = 0


class LatencyHistory:
    """Counts requests into buckets of time and of duration, eight buckets an octave.

    Parameters
    ----------
    clock : callable, optional
        Seconds; never runs back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._ring = [_Step(-1) for _ in range(_STEPS + 1)]
        self._told: tuple[int, Latencies] | None = None

    def add(self, seconds: float, *, answered: bool) -> None:
        """Count a request; takes the same short time however many there were."""
        number = int(self._clock() / _STEP_SECONDS)
        place = number % len(self._ring)
        with self._lock:
            step = self._ring[place]
            if step.number != number:
                step = self._ring[place] = _Step(number)
            if answered:
                step.counts[_bucket(seconds)] += 1
            else:
                step.refused += 1

    def read(self) -> Latencies:
        """Return the whole steps that ended within the last ten minutes."""
        now = int(self._clock() / _STEP_SECONDS)
        told = self._told
        # Whole steps do not change, and to sum them up takes milliseconds of whoever else asks.
        if told is None or told[0] != now:
            told = self._told = now, self._read(now)
        return told[1]

    def _read(self, now: int) -> Latencies:
        with self._lock:
            kept = {step.number: step for step in self._ring}
            steps = [kept.get(number) for number in range(now - _STEPS, now)]
        none = _Step(-1)
        found = [none if step is None else step for step in steps]
        return Latencies(
            step_seconds=_STEP_SECONDS,
            answered=tuple(sum(step.counts) for step in found),
            refused=tuple(step.refused for step in found),
            p50=tuple(_quantile(step.counts, 0.50) for step in found),
            p99=tuple(_quantile(step.counts, 0.99) for step in found),
        )


def _bucket(seconds: float) -> int:
    return bisect_left(_BOUNDS, seconds)


def _quantile(counts: Sequence[int], share: float) -> float | None:
    wanted = math.ceil(sum(counts) * share)
    if not wanted:
        return None
    bucket = next(number for number, seen in enumerate(accumulate(counts)) if seen >= wanted)
    return _LEAST * 2 ** (bucket / _PARTS)
