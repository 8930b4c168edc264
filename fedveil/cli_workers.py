"""What `fedveil serve --workers N` does itself: the sockets, and the workers that share them."""

from __future__ import annotations

import signal
import sys
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from fedveil.server.inference.workers import Workers

__all__ = ["serve_with"]

_err = Console(stderr=True, soft_wrap=True)


def serve_with(count: int, host: str, port: int, grpc_port: int | None, patience: float) -> None:
    """Start workers with the arguments of this process, and keep them running until asked to end.

    Parameters
    ----------
    count : int
        How many.
    host, port, grpc_port
        Where they listen.
    patience : float
        Seconds that they have for what they are answering at the end.

    Raises
    ------
    ServeError
        If the ports cannot be listened on.
    Exit
        With 1, if a worker cannot start, which has said why, or does not end as it should.
    """
    # Not before: the other commands do without them.
    from fedveil.server.inference.listening import listen, reserve_port
    from fedveil.server.inference.workers import Workers

    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with ExitStack() as stack:
        listener = stack.enter_context(listen(host, port))
        shared = 0
        if grpc_port is not None:
            shared = stack.enter_context(reserve_port(host, grpc_port)).getsockname()[1]
        command = [sys.executable, "-m", "fedveil.cli", *sys.argv[1:], "--worker"]
        workers = Workers(command, count, listener.fileno(), shared)
        signal.signal(signal.SIGHUP, lambda *_: workers.send(signal.SIGHUP))
        try:
            is_well = _run(workers, ending)
            # What comes from now on shall hear at once that nobody listens.
            stack.close()
        finally:
            has_ended = workers.stop(patience)
    if not (is_well and has_ended):
        raise typer.Exit(1)


def _run(workers: Workers, ending: threading.Event) -> bool:
    """Start the workers, and watch them to the end; return whether they started."""
    # No moving text: it would wipe out what the workers say.
    _err.print("starting the workers", highlight=False)
    if not workers.start(ending):
        return ending.is_set()
    pids = ", ".join(map(str, workers.pids))
    _err.print(f"{len(workers.pids)} workers, processes {pids}", highlight=False)
    workers.watch(ending)
    _err.print("finishing what is being answered", highlight=False)
    return True
