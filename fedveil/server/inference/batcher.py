"""One queue, and workers that give the model all that waits as soon as they are idle.

There is no timer: a lone request is run at once, and under load a batch is whatever came while the
last one was computed.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from fedveil.server.inference.errors import (
    DeadlineError,
    OutputError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from fedveil.server.inference.oip import Array, Limits
from fedveil.server.inference.round_statistics import Execution

__all__ = ["BatchRun", "Batcher", "Done", "Result"]

# The time for which a thread may keep the interpreter's lock to itself.
_QUICK_NS = 5e6
_REMEMBERED = 4

Target = TypeVar("Target", bound=Hashable)

BatchRun = Callable[[Target | None, Array, int], tuple[str, Array]]
"""Runs rows through a model; None is the one that is current when it runs. The number is that of
the worker. Returns the model's version, and an output a row."""


Result = tuple[str, Array]
"""The version that answered, and the output."""

Done = Callable[[Result | RequestError], None]
"""Told what came of a request; called once, by any thread."""


@dataclass(slots=True)
class _Ticket(Generic[Target]):
    rows: Array
    target: Target | None
    deadline: float
    done: Done
    queued_ns: int


class Batcher(Generic[Target]):
    """A bounded queue in front of a model.

    Parameters
    ----------
    run : BatchRun
        What computes a batch; called by one thread for each worker.
    limits : Limits
        Bounds of queue and batch.
    watch : callable, optional
        Told of every batch that was computed.
    workers : int
        How many batches may be computed at the same time.
    """

    def __init__(
        self,
        run: BatchRun[Target],
        limits: Limits,
        watch: Callable[[Execution], None] = lambda _: None,
        workers: int = 1,
    ) -> None:
        self._run = run
        self._limits = limits
        self._watch = watch
        self._waiting: deque[_Ticket[Target]] = deque()
        self._rows = 0
        self._bytes = 0
        self._is_closed = False
        self._busy = [False] * workers
        # What one row took in the last batches, of which the quickest counts: the system may take
        # the processor away in the middle of one, or the interpreter's lock be waited for.
        self._row_ns = deque((math.inf,), _REMEMBERED)
        self._gathering: int | None = None
        # What only takes the lock goes without the condition's own calls around it.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._workers = [
            threading.Thread(
                target=self._work, args=(number,), name=f"fedveil-batcher-{number}", daemon=True
            )
            for number in range(workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def queued_rows(self) -> int:
        """How many rows wait."""
        return self._rows

    def ask(self, rows: Array, deadline: float, done: Done, target: Target | None = None) -> None:
        """Queue rows, and be told what comes of them.

        Parameters
        ----------
        rows : ndarray, shape (n, ...)
            Not changed until the end.
        deadline : float
            When the answer is not worth computing any more, as `time.monotonic` has it.
        done : Done
            Told the version and the output, or the error. A future takes as long to make, and to
            wait for, as a small model takes for a row; who has a thread that waits makes one.
        target : Target, optional
            A model that is asked for by name.

        Raises
        ------
        OverloadedError
            If the queue is full.
        UnavailableError
            If the batcher was closed.
        """
        ticket = _Ticket(rows, target, deadline, done, time.perf_counter_ns())
        count, size = len(rows), rows.nbytes
        with self._lock:
            if self._is_closed:
                raise UnavailableError("the service is ending; ask another server")
            # An empty queue takes any request, which has limits of its own.
            if self._waiting and (
                self._rows + count > self._limits.queue_rows
                or self._bytes + size > self._limits.queue_bytes
            ):
                raise OverloadedError(
                    f"the queue is full with {self._rows} rows of {self._bytes} bytes; try again "
                    "later"
                )
            self._waiting.append(ticket)
            self._rows += count
            self._bytes += size
            if self._gathering != threading.get_ident():
                self._changed.notify()

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run what this thread asks for in the block as one batch, as far as one may go.

        What is quick is computed by this very thread at the end of the block: to wake another takes
        longer than a small model does, and both would wait for the interpreter's lock. One thread
        at a time may do this, an event loop for instance.
        """
        self._gathering = threading.get_ident()
        try:
            yield
        finally:
            self._gathering = None
            until = time.perf_counter_ns() + _QUICK_NS
            while time.perf_counter_ns() < until and (batch := self._take_quick()):
                try:
                    self._finish(batch, 0)
                finally:
                    self._release(0)
            if self._waiting:
                with self._changed:
                    self._changed.notify(len(self._waiting))

    def close(self) -> None:
        """Take no more requests, answer those that wait, and end the workers."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for worker in self._workers:
            worker.join()

    def _work(self, worker: int) -> None:
        # While it waits, a worker holds on to nothing of the batch before.
        while self._finish(self._take(worker), worker):
            self._release(worker)

    def _finish(self, batch: Sequence[_Ticket[Target]], worker: int) -> bool:
        late = time.monotonic()
        alive: list[_Ticket[Target]] = []
        for ticket in batch:
            if ticket.deadline < late:
                ticket.done(DeadlineError("the deadline passed in the queue"))
            else:
                alive.append(ticket)
        if alive:
            self._answer(alive, worker)
        return bool(batch)

    def _take(self, worker: int) -> list[_Ticket[Target]]:
        """Wait for what is run together; [] at the end."""
        with self._changed:
            while self._busy[worker] or not (self._waiting or self._is_closed):
                self._changed.wait()
            return self._next(worker)

    def _take_quick(self) -> list[_Ticket[Target]]:
        """Return what is run together, if the only worker is idle and it takes no time; else []."""
        with self._lock:
            if (
                len(self._busy) > 1
                or self._busy[0]
                or min(self._rows, self._limits.batch_rows) * min(self._row_ns) > _QUICK_NS
            ):
                return []
            return self._next(0)

    def _next(self, worker: int) -> list[_Ticket[Target]]:
        """Take requests of one target off the queue, with no more rows than a batch."""
        batch: list[_Ticket[Target]] = []
        rows = 0
        while self._waiting:
            ticket = self._waiting[0]
            count = len(ticket.rows)
            if batch and (
                rows + count > self._limits.batch_rows or ticket.target != batch[0].target
            ):
                break
            batch.append(self._waiting.popleft())
            rows += count
            self._rows -= count
            self._bytes -= ticket.rows.nbytes
        self._busy[worker] = bool(batch)
        return batch

    def _release(self, worker: int) -> None:
        with self._changed:
            self._busy[worker] = False
            if self._is_closed:
                self._changed.notify_all()

    def _answer(self, batch: Sequence[_Ticket[Target]], worker: int) -> None:
        started = time.perf_counter_ns()
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([t.rows for t in batch])
        try:
            version, output = self._run(batch[0].target, rows, worker)
        except RequestError as error:
            for ticket in batch:
                ticket.done(error)
            return
        except Exception:  # noqa: BLE001  # the worker must outlive what a model can raise
            if len(batch) == 1:
                batch[0].done(OutputError("the model failed on this input"))
            else:
                # One of them is to blame, and the others shall not suffer for it.
                for ticket in batch:
                    self._answer([ticket], worker)
            return
        ran = time.perf_counter_ns() - started
        self._row_ns.append(ran / len(rows))
        waited = sum(started - ticket.queued_ns for ticket in batch)
        self._watch(Execution(version, len(batch), len(rows), waited, ran))
        begin = 0
        for ticket in batch:
            end = begin + len(ticket.rows)
            ticket.done((version, output[begin:end]))
            begin = end
