"""The addresses of the Open Inference Protocol v2 over HTTP.

Source: ``inference_rest.md`` of the Open Inference Protocol. No framework: there are nine
addresses, and the one that matters is asked thousands of times a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple

from prometheus_client import CONTENT_TYPE_LATEST

from fedveil import __version__
from fedveil.server.inference.about import about_task
from fedveil.server.inference.batcher import Done, Result
from fedveil.server.inference.errors import MethodError, NotFoundError, RequestError
from fedveil.server.inference.hosts import KnownHosts
from fedveil.server.inference.http_answer import (
    Answer,
    Request,
    Upload,
    json_answer,
    refusal,
)
from fedveil.server.inference.http_inference import Inference, check_upload
from fedveil.server.inference.oip import TensorSpec
from fedveil.server.inference.oip_json import InferReader, read_fields
from fedveil.server.inference.page import PAGE_HEADERS, page_files
from fedveil.server.inference.service import SERVER_NAME, InferenceService
from fedveil.server.inference.triton import (
    EXTENSIONS,
    model_config,
    model_statistics,
    repository_index,
)

__all__ = ["HttpApp"]

_REMEMBERED = 1024

_EXTENSIONS = ["binary_tensor_data", *EXTENSIONS]


class HttpApp:
    """Answers requests over HTTP.

    Parameters
    ----------
    service : InferenceService
        What answers them.
    hosts : KnownHosts or None
        The names that requests must be for; None where callers show tokens, which no web page of
        somebody else's has.
    """

    def __init__(self, service: InferenceService, hosts: KnownHosts | None) -> None:
        self._service = service
        self._hosts = hosts
        self._reader = InferReader(service.engine.input, service.output, service.limits)
        self._about = about_task(
            service.engine.task, service.engine.input, service.engine.output, service.limits
        )
        self._page = {
            address: Answer(200, body, kind, PAGE_HEADERS)
            for address, (body, kind) in page_files().items()
        }

    def together(self) -> AbstractContextManager[None]:
        """Run what is submitted in the block together."""
        return self._service.together()

    def begin(self, request: Request) -> Answer | Upload:
        """Answer a request, or ask for its body."""
        try:
            return self._begin(request)
        except RequestError as error:
            return refusal(error)

    def _begin(self, request: Request) -> Answer | Upload:
        method, address, headers, peer = request
        service = self._service
        if self._hosts is not None:
            self._hosts.check(headers)
        asked = _inference(address)
        if asked is not None:
            _check_method(method, "POST")
            caller = service.allow(_authorization(headers), "infer", peer)
            inference = Inference(service, self._reader, headers, asked.version, caller)
            return inference.begin(asked.model)
        path = _parts(address)
        match path:
            case ["admin", "roll-back"]:
                _check_method(method, "POST")
                caller = service.allow(_authorization(headers), "admin", peer)
                return json_answer({"model_version": service.roll_back(caller, "http")})
            case ["v2", "repository", "index"]:
                _check_method(method, "POST")
                service.allow(_authorization(headers), "metadata", peer)
                return self._index(headers)
            case ["v2", "health", "live"]:
                _check_method(method, "GET")
                return Answer(200, b"{}")
            case ["v2", "health", "ready"]:
                _check_method(method, "GET")
                return Answer(200 if service.is_ready else 503, b"{}")
        _check_method(method, "GET")
        page = self._page.get(address)
        if page is not None:
            return page
        service.allow(_authorization(headers), "metadata", peer)
        match path:
            case ["v2"]:
                return json_answer(
                    {"name": SERVER_NAME, "version": __version__, "extensions": _EXTENSIONS}
                )
            case ["about"]:
                return json_answer(self._about)
            case ["latencies"]:
                return json_answer(service.metrics.latencies.read())
            case ["metrics"]:
                return Answer(200, service.metrics.text(), CONTENT_TYPE_LATEST.encode())
            case ["v2", "models", model, *rest] if rest and rest[-1] == "ready":
                service.find(model, _version(rest[:-1]))
                return Answer(200 if service.is_ready else 503, b"{}")
            case ["v2", "models", model, *rest] if rest and rest[-1] == "config":
                return json_answer(model_config(service, model, _version(rest[:-1])))
            case ["v2", "models", model, *rest] if rest and rest[-1] == "stats":
                return json_answer(model_statistics(service, model, _version(rest[:-1])))
            case ["v2", "models", "stats"]:
                return json_answer(model_statistics(service))
            case ["v2", "models", model, *rest]:
                return self._metadata(model, _version(rest))
        raise NotFoundError("there is nothing at this address; start at /v2")

    def _metadata(self, model: str, version: str) -> Answer:
        found = self._service.metadata(model, version)
        return json_answer(
            {
                "name": found.name,
                "versions": list(found.versions),
                "platform": found.platform,
                "inputs": [_tensor(found.input)],
                "outputs": [_tensor(found.output)],
                "parameters": found.parameters,
            }
        )

    def _index(self, headers: Mapping[bytes, bytes]) -> Upload:
        check_upload(headers, self._service.limits.body_bytes)
        return _Index(self._service)


class _Index:
    """Answers what stands in the repository; an `Upload`."""

    def __init__(self, service: InferenceService) -> None:
        self._service = service

    def submit(self, body: bytes | bytearray, _: Done) -> Answer:
        try:
            fields = read_fields(body, self._service.limits) if body else {}
            return json_answer(repository_index(self._service, fields.get("ready", False)))
        except RequestError as error:
            return self.fail(error)

    def finish(self, result: Result | RequestError) -> Answer:
        raise RuntimeError(f"nothing was asked of the model, which told {type(result).__name__}")

    def fail(self, error: RequestError) -> Answer:
        return refusal(error)


class _Asked(NamedTuple):
    """What an inference is asked of; the version is empty for the current one."""

    model: str
    version: str


@lru_cache(_REMEMBERED)
def _inference(address: str) -> _Asked | None:
    """Return what an address asks to infer; None for any other address."""
    match _parts(address):
        case ["v2", "models", model, *rest] if rest and rest[-1] == "infer":
            return _Asked(model, _version(rest[:-1]))
    return None


def _parts(address: str) -> tuple[str, ...]:
    return tuple(part for part in address.split("/") if part)


def _version(rest: list[str]) -> str:
    match rest:
        case []:
            return ""
        case ["versions", version]:
            return version
    raise NotFoundError("there is nothing at this address; start at /v2")


def _check_method(method: str, wanted: str) -> None:
    if method != wanted and not (method == "HEAD" and wanted == "GET"):
        raise MethodError(method, wanted)


def _authorization(headers: Mapping[bytes, bytes]) -> str | None:
    found = headers.get(b"authorization")
    return None if found is None else found.decode("latin-1")


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "datatype": spec.dtype, "shape": spec.shape}
