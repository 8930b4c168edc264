"""What an audit log tells in numbers: runs begun and ended, clients seen and refused."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from pathlib import Path

from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.trail import Event, TrailReader
from fedveil.strategies.failures import FailureKind

__all__ = ["AuditTally"]

_OUTCOMES = frozenset({"finished", "stopped", "failed"})
_KINDS = frozenset(FailureKind)

_log = logging.getLogger(__name__)


class AuditTally:
    """Counts the events of a coordinator's log from now on, as counters begin at 0 with a server.

    What it counts by has few values, whatever stands in the log.

    Parameters
    ----------
    log : Path
        The log.
    """

    def __init__(self, log: Path) -> None:
        self._reader = TrailReader(log)
        self._new_events()
        self.begun = 0
        """Runs that began or went on."""
        self.ended: Counter[str] = Counter()
        """How runs ended: finished, stopped, failed, other."""
        self.refused: Counter[str] = Counter()
        """Nodes that asked to join and were refused, by `FailureKind`."""
        self.seen: defaultdict[str, set[str]] = defaultdict(set)
        """Clients that joined, by the name of the run's folder."""

    def read(self) -> None:
        """Count what was written since the last time."""
        for event in self._new_events():
            self._count(event)

    def _new_events(self) -> list[Event]:
        try:
            return self._reader.new_events()
        except AuditError as error:
            _log.warning("%s", error)
            return []

    def _count(self, event: Event) -> None:
        match event.get("event"):
            case "begin" | "resume":
                self.begun += 1
            case "end":
                self.ended[_known(event.get("outcome"), _OUTCOMES)] += 1
            case "refuse":
                self.refused[_known(event.get("kind"), _KINDS)] += 1
            case "join":
                folder = Path(str(event.get("folder", ""))).name
                self.seen[folder].add(str(event.get("client", "")))


def _known(value: str | int | None, words: frozenset[str]) -> str:
    return value if isinstance(value, str) and value in words else "other"
