"""How long each stage of a round took."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

__all__ = ["Stage", "StageClock"]


class Stage(StrEnum):
    """A stage of a round, in the order in which they come."""

    SET_UP = "set-up"
    """Keys of the secure aggregation are agreed and shared."""
    INPUT = "input"
    """Clients train and answer."""
    CONFIRM = "confirm"
    """Clients sign whose updates are in the sum."""
    UNMASK = "unmask"
    """Clients open what the sum needs, and it is opened."""
    AGGREGATE = "aggregate"
    """The strategy makes the next model."""
    EVALUATE = "evaluate"
    """The model is measured, here and by the clients."""
    COMMIT = "commit"
    """Model, state and figures are encrypted and written."""


class StageClock:
    """Adds up the seconds of each stage.

    A stage within another belongs to the outer one: figures of the clients that are summed under
    secure aggregation are ``evaluate``, whatever the protocol does for it.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[Stage, float] = defaultdict(float)
        self._is_open = False

    @contextmanager
    def stage(self, stage: Stage) -> Iterator[None]:
        """Count the block to a stage, however it ends."""
        if self._is_open:
            yield
            return
        self._is_open, started = True, time.monotonic()
        try:
            yield
        finally:
            self._seconds[stage] += time.monotonic() - started
            self._is_open = False

    def take(self) -> dict[Stage, float]:
        """Return the seconds since the last time, and begin anew."""
        taken = dict(self._seconds)
        self._seconds.clear()
        return taken
