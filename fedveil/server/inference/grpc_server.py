"""The Open Inference Protocol v2 over gRPC: grpcio's synchronous server, within limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from fedveil import __version__
from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.errors import DeadlineError, RequestError, ServeError
from fedveil.server.inference.grpc_messages import metadata_message, read_message, response_message
from fedveil.server.inference.service import SERVER_NAME, InferenceService
from fedveil.server.inference.tls import TlsFiles, server_context
from fedveil.server.inference.tokens import Scope

__all__ = ["GrpcServer"]

_SERVICE = "inference.GRPCInferenceService"
_THREADS = 32
_MOST_CALLS = 256
_MOST_MESSAGE_OVERHEAD = 64 * 1024

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class GrpcServer:
    """Listens for gRPC.

    Parameters
    ----------
    service : InferenceService
        What answers.
    host : str
        Address to listen on.
    port : int
        Port; 0 takes a free one.
    tls : TlsFiles or None
        Certificate and key; None for no TLS.

    Raises
    ------
    ServeError
        If the address cannot be listened on.
    """

    def __init__(
        self, service: InferenceService, host: str, port: int, tls: TlsFiles | None = None
    ) -> None:
        self._service = service
        most = service.limits.body_bytes + _MOST_MESSAGE_OVERHEAD
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="fedveil-grpc")
        self._server = grpc.server(
            self._threads,
            maximum_concurrent_rpcs=_MOST_CALLS,
            options=[
                ("grpc.max_receive_message_length", most),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", service.limits.header_bytes),
                ("grpc.absolute_max_metadata_size", service.limits.header_bytes),
                ("grpc.max_concurrent_streams", _MOST_CALLS),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._server.add_generic_rpc_handlers([self._handlers()])
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self.port: int = self._server.add_insecure_port(address)
            else:
                self.port = self._server.add_secure_port(address, _credentials(tls))
        except RuntimeError:
            raise ServeError(
                f"cannot listen on {host}, port {port} for gRPC; choose another --grpc-port"
            ) from None

    def start(self) -> None:
        """Answer requests from now on."""
        self._server.start()

    def stop(self, patience: float) -> None:
        """Take no more requests, finish those that are being answered, and end.

        Parameters
        ----------
        patience : float
            Seconds after which what is not finished is cut off.
        """
        self._server.stop(patience).wait()
        self._threads.shutdown()

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods = {
            "ServerLive": _method(pb.ServerLiveRequest, self._live, None, self._service),
            "ServerReady": _method(pb.ServerReadyRequest, self._ready, None, self._service),
            "ModelReady": _method(
                pb.ModelReadyRequest, self._model_ready, "metadata", self._service
            ),
            "ServerMetadata": _method(
                pb.ServerMetadataRequest, self._metadata, "metadata", self._service
            ),
            "ModelMetadata": _method(
                pb.ModelMetadataRequest, self._model_metadata, "metadata", self._service
            ),
            "ModelInfer": _method(pb.ModelInferRequest, self._infer, "infer", self._service),
        }
        return grpc.method_handlers_generic_handler(_SERVICE, methods)

    def _live(self, _: pb.ServerLiveRequest, __: grpc.ServicerContext) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    def _ready(self, _: pb.ServerReadyRequest, __: grpc.ServicerContext) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._service.is_ready)

    def _model_ready(
        self, message: pb.ModelReadyRequest, _: grpc.ServicerContext
    ) -> pb.ModelReadyResponse:
        self._service.find(message.name, message.version)
        return pb.ModelReadyResponse(ready=self._service.is_ready)

    def _metadata(
        self, _: pb.ServerMetadataRequest, __: grpc.ServicerContext
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=__version__)

    def _model_metadata(
        self, message: pb.ModelMetadataRequest, _: grpc.ServicerContext
    ) -> pb.ModelMetadataResponse:
        return metadata_message(self._service.metadata(message.name, message.version))

    def _infer(
        self, message: pb.ModelInferRequest, context: grpc.ServicerContext
    ) -> pb.ModelInferResponse:
        service = self._service
        started = time.perf_counter()
        outcome = "ok"
        try:
            service.find(message.model_name, message.model_version)
            engine = service.engine
            request = read_message(message, engine.input, engine.output, service.limits)
            patience = service.patience(request)
            left = context.time_remaining()
            if left is not None:
                patience = min(patience, left)
            future = service.submit(request, message.model_version, patience)
            try:
                version, output = future.result(patience)
            except TimeoutError:
                future.cancel()
                raise DeadlineError(f"no answer within {patience:g} s") from None
            return response_message(service.response(request, version, output), engine.output)
        except RequestError as error:
            outcome = type(error).__name__.removesuffix("Error").lower()
            raise
        finally:
            service.metrics.request("grpc", outcome, time.perf_counter() - started)


def _method(
    kind: type[Request],
    answer: Callable[[Request, grpc.ServicerContext], Response],
    scope: Scope | None,
    service: InferenceService,
) -> grpc.RpcMethodHandler:
    def call(message: Request, context: grpc.ServicerContext) -> Response:
        try:
            if scope is not None:
                sent = dict(context.invocation_metadata())
                found = sent.get("authorization")
                service.allow(found if isinstance(found, str) else None, scope)
            return answer(message, context)
        except RequestError as error:
            # It raises, so that nothing is returned from here.
            context.abort(grpc.StatusCode[error.grpc], str(error))
            raise

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=kind.FromString, response_serializer=_serialize
    )


def _serialize(message: Message) -> bytes:
    return bytes(message.SerializeToString())


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    # It refuses whatever is wrong with the files, which grpcio would only log.
    server_context(tls)
    client_ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )
