"""Who watches a run, and is told what happens."""

from __future__ import annotations

from typing import Protocol

from fedveil.config import Config
from fedveil.server.records import RoundRecord

__all__ = ["Observer"]


class Observer(Protocol):
    """Whoever watches a run."""

    def started(self, config: Config, run: str, clients: int, noise: float | None) -> None:
        """Hear that everybody has joined; `noise` is the noise multiplier, None without privacy."""

    def reply(self, round_: int, replies: int, cohort: int) -> None:
        """Hear that one more reply of a round has come."""

    def round_done(self, record: RoundRecord, rounds: int) -> None:
        """Hear that a round is committed."""

    def warning(self, text: str) -> None:
        """Hear of something a person should know, in one line."""
