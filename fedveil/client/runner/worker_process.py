"""The worker as the runner sees it: started when it is needed, heard, and ended."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping

from fedveil.children import Child, ended_how, python_module
from fedveil.client.runner.channel import (
    Channel,
    ChannelError,
    Go,
    Ready,
    Refused,
    Report,
    Take,
)
from fedveil.client.runner.limits import TaskLimits
from fedveil.errors import FedveilError

__all__ = ["WorkerGoneError", "WorkerProcess", "WorkerRefusedError"]

_MODULE = "fedveil.client.runner.worker"
_STARTS_WITHIN = 120.0


class WorkerGoneError(FedveilError):
    """The worker ended by itself; the message says how."""


class WorkerRefusedError(FedveilError):
    """The worker cannot do its work, however often it is started."""


class WorkerProcess:
    """A worker, ready to take a task.

    Parameters
    ----------
    app : str
        What it loads, as ``package.module:attribute``.
    address : str
        Where it finds the SuperNode.
    limits : TaskLimits
        What it is held to.
    environment : mapping of str to str
        Its environment.

    Raises
    ------
    WorkerRefusedError
        If the app cannot be loaded.
    WorkerGoneError
        If it ends before it is ready, or is not ready within two minutes.
    """

    def __init__(
        self, app: str, address: str, limits: TaskLimits, environment: Mapping[str, str]
    ) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        with theirs:
            arguments = [
                *("--address", address, "--app", app, "--channel", str(theirs.fileno())),
                *("--memory", str(limits.memory), "--seconds", repr(limits.seconds)),
                *("--parent", str(os.getpid())),
            ]
            log = logging.getLogger("fedveil.task")
            command = python_module(_MODULE, *arguments)
            self._child = Child(command, environment, log, (theirs.fileno(),))
        try:
            first = self.hear(_STARTS_WITHIN)
        except WorkerGoneError:
            self.end()
            raise
        if isinstance(first, Ready):
            return
        self.end()
        if isinstance(first, Refused):
            raise WorkerRefusedError(first.reason)
        raise WorkerGoneError(f"the task's process was not ready within {_STARTS_WITHIN:g} s")

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can take a task."""
        return self._child.code is None

    def give(self, token: str) -> None:
        """Give it a task.

        Raises
        ------
        WorkerGoneError
            If it has ended.
        """
        self._tell(Take(token))

    def go_on(self) -> None:
        """Let it run the task that it has taken up.

        Raises
        ------
        WorkerGoneError
            If it has ended.
        """
        self._tell(Go())

    def hear(self, timeout: float) -> Report | None:
        """Return what it reports next; None if nothing within `timeout` seconds.

        Raises
        ------
        WorkerGoneError
            If it has ended.
        """
        try:
            line = self._channel.receive(timeout)
        except (EOFError, ChannelError):
            raise self._gone() from None
        if isinstance(line, Take | Go):
            raise self._gone()
        return line

    def end(self) -> None:
        """End it at once: it holds nothing that a later task needs, and its ledger is on disk."""
        self._channel.close()
        self._child.end(at_once=True)

    def _tell(self, line: Take | Go) -> None:
        try:
            self._channel.send(line)
        except OSError:
            raise self._gone() from None

    def _gone(self) -> WorkerGoneError:
        # One that talks nonsense is ended; one that has gone says how it went.
        code = self._child.code
        if code is None:
            code = self._child.end()
        return WorkerGoneError(f"the task's process {ended_how(code)}")
