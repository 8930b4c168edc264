"""What the runner and its worker tell each other: one JSON object a line, over a socket pair."""

from __future__ import annotations

import base64
import json
import select
import socket
import time
from dataclasses import asdict, dataclass

from fedveil.errors import FedveilError

__all__ = [
    "Channel",
    "ChannelError",
    "Done",
    "Go",
    "Ready",
    "Refused",
    "Report",
    "Take",
    "Taken",
]

_LONGEST_LINE = 1 << 20
_PIECE = 1 << 16


class ChannelError(FedveilError):
    """The other side said something that does not belong here."""


@dataclass(frozen=True)
class Take:
    """Runner to worker: take up the task of a token."""

    token: str


@dataclass(frozen=True)
class Go:
    """Runner to worker: the task that is taken up is written down; run it."""


@dataclass(frozen=True)
class Ready:
    """Worker to runner: the app is loaded."""


@dataclass(frozen=True)
class Refused:
    """Worker to runner: the app cannot be loaded; another try would not help."""

    reason: str


@dataclass(frozen=True)
class Taken:
    """Worker to runner: a task is taken up; nothing of it is run before the runner says so.

    Parameters
    ----------
    envelope : bytes
        Its message without the content.
    what : str
        What kind of message that is, for the log.
    run : str
        The run's number at the SuperLink.
    bundle : str
        SHA-256 of the bundle of code that came along, in hexadecimal; empty if none did.
    """

    envelope: bytes
    what: str
    run: str
    bundle: str


@dataclass(frozen=True)
class Done:
    """Worker to runner: the task is answered.

    Parameters
    ----------
    error : str
        What it was answered with, where that is an error; else empty.
    is_spent : bool
        Whether this worker should not take another task.
    outcome : str
        What became of it, an `Outcome`.
    """

    error: str
    is_spent: bool
    outcome: str


Report = Ready | Refused | Taken | Done
_Line = Take | Go | Ready | Refused | Taken | Done
_KINDS: dict[str, type[_Line]] = {
    kind.__name__: kind for kind in (Take, Go, Ready, Refused, Taken, Done)
}


class Channel:
    """One end of the pair.

    Parameters
    ----------
    end : socket.socket
        A connected stream socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._pending = b""

    def send(self, line: _Line) -> None:
        """Send one line.

        Raises
        ------
        OSError
            If the other side has gone.
        """
        fields = {
            name: base64.b64encode(value).decode() if isinstance(value, bytes) else value
            for name, value in asdict(line).items()
        }
        self._end.sendall(json.dumps([type(line).__name__, fields]).encode() + b"\n")

    def receive(self, timeout: float | None) -> _Line | None:
        """Return the next line; None when `timeout` seconds have passed without a whole one.

        Raises
        ------
        EOFError
            If the other side has gone.
        ChannelError
            If what came is no line of ours.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while b"\n" not in self._pending:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._end], [], [], left)
            if not readable:
                return None
            try:
                piece = self._end.recv(_PIECE)
            except ConnectionResetError:
                piece = b""
            if not piece:
                raise EOFError
            self._pending += piece
            if len(self._pending) > _LONGEST_LINE:
                raise ChannelError(f"a line of more than {_LONGEST_LINE} bytes came")
        line, self._pending = self._pending.split(b"\n", 1)
        return _parsed(line)

    def close(self) -> None:
        """Close this end."""
        self._end.close()


def _parsed(line: bytes) -> _Line:
    try:
        name, fields = json.loads(line)
        if "envelope" in fields:
            fields["envelope"] = base64.b64decode(fields["envelope"])
        return _KINDS[name](**fields)
    except (ValueError, TypeError, KeyError):
        raise ChannelError("a line came that is none of ours") from None
