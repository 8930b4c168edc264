"""What an application over HTTP is given, and what it gives back: plain calls, no coroutines.

ASGI would take a task, an event and several dictionaries for each request, which together cost more
than a small model does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from http import HTTPStatus
from typing import NamedTuple, Protocol

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
    "Pending",
    "Request",
    "Upload",
    "json_answer",
    "refusal",
]

_JSON = b"application/json"

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
        self.head = (
            b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n"
            b"x-content-type-options: nosniff\r\n" % (_LINES[status], kind, len(body))
        )
        for name, value in headers:
            self.head += b"%b: %b\r\n" % (name, value)


@dataclass(slots=True)
class Pending:
    """An answer that a thread is working on.

    Parameters
    ----------
    patience : float
        Seconds after which it is not waited for any more.
    finish : callable
        Makes the answer of what came of it.
    """

    patience: float
    finish: Callable[[Result | RequestError], Answer]


@dataclass(slots=True)
class Upload:
    """A request that is answered once its body is there.

    Parameters
    ----------
    then : callable
        Takes the body, and what is to be told the result if that comes later, by any thread.
    fail : callable
        Takes the error that came instead, and makes the answer that says so.
    """

    then: Callable[[bytes | bytearray, Done], Answer | Pending]
    fail: Callable[[RequestError], Answer]


class Application(Protocol):
    """Answers requests."""

    def together(self) -> AbstractContextManager[None]:
        """Compute what is asked for in the block together."""

    def begin(self, request: Request) -> Answer | Upload:
        """Answer a request, or ask for its body."""


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
