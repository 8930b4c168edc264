"""Connections of HTTP/1.1 (RFC 9112), and what one may cost before a request is whole.

llhttp, the parser of Node.js, reads what comes (``httptools``). A request that is not whole in time
is cut off, however busily its bytes trickle (slow-loris); headers are bounded, and so are a request
with its chunks and trailers, requests that wait on one connection, and all bodies together.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from email.utils import formatdate
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

import httptools

from fedveil.server.inference.batcher import Result
from fedveil.server.inference.callers import Caller, Peer, address_caller, certificate_caller
from fedveil.server.inference.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    TooLargeError,
)
from fedveil.server.inference.http_answer import (
    Answer,
    Application,
    Pending,
    Request,
    Upload,
)
from fedveil.server.inference.oip import Limits

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection", "Desk"]

_IDLE_SECONDS = 75.0
# A client may have sent a request before it hears that the server ends.
_GRACE_SECONDS = 0.25
_MOST_WAITING = 64
_MOST_PASSES = 8
_REMEMBERED = 1024
# SO_LINGER with 0 seconds: the connection is reset, and unsent bytes are dropped (socket(7)).
_FORGET = struct.pack("ii", 1, 0)

Found = TypeVar("Found")

_log = logging.getLogger(__name__)


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
        self.connections: set[Connection] = set()
        self.held = 0
        self.unread = 0
        self.is_ending = False
        self._loop = asyncio.get_running_loop()
        self._whole: list[_Exchange] = []
        self._block: AbstractContextManager[None] | None = None
        self._passes = 0
        self._done: deque[_Exchange] = deque()
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

    def hand_over(self, exchange: _Exchange) -> None:
        """Send a whole request to the model, with all others that come while it is read.

        Whatever has arrived is read first, and computed when nothing more is there: sent at once,
        the first request would be a batch of its own.
        """
        self._whole.append(exchange)
        if self._block is None:
            self._block, self._passes = self.app.together(), 0
            self._block.__enter__()
            self._loop.call_soon(self._gather)

    def put(self, exchange: _Exchange, result: Result | RequestError) -> None:
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
        """Return the time as HTTP writes it."""
        now = int(self._loop.time())
        if now != self._date_at:
            self._date_at, self._date = now, formatdate(usegmt=True).encode()
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


class _Exchange:
    """A request, and what is known of its answer."""

    __slots__ = (
        "body",
        "connection",
        "is_answered",
        "is_whole",
        "keeps_alive",
        "pending",
        "request",
        "result",
        "size",
        "upload",
        "waits_for_word",
    )

    def __init__(self, connection: Connection, request: Request, *, keeps_alive: bool) -> None:
        self.connection = connection
        self.request = request
        self.keeps_alive = keeps_alive
        self.waits_for_word = request.headers.get(b"expect", b"").lower() == b"100-continue"
        self.body: bytes | bytearray = b""
        self.size = 0
        self.is_whole = False
        self.is_answered = False
        self.upload: Upload | None = None
        self.pending: Pending | None = None
        self.result: Result | RequestError | None = None


class Connection(asyncio.Protocol):
    """One connection, from its first byte to its last.

    Parameters
    ----------
    desk : Desk
        What it shares with others.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._limits = desk.limits
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        # The one to be answered next, those behind it, and the one whose body is coming.
        self._current: _Exchange | None = None
        self._waiting: deque[_Exchange] = deque()
        self._coming: _Exchange | None = None
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = self._bytes = 0
        self._in_headers = self._is_idle = False
        self._is_reading = self._is_writable = True
        self._unread = 0
        self._timer: asyncio.TimerHandle | None = None
        self._fires = self._due = 0.0
        self._late: Callable[[], None] = self._cut_off

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read, unless there are too many connections."""
        self._transport = transport
        self._peer = _peer(transport)
        desk = self._desk
        desk.connections.add(self)
        is_one_too_many = desk.come(self._peer.caller) > self._limits.peer_connections
        if is_one_too_many or len(desk.connections) > self._limits.connections:
            transport.abort()
            return
        self._is_idle = True
        self._expect(self._limits.read_seconds, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        """Forget what has not come whole; what is being computed is counted when it is done."""
        self._desk.connections.discard(self)
        self._desk.leave(self._peer.caller)
        self._count_unread(0)
        if self._timer is not None:
            self._timer.cancel()
        for exchange in {self._current, self._coming, *self._waiting} - {None}:
            if exchange is not None and not exchange.is_answered and exchange.pending is None:
                self._release(exchange)
                if exchange.upload is not None:
                    exchange.upload.fail(InvalidRequestError("the sender went away"))
        # The parser and the requests refer to this object, which refers to them: what they hold
        # would stay until the garbage collector comes by.
        del self._parser
        self._current = self._coming = None
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        if self._transport.is_closing():
            return
        if self._is_idle:
            # Also for what is no request yet: empty lines may come before one.
            self._is_idle = False
            self._expect(self._limits.read_seconds, self._cut_off)
        self._bytes += len(data)
        if self._bytes > self._limits.body_bytes + self._limits.header_bytes + len(data):
            self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing to change to: the request is answered, and is the last of the connection.
            pass
        except httptools.HttpParserError:
            self._refuse(b"400 Bad Request")
        if self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > self._limits.header_bytes:
                self._refuse(b"431 Request Header Fields Too Large")

    def pause_writing(self) -> None:
        """Answer no more while the client does not read."""
        self._is_writable = False
        self._count_unread(self._transport.get_write_buffer_size())
        if self._unread < self._desk.unread and self._desk.unread > self._limits.queue_bytes:
            self._drop()

    def resume_writing(self) -> None:
        """Go on when it does."""
        self._is_writable = True
        self._count_unread(0)
        self._advance()

    def on_message_begin(self) -> None:
        """Begin a request; called by the parser, as are the next five."""
        self._url = b""
        self._headers = {}
        self._in_headers = True
        self._header_bytes = self._bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take the address, or a part of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._headers[name.lower()] = value
        self._header_bytes += len(name) + len(value) + 4

    def on_headers_complete(self) -> None:
        """Begin to answer, or put the request behind those that came before."""
        self._in_headers = False
        if self._transport.is_closing():
            return
        if self._header_bytes + len(self._url) > self._limits.header_bytes:
            self._refuse(b"431 Request Header Fields Too Large")
            return
        parser = self._parser
        method = parser.get_method().decode("ascii")
        exchange = self._coming = _Exchange(
            self,
            Request(method, _path(self._url), self._headers, self._peer),
            keeps_alive=parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade(),
        )
        if self._current is None:
            self._start(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) > _MOST_WAITING:
            self._transport.abort()
        elif self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body; what all requests hold together is bounded too."""
        exchange, desk = self._coming, self._desk
        if exchange is None or exchange.is_answered:
            return
        size = exchange.size + len(body)
        if size > self._limits.body_bytes:
            most = self._limits.body_bytes
            self._fail(exchange, TooLargeError(f"the request is larger than {most} bytes"))
        elif desk.held > exchange.size and desk.held + len(body) > self._limits.queue_bytes:
            self._fail(
                exchange, OverloadedError("too many bytes are being received; try again later")
            )
        else:
            desk.held += len(body)
            if exchange.size == 0:
                exchange.body = body
            elif isinstance(exchange.body, bytearray):
                exchange.body += body
            else:
                exchange.body = bytearray(exchange.body)
                exchange.body += body
            exchange.size = size

    def on_message_complete(self) -> None:
        """Hand over a request that is whole."""
        exchange, self._coming = self._coming, None
        if exchange is None:
            return
        exchange.is_whole = True
        if exchange is self._current:
            if exchange.is_answered:
                self._advance()
            elif exchange.upload is not None:
                self._desk.hand_over(exchange)

    def submit(self, exchange: _Exchange) -> None:
        """Give the application the body of a request."""
        upload = exchange.upload
        if upload is None or exchange.is_answered:
            return
        body, exchange.body = exchange.body, b""
        done = partial(self._desk.put, exchange)
        found = _sound(lambda: upload.then(body, done))
        if isinstance(found, Answer):
            self._send(exchange, found)
            return
        exchange.pending = found
        self._expect(found.patience, self._give_up)

    def deliver(self, exchange: _Exchange) -> None:
        """Send the answer to a request whose result is there."""
        pending, result = exchange.pending, exchange.result
        if pending is None or result is None or exchange.is_answered:
            return
        self._send(exchange, _sound(lambda: pending.finish(result)))

    def end(self) -> None:
        """Close after the request that is being answered, or soon if there is none."""
        if self._is_idle:
            self._expect(_GRACE_SECONDS, self._close)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _start(self, exchange: _Exchange) -> None:
        self._current = exchange
        found = _sound(lambda: self._desk.app.begin(exchange.request))
        if isinstance(found, Answer):
            self._send(exchange, found)
            return
        exchange.upload = found
        if exchange.is_whole:
            self._desk.hand_over(exchange)
        elif exchange.waits_for_word:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fail(self, exchange: _Exchange, error: RequestError) -> None:
        if exchange.upload is None:
            # It waits behind others, so that nothing can be said of it yet.
            self._transport.abort()
        else:
            self._send(exchange, exchange.upload.fail(error))

    def _send(self, exchange: _Exchange, answer: Answer) -> None:
        exchange.is_answered = True
        self._release(exchange)
        # Nothing of a request may be kept until the garbage is collected.
        exchange.upload = exchange.pending = exchange.result = None
        if self._transport.is_closing():
            return
        is_last = (
            answer.closes
            or not exchange.keeps_alive
            or self._desk.is_ending
            # Whoever waits for word may send the body or leave it; nobody can tell what comes next.
            or (exchange.waits_for_word and not exchange.is_whole)
        )
        self._transport.write(
            b"%bdate: %b\r\n%b\r\n%b"
            % (
                answer.head,
                self._desk.date(),
                b"connection: close\r\n" if is_last else b"",
                b"" if exchange.request.method == "HEAD" else answer.body,
            )
        )
        if is_last:
            self._close()
        else:
            self._advance()

    def _advance(self) -> None:
        """Turn to the next request, if the current one is over."""
        current = self._current
        if current is None or not current.is_answered or self._transport.is_closing():
            return
        if not self._is_writable:
            self._expect(self._limits.read_seconds, self._drop)
            return
        if not current.is_whole:
            return
        self._current = None
        if self._waiting:
            exchange = self._waiting.popleft()
            if not self._waiting:
                self._is_reading = True
                self._transport.resume_reading()
            self._expect(self._limits.read_seconds, self._cut_off)
            self._start(exchange)
        elif not self._in_headers:
            self._is_idle = True
            self._expect(_GRACE_SECONDS if self._desk.is_ending else _IDLE_SECONDS, self._close)
        else:
            self._expect(self._limits.read_seconds, self._cut_off)

    def _release(self, exchange: _Exchange) -> None:
        self._desk.held -= exchange.size
        exchange.size, exchange.body = 0, b""

    def _give_up(self) -> None:
        exchange = self._current
        if exchange is not None and exchange.pending is not None and not exchange.is_answered:
            pending = exchange.pending
            late = DeadlineError(f"no answer within {pending.patience:g} s")
            self._send(exchange, _sound(lambda: pending.finish(late)))

    def _cut_off(self) -> None:
        if self._current is None or not self._current.is_answered:
            self._refuse(b"408 Request Timeout")
        else:
            self._close()

    def _refuse(self, status: bytes) -> None:
        """Refuse what is no whole request; the connection ends with it."""
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status
            )
            self._close()

    def _close(self) -> None:
        self._transport.close()
        # It waits for a client that does not read what is still to be sent.
        self._expect(self._limits.read_seconds, self._drop)

    def _drop(self) -> None:
        """Close at once, and let the system forget what it still keeps for the client."""
        link = self._transport.get_extra_info("socket")
        if link is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
        self._transport.abort()

    def _count_unread(self, size: int) -> None:
        self._desk.unread += size - self._unread
        self._unread = size

    def _expect(self, seconds: float, late: Callable[[], None]) -> None:
        """Have something done unless this is called anew within some seconds.

        There is one timer a connection. It is put off when it fires, which costs a request
        nothing, where one timer a request would cost as much as reading its headers.
        """
        self._due, self._late = self._loop.time() + seconds, late
        if self._timer is None or self._due < self._fires:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._fires = self._due
        self._timer = self._loop.call_at(self._due, self._fire)

    def _fire(self) -> None:
        # Timers of uvloop count whole milliseconds.
        if self._due - self._loop.time() > 1e-3:
            self._arm()
        else:
            self._timer = None
            self._late()


def _sound(call: Callable[[], Found]) -> Found | Answer:
    """Return what a call gives; the connection outlives whatever goes wrong in it."""
    try:
        return call()
    except Exception:  # noqa: BLE001  # a fault of one request is no fault of others
        _log.exception("a request failed")
        return _broken()


def _broken() -> Answer:
    return Answer(500, b'{"error":"the service has a fault; its log says more"}', closes=True)


@lru_cache(_REMEMBERED)
def _path(url: bytes) -> str:
    path: bytes = httptools.parse_url(url).path or b""
    return unquote(path.decode("ascii"))


def _peer(transport: asyncio.Transport) -> Peer:
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    if certificate is not None:
        return Peer("http", certificate_caller(certificate))
    address = transport.get_extra_info("peername")
    host = address[0] if isinstance(address, tuple) and address else ""
    return Peer("http", address_caller(str(host)))
