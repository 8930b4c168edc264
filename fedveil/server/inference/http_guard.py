"""What a connection may cost before a request has arrived whole: uvicorn bounds none of it."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from fedveil.server.inference.oip import Limits

__all__ = ["guarded_protocol"]

_ANSWERS = {
    408: b"HTTP/1.1 408 Request Timeout",
    431: b"HTTP/1.1 431 Request Header Fields Too Large",
}


class _GuardedProtocol(HttpToolsProtocol):
    """Counts bytes and seconds of whatever a client sends.

    A request that is not whole in time is cut off, however busily its bytes trickle (slow-loris);
    headers are bounded, and so is a whole request with its chunks and trailers.
    """

    limits: ClassVar[Limits]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._deadline: asyncio.TimerHandle | None = None
        self._in_headers = False
        self._headers = 0
        self._bytes = 0
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            transport.abort()
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            # Also for what is no request yet: empty lines may come before one.
            self._arm()
        self._bytes += len(data)
        if self._bytes > self.limits.body_bytes + self.limits.header_bytes + len(data):
            self.transport.abort()
            return
        super().data_received(data)
        if self._in_headers:
            self._headers += len(data)
            if self._headers > self.limits.header_bytes:
                self._refuse(431)

    def on_message_begin(self) -> None:
        self._in_headers = True
        self._headers = 0
        self._bytes = 0
        self._arm()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_headers = False
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.header_bytes:
            # The parser passes this on, and the connection is closed with a 400.
            raise httptools.HttpParserError("headers too large")
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.read_seconds, self._refuse, 408)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            line = _ANSWERS[status]
            self.transport.write(line + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()
        else:
            # An answer may have begun; nothing else may be written into it.
            self.transport.abort()


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return uvicorn's protocol within limits, for ``uvicorn.Config(http=...)``."""
    return type("GuardedProtocol", (_GuardedProtocol,), {"limits": limits})
