"""A service over gRPC in this process, and the calls of its protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import numpy as np
from google.protobuf.message import Message

from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.grpc_server import GrpcServer
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tls import TlsFiles

SERVICE = "/inference.GRPCInferenceService/"
PATIENCE = 20

Metadata = tuple[tuple[str, str], ...]


@contextmanager
def over_grpc(service: InferenceService, tls: TlsFiles | None = None) -> Iterator[GrpcServer]:
    """Serve over gRPC too."""
    server = GrpcServer(service, "127.0.0.1", 0, tls)
    server.start()
    try:
        yield server
    finally:
        server.stop(5)


@contextmanager
def channel_to(service: InferenceService) -> Iterator[grpc.Channel]:
    """Serve over gRPC too, and yield a channel."""
    with (
        over_grpc(service) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
    ):
        yield channel


def call(channel: grpc.Channel, name: str, message: Message, metadata: Metadata = ()) -> Message:
    method = channel.unary_unary(
        SERVICE + name,
        request_serializer=type(message).SerializeToString,
        response_deserializer=getattr(pb, f"{name}Response").FromString,
    )
    return method(message, timeout=PATIENCE, metadata=metadata)


def infer_message(
    shape: tuple[int, ...], datatype: str = "FP32", model: str = "digits", **more: object
) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype=datatype, shape=shape)
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], **more)


def outputs(reply: pb.ModelInferResponse) -> np.ndarray:
    shape = tuple(reply.outputs[0].shape)
    return np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(shape)
