"""The addresses of the Open Inference Protocol v2 over HTTP.

Source: ``inference_rest.md`` of the Open Inference Protocol. No framework: there are nine
addresses, and the one that matters is asked thousands of times a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache

from prometheus_client import CONTENT_TYPE_LATEST

from fedveil import __version__
from fedveil.server.inference.about import about_task
from fedveil.server.inference.batcher import Done
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
from fedveil.server.inference.oip_json import read_fields
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
        path = _parts(address)
        service = self._service
        if self._hosts is not None:
            self._hosts.check(headers)
        match path:
            case ["v2", "models", model, *rest] if rest and rest[-1] == "infer":
                version = _version(rest[:-1])
                _check_method(method, "POST")
                caller = service.allow(_authorization(headers), "infer", peer)
                return Inference(service, headers, version, caller).begin(model)
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
        return Upload(self._indexed, refusal)

    def _indexed(self, body: bytes | bytearray, _: Done) -> Answer:
        try:
            fields = read_fields(body, self._service.limits) if body else {}
            return json_answer(repository_index(self._service, fields.get("ready", False)))
        except RequestError as error:
            return refusal(error)


@lru_cache(_REMEMBERED)
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
