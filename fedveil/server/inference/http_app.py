"""The Open Inference Protocol v2 over HTTP, as an ASGI application.

Source: ``inference_rest.md`` of the Open Inference Protocol. No framework: there are nine
addresses, and the one that matters is asked thousands of times a second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Future
from typing import TYPE_CHECKING

import pydantic_core
from prometheus_client import CONTENT_TYPE_LATEST

from fedveil import __version__
from fedveil.server.inference.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    OutputError,
    OverloadedError,
    RequestError,
    TooLargeError,
    UnauthenticatedError,
)
from fedveil.server.inference.oip import Array, TensorSpec
from fedveil.server.inference.oip_json import read_request, write_response
from fedveil.server.inference.service import SERVER_NAME, InferenceService

if TYPE_CHECKING:
    Message = MutableMapping[str, object]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

__all__ = ["HttpApp"]

_EXTENSIONS = ["binary_tensor_data"]
_JSON = b"application/json"
_OCTETS = b"application/octet-stream"
_HEADER_LENGTH = b"inference-header-content-length"


class _Answer(Exception):  # noqa: N818  # it is no error, but the way out of a deep call
    def __init__(
        self,
        status: int,
        body: bytes,
        kind: bytes = _JSON,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.status = status
        self.body = body
        self.headers = (
            (b"content-type", kind),
            (b"content-length", b"%d" % len(body)),
            (b"x-content-type-options", b"nosniff"),
            *headers,
        )


class HttpApp:
    """Answers requests over HTTP.

    Parameters
    ----------
    service : InferenceService
        What answers them.
    """

    def __init__(self, service: InferenceService) -> None:
        self._service = service
        self._held = 0

    async def __call__(self, scope: Mapping[str, object], receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        try:
            answer = await self._answer(scope, receive)
        except RequestError as error:
            answer = _refusal(error)
        await send(
            {"type": "http.response.start", "status": answer.status, "headers": answer.headers}
        )
        await send({"type": "http.response.body", "body": answer.body})

    async def _answer(self, scope: Mapping[str, object], receive: Receive) -> _Answer:
        method = str(scope["method"])
        path = [part for part in str(scope["path"]).split("/") if part]
        headers: dict[bytes, bytes] = dict(scope["headers"])  # type: ignore[call-overload]
        service = self._service
        match path:
            case ["v2", "models", model, *rest] if rest and rest[-1] == "infer":
                version = _version(rest[:-1])
                _check_method(method, "POST")
                service.allow(_authorization(headers), "infer")
                service.find(model, version)
                return await self._infer(headers, receive, version)
            case ["admin", "roll-back"]:
                _check_method(method, "POST")
                service.allow(_authorization(headers), "admin")
                return _json({"model_version": service.roll_back()})
            case ["v2", "health", "live"]:
                _check_method(method, "GET")
                return _Answer(200, b"{}")
            case ["v2", "health", "ready"]:
                _check_method(method, "GET")
                return _Answer(200 if service.is_ready else 503, b"{}")
        _check_method(method, "GET")
        service.allow(_authorization(headers), "metadata")
        match path:
            case ["v2"]:
                return _json(
                    {"name": SERVER_NAME, "version": __version__, "extensions": _EXTENSIONS}
                )
            case ["metrics"]:
                return _Answer(200, service.metrics.text(), CONTENT_TYPE_LATEST.encode())
            case ["v2", "models", model, *rest] if rest and rest[-1] == "ready":
                service.find(model, _version(rest[:-1]))
                return _Answer(200 if service.is_ready else 503, b"{}")
            case ["v2", "models", model, *rest]:
                return self._metadata(model, _version(rest))
        raise NotFoundError("there is nothing at this address; start at /v2")

    def _metadata(self, model: str, version: str) -> _Answer:
        found = self._service.metadata(model, version)
        return _json(
            {
                "name": found.name,
                "versions": list(found.versions),
                "platform": found.platform,
                "inputs": [_tensor(found.input)],
                "outputs": [_tensor(found.output)],
                "parameters": found.parameters,
            }
        )

    async def _infer(
        self, headers: Mapping[bytes, bytes], receive: Receive, version: str
    ) -> _Answer:
        service = self._service
        started = time.perf_counter()
        outcome = "ok"
        held = [0]
        try:
            body = await self._body(headers, receive, held)
            request = read_request(
                body,
                _header_length(headers),
                service.engine.input,
                service.engine.output,
                service.limits,
            )
            patience = service.patience(request)
            future = service.submit(request, version, patience)
            label, output = await _finished(future, patience)
            response = service.response(request, label, output)
            text, length = write_response(response, request, service.engine.output)
        except RequestError as error:
            outcome = type(error).__name__.removesuffix("Error").lower()
            raise
        finally:
            self._held -= held[0]
            service.metrics.request("http", outcome, time.perf_counter() - started)
        if length is None:
            return _Answer(200, text)
        return _Answer(200, text, _OCTETS, ((_HEADER_LENGTH, b"%d" % length),))

    async def _body(
        self, headers: Mapping[bytes, bytes], receive: Receive, held: list[int]
    ) -> bytes | bytearray:
        """Read a body; what all requests hold together is bounded too."""
        limits = self._service.limits
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise InvalidRequestError("compressed bodies are not taken; leave content-encoding out")
        told = headers.get(b"content-length", b"0")
        if int(told) > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        whole: bytes | bytearray = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise InvalidRequestError("the sender went away")
            part = message.get("body", b"")
            if not isinstance(part, bytes):
                raise TypeError("ASGI bodies are bytes")
            others = self._held - held[0]
            held[0] += len(part)
            self._held += len(part)
            if held[0] > limits.body_bytes:
                raise _too_large(limits.body_bytes)
            if others and self._held > limits.queue_bytes:
                raise OverloadedError("too many bytes are being received; try again later")
            if not message.get("more_body", False):
                return whole + part if whole else part
            if not isinstance(whole, bytearray):
                whole = bytearray(whole)
            whole += part


async def _finished(future: Future[tuple[str, Array]], patience: float) -> tuple[str, Array]:
    try:
        return await asyncio.wait_for(asyncio.wrap_future(future), patience)
    except TimeoutError:
        raise DeadlineError(f"no answer within {patience:g} s") from None


def _version(rest: list[str]) -> str:
    match rest:
        case []:
            return ""
        case ["versions", version]:
            return version
    raise NotFoundError("there is nothing at this address; start at /v2")


def _check_method(method: str, wanted: str) -> None:
    if method != wanted and not (method == "HEAD" and wanted == "GET"):
        raise _MethodError(f"{method} is not taken here; use {wanted}")


class _MethodError(RequestError):
    http = 405
    grpc = "UNIMPLEMENTED"


def _authorization(headers: Mapping[bytes, bytes]) -> str | None:
    found = headers.get(b"authorization")
    return None if found is None else found.decode("latin-1")


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    found = headers.get(_HEADER_LENGTH)
    if found is None:
        return None
    if not found.isdigit() or len(found) > 12:
        raise InvalidRequestError("Inference-Header-Content-Length must be a number of bytes")
    return int(found)


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": spec.shape}


def _json(fields: object) -> _Answer:
    return _Answer(200, pydantic_core.to_json(fields))


def _too_large(most: int) -> TooLargeError:
    return TooLargeError(f"the request is larger than the {most} bytes that are taken")


def _refusal(error: RequestError) -> _Answer:
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, UnauthenticatedError):
        headers = ((b"www-authenticate", b"Bearer"),)
    elif isinstance(error, OverloadedError):
        headers = ((b"retry-after", b"1"),)
    elif isinstance(error, TooLargeError | OutputError):
        headers = ((b"connection", b"close"),)
    return _Answer(error.http, pydantic_core.to_json({"error": str(error)}), headers=headers)
