"""One inference over HTTP, from its body to its answer."""

from __future__ import annotations

import time
from collections.abc import Mapping

from fedveil.server.inference.batcher import Done, Result
from fedveil.server.inference.callers import Caller
from fedveil.server.inference.errors import InvalidRequestError, RequestError, TooLargeError
from fedveil.server.inference.http_answer import Answer, Upload, refusal
from fedveil.server.inference.oip import InferRequest
from fedveil.server.inference.oip_json import InferReader
from fedveil.server.inference.oip_json_output import write_response
from fedveil.server.inference.service import InferenceService

__all__ = ["Inference", "check_upload"]

_OCTETS = b"application/octet-stream"
_HEADER_LENGTH = b"inference-header-content-length"


class Inference:
    """Takes a request's body to the model, and the output back; an `Upload`.

    Parameters
    ----------
    service : InferenceService
        What answers.
    reader : InferReader
        Reads bodies.
    headers : Mapping of bytes to bytes
        Of the request.
    version : str
        The round that is asked for; empty for the current one.
    caller : Caller
        Who asks.
    """

    __slots__ = ("_caller", "_headers", "_reader", "_request", "_service", "_started", "_version")

    def __init__(
        self,
        service: InferenceService,
        reader: InferReader,
        headers: Mapping[bytes, bytes],
        version: str,
        caller: Caller,
    ) -> None:
        self._service = service
        self._reader = reader
        self._headers = headers
        self._version = version
        self._caller = caller
        self._started = time.perf_counter()
        self._request: InferRequest | None = None

    def begin(self, model: str) -> Answer | Upload:
        """Ask for the body, unless it would be refused."""
        try:
            self._service.find(model, self._version)
            check_upload(self._headers, self._service.limits.body_bytes)
        except RequestError as error:
            return self.fail(error)
        return self

    def submit(self, body: bytes | bytearray, done: Done) -> Answer | float:
        """Read the body, and send its rows to the model."""
        service = self._service
        try:
            request = self._request = self._reader.read(body, _header_length(self._headers))
            patience = service.patience(request)
            service.ask(request, self._version, patience, self._caller, done)
        except RequestError as error:
            return self.fail(error)
        return patience

    def finish(self, result: Result | RequestError) -> Answer:
        """Write what the model gave."""
        if isinstance(result, RequestError):
            return self.fail(result)
        service, request = self._service, self._request
        if request is None:
            raise RuntimeError("an answer came before the request was sent")
        label, output = result
        try:
            response = service.response(request, label, output)
            text, length = write_response(response, request, service.output)
        except RequestError as error:
            return self.fail(error, label)
        self._count("ok", label, len(request.rows))
        if length is None:
            return Answer(200, text)
        return Answer(200, text, _OCTETS, ((_HEADER_LENGTH, b"%d" % length),))

    def fail(self, error: RequestError, label: str = "") -> Answer:
        """Count a request that was refused, and say why it was."""
        self._count(error.outcome, label or self._version, 0)
        return refusal(error)

    def _count(self, outcome: str, version: str, rows: int) -> None:
        seconds = time.perf_counter() - self._started
        self._service.count(self._caller, "http", outcome, seconds, version, rows)


def check_upload(headers: Mapping[bytes, bytes], most: int) -> None:
    """Refuse a body that would not be taken, before any of it has come.

    Raises
    ------
    InvalidRequestError
        If it is compressed.
    TooLargeError
        If it says that it has more bytes than are taken.
    """
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise InvalidRequestError("compressed bodies are not taken; leave content-encoding out")
    if int(headers.get(b"content-length", b"0")) > most:
        raise TooLargeError(f"the request is larger than the {most} bytes that are taken")


def _header_length(headers: Mapping[bytes, bytes]) -> int | None:
    found = headers.get(_HEADER_LENGTH)
    if found is None:
        return None
    if not found.isdigit() or len(found) > 12:
        raise InvalidRequestError("Inference-Header-Content-Length must be a number of bytes")
    return int(found)
