"""How long to wait between two looks for something that may have come."""

from __future__ import annotations

import time

__all__ = ["Pace"]


class Pace:
    """How long to wait before the next look: the longer nothing came, the longer.

    A look costs the other side a request, and what comes waits for it: at most a quarter of the
    time that nothing came, within bounds.

    Parameters
    ----------
    shortest, longest : float
        Seconds.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self._shortest, self._longest = shortest, longest
        self._since = time.monotonic()

    def came(self) -> None:
        """Note that something came."""
        self._since = time.monotonic()

    def pause(self) -> float:
        """Return the seconds to wait now."""
        quiet = time.monotonic() - self._since
        return min(max(quiet / 4.0, self._shortest), self._longest)
