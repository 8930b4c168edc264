"""How fast a caller may ask: so many requests and rows a second, in bounded memory.

Source: the generic cell rate algorithm (ITU-T I.371, 1993, annex A), a token bucket that keeps one
moment of a caller: when all that was asked for would be paid off at the given rate.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NoReturn

from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import RateError, ServeError

__all__ = ["Rate"]

_BURST_SECONDS = 1.0
_MOST_CALLERS = 65_536
_ROUNDING_SECONDS = 1e-6


class Rate:
    """Lets each caller ask at a rate, with a burst of one second's worth.

    Each process counts for itself.

    Parameters
    ----------
    requests, rows : float or None
        Of one caller, a second; None for no limit.
    clock : callable, optional
        Seconds that only go forward.

    Raises
    ------
    ServeError
        If a rate is not above 0.
    """

    def __init__(
        self,
        requests: float | None,
        rows: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for option, rate in (("--rate", requests), ("--rate-rows", rows)):
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise ServeError(f"{option} {rate:g}: a rate a second must be above 0")
        self._requests = None if requests is None else _Buckets(requests, "requests", clock)
        self._rows = None if rows is None else _Buckets(rows, "rows", clock)

    def take_request(self, caller: Caller) -> None:
        """Count a request.

        Raises
        ------
        RateError
            If it comes too soon.
        """
        if self._requests is not None:
            self._requests.take(caller, 1)

    def take_rows(self, caller: Caller, rows: int) -> None:
        """Count rows; a request that is let in may have more than a second's, which are paid off.

        Raises
        ------
        RateError
            If those before them are not paid off.
        """
        if self._rows is not None:
            self._rows.take(caller, rows)


class _Buckets:
    def __init__(self, rate: float, unit: str, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._unit = unit
        self._clock = clock
        # A bucket of one second holds one at least, so that slow rates let anything in at all.
        self._slack = max(0.0, _BURST_SECONDS - 1 / rate)
        self._paid: OrderedDict[Caller | None, float] = OrderedDict()
        self._counting = threading.Lock()

    def take(self, caller: Caller, count: int) -> None:
        with self._counting:
            now = self._clock()
            key = self._place(caller, now)
            paid = self._paid.get(key, now)
            wait = paid - now - self._slack
            if wait <= _ROUNDING_SECONDS:
                self._paid[key] = max(paid, now) + count / self._rate
                self._paid.move_to_end(key)
                return
        self._refuse(caller, wait)

    def _place(self, caller: Caller, now: float) -> Caller | None:
        """Return under which name a caller is counted: where there is no room, all under one."""
        if caller in self._paid or len(self._paid) < _MOST_CALLERS:
            return caller
        oldest = next(iter(self._paid))
        if self._paid[oldest] > now:
            # To forget it would forgive what it owes, which is what a flood of names is for.
            return None
        del self._paid[oldest]
        return caller

    def _refuse(self, caller: Caller, wait: float) -> NoReturn:
        raise RateError(
            f"{caller} may ask for {self._rate:g} {self._unit} a second; try again in "
            f"{math.ceil(wait * 100) / 100:g} s",
            wait,
        )
