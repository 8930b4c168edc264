"""What the connections of one server share: what they hold, and the ways to the model and back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from email.utils import formatdate
from typing import Protocol

from fedveil.server.inference.batcher import Result
from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import RequestError
from fedveil.server.inference.http_answer import Application, Request, Upload
from fedveil.server.inference.oip import Limits

__all__ = ["Deadline", "Desk", "Exchange", "Link"]

_MOST_PASSES = 8


class Link(Protocol):
    """A connection, as far as it is known here."""

    def submit(self, exchange: Exchange) -> None:
        """Give the application the body of a request."""

    def deliver(self, exchange: Exchange) -> None:
        """Send the answer to a request whose result is there."""

    def end(self) -> None:
        """Close after the request that is being answered, or soon if there is none."""

    def abort(self) -> None:
        """Close at once."""


class Exchange:
    """A request, and what is known of its answer.

    Parameters
    ----------
    connection : Link
        Where it came from.
    request : Request
        All of it but the body.
    keeps_alive : bool
        Whether others may follow it on the connection.

    Attributes
    ----------
    body, size
        What has come of the body, and its bytes.
    is_whole, is_answered : bool
        How far it is.
    waits_for_word : bool
        Whether the sender waits to be told that it may send the body.
    upload : Upload or None
        What takes the body, once the request is let in.
    patience : float or None
        Seconds that the result is waited for, once the body was taken.
    result : tuple or RequestError or None
        What came of it.
    """

    __slots__ = (
        "body",
        "connection",
        "is_answered",
        "is_whole",
        "keeps_alive",
        "patience",
        "request",
        "result",
        "size",
        "upload",
        "waits_for_word",
    )

    def __init__(self, connection: Link, request: Request, *, keeps_alive: bool) -> None:
        self.connection = connection
        self.request = request
        self.keeps_alive = keeps_alive
        expected = request.headers.get(b"expect")
        self.waits_for_word = expected is not None and expected.lower() == b"100-continue"
        self.body: bytes | bytearray = b""
        self.size = 0
        self.is_whole = False
        self.is_answered = False
        self.upload: Upload | None = None
        self.patience: float | None = None
        self.result: Result | RequestError | None = None


class Desk:
    """What the connections of one server share, in one event loop.

    Parameters
    ----------
    app : Application
        What answers.
    limits : Limits
        What connections and requests may cost.
    """

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self.connections: set[Link] = set()
        self.held = 0
        self.unread = 0
        self.is_ending = False
        self._loop = asyncio.get_running_loop()
        self._whole: list[Exchange] = []
        self._block: AbstractContextManager[None] | None = None
        self._passes = 0
        self._done: deque[Exchange] = deque()
        self._is_called = False
        self._date_at, self._date = -1, b""
        self._of_peers: dict[Caller, int] = {}

    def come(self, caller: Caller) -> int:
        """Count a connection of a caller; return how many it has."""
        self._of_peers[caller] = found = self._of_peers.get(caller, 0) + 1
        return found

    def leave(self, caller: Caller) -> None:
        """Forget a connection of a caller."""
        left = self._of_peers[caller] - 1
        if left:
            self._of_peers[caller] = left
        else:
            del self._of_peers[caller]

    def hand_over(self, exchange: Exchange) -> None:
        """Send a whole request to the model, with all others that come while it is read.

        Whatever has arrived is read first, and computed when nothing more is there: sent at once,
        the first request would be a batch of its own.
        """
        self._whole.append(exchange)
        if self._block is None:
            self._block, self._passes = self.app.together(), 0
            self._block.__enter__()
            self._loop.call_soon(self._gather)

    def put(self, exchange: Exchange, result: Result | RequestError) -> None:
        """Bring what a thread has done to the event loop: many results with one call."""
        exchange.result = result
        self._done.append(exchange)
        if not self._is_called:
            self._is_called = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:
                if not self._loop.is_closed():
                    raise

    def date(self) -> bytes:
        """Return the header that tells the time."""
        now = int(self._loop.time())
        if now != self._date_at:
            self._date_at, self._date = now, b"date: %b\r\n" % formatdate(usegmt=True).encode()
        return self._date

    def end(self) -> None:
        """Close each connection after the request that it is at."""
        self.is_ending = True
        for connection in list(self.connections):
            connection.end()

    def abort(self) -> None:
        """Cut off what is left."""
        for connection in list(self.connections):
            connection.abort()

    def _gather(self) -> None:
        whole, self._whole = self._whole, []
        for exchange in whole:
            exchange.connection.submit(exchange)
        self._passes += 1
        if whole and self._passes < _MOST_PASSES:
            # Before this is called again, sockets are read once more.
            self._loop.call_soon(self._gather)
            return
        block, self._block = self._block, None
        if block is not None:
            # What is computed at the end of the block is delivered here, with no call for it.
            self._is_called = True
            block.__exit__(None, None, None)
            self._deliver()

    def _deliver(self) -> None:
        # First: whoever puts something there from now on calls again.
        self._is_called = False
        while self._done:
            exchange = self._done.popleft()
            exchange.connection.deliver(exchange)


class Deadline:
    """Has something done unless it is set anew in time.

    There is one timer for all of them. It is put off when it fires, which costs a request nothing,
    where one timer a request would cost as much as reading its headers.

    Parameters
    ----------
    loop : AbstractEventLoop
        Whose time it goes by.
    """

    __slots__ = ("_due", "_fires", "_late", "_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._fires = self._due = 0.0
        self._late: Callable[[], None] | None = None

    def set(self, seconds: float, late: Callable[[], None]) -> None:
        """Call `late` in some seconds, and not what was to be called before."""
        self._due, self._late = self._loop.time() + seconds, late
        if self._timer is None or self._due < self._fires:
            self._arm()

    def cancel(self) -> None:
        """Call nothing any more."""
        self._late = None
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires = self._due
        self._timer = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        # Timers of uvloop count whole milliseconds.
        if self._due - self._loop.time() > 1e-3:
            self._arm()
            return
        self._timer, late = None, self._late
        if late is not None:
            late()
