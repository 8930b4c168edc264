"""One worker that gives the model all that waits, as soon as it is idle.

There is no timer: a lone request is run at once, and under load a batch is whatever came while the
last one was computed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
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

__all__ = ["BatchRun", "Batcher"]

Target = TypeVar("Target", bound=Hashable)

BatchRun = Callable[[Target | None, Array], tuple[str, Array]]
"""Runs rows through a model; None is the one that is current when it runs. Returns its version,
and an output a row."""


@dataclass(frozen=True)
class _Ticket(Generic[Target]):
    rows: Array
    target: Target | None
    deadline: float
    future: Future[tuple[str, Array]] = field(default_factory=Future)


class Batcher(Generic[Target]):
    """A bounded queue in front of a model.

    Parameters
    ----------
    run : BatchRun
        What computes a batch; called by one thread.
    limits : Limits
        Bounds of queue and batch.
    watch : callable, optional
        Told the number of rows of every batch.
    """

    def __init__(
        self,
        run: BatchRun[Target],
        limits: Limits,
        watch: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._watch = watch
        self._waiting: deque[_Ticket[Target]] = deque()
        self._rows = 0
        self._bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="fedveil-batcher", daemon=True)
        self._worker.start()

    @property
    def queued_rows(self) -> int:
        """How many rows wait."""
        return self._rows

    def submit(
        self, rows: Array, timeout: float, target: Target | None = None
    ) -> Future[tuple[str, Array]]:
        """Queue rows; the future holds the version that answered, and the output.

        Parameters
        ----------
        rows : ndarray, shape (n, ...)
            Not changed until the future is done.
        timeout : float
            Seconds after which the answer is not worth computing any more.
        target : Target, optional
            A model that is asked for by name.

        Raises
        ------
        OverloadedError
            If the queue is full.
        UnavailableError
            If the batcher was closed.
        """
        ticket = _Ticket(rows, target, time.monotonic() + timeout)
        count, size = len(rows), rows.nbytes
        with self._changed:
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
            self._changed.notify()
        return ticket.future

    def close(self) -> None:
        """Take no more requests, answer those that wait, and end the worker."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while batch := self._take():
            late = time.monotonic()
            alive: list[_Ticket[Target]] = []
            for ticket in batch:
                if not ticket.future.set_running_or_notify_cancel():
                    continue
                if ticket.deadline < late:
                    ticket.future.set_exception(DeadlineError("the deadline passed in the queue"))
                else:
                    alive.append(ticket)
            if alive:
                self._answer(alive)

    def _take(self) -> list[_Ticket[Target]]:
        """Return what is run together: of one target, no more rows than a batch; [] at the end."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
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
            return batch

    def _answer(self, batch: Sequence[_Ticket[Target]]) -> None:
        rows = batch[0].rows if len(batch) == 1 else np.concatenate([t.rows for t in batch])
        try:
            version, output = self._run(batch[0].target, rows)
        except RequestError as error:
            for ticket in batch:
                ticket.future.set_exception(error)
            return
        except Exception:  # noqa: BLE001  # the worker must outlive what a model can raise
            if len(batch) == 1:
                batch[0].future.set_exception(OutputError("the model failed on this input"))
            else:
                # One of them is to blame, and the others shall not suffer for it.
                for ticket in batch:
                    self._answer([ticket])
            return
        self._watch(len(rows))
        begin = 0
        for ticket in batch:
            end = begin + len(ticket.rows)
            ticket.future.set_result((version, output[begin:end]))
            begin = end
