"""Claims a SuperNode's tasks, hands them to the worker, and answers where the worker cannot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from fedveil.audit_log.errors import AuditError
from fedveil.client.flower_runtime import ClaimedTask, SuperNodeGoneError, TaskQueue
from fedveil.client.runner.channel import Done, Taken
from fedveil.client.runner.gpu import GpuTurn
from fedveil.client.runner.limits import TaskLimits
from fedveil.client.runner.outcomes import Outcome
from fedveil.client.runner.task_trail import TaskTrail
from fedveil.client.runner.worker_process import WorkerGoneError, WorkerProcess
from fedveil.errors import FedveilError
from fedveil.flower import CLIENT_APP_CRASHED

__all__ = ["MessageStuckError", "Runner"]

_HEARTBEAT = 10.0
"""Seconds; the SuperNode gives up after 30 at first, then after 60."""
_GPU_LOOK = 0.05
_UNWRITTEN = "this client's audit log cannot be written, and nothing is run without it"

_log = logging.getLogger(__name__)


class MessageStuckError(FedveilError):
    """A message that nobody took is lost; its SuperNode waits for the answer for ever.

    Parameters
    ----------
    why : str
        What kept it from being taken.
    """

    def __init__(self, why: str) -> None:
        super().__init__(f"a message of the server was not taken and is lost: {why}")


class Runner:
    """Works one task after the other; use as a context manager.

    Parameters
    ----------
    address : str
        Where the SuperNode's tasks are claimed.
    secret : bytes
        What they are claimed with.
    start_worker : callable
        Returns a new worker; may raise `WorkerGoneError` or `WorkerRefusedError`.
    limits : TaskLimits
        What a task may take.
    turn : GpuTurn
        Taken for each task.
    trail : TaskTrail
        Where each task is written down; one that cannot be is not run.
    """

    def __init__(
        self,
        address: str,
        secret: bytes,
        start_worker: Callable[[], WorkerProcess],
        limits: TaskLimits,
        turn: GpuTurn,
        trail: TaskTrail,
    ) -> None:
        self._queue = TaskQueue(address, secret)
        self._task = ClaimedTask(address)
        self._start_worker = start_worker
        self._limits = limits
        self._turn = turn
        self._trail = trail
        self._worker: WorkerProcess | None = None
        self._beat = 0.0

    def __enter__(self) -> Runner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end_worker()
        self._queue.close()
        self._task.close()

    def look(self) -> bool:
        """Work the next task, to its end; return whether there was one.

        Raises
        ------
        SuperNodeGoneError
            If the SuperNode does not answer.
        MessageStuckError
            If the task was given up before its message was taken.
        WorkerGoneError
            If a worker cannot be started.
        WorkerRefusedError
            If none ever can.
        """
        # Before a task is claimed: a start takes seconds, and a claim runs out.
        if self._worker is not None and not self._worker.is_alive:
            _log.warning("the task's process ended between two messages; it is started anew")
            self._end_worker()
        worker = self._worker = self._worker or self._start_worker()
        token = self._queue.claim()
        if token is None:
            return False
        self._task.use(token)
        self._beat = time.monotonic() + _HEARTBEAT
        if not self._wait_for_gpu():
            raise MessageStuckError("it was given up while it waited for the GPU")
        try:
            self._work(worker, token)
        finally:
            self._turn.leave()
        return True

    def _wait_for_gpu(self) -> bool:
        """Return whether the turn came before the SuperNode lost interest."""
        while not self._turn.take():
            if not self._keep():
                return False
            time.sleep(_GPU_LOOK)
        return True

    def _work(self, worker: WorkerProcess, token: str) -> None:
        taken: Taken | None = None
        started = time.monotonic()
        try:
            worker.give(token)
            while True:
                until = min(self._beat, started + self._limits.seconds)
                report = worker.hear(max(0.0, until - time.monotonic()))
                seconds = time.monotonic() - started
                if isinstance(report, Taken):
                    taken = report
                    self._trail.began(taken)
                    worker.go_on()
                elif isinstance(report, Done):
                    self._note(_what(taken), report.error, seconds)
                    self._trail.ended(taken, Outcome(report.outcome), report.error, seconds)
                    if report.is_spent:
                        self._end_worker()
                    if taken is None:
                        raise MessageStuckError(report.error)
                    return
                elif seconds >= self._limits.seconds:
                    self._end_worker()
                    self._fail(taken, Outcome.OUT_OF_TIME, self._limits.time_words, seconds)
                    return
                elif not self._keep():
                    self._end_worker()
                    self._trail.ended(taken, Outcome.GIVEN_UP, "", seconds)
                    if taken is None:
                        raise MessageStuckError("the SuperNode no longer wants it")
                    return
        except WorkerGoneError as error:
            self._end_worker()
            words = f"{error} before it had an answer; it is started anew"
            self._fail(taken, Outcome.CRASHED, words, time.monotonic() - started)
        except AuditError as error:
            # The worker waits for a word that does not come.
            self._end_worker()
            _log.error("%s", error)
            self._fail(taken, Outcome.REFUSED, _UNWRITTEN, time.monotonic() - started)

    def _keep(self) -> bool:
        """Tell the SuperNode now and then that its task is not forgotten."""
        if time.monotonic() < self._beat:
            return True
        self._beat = time.monotonic() + _HEARTBEAT
        kept = self._task.keep()
        if not kept:
            _log.warning("the SuperNode no longer wants the task at hand; it is given up")
        return kept

    def _fail(self, taken: Taken | None, outcome: Outcome, reason: str, seconds: float) -> None:
        _log.error("%s: %s", _what(taken), reason)
        self._trail.ended(taken, outcome, reason, seconds)
        try:
            envelope = self._task.open().envelope if taken is None else taken.envelope
            self._task.fail(envelope, CLIENT_APP_CRASHED, reason)
        except SuperNodeGoneError as error:
            if taken is None:
                raise MessageStuckError(str(error)) from None
            # Whoever hears nothing of a task for a minute answers for it.
            _log.warning("the failure could not be reported: %s", error)

    def _note(self, what: str, error: str, seconds: float) -> None:
        if error:
            _log.warning("%s: answered with an error after %.3f s: %s", what, seconds, error)
        else:
            _log.info("%s: answered after %.3f s", what, seconds)

    def _end_worker(self) -> None:
        if self._worker is not None:
            self._worker.end()
            self._worker = None


def _what(taken: Taken | None) -> str:
    return "a message" if taken is None else taken.what
