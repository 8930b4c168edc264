"""An engine that trains all clients of a batch together; each client's handler runs as always."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextvars import copy_context

from flwr.app import Context, Message
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

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        """Answer messages, and yield each reply when it is there."""
        waiting: list[_Handler] = []
        room = Room()
        try:
            for message, context in work:
                if message.metadata.message_type.split(".")[0] != "train":
                    yield answer(self._app, message, context)
                    continue
                handler = _Handler(self._app, message, context)
                waiting.append(handler)
                job = handler.begin()
                if job is None or why_alone(job) is not None:
                    reply = _conclude(handler, None if job is None else train_together([job])[0])
                    waiting.pop()
                    yield reply
                    continue
                room.take(job)
                if room.is_full:
                    yield from _finish(waiting)
                    room = Room()
            yield from _finish(waiting)
        finally:
            for handler in waiting:
                handler.abandon()

    def close(self) -> None:
        """Nothing runs between batches."""


def _finish(handlers: list[_Handler]) -> Iterator[Message]:
    """Train what handlers wait for, and yield their replies; the list is empty at the end."""
    if not handlers:
        return
    outcomes = train_together([handler.job for handler in handlers if handler.job is not None])
    outcomes.reverse()
    while handlers:
        reply = _conclude(handlers[0], outcomes.pop())
        del handlers[0]
        yield reply


def _conclude(handler: _Handler, outcome: Outcome | None) -> Message:
    """Let a handler go on to its end, and return its reply."""
    while outcome is not None:
        job = handler.resume(outcome)
        outcome = None if job is None else train_together([job])[0]
    return handler.reply()


class _AbandonedError(BaseException):
    """Ends a handler that nobody waits for any more, past what its app catches."""


class _Handler:
    """The app at one message, in a thread that rests while others run.

    Parameters
    ----------
    app, message, context : ClientApp, Message, Context
        What it runs.

    Attributes
    ----------
    job : TrainingJob, optional
        What it waits for.
    """

    def __init__(self, app: ClientApp, message: Message, context: Context) -> None:
        self.job: TrainingJob | None = None
        self._work = (app, message, context)
        self._outcome: Outcome | _AbandonedError | None = None
        self._reply: Message | BaseException | None = None
        self._has_stopped, self._may_go = threading.Event(), threading.Event()
        run = copy_context().run
        self._thread = threading.Thread(target=lambda: run(self._run), daemon=True)

    def begin(self) -> TrainingJob | None:
        """Run until there is something to train, which is returned, or to the end."""
        self._thread.start()
        self._has_stopped.wait()
        return self.job

    def resume(self, outcome: Outcome) -> TrainingJob | None:
        """Go on with what became of the training, as `begin` does."""
        self._outcome, self.job = outcome, None
        self._has_stopped.clear()
        self._may_go.set()
        self._has_stopped.wait()
        return self.job

    def reply(self) -> Message:
        """Return the reply of a handler that has come to its end, or raise what it raised."""
        self._thread.join()
        if isinstance(self._reply, BaseException):
            raise self._reply
        assert self._reply is not None  # noqa: S101  # narrows the type
        return self._reply

    def abandon(self) -> None:
        """End it, wherever it is; what it has charged stays charged."""
        self._outcome = _AbandonedError()
        self._may_go.set()
        if self._thread.ident is not None:
            self._thread.join()

    def train(self, job: TrainingJob) -> TrainingResult:
        """Wait until somebody has trained the job; called by the app."""
        if not isinstance(self._outcome, _AbandonedError):
            self.job = job
            self._has_stopped.set()
            self._may_go.wait()
            self._may_go.clear()
        outcome = self._outcome
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None  # noqa: S101  # it may go
        return outcome

    def _run(self) -> None:
        try:
            with training_with(self):
                self._reply = answer(*self._work)
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            self._reply = error
        self._has_stopped.set()
