"""An engine that runs clients in a pool of processes, one client at a time in each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedveil.flower import set_identity
from fedveil.simulations.engines.answering import answer
from fedveil.simulations.engines.errors import ClientDefectError, EngineError
from fedveil.simulations.engines.interface import AppMaker, Work

__all__ = ["ProcessesEngine"]

_LOGS = ("flwr", "fedveil")
_SERVER_NODE = 1

_Answer = tuple[Message, RecordDict] | str
"""A reply and the state of its node after it; or the traceback of a defect."""

_app: ClientApp | None = None
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
            (clients, theirs, {name: logging.getLogger(name).level for name in _LOGS}),
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
        asked: dict[Future[_Answer], Context] = {}
        try:
            for message, context in work:
                asked[self._pool.submit(_run, message, context, message.metadata.run_id)] = context
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
    global _app
    # A Ctrl-C at the terminal reaches every process there; ours ends when the engine says so.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    import torch

    # The processes share the cores, and sums then do not depend on how many there are.
    torch.set_num_threads(1)
    _app = clients.app()


def _end_with(lifeline: Connection) -> None:
    try:
        lifeline.recv_bytes()
    except (EOFError, OSError):
        # At once, in the middle of whatever it is: ledgers are written so that they bear it.
        os._exit(0)


def _run(message: Message, context: Context, run_id: int) -> _Answer:
    assert _app is not None  # noqa: S101  # the initialiser made it
    set_identity(run_id, _SERVER_NODE)
    try:
        return answer(_app, message, context), context.state
    except Exception:  # noqa: BLE001  # told whole: not every error survives the way between processes
        return traceback.format_exc()
