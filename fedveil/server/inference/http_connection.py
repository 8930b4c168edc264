"""Connections of HTTP/1.1 (RFC 9112): what is answered when, and what one may cost meanwhile.

A request that is not whole in time is cut off, however busily its bytes trickle (slow-loris);
requests that wait on one connection are bounded, and so are all bodies together.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from fedveil.server.inference.callers import Peer, address_caller, certificate_caller
from fedveil.server.inference.errors import (
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    RequestError,
    TooLargeError,
)
from fedveil.server.inference.http_answer import Answer, Request, sound
from fedveil.server.inference.http_desk import Deadline, Desk, Exchange
from fedveil.server.inference.http_reader import RequestReader

if TYPE_CHECKING:
    import ssl

__all__ = ["Connection"]

_IDLE_SECONDS = 75.0
# A client may have sent a request before it hears that the server ends.
_GRACE_SECONDS = 0.25
_MOST_WAITING = 64
# SO_LINGER with 0 seconds: the connection is reset, and unsent bytes are dropped (socket(7)).
_FORGET = struct.pack("ii", 1, 0)


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
        # The one to be answered next, those behind it, and the one whose body is coming.
        self._current: Exchange | None = None
        self._waiting: deque[Exchange] = deque()
        self._coming: Exchange | None = None
        self._is_idle = False
        self._is_reading = self._is_writable = True
        self._unread = 0
        self._deadline = Deadline(asyncio.get_running_loop())

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read, unless there are too many connections."""
        self._transport = transport
        self._peer = _peer(transport)
        self._reader = RequestReader(self, self._peer, self._limits)
        desk = self._desk
        desk.connections.add(self)
        is_one_too_many = desk.come(self._peer.caller) > self._limits.peer_connections
        if is_one_too_many or len(desk.connections) > self._limits.connections:
            transport.abort()
            return
        self._is_idle = True
        self._deadline.set(self._limits.read_seconds, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's name
        """Forget what has not come whole; what is being computed is counted when it is done."""
        self._desk.connections.discard(self)
        self._desk.leave(self._peer.caller)
        self._count_unread(0)
        self._deadline.cancel()
        for exchange in {self._current, self._coming, *self._waiting} - {None}:
            if exchange is not None and not exchange.is_answered and exchange.patience is None:
                self._release(exchange)
                if exchange.upload is not None:
                    exchange.upload.fail(InvalidRequestError("the sender went away"))
                    # It may have been handed over already, and is counted once.
                    exchange.upload = None
        # The reader and the requests refer to this object, which refers to them: what they hold
        # would stay until the garbage collector comes by.
        self._reader.close()
        del self._reader
        self._current = self._coming = None
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        """Read what has come."""
        if self._transport.is_closing():
            return
        if self._is_idle:
            # Also for what is no request yet: empty lines may come before one.
            self._is_idle = False
            self._deadline.set(self._limits.read_seconds, self._cut_off)
        if not self._reader.feed(data):
            self._transport.abort()

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

    def take_request(self, request: Request, *, keeps_alive: bool) -> None:
        """Begin to answer, or put the request behind those that came before."""
        if self._transport.is_closing():
            return
        exchange = self._coming = Exchange(self, request, keeps_alive=keeps_alive)
        if self._current is None:
            self._start(exchange)
            return
        self._waiting.append(exchange)
        if len(self._waiting) > _MOST_WAITING:
            self._transport.abort()
        elif self._is_reading:
            self._is_reading = False
            self._transport.pause_reading()

    def take_body(self, body: bytes) -> None:
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

    def take_end(self) -> None:
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

    def refuse(self, status: bytes) -> None:
        """Refuse what is no whole request; the connection ends with it."""
        if not self._transport.is_closing():
            self._transport.write(
                b"HTTP/1.1 %b\r\nconnection: close\r\ncontent-length: 0\r\n\r\n" % status
            )
            self._close()

    def submit(self, exchange: Exchange) -> None:
        """Give the application the body of a request."""
        upload = exchange.upload
        if upload is None or exchange.is_answered:
            return
        body, exchange.body = exchange.body, b""
        found = sound(upload.submit, body, partial(self._desk.put, exchange))
        if isinstance(found, Answer):
            self._send(exchange, found)
            return
        exchange.patience = found
        self._deadline.set(found, self._give_up)

    def deliver(self, exchange: Exchange) -> None:
        """Send the answer to a request whose result is there."""
        upload, result = exchange.upload, exchange.result
        if upload is None or result is None or exchange.is_answered:
            return
        self._send(exchange, sound(upload.finish, result))

    def end(self) -> None:
        """Close after the request that is being answered, or soon if there is none."""
        if self._is_idle:
            self._deadline.set(_GRACE_SECONDS, self._close)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        found = sound(self._desk.app.begin, exchange.request)
        if isinstance(found, Answer):
            self._send(exchange, found)
            return
        exchange.upload = found
        if exchange.is_whole:
            self._desk.hand_over(exchange)
        elif exchange.waits_for_word:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fail(self, exchange: Exchange, error: RequestError) -> None:
        if exchange.upload is None:
            # It waits behind others, so that nothing can be said of it yet.
            self._transport.abort()
        else:
            self._send(exchange, exchange.upload.fail(error))

    def _send(self, exchange: Exchange, answer: Answer) -> None:
        exchange.is_answered = True
        self._release(exchange)
        # Nothing of a request may be kept until the garbage is collected.
        exchange.upload = exchange.result = None
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
            b"%b%b%b%b"
            % (
                answer.head,
                self._desk.date(),
                b"connection: close\r\n\r\n" if is_last else b"\r\n",
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
            self._deadline.set(self._limits.read_seconds, self._drop)
            return
        if not current.is_whole:
            return
        self._current = None
        if self._waiting:
            exchange = self._waiting.popleft()
            if not self._waiting:
                self._is_reading = True
                self._transport.resume_reading()
            self._deadline.set(self._limits.read_seconds, self._cut_off)
            self._start(exchange)
        elif not self._reader.is_in_headers:
            self._is_idle = True
            self._deadline.set(
                _GRACE_SECONDS if self._desk.is_ending else _IDLE_SECONDS, self._close
            )
        else:
            self._deadline.set(self._limits.read_seconds, self._cut_off)

    def _release(self, exchange: Exchange) -> None:
        self._desk.held -= exchange.size
        exchange.size, exchange.body = 0, b""

    def _give_up(self) -> None:
        exchange = self._current
        if exchange is None or exchange.patience is None or exchange.upload is None:
            return
        late = DeadlineError(f"no answer within {exchange.patience:g} s")
        self._send(exchange, sound(exchange.upload.finish, late))

    def _cut_off(self) -> None:
        if self._current is None or not self._current.is_answered:
            self.refuse(b"408 Request Timeout")
        else:
            self._close()

    def _close(self) -> None:
        self._transport.close()
        # It waits for a client that does not read what is still to be sent.
        self._deadline.set(self._limits.read_seconds, self._drop)

    def _drop(self) -> None:
        """Close at once, and let the system forget what it still keeps for the client."""
        link = self._transport.get_extra_info("socket")
        if link is not None:
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FORGET)
        self._transport.abort()

    def _count_unread(self, size: int) -> None:
        self._desk.unread += size - self._unread
        self._unread = size


def _peer(transport: asyncio.Transport) -> Peer:
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    certificate = None if tls is None else tls.getpeercert(binary_form=True)
    if certificate is not None:
        return Peer("http", certificate_caller(certificate))
    address = transport.get_extra_info("peername")
    host = address[0] if isinstance(address, tuple) and address else ""
    return Peer("http", address_caller(str(host)))
