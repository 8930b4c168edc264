"""The service over gRPC: the protocol's messages, its errors, and what it does not take."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_run import answer, run_of, serving, some_rows

from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.grpc_server import GrpcServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.tokens import TokenFile, add_token

SERVICE = "/inference.GRPCInferenceService/"
LIMITS = Limits(rows=64, body_bytes=100_000)


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[grpc.Channel]:
    run_of(tmp_path / "run", 1, 2)
    with serving(tmp_path / "run", LIMITS) as (service, _):
        server = GrpcServer(service, "127.0.0.1", 0)
        server.start()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{server.port}") as found:
                yield found
        finally:
            server.stop(5)


def call(
    channel: grpc.Channel,
    name: str,
    message: Message,
    metadata: tuple[tuple[str, str], ...] = (),
) -> Message:
    method = channel.unary_unary(
        SERVICE + name,
        request_serializer=type(message).SerializeToString,
        response_deserializer=getattr(pb, f"{name}Response").FromString,
    )
    return method(message, timeout=20, metadata=metadata)


def infer_message(rows: np.ndarray, datatype: str = "FP32", **more: object) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="input", datatype=datatype, shape=rows.shape
    )
    return pb.ModelInferRequest(model_name="digits", inputs=[tensor], **more)


def outputs(reply: pb.ModelInferResponse) -> np.ndarray:
    shape = tuple(reply.outputs[0].shape)
    return np.frombuffer(reply.raw_output_contents[0], "<f4").reshape(shape)


def test_health_metadata_and_answers(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
    assert call(channel, "ServerReady", pb.ServerReadyRequest()).ready
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="digits")).ready
    assert call(channel, "ServerMetadata", pb.ServerMetadataRequest()).name == "fedveil"
    told = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="digits"))
    assert list(told.versions) == ["2"]
    assert (told.inputs[0].datatype, list(told.inputs[0].shape)) == ("FP32", [-1, 64])
    assert told.parameters["epsilon"].double_param == 0.5
    assert told.parameters["round"].int64_param == 2
    rows = some_rows(3)
    raw = call(channel, "ModelInfer", infer_message(rows, raw_input_contents=[rows.tobytes()]))
    assert np.array_equal(outputs(raw), answer(2, rows))
    typed = infer_message(rows, id="me", model_version="2")
    typed.inputs[0].contents.fp32_contents.extend(rows.reshape(-1))
    reply = call(channel, "ModelInfer", typed)
    assert np.array_equal(outputs(reply), answer(2, rows))
    assert (reply.id, reply.model_version) == ("me", "2")
    bytes_ = infer_message(rows, "UINT8")
    bytes_.inputs[0].contents.uint_contents.extend(rows.reshape(-1).astype(int))
    assert np.array_equal(outputs(call(channel, "ModelInfer", bytes_)), answer(2, rows))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (pb.ModelInferRequest(model_name="x"), grpc.StatusCode.NOT_FOUND),
        (pb.ModelInferRequest(model_name="digits"), grpc.StatusCode.INVALID_ARGUMENT),
        (infer_message(some_rows(1)), grpc.StatusCode.INVALID_ARGUMENT),
        (
            infer_message(some_rows(1), raw_input_contents=[b"x"]),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            infer_message(some_rows(65), raw_input_contents=[some_rows(65).tobytes()]),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (infer_message(some_rows(1), "FP16"), grpc.StatusCode.INVALID_ARGUMENT),
        (infer_message(some_rows(1), "BYTES"), grpc.StatusCode.INVALID_ARGUMENT),
        (infer_message(some_rows(1), model_version="9"), grpc.StatusCode.NOT_FOUND),
        (
            infer_message(some_rows(1), raw_input_contents=[bytes(300_000)]),
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    message: pb.ModelInferRequest, code: grpc.StatusCode, channel: grpc.Channel
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "ModelInfer", message)
    assert caught.value.code() == code


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.binary(max_size=200), st.binary(max_size=60))
def test_malformed_messages_are_refused_and_nothing_breaks(
    channel: grpc.Channel, noise: bytes, end: bytes
) -> None:
    rows = some_rows(1)
    whole = infer_message(rows, raw_input_contents=[rows.tobytes()]).SerializeToString()
    method = channel.unary_unary(SERVICE + "ModelInfer")
    for sent in (noise, whole[: len(noise)] + noise, whole[: -1 - len(end)] + end):
        try:
            reply = pb.ModelInferResponse.FromString(method(sent, timeout=20))
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]
        else:
            code = grpc.StatusCode.OK
            assert outputs(reply).shape[1:] == (10,)
        assert code in (
            grpc.StatusCode.OK,
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
            grpc.StatusCode.INTERNAL,
        )
    assert call(channel, "ServerLive", pb.ServerLiveRequest()).live


def test_tokens_hold_here_too(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    path = tmp_path / "tokens.json"
    shop = (("authorization", f"Bearer {add_token(path, 'shop', ('infer',))}"),)
    rows = some_rows(1)
    message = infer_message(rows, raw_input_contents=[rows.tobytes()])
    with serving(tmp_path / "run", tokens=TokenFile(path)) as (service, _):
        server = GrpcServer(service, "127.0.0.1", 0)
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
            with pytest.raises(grpc.RpcError) as caught:
                call(channel, "ModelInfer", message)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
            with pytest.raises(grpc.RpcError) as caught:
                call(
                    channel, "ModelMetadata", pb.ModelMetadataRequest(name="digits"), metadata=shop
                )
            assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
            assert call(channel, "ModelInfer", message, metadata=shop).model_version == "1"
        server.stop(5)


def test_the_generated_messages_are_those_of_the_proto_file() -> None:
    """The checked-in descriptor has every field of oip.proto under its number."""
    import re

    room = Path(pb.__file__).parent
    found = set(re.findall(r"(\w+) = (\d+);", (room / "oip.proto").read_text()))

    def fields(messages: object) -> Iterator[tuple[str, str]]:
        for message in messages.values():  # type: ignore[attr-defined]
            yield from ((field.name, str(field.number)) for field in message.fields)
            yield from fields(message.nested_types_by_name)

    made = set(fields(pb.DESCRIPTOR.message_types_by_name))
    assert found == made - {("key", "1"), ("value", "2")}


def test_serving_over_http_alone_loads_no_grpc() -> None:
    code = "import sys, fedveil.server.inference.http_server; print('grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
