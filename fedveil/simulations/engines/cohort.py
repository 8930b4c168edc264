"""An engine that trains all clients of a batch together; each client's handler runs as always."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextvars import copy_context

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedveil.client.trainer import TrainingJob, TrainingResult, training_with
from fedveil.simulations.cohort.batchable import why_alone
from fedveil.simulations.cohort.memory import Room
from fedveil.simulations.cohort.training import Outcome, train_together
from fedveil.simulations.engines.answering import answer
from fedveil.simulations.engines.interface import Work

__all__ = ["CohortEngine"]


class CohortEngine:
    """Runs every handler up to its training, trains all, and lets them go on.

    Policy, ledger, checks and data come before, encoding and masking after, client by client: only
    one handler runs at a time. As many wait as fit into memory. What cannot be trained together is
    trained alone.

    Parameters
    ----------
    app : ClientApp
        What every node runs.
    """

    def __init__(self, app: ClientApp) -> None:
        self._app = app
        self._idle: list[_Desk] = []

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        """Answer messages, and yield each reply when it is there."""
        waiting: list[_Desk] = []
        room = Room()
        try:
            for message, context in work:
                if message.metadata.message_type.split(".")[0] != "train":
                    yield answer(self._app, message, context)
                    continue
                desk = self._idle.pop() if self._idle else _Desk(self._app)
                waiting.append(desk)
                job = desk.begin((message, context))
                if job is None or why_alone(job) is not None:
                    reply = _conclude(desk, None if job is None else train_together([job])[0])
                    self._idle.append(waiting.pop())
                    yield reply
                    continue
                room.take(job)
                if room.is_full:
                    yield from self._finish(waiting)
                    room = Room()
            yield from self._finish(waiting)
        finally:
            for desk in waiting:
                desk.abandon()
                desk.close()

    def close(self) -> None:
        """Let the threads end that rest between batches."""
        while self._idle:
            self._idle.pop().close()

    def _finish(self, waiting: list[_Desk]) -> Iterator[Message]:
        """Train what desks wait for, and yield their replies; the list is empty at the end."""
        if not waiting:
            return
        outcomes = train_together([desk.job for desk in waiting if desk.job is not None])
        outcomes.reverse()
        waiting.reverse()
        while waiting:
            reply = _conclude(waiting[-1], outcomes.pop())
            self._idle.append(waiting.pop())
            yield reply


def _conclude(desk: _Desk, outcome: Outcome | None) -> Message:
    """Let a handler go on to its end, and return its reply."""
    while outcome is not None:
        job = desk.resume(outcome)
        outcome = None if job is None else train_together([job])[0]
    return desk.reply()


class _AbandonedError(BaseException):
    """Ends a handler that nobody waits for any more, past what its app catches."""


class _Desk:
    """The app at one message after another, in a thread that rests while others run.

    Parameters
    ----------
    app : ClientApp
        What it runs.

    Attributes
    ----------
    job : TrainingJob, optional
        What its handler waits for.
    """

    def __init__(self, app: ClientApp) -> None:
        self.job: TrainingJob | None = None
        self._app = app
        self._work: Work | None = None
        self._outcome: Outcome | None = None
        self._reply: Message | BaseException | None = None
        self._is_away = self._is_abandoned = False
        # A lock hands over in a fifth of the time that an event takes.
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        # A process that ends in disorder does not wait for it.
        self._thread = threading.Thread(target=self._work_on, daemon=True)
        self._thread.start()

    def begin(self, work: Work) -> TrainingJob | None:
        """Run a handler until there is something to train, which is returned, or to its end."""
        self._work, self._context = work, copy_context()
        return self._switch()

    def resume(self, outcome: Outcome) -> TrainingJob | None:
        """Go on with what became of the training, as `begin` does."""
        self._outcome = outcome
        return self._switch()

    def reply(self) -> Message:
        """Return the reply of a handler that has come to its end, or raise what it raised."""
        reply, self._reply, self._work = self._reply, None, None
        if isinstance(reply, BaseException):
            raise reply
        assert reply is not None  # noqa: S101  # narrows the type
        return reply

    def abandon(self) -> None:
        """End the handler, wherever it is; what it has charged stays charged."""
        self._is_abandoned = True
        if self._is_away:
            self._back.acquire()
        elif self.job is not None:
            # An interrupted wait may have left the lock open.
            self._back.acquire(blocking=False)
            self._switch()

    def close(self) -> None:
        """Let the thread end."""
        self._work = None
        self._go.release()
        self._thread.join()

    def train(self, job: TrainingJob) -> TrainingResult:
        """Wait until somebody has trained the job; called by the app."""
        if not self._is_abandoned:
            self.job = job
            self._stop()
            self._go.acquire()
            self.job = None
        if self._is_abandoned:
            raise _AbandonedError
        outcome, self._outcome = self._outcome, None
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None  # noqa: S101  # it may go on
        return outcome

    def _switch(self) -> TrainingJob | None:
        self._is_away = True
        self._go.release()
        self._back.acquire()
        return self.job

    def _stop(self) -> None:
        self._is_away = False
        self._back.release()

    def _work_on(self) -> None:
        while True:
            self._go.acquire()
            if self._work is None:
                return
            self._context.run(self._answer, self._work)
            self._stop()

    def _answer(self, work: Work) -> None:
        try:
            with training_with(self):
                self._reply = answer(self._app, *work)
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            self._reply = error
