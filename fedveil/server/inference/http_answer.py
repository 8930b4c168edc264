"""What an application over HTTP is given, and what it gives back: plain calls, no coroutines.

ASGI would take a task, an event and several dictionaries for each request, which together cost more
than a small model does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

import pydantic_core

from fedveil.server.inference.batcher import Done, Result
from fedveil.server.inference.callers import Peer
from fedveil.server.inference.errors import (
    MethodError,
    OutputError,
    RequestError,
    TooLargeError,
    UnauthenticatedError,
)

__all__ = [
    "Answer",
    "Application",
    "Request",
    "Upload",
    "json_answer",
    "refusal",
    "sound",
]

Found = TypeVar("Found")
P = ParamSpec("P")

_log = logging.getLogger(__name__)

_JSON = b"application/json"
_REMEMBERED = 1024

_LINES = {int(status): f"{status.value} {status.phrase}".encode() for status in HTTPStatus}


class Request(NamedTuple):
    """A request without its body.

    Attributes
    ----------
    method : str
        Of HTTP.
    path : str
        With percent signs resolved, without the query.
    headers : Mapping of bytes to bytes
        Names in small letters; of several headers with one name the last.
    peer : Peer
        Who sent it.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    peer: Peer


class Answer:
    """An answer, ready to be sent.

    Parameters
    ----------
    status : int
        Of HTTP.
    body : bytes
        The body.
    kind : bytes
        Its content type.
    headers : tuple of pairs of bytes
        Further headers.
    closes : bool
        Whether the connection ends with it.
    """

    __slots__ = ("body", "closes", "head")

    def __init__(
        self,
        status: int,
        body: bytes,
        kind: bytes = _JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
        *,
        closes: bool = False,
    ) -> None:
        self.body = body
        self.closes = closes
        self.head = _head(status, kind, len(body), headers)


class Upload(Protocol):
    """A request that is answered once its body is there."""

    def submit(self, body: bytes | bytearray, done: Done) -> Answer | float:
        """Take the body.

        Returns
        -------
        Answer or float
            The answer; or how many seconds are waited for the result, which `done` is told later,
            by any thread.
        """

    def finish(self, result: Result | RequestError) -> Answer:
        """Make the answer of what came later."""

    def fail(self, error: RequestError) -> Answer:
        """Make the answer that says what came instead of a whole body."""


class Application(Protocol):
    """Answers requests."""

    def together(self) -> AbstractContextManager[None]:
        """Compute what is asked for in the block together."""

    def begin(self, request: Request) -> Answer | Upload:
        """Answer a request, or ask for its body."""


@lru_cache(_REMEMBERED)
def _head(status: int, kind: bytes, length: int, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    lines = b"".join(b"%b: %b\r\n" % header for header in headers)
    return (
        b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n"
        b"x-content-type-options: nosniff\r\n%b" % (_LINES[status], kind, length, lines)
    )


def json_answer(fields: object) -> Answer:
    """Return an answer that says something in JSON."""
    return Answer(200, pydantic_core.to_json(fields))


def refusal(error: RequestError) -> Answer:
    """Return the answer that refuses a request."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, UnauthenticatedError):
        headers = ((b"www-authenticate", b"Bearer"),)
    elif isinstance(error, MethodError):
        headers = ((b"allow", error.allowed.encode()),)
    elif error.retry_after is not None:
        headers = ((b"retry-after", b"%d" % math.ceil(error.retry_after)),)
    closes = isinstance(error, TooLargeError | OutputError)
    text = pydantic_core.to_json({"error": str(error)})
    return Answer(error.http, text, headers=headers, closes=closes)


def sound(call: Callable[P, Found], *args: P.args, **named: P.kwargs) -> Found | Answer:
    """Return what a call gives; where it has a fault, log it and return an answer that says so.

    A fault of one request is no fault of others, nor of its connection. The answer repeats no word
    of it.
    """
    try:
        return call(*args, **named)
    except Exception:  # noqa: BLE001  # whatever goes wrong in it
        _log.exception("a request failed")
        return Answer(500, b'{"error":"the service has a fault; its log says more"}', closes=True)
