"""The methods of the Open Inference Protocol v2 over gRPC, and Triton's beside them.

Source: ``inference_grpc.md`` of the Open Inference Protocol; `fedveil.server.inference.triton`
says whence the others come.
"""

from __future__ import annotations

import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TypeVar
from urllib.parse import unquote

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError, Message

from fedveil import __version__
from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.batcher import Result
from fedveil.server.inference.callers import (
    Caller,
    Peer,
    address_caller,
    certificate_caller,
)
from fedveil.server.inference.errors import (
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    RequestError,
)
from fedveil.server.inference.grpc_messages import (
    message_weight,
    metadata_message,
    read_message,
    response_message,
)
from fedveil.server.inference.grpc_open import OpenCalls
from fedveil.server.inference.service import SERVER_NAME, InferenceService
from fedveil.server.inference.tokens import Scope
from fedveil.server.inference.triton import (
    EXTENSIONS,
    model_config,
    model_statistics,
    repository_index,
)

__all__ = ["GrpcCalls"]

_SERVICE = "inference.GRPCInferenceService"

_log = logging.getLogger(__name__)

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class GrpcCalls:
    """Answers the calls of gRPC.

    Parameters
    ----------
    service : InferenceService
        What answers them.
    calls : OpenCalls
        Those that are open.
    """

    def __init__(self, service: InferenceService, calls: OpenCalls) -> None:
        self._service = service
        self._calls = calls

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return what grpcio calls for each method."""
        methods = {
            "ServerLive": self._method(pb.ServerLiveRequest, self._live, None),
            "ServerReady": self._method(pb.ServerReadyRequest, self._ready, None),
            "ModelReady": self._method(pb.ModelReadyRequest, self._model_ready, "metadata"),
            "ServerMetadata": self._method(pb.ServerMetadataRequest, self._metadata, "metadata"),
            "ModelMetadata": self._method(
                pb.ModelMetadataRequest, self._model_metadata, "metadata"
            ),
            "ModelConfig": self._method(pb.ModelConfigRequest, self._config, "metadata"),
            "ModelStatistics": self._method(
                pb.ModelStatisticsRequest, self._statistics, "metadata"
            ),
            "RepositoryIndex": self._method(pb.RepositoryIndexRequest, self._index, "metadata"),
            "ModelInfer": self._method(pb.ModelInferRequest, self._infer, "infer"),
        }
        return grpc.method_handlers_generic_handler(_SERVICE, methods)

    def _method(
        self,
        kind: type[Request],
        answer: Callable[[Request, grpc.ServicerContext, Caller], Response],
        scope: Scope | None,
    ) -> grpc.RpcMethodHandler:
        def call(sent: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
            try:
                # Who may not ask shall not cost the receiving of a message either.
                caller = self._allow(context, scope)
                if scope is None:
                    # Health is told whatever others do: no message is waited for, which is empty.
                    return bytes(answer(kind(), context, caller).SerializeToString())
                with self._calls.begin(caller, context) as opened:
                    message = opened.receive(sent)
                    opened.hold(message_weight(message, self._service.limits))
                    reply = answer(_parse(kind, message), context, caller).SerializeToString()
                    opened.answer_bytes = len(reply)
                    return bytes(reply)
            except RequestError as error:
                refusal = error
            except grpc.RpcError:
                # The caller went away, or was cut off.
                raise
            except Exception:  # noqa: BLE001  # whoever asked must be told something
                # grpcio would send the exception's own words.
                _log.exception("a request failed")
                refusal = RequestError("the service has a fault; its log says more")
            if refusal.retry_after is not None:
                seconds = str(math.ceil(refusal.retry_after))
                context.set_trailing_metadata((("retry-after", seconds),))
            # It raises, so that nothing is returned from here.
            context.abort(grpc.StatusCode[refusal.grpc], str(refusal))
            raise refusal

        # As a stream of one message, which is the same to a client: else grpcio would receive it
        # before anything is known of the caller, and wait for it for ever. Without a deserializer:
        # what grpcio answers where one fails is INTERNAL.
        return grpc.stream_unary_rpc_method_handler(call)

    def _allow(self, context: grpc.ServicerContext, scope: Scope | None) -> Caller:
        peer = _peer(context)
        if scope is None:
            return peer.caller
        sent = [value for name, value in context.invocation_metadata() if name == "authorization"]
        # Were there two, a proxy in front might go by the other one.
        found = sent[0] if len(sent) == 1 and isinstance(sent[0], str) else None
        return self._service.allow(found, scope, peer)

    def _live(
        self, _: pb.ServerLiveRequest, __: grpc.ServicerContext, ___: Caller
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def _ready(
        self, _: pb.ServerReadyRequest, __: grpc.ServicerContext, ___: Caller
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    def _model_ready(
        self, message: pb.ModelReadyRequest, _: grpc.ServicerContext, __: Caller
    ) -> pb.ModelReadyResponse:
        self._service.find(message.name, message.version)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    def _metadata(
        self, _: pb.ServerMetadataRequest, __: grpc.ServicerContext, ___: Caller
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name=SERVER_NAME, version=__version__, extensions=EXTENSIONS
        )

    def _model_metadata(
        self, message: pb.ModelMetadataRequest, _: grpc.ServicerContext, __: Caller
    ) -> pb.ModelMetadataResponse:
        return metadata_message(self._service.metadata(message.name, message.version))

    def _config(
        self, message: pb.ModelConfigRequest, _: grpc.ServicerContext, __: Caller
    ) -> pb.ModelConfigResponse:
        fields = model_config(self._service, message.name, message.version)
        return _filled(pb.ModelConfigResponse(), {"config": fields})

    def _statistics(
        self, message: pb.ModelStatisticsRequest, _: grpc.ServicerContext, __: Caller
    ) -> pb.ModelStatisticsResponse:
        fields = model_statistics(self._service, message.name, message.version)
        return _filled(pb.ModelStatisticsResponse(), fields)

    def _index(
        self, message: pb.RepositoryIndexRequest, _: grpc.ServicerContext, __: Caller
    ) -> pb.RepositoryIndexResponse:
        if message.repository_name:
            raise NotFoundError("the one repository here has no name; leave repository_name out")
        models = repository_index(self._service, message.ready)
        return _filled(pb.RepositoryIndexResponse(), {"models": models})

    def _infer(
        self, message: pb.ModelInferRequest, context: grpc.ServicerContext, caller: Caller
    ) -> pb.ModelInferResponse:
        service = self._service
        started = time.perf_counter()
        outcome, version, rows = "failed", message.model_version, 0
        try:
            service.find(message.model_name, message.model_version)
            request = read_message(message, service.engine.input, service.output, service.limits)
            patience = service.patience(request)
            left = context.time_remaining()
            if left is not None:
                patience = min(patience, left)
            told: Future[Result | RequestError] = Future()
            service.ask(request, message.model_version, patience, caller, told.set_result)
            version, output = _awaited(told, patience)
            answer = response_message(service.response(request, version, output), service.output)
            outcome, rows = "ok", len(request.rows)
        except RequestError as error:
            outcome = error.outcome
            raise
        else:
            return answer
        finally:
            seconds = time.perf_counter() - started
            service.count(caller, "grpc", outcome, seconds, version, rows)


def _awaited(told: Future[Result | RequestError], patience: float) -> Result:
    try:
        result = told.result(patience)
    except TimeoutError:
        raise DeadlineError(f"no answer within {patience:g} s") from None
    if isinstance(result, RequestError):
        raise result
    return result


def _peer(context: grpc.ServicerContext) -> Peer:
    certificates = context.auth_context().get("x509_pem_cert")
    if certificates:
        return Peer("grpc", certificate_caller(ssl.PEM_cert_to_DER_cert(certificates[0].decode())))
    # It is ipv4:127.0.0.1:50000, or ipv6:%5B::1%5D:50000.
    kind, _, address = context.peer().partition(":")
    host = unquote(address.rpartition(":")[0]).strip("[]")
    return Peer("grpc", address_caller(host if kind in ("ipv4", "ipv6") else ""))


def _parse(kind: type[Request], sent: bytes) -> Request:
    message: Request = kind()
    try:
        message.ParseFromString(sent)
    except DecodeError:
        raise InvalidRequestError(f"the bytes are no {kind.DESCRIPTOR.name}") from None
    return message


def _filled(message: Response, fields: Mapping[str, object]) -> Response:
    ParseDict(fields, message)
    return message
