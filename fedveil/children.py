"""Child processes: apart from the terminal, their lines logged, none that outlives its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

__all__ = ["Child", "die_with_parent", "ended_how", "python_module", "until_told_to_stop"]

_PR_SET_PDEATHSIG = 1

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
# Flower's processes write "INFO :  text", and what they send away as "DATE TIME:INFO:text".
_LEVEL = re.compile(
    r"^(?:\d\d/\d\d/\d{4} [\d:]{8}:)?(DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL)\s*:\s*"
)
_KEPT = 40
_PATIENCE = 10.0


class Child:
    """A process in a session of its own, so that a Ctrl-C at the terminal reaches its parent alone.

    Parameters
    ----------
    command : sequence of str
        What is run.
    environment : mapping of str to str
        Its environment, whole.
    log : logging.Logger
        Takes what it prints, a line a record.
    pass_fds : sequence of int
        Open files that it inherits beside the standard ones.
    quiet : str
        Lines with this in them are for a log at DEBUG alone; empty for none.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: logging.Logger,
        pass_fds: Sequence[int] = (),
        quiet: str = "",
    ) -> None:
        self._process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        self._last: deque[str] = deque(maxlen=_KEPT)
        self._relay = threading.Thread(target=self._relay_lines, args=(log, quiet), daemon=True)
        self._relay.start()

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """How it ended, as `subprocess` counts it; None while it runs."""
        return self._process.poll()

    def has_said(self, text: str) -> bool:
        """Tell whether `text` stands in one of the lines that it printed last."""
        return any(text in line for line in tuple(self._last))

    def last_lines(self) -> str:
        """Return what it printed last, whole once it has ended."""
        if self.code is not None:
            self._relay.join(_PATIENCE)
        return "\n".join(self._last)

    def end(self, *, at_once: bool = False) -> int:
        """End it, by SIGTERM and after ten seconds by SIGKILL, and return its code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
            try:
                self._process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
        code = self._process.wait()
        self._relay.join(_PATIENCE)
        return code

    def _relay_lines(self, log: logging.Logger, quiet: str) -> None:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe
        level = logging.INFO
        for line in self._process.stdout:
            text = _ANSI.sub("", line).rstrip()
            if not text.strip():
                continue
            if quiet and quiet in text:
                log.debug("%s", text)
                continue
            self._last.append(text)
            if found := _LEVEL.match(text):
                level = logging.getLevelNamesMapping()[found[1]]
                text = text[found.end() :]
            # A line without a level goes on with what the line above began.
            if text:
                log.log(level, "%s", text)


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module, with nothing found where the process happens to be."""
    return [sys.executable, "-P", "-m", module, *arguments]


class _Stop(BaseException):
    """Raised where the process is when it is told to stop."""


@contextmanager
def until_told_to_stop(log: logging.Logger) -> Iterator[None]:
    """Leave the block, wherever it is, at the first SIGTERM or SIGINT; later ones change nothing.

    Parameters
    ----------
    log : logging.Logger
        Is told.
    """

    def stop(number: int, _: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
        log.info("told to stop by %s", signal.Signals(number).name)
        raise _Stop

    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except _Stop:
        log.info("stopped")
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process when the one that started it dies, even by SIGKILL.

    Parameters
    ----------
    parent : int
        Number of the process that started this one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(1)


def ended_how(code: int) -> str:
    """Return in words how a process ended."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
