"""Calls of gRPC that are open: whose they are, how long they stay, and what they hold.

grpcio gives a call a thread before its message has come, and lets a client take its answer when it
likes. Whoever sends nothing, or reads nothing, is cut off here.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import InvalidRequestError, OverloadedError
from fedveil.server.inference.oip import Limits

__all__ = ["MOST_CALLS", "MOST_MESSAGE", "OpenCall", "OpenCalls"]

MOST_CALLS = 256
"""Of which one caller may have half."""

MOST_MESSAGE = 16 * 2**20
"""Bytes of a message: how many it has is not known before all of them are here, so that as many as
may come at the same time must fit into memory."""

_MOST_COMING = 16
_TICKS = 4


class OpenCalls:
    """What the calls of one server share.

    Parameters
    ----------
    limits : Limits
        Of which `read_seconds` are the time for a message to come, and for an answer to be read;
        `queue_bytes` are what all calls hold together.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._open: set[OpenCall] = set()
        self._callers: Counter[Caller] = Counter()
        self._coming: Counter[Caller] = Counter()
        self._held = 0
        self._changed = threading.Condition()
        self._is_closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="fedveil-grpc-calls", daemon=True)
        self._watcher.start()

    @contextmanager
    def begin(self, caller: Caller, context: grpc.ServicerContext) -> Iterator[OpenCall]:
        """Count a call until it was answered in the block, and the answer was read.

        Raises
        ------
        OverloadedError
            If the caller has too many.
        """
        call = OpenCall(self, caller, context)
        with self._changed:
            if self._callers[caller] >= MOST_CALLS // 2 or len(self._open) >= MOST_CALLS:
                raise OverloadedError("too many calls are open; end some of them")
            self._callers[caller] += 1
            self._open.add(call)
        if not context.add_callback(lambda: self._leave(call)):
            self._leave(call)
        try:
            yield call
        finally:
            with self._changed:
                self._held += call.answer_bytes - call.held
                call.held = call.answer_bytes
            call.due = time.monotonic() + self.limits.read_seconds
            self._leave(call)

    @contextmanager
    def coming_from(self, caller: Caller) -> Iterator[None]:
        """Wait until there is room for a message: for all, and within a caller's half of it.

        Raises
        ------
        OverloadedError
            If there is none for long.
        """

        def has_room() -> bool:
            return self._coming[caller] < _MOST_COMING // 2 and self._coming.total() < _MOST_COMING

        with self._changed:
            if not self._changed.wait_for(has_room, self.limits.read_seconds / 2):
                raise OverloadedError("too many messages are being received; try again later")
            self._coming[caller] += 1
        try:
            yield
        finally:
            with self._changed:
                _less(self._coming, caller)
                self._changed.notify_all()

    def hold(self, call: OpenCall, size: int) -> None:
        """Count bytes that a call holds from now on.

        Raises
        ------
        OverloadedError
            If all calls together hold too many; one alone may.
        """
        with self._changed:
            if self._held and self._held + size > self.limits.queue_bytes:
                raise OverloadedError("too many bytes are being received; try again later")
            self._held += size
            call.held += size

    def close(self) -> None:
        """Watch no longer."""
        self._is_closed.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._is_closed.wait(self.limits.read_seconds / _TICKS):
            now = time.monotonic()
            with self._changed:
                late = [call for call in self._open if call.due < now]
            for call in late:
                call.cancel()

    def _leave(self, call: OpenCall) -> None:
        with self._changed:
            call.ends -= 1
            if call.ends == 0:
                self._open.remove(call)
                _less(self._callers, call.caller)
                self._held -= call.held


class OpenCall:
    """One call.

    Parameters
    ----------
    calls : OpenCalls
        Those that it is one of.
    caller : Caller
        Whose it is.
    context : ServicerContext
        What grpcio knows of it.

    Attributes
    ----------
    due : float
        When it is cut off.
    held, answer_bytes : int
        Bytes that it holds now, and until the answer was read.
    ends : int
        How many of two are to come: that nothing works on it any more, and that the client knows.
    """

    __slots__ = ("_calls", "_context", "answer_bytes", "caller", "due", "ends", "held")

    def __init__(self, calls: OpenCalls, caller: Caller, context: grpc.ServicerContext) -> None:
        self._calls = calls
        self._context = context
        self.caller = caller
        self.due = time.monotonic() + calls.limits.read_seconds
        self.held = self.answer_bytes = 0
        self.ends = 2

    def receive(self, sent: Iterator[bytes]) -> bytes:
        """Return the message.

        Raises
        ------
        InvalidRequestError
            If none comes.
        OverloadedError
            If too many others are coming.
        RpcError
            If the call has ended; whoever sent nothing in time was cut off.
        """
        with self._calls.coming_from(self.caller):
            message = next(sent, None)
        if message is None:
            raise InvalidRequestError("a call has one message; none came")
        # An answer comes within a time of its own.
        self.due = math.inf
        return message

    def hold(self, size: int) -> None:
        """Count bytes until the call was answered; errors are those of `OpenCalls.hold`."""
        self._calls.hold(self, size)

    def cancel(self) -> None:
        """Cut the call off."""
        self._context.cancel()


def _less(counter: Counter[Caller], caller: Caller) -> None:
    counter[caller] -= 1
    if not counter[caller]:
        del counter[caller]
