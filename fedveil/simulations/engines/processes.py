"""An engine that runs clients in a pool of processes, one client at a time in each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from flwr.app import Context, Message

from fedveil.simulations.engines.errors import ClientDefectError, EngineError
from fedveil.simulations.engines.hosting import Answer, Host, levels_of_logs
from fedveil.simulations.engines.interface import AppMaker, Work

__all__ = ["ProcessesEngine"]

_host: Host | None = None
"""What this process runs, where it is one of a pool."""


class ProcessesEngine:
    """Sends each message to a process that is free, with the state of its node; both come back.

    A process keeps nothing of a node between two messages but what it can make anew, so that it
    does not matter which of them gets a message. Each uses one thread.

    Parameters
    ----------
    clients : AppMaker
        Makes the app, in every process.
    processes : int
        How many; >= 1. They start when there is work for them.
    """

    def __init__(self, clients: AppMaker, processes: int) -> None:
        # Whoever holds the other end of this lifeline lives no longer than we hold ours.
        ours, theirs = multiprocessing.Pipe()
        self._lifeline = ours
        self._pool = ProcessPoolExecutor(
            processes,
            # Torch has threads, and a fork of a process with threads can hang.
            multiprocessing.get_context("spawn"),
            _begin,
            (clients, theirs, levels_of_logs()),
        )

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        """Answer messages, and yield each reply when it is there.

        Raises
        ------
        EngineError
            If a process has died.
        ClientDefectError
            If a client failed in a way that no user can repair.
        """
        asked: dict[Future[Answer], Context] = {}
        try:
            for message, context in work:
                asked[self._pool.submit(_run, message, context)] = context
            for future in as_completed(list(asked)):
                found = future.result()
                if isinstance(found, str):
                    raise ClientDefectError(f"in a process of the engine:\n{found}")
                reply, state = found
                # Else all replies of a round would be kept to its end.
                asked.pop(future).state = state
                yield reply
        except BrokenProcessPool:
            raise EngineError(
                "a process that ran clients has died, perhaps for want of memory; what was "
                "finished stands. Resume the run with fewer --processes"
            ) from None
        finally:
            for future in asked:
                future.cancel()

    def close(self) -> None:
        """End all processes, at work or not."""
        self._lifeline.close()
        self._pool.shutdown(cancel_futures=True)


def _begin(clients: AppMaker, lifeline: Connection, levels: Mapping[str, int]) -> None:
    """Make a process ready to run clients."""
    # A pool has no other place for what its process holds.
    global _host
    # A Ctrl-C at the terminal reaches every process there; ours ends when the engine says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    _host = Host(clients, levels)


def _end_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        # At once, in the middle of whatever it is: ledgers are written so that they bear it.
        os._exit(0)


def _run(message: Message, context: Context) -> Answer:
    assert _host is not None  # noqa: S101  # the initialiser made it
    return _host.run(message, context)
