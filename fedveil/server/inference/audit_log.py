"""What happened, written down by a thread: who asked, when, for what, and how it ended.

Never an input, an output or a token. Where it cannot be written down, nothing may happen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedveil.audit_log.chain import ChainFile
from fedveil.audit_log.errors import AuditError
from fedveil.server.inference.errors import UnavailableError

__all__ = ["AuditEvent", "AuditLog"]

_MOST_WAITING = 16_384
_MOST_REFUSERS = 1024
_GATHER_SECONDS = 0.01
_RETRY_SECONDS = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One thing that happened.

    Parameters
    ----------
    event : str
        What: start, infer, refuse, roll-back, swap, refuse-round or stop.
    caller : str
        Who; empty for the service itself.
    protocol : str
        Over http or grpc; empty for the service itself.
    version : str
        The round that answered, or answers now.
    rows : int
        Of the request.
    outcome : str
        ok, or the name of an error.
    detail : str
        More, in the service's own words.
    """

    event: str
    caller: str = ""
    protocol: str = ""
    version: str = ""
    rows: int = 0
    outcome: str = ""
    detail: str = ""


class AuditLog:
    """Writes events to a chain of lines, some milliseconds after they happened.

    Whatever came while the last lines were forced to the disk is written together. Refusals of a
    caller that are alike become one line with their count, so that those who are not let in cannot
    fill the disk as fast as they can ask.

    Parameters
    ----------
    path : Path
        The log.
    head : Path
        Where its head is kept.
    first : AuditEvent
        Written at once, so that a log that cannot be written is known before anybody may ask.

    Raises
    ------
    AuditError
        If the log cannot be written, or was cut or changed at its end.
    """

    def __init__(self, path: Path, head: Path, first: AuditEvent) -> None:
        self._path = path
        self._chain = ChainFile(path, head)
        self._waiting: deque[tuple[float, AuditEvent]] = deque()
        self._refused: dict[AuditEvent, tuple[float, int]] = {}
        self._pending: list[dict[str, str | int]] = []
        self._failure = ""
        self._adding = threading.Lock()
        self._changed = threading.Event()
        self._is_closed = threading.Event()
        try:
            self._chain.append([_fields(time.time(), first)])
        except OSError as error:
            raise AuditError(
                f"{path}: the audit log cannot be written ({error.strerror})"
            ) from None
        self._writer = threading.Thread(target=self._work, name="fedveil-audit", daemon=True)
        self._writer.start()

    def check(self) -> None:
        """Pass where events can be written.

        Raises
        ------
        UnavailableError
            If they cannot, or too many wait.
        """
        if self._failure:
            raise UnavailableError(
                "the audit log cannot be written, and nothing is done without it"
            )
        if len(self._waiting) >= _MOST_WAITING:
            raise UnavailableError("the audit log is behind; try again later")

    def record(self, event: AuditEvent) -> None:
        """Write an event down soon; of what `check` has let in, none is lost while this runs."""
        self._waiting.append((time.time(), event))
        if not self._changed.is_set():
            self._changed.set()

    def refuse(self, event: AuditEvent) -> None:
        """Write a refusal down soon, together with those that are alike."""
        with self._adding:
            if event not in self._refused and len(self._refused) >= _MOST_REFUSERS:
                event = AuditEvent(event.event, "others", event.protocol, outcome=event.outcome)
            began, count = self._refused.get(event, (time.time(), 0))
            self._refused[event] = (began, count + 1)
        if not self._changed.is_set():
            self._changed.set()

    def close(self, last: AuditEvent) -> None:
        """Write what waits, then a last event, and end."""
        self.record(last)
        self._is_closed.set()
        self._changed.set()
        self._writer.join()

    def _work(self) -> None:
        while not self._is_closed.is_set():
            self._changed.wait()
            # More comes in this time, and is forced to the disk with it.
            self._is_closed.wait(_GATHER_SECONDS)
            self._changed.clear()
            while not self._write() and not self._is_closed.wait(_RETRY_SECONDS):
                pass
        while self._pending or self._waiting or self._refused:
            if not self._write():
                left = len(self._pending) + len(self._waiting) + len(self._refused)
                _log.error("%s: %d lines of the audit log are lost", self._path, left)
                break

    def _write(self) -> bool:
        """Write what waits; return whether it is on the disk."""
        # What could not be written is tried again alone: what came after it stays where it is
        # bounded.
        self._pending = self._pending or self._take()
        try:
            if self._pending:
                self._chain.append(self._pending)
        except (OSError, AuditError) as error:
            if not self._failure:
                self._failure = str(error)
                _log.error("%s: %s; no request is answered until it is", self._path, error)
            return False
        self._pending = []
        if self._failure:
            self._failure = ""
            _log.info("%s: the audit log is written again", self._path)
        return True

    def _take(self) -> list[dict[str, str | int]]:
        with self._adding:
            refused, self._refused = self._refused, {}
        found = [(when, event, 1) for when, event in _drained(self._waiting)]
        found += [(when, event, count) for event, (when, count) in refused.items()]
        found.sort(key=lambda item: item[0])
        return [_fields(when, event, count) for when, event, count in found]


def _drained(waiting: deque[tuple[float, AuditEvent]]) -> list[tuple[float, AuditEvent]]:
    # Others add at the other end meanwhile, and a deque needs no lock for that.
    return [waiting.popleft() for _ in range(len(waiting))]


def _fields(when: float, event: AuditEvent, count: int = 1) -> dict[str, str | int]:
    time_ = datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds")
    told: Mapping[str, str | int] = {
        "caller": event.caller,
        "protocol": event.protocol,
        "version": event.version,
        "rows": event.rows,
        "outcome": event.outcome,
        "detail": event.detail,
        "times": count if count > 1 else 0,
    }
    return {
        "time": time_.replace("+00:00", "Z"),
        "event": event.event,
        **{name: value for name, value in told.items() if value},
    }
