"""The log that a coordinator and a client keep of their runs: who ran what, and how it ended.

Never a record, an update, a weight or a key.
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from fedveil.audit_log.chain import ChainFile
from fedveil.audit_log.errors import AuditError

__all__ = ["AuditTrail", "Event", "TrailReader", "in_parts", "local_user", "read_events", "trail"]

Event = dict[str, str | int]
"""One line, without its number and the hash that it names."""

_NAME = "audit.jsonl"
_HEAD = "audit/runs.head"
_MOST_TEXT = 2000
"""Characters of a text: of what a server sent, too, so that it cannot fill the disk by one line."""


def trail(home: Path) -> tuple[Path, Path]:
    """Return where a party's log lies, and its head; `home` is its ``$FEDVEIL_HOME``."""
    return home / _NAME, home / _HEAD


def local_user() -> str:
    """Return who this process works for on this machine, as ``NAME (UID)``.

    The kernel says it: variables of the environment can be set by anybody.
    """
    uid = os.geteuid()
    try:
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    except KeyError:
        return f"({uid})"


def in_parts(names: Iterable[str]) -> Iterator[str]:
    """Yield names one behind the other, in as many texts as their lengths ask for."""
    part = ""
    for name in names:
        longer = f"{part}, {name}" if part else name
        if part and len(longer) > _MOST_TEXT:
            yield part
            longer = name
        part = longer
    if part:
        yield part


class AuditTrail:
    """Writes events down, each on the disk when the call returns; several processes may at once.

    Parameters
    ----------
    home : Path
        The party's ``$FEDVEIL_HOME``, as a kit is.
    """

    def __init__(self, home: Path) -> None:
        self._path, head = trail(home)
        self._chain = ChainFile(self._path, head)

    def write(self, event: str, **fields: str | int) -> None:
        """Write an event down.

        Parameters
        ----------
        event : str
            What happened.
        **fields : str or int
            More of it; texts are cut at 2000 characters, empty ones left out.

        Raises
        ------
        AuditError
            If it cannot be: what must not go unseen must not happen then.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {"time": now, "event": event, "user": local_user(), "process": os.getpid(), **fields}
        try:
            self._chain.append([{n: _cut(value) for n, value in told.items() if value != ""}])
        except OSError as error:
            raise AuditError(
                f"{self._path}: the audit log cannot be written ({error.strerror}), and nothing is "
                "done without it"
            ) from None


def read_events(path: Path, offset: int = 0) -> tuple[list[Event], int]:
    """Return the whole lines of a log behind a place, and the place behind them.

    Nothing is verified: see `fedveil.audit_log.verify`. What is no line of a log is left out.

    Raises
    ------
    AuditError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise AuditError(f"{path}: cannot be read ({error.strerror})") from None
    whole = content[: content.rfind(b"\n") + 1]
    return [event for line in whole.splitlines() if (event := _parsed(line))], offset + len(whole)


class TrailReader:
    """Reads on in a log that grows, or that is moved away and begun anew.

    Parameters
    ----------
    path : Path
        The log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._offset = 0

    def new_events(self) -> list[Event]:
        """Return the events since the last call.

        Raises
        ------
        AuditError
            If the log cannot be read.
        """
        try:
            status = self._path.stat()
        except OSError:
            return []
        if status.st_ino != self._file or status.st_size < self._offset:
            self._file, self._offset = status.st_ino, 0
        events, self._offset = read_events(self._path, self._offset)
        return events


def _cut(value: str | int) -> str | int:
    if isinstance(value, int) or len(value) <= _MOST_TEXT:
        return value
    return value[:_MOST_TEXT] + " ..."


def _parsed(line: bytes) -> Event:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    return {str(n): value for n, value in fields.items() if isinstance(value, str | int)}
