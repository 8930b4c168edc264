"""Several processes that serve the same run on the same port: started, watched, replaced, ended.

They share the listening socket, so that whoever is idle takes the next connection, and connections
that wait outlive the death of a worker. Every worker opens the store, the key-encryption key and
all files by itself; nothing secret goes from one to another.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from prometheus_client.multiprocess import mark_process_dead

from fedveil.server.inference.errors import ServeError

__all__ = ["METRICS_VARIABLE", "Worker", "Workers"]

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Where the workers keep figures that `/metrics` sums; prometheus_client reads it."""

_READY = b"r"
_START_SECONDS = 300.0
_LEAST_WAIT, _MOST_WAIT = 0.5, 30.0
_HEALTHY_SECONDS = 60.0
_TICK_SECONDS = 0.1
_KILL_SECONDS = 15.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Worker:
    """What a worker is told, in one argument.

    Parameters
    ----------
    number, count : int
        Which of how many it is, from 1.
    listener : int
        The file descriptor that it listens on for HTTP.
    status : int
        The one that it says on that it is ready, and whose other end the parent holds.
    grpc_port : int
        The port for gRPC that all share; 0 for none.
    speaks : bool
        Whether it says what is to be said once for all of them.
    """

    number: int
    count: int
    listener: int
    status: int
    grpc_port: int
    speaks: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `str` made a text of.

        Raises
        ------
        ServeError
            If it did not.
        """
        try:
            number, count, listener, status, grpc_port, speaks = map(int, text.split(","))
        except ValueError:
            raise ServeError("--worker is for the service itself; use --workers N") from None
        return cls(number, count, listener, status, grpc_port, bool(speaks))

    def __str__(self) -> str:
        fields = (self.number, self.count, self.listener, self.status, self.grpc_port, self.speaks)
        return ",".join(str(int(field)) for field in fields)

    def is_ready(self) -> None:
        """Tell the parent that requests are answered from now on."""
        os.write(self.status, _READY)

    def end_with_parent(self, ending: threading.Event) -> None:
        """Set an event when the parent is gone, however that came about."""

        def watch() -> None:
            poll = select.poll()
            # A pipe whose reader is gone is in error.
            poll.register(self.status, 0)
            poll.poll()
            ending.set()

        threading.Thread(target=watch, name="fedveil-parent", daemon=True).start()


@dataclass
class _Place:
    number: int
    process: subprocess.Popen[bytes] | None = None
    status: int = -1
    started: float = 0.0
    start_at: float = 0.0
    waits: int = 0
    is_ready: bool = False


class Workers:
    """Keeps so many workers running.

    Parameters
    ----------
    command : sequence of str
        What starts one, but for its last argument, which is a `Worker`.
    count : int
        How many.
    listener : int
        The file descriptor of the socket that they share.
    grpc_port : int
        The port for gRPC that they share; 0 for none.
    """

    def __init__(
        self, command: Sequence[str], count: int, listener: int, grpc_port: int = 0
    ) -> None:
        self._command = list(command)
        self._count = count
        self._listener = listener
        self._grpc_port = grpc_port
        self._metrics = tempfile.TemporaryDirectory(prefix="fedveil-metrics-")
        self._places = [_Place(number) for number in range(1, count + 1)]

    @property
    def pids(self) -> list[int]:
        """Processes that answer requests."""
        return [
            place.process.pid
            for place in self._places
            if place.process is not None and place.is_ready and place.process.poll() is None
        ]

    def start(self, ending: threading.Event) -> bool:
        """Start all of them; return whether all are ready. One that is not has said why.

        The others are started once the first is ready, so that what is wrong is said once.

        Parameters
        ----------
        ending : Event
            Set when they are not wanted any more.

        Raises
        ------
        ServeError
            If they take too long, or one is killed.
        """
        for places in (self._places[:1], self._places[1:]):
            for place in places:
                self._begin(place)
            until = time.monotonic() + _START_SECONDS
            while not all(self._hears_from(place) for place in places):
                if ending.is_set():
                    return False
                for place in places:
                    code = None if place.process is None else place.process.poll()
                    if code is not None and code < 0:
                        raise ServeError(f"worker {place.number} was killed by signal {-code}")
                    if code is not None:
                        return False
                if time.monotonic() > until:
                    raise ServeError(f"the workers do not start within {_START_SECONDS:g} s")
                ending.wait(_TICK_SECONDS)
        return True

    def watch(self, ending: threading.Event) -> None:
        """Replace workers that die, until an event is set; those that die at once wait longer."""
        while not ending.wait(_TICK_SECONDS):
            for place in self._places:
                if place.process is None:
                    if time.monotonic() >= place.start_at:
                        self._begin(place)
                elif place.process.poll() is not None:
                    self._bury(place)
                elif not place.is_ready and self._hears_from(place):
                    _log.info("worker %d is process %d now", place.number, place.process.pid)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to each of them."""
        for place in self._places:
            if place.process is not None:
                place.process.send_signal(number)

    def stop(self, patience: float) -> bool:
        """End all of them; return whether each ended as it was asked to.

        Parameters
        ----------
        patience : float
            Seconds that they have for what they are answering.
        """
        self.send(signal.SIGTERM)
        until = time.monotonic() + patience + _KILL_SECONDS
        are_well = True
        for place in self._places:
            if place.process is None:
                continue
            try:
                code = place.process.wait(max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                place.process.kill()
                code = place.process.wait()
            was_starting = not place.is_ready and code == -signal.SIGTERM
            are_well = are_well and (code == 0 or was_starting)
            os.close(place.status)
            place.process = None
        self._metrics.cleanup()
        return are_well

    def _begin(self, place: _Place) -> None:
        ours, theirs = os.pipe()
        worker = Worker(
            number=place.number,
            count=self._count,
            listener=self._listener,
            status=theirs,
            grpc_port=self._grpc_port,
            speaks=place.number == 1 and place.started == 0,
        )
        try:
            place.process = subprocess.Popen(
                [*self._command, str(worker)],
                stdin=subprocess.DEVNULL,
                pass_fds=(self._listener, theirs),
                env={**os.environ, METRICS_VARIABLE: self._metrics.name},
                # Without a terminal of its own it asks nobody for a passphrase, and Ctrl-C reaches
                # it through this process alone.
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        place.status, place.started, place.is_ready = ours, time.monotonic(), False

    def _hears_from(self, place: _Place) -> bool:
        if not place.is_ready and select.select([place.status], [], [], 0)[0]:
            place.is_ready = os.read(place.status, 1) == _READY
        return place.is_ready

    def _bury(self, place: _Place) -> None:
        if place.process is None:
            return
        pid, code = place.process.pid, place.process.returncode
        os.close(place.status)
        # Its counts stay in the sums; what was true only while it lived does not.
        mark_process_dead(pid, self._metrics.name)  # type: ignore[no-untyped-call]
        if time.monotonic() - place.started > _HEALTHY_SECONDS:
            place.waits = 0
        wait = min(_LEAST_WAIT * 2**place.waits, _MOST_WAIT)
        place.process, place.start_at = None, time.monotonic() + wait
        place.waits += 1
        why = f"by signal {-code}" if code < 0 else f"with code {code}"
        _log.error(
            "worker %d, process %d, ended %s; another is started in %g s",
            place.number,
            pid,
            why,
            wait,
        )
