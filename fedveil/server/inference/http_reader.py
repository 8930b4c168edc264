"""Requests of HTTP/1.1 as they come over one connection, and what one may cost until it is whole.

llhttp, the parser of Node.js, reads what comes (``httptools``). Headers are bounded, and so is a
request with its chunks and trailers.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol
from urllib.parse import unquote

import httptools

from fedveil.server.inference.callers import Peer
from fedveil.server.inference.http_answer import Request
from fedveil.server.inference.oip import Limits

__all__ = ["RequestReader", "Takes"]

_REMEMBERED = 1024
# Were one of these there twice, a proxy in front might go by the other one.
_ONCE = frozenset(
    (
        b"authorization",
        b"content-encoding",
        b"host",
        b"inference-header-content-length",
        b"origin",
    )
)
_MALFORMED = b"400 Bad Request"
_LARGE_HEADERS = b"431 Request Header Fields Too Large"


class Takes(Protocol):
    """What takes requests, piece by piece."""

    def take_request(self, request: Request, *, keeps_alive: bool) -> None:
        """Take a request without its body."""

    def take_body(self, body: bytes) -> None:
        """Take a part of the body."""

    def take_end(self) -> None:
        """Learn that the body is whole."""

    def refuse(self, status: bytes) -> None:
        """Refuse what is no request; nothing that follows counts."""


class RequestReader:
    """Reads one connection.

    Parameters
    ----------
    taker : Takes
        What takes the requests.
    peer : Peer
        Who sends them.
    limits : Limits
        Bounds of a request.
    """

    def __init__(self, taker: Takes, peer: Peer, limits: Limits) -> None:
        self._taker = taker
        self._peer = peer
        self._most_header_bytes = limits.header_bytes
        self._most_bytes = limits.body_bytes + limits.header_bytes
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._header_bytes = self._partial_bytes = self._bytes = 0
        self.is_in_headers = False
        self._is_refused = False
        # The parser calls these as they are, without a step between.
        self.on_body = taker.take_body
        self.on_message_complete = taker.take_end
        self._parser = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> bool:
        """Read what has come; return False where it is more than a request may have."""
        is_more_of_headers = self.is_in_headers
        self._bytes += len(data)
        if self._bytes > self._most_bytes + len(data):
            return False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            # Nothing to change to: the request is answered, and is the last of the connection.
            pass
        except httptools.HttpParserError:
            self._refuse(_MALFORMED)
        if is_more_of_headers and self.is_in_headers:
            # The parser hands over whole headers alone, and keeps what it has of the next.
            self._partial_bytes += len(data)
            if self._partial_bytes > self._most_header_bytes:
                self._refuse(_LARGE_HEADERS)
        return True

    def close(self) -> None:
        """Let go of the parser, which refers to this object, as this does to it.

        What they hold would stay until the garbage collector comes by.
        """
        del self._parser

    def on_message_begin(self) -> None:
        """Begin a request; called by the parser, as are the next three."""
        self._url = b""
        self._headers = {}
        self.is_in_headers = True
        self._header_bytes = self._partial_bytes = self._bytes = 0

    def on_url(self, url: bytes) -> None:
        """Take the address, or a part of it."""
        self._url += url
        self._header_bytes += len(url)
        if self._header_bytes > self._most_header_bytes:
            self._refuse(_LARGE_HEADERS)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, but no trailer: nothing is known of it when the request is let in."""
        if not self.is_in_headers or self._is_refused:
            return
        name = name.lower()
        headers = self._headers
        if name in headers and name in _ONCE:
            self._refuse(_MALFORMED)
            return
        headers[name] = value
        self._header_bytes += len(name) + len(value) + 4
        if self._header_bytes > self._most_header_bytes:
            self._refuse(_LARGE_HEADERS)

    def on_headers_complete(self) -> None:
        """Hand over the request, but for its body."""
        self.is_in_headers = False
        if self._is_refused:
            return
        parser = self._parser
        self._taker.take_request(
            Request(
                parser.get_method().decode("ascii"), _path(self._url), self._headers, self._peer
            ),
            keeps_alive=parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade(),
        )

    def _refuse(self, status: bytes) -> None:
        self._is_refused = True
        self._taker.refuse(status)


@lru_cache(_REMEMBERED)
def _path(url: bytes) -> str:
    path: bytes = httptools.parse_url(url).path or b""
    return unquote(path.decode("ascii"))
