"""The service over gRPC: the protocol's messages, Triton's, its errors, and what it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor
from google.protobuf.message import Message
from served_grpc import SERVICE, Metadata, call, channel_to, infer_message, outputs
from served_run import INFER, answer, body, commit, run_of, serving, some_rows

from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.grpc_messages import _CONTENTS
from fedveil.server.inference.oip import DTYPES, Limits
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tokens import TokenFile, add_token

LIMITS = Limits(rows=64, body_bytes=100_000)
ONE = some_rows(1)

Served = tuple[InferenceService, grpc.Channel]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))
        run = tmp_path_factory.mktemp("runs") / "run"
        run_of(run, 1, 2)
        with serving(run, LIMITS) as (service, _), channel_to(service) as channel:
            yield service, channel


@pytest.fixture(scope="module")
def channel(served: Served) -> grpc.Channel:
    return served[1]


Guarded = tuple[grpc.Channel, Metadata]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Return a channel to a service that takes tokens, and one that is good for infer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))
        folder = tmp_path_factory.mktemp("guarded")
        run_of(folder / "run", 1)
        path = folder / "tokens.json"
        shop = (("authorization", f"Bearer {add_token(path, 'shop', ('infer',))}"),)
        with (
            serving(folder / "run", tokens=TokenFile(path)) as (service, _),
            channel_to(service) as channel,
        ):
            yield channel, shop


def refusal(
    channel: grpc.Channel, name: str, message: Message, metadata: Metadata = ()
) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, name, message, metadata)
    return caught.value.code(), caught.value.details()


def raw_message(rows: np.ndarray = ONE, **more: object) -> pb.ModelInferRequest:
    return infer_message(rows.shape, raw_input_contents=[rows.tobytes()], **more)


def test_health_metadata_and_answers(channel: grpc.Channel) -> None:
    assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
    assert call(channel, "ServerReady", pb.ServerReadyRequest()).ready
    assert call(channel, "ModelReady", pb.ModelReadyRequest(name="digits")).ready
    server = call(channel, "ServerMetadata", pb.ServerMetadataRequest())
    assert (server.name, list(server.extensions)) == (
        "fedveil",
        ["model_configuration", "statistics"],
    )
    told = call(channel, "ModelMetadata", pb.ModelMetadataRequest(name="digits"))
    assert list(told.versions) == ["2"]
    assert (told.inputs[0].datatype, list(told.inputs[0].shape)) == ("FP32", [-1, 64])
    assert told.parameters["epsilon"].double_param == 0.5
    assert told.parameters["round"].int64_param == 2
    rows = some_rows(3)
    assert np.array_equal(outputs(call(channel, "ModelInfer", raw_message(rows))), answer(2, rows))
    reply = call(channel, "ModelInfer", raw_message(rows, id="me", model_version="2"))
    assert (reply.id, reply.model_version) == ("me", "2")


@pytest.mark.parametrize("datatype", ["FP32", "BOOL", "INT8", "INT16", "UINT8", "UINT16"])
def test_typed_contents_of_every_type_that_fits(datatype: str, channel: grpc.Channel) -> None:
    rows = (some_rows(3) % 2).astype(DTYPES[datatype])
    message = infer_message(rows.shape, datatype)
    getattr(message.inputs[0].contents, _CONTENTS[datatype]).extend(rows.reshape(-1).tolist())
    reply = call(channel, "ModelInfer", message)
    assert np.array_equal(outputs(reply), answer(2, rows.astype(np.float32)))


@pytest.mark.parametrize(
    ("message", "code", "says"),
    [
        (pb.ModelInferRequest(model_name="x"), "NOT_FOUND", "it is digits"),
        (pb.ModelInferRequest(model_name="digits"), "INVALID_ARGUMENT", "one tensor named input"),
        (infer_message((1, 64)), "INVALID_ARGUMENT", "has 0 values, where its shape makes 64"),
        (
            infer_message((1, 64), raw_input_contents=[b"x"]),
            "INVALID_ARGUMENT",
            "has 1 bytes, where its shape and datatype FP32 make 256",
        ),
        (raw_message(some_rows(65)), "INVALID_ARGUMENT", "65 rows are more than the 64"),
        (infer_message((1, 64), "FP16"), "INVALID_ARGUMENT", "comes as raw bytes"),
        (infer_message((1,), "BYTES"), "INVALID_ARGUMENT", "is text, which this model does not"),
        (infer_message((1, 64), "INT64"), "INVALID_ARGUMENT", "cannot be FP32 without loss"),
        (raw_message(model_version="9"), "NOT_FOUND", "is not in memory; these are: 2"),
        (
            infer_message((1, 64), raw_input_contents=[bytes(300_000)]),
            "RESOURCE_EXHAUSTED",
            "larger than max",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    message: pb.ModelInferRequest, code: str, says: str, channel: grpc.Channel
) -> None:
    found, line = refusal(channel, "ModelInfer", message)
    assert (found.name, says in line) == (code, True), line


def test_a_compressed_message_is_refused_before_it_is_unpacked(channel: grpc.Channel) -> None:
    """A bomb: a megabyte of zeros is a kilobyte, and gRPC would weigh the kilobyte."""
    bomb = infer_message((1, 64), raw_input_contents=[bytes(2**20)])
    method = channel.unary_unary(
        SERVICE + "ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString
    )
    for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate):
        with pytest.raises(grpc.RpcError) as caught:
            method(bomb, timeout=20, compression=compression)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        assert "ompression" in caught.value.details()


class Gate:
    """Holds the model until it is opened, so that requests meet as a test wants them to."""

    def __init__(self, service: InferenceService) -> None:
        self.is_running = threading.Event()
        self.opened = threading.Event()
        batcher = service._batcher
        run = batcher._run

        def hold(*arguments: object) -> object:
            self.is_running.set()
            assert self.opened.wait(20)
            return run(*arguments)

        batcher._run = hold


def infer_method(channel: grpc.Channel) -> grpc.UnaryUnaryMultiCallable:
    return channel.unary_unary(
        SERVICE + "ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


def test_what_all_messages_hold_is_bounded(tmp_path: Path) -> None:
    """While one message of some 300 bytes is being answered, another one is too much."""
    run_of(tmp_path / "run", 1)
    with (
        serving(tmp_path / "run", Limits(queue_bytes=500)) as (service, _),
        channel_to(service) as channel,
    ):
        gate = Gate(service)
        first = infer_method(channel).future(raw_message(), timeout=20)
        assert gate.is_running.wait(20)
        found = refusal(channel, "ModelInfer", raw_message())
        gate.opened.set()
        assert found == (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "too many bytes are being received; try again later",
        )
        assert first.result().model_version == "1"
        assert call(channel, "ModelInfer", raw_message()).model_version == "1"


def test_statistics_are_what_was_asked_and_computed(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    with serving(tmp_path / "run", LIMITS) as (service, url), channel_to(service) as channel:
        gate = Gate(service)
        method = infer_method(channel)
        began = time.perf_counter()
        futures = [method.future(raw_message(some_rows(2)), timeout=20)]
        assert gate.is_running.wait(20)
        # While two rows are being computed, these wait, and then are one batch of five.
        futures += [method.future(raw_message(some_rows(n)), timeout=20) for n in (1, 4)]
        patience = time.monotonic() + 20
        while service._batcher.queued_rows < 5:
            assert time.monotonic() < patience
            time.sleep(0.01)
        gate.opened.set()
        assert all(future.result().model_version == "1" for future in futures)
        refusal(channel, "ModelInfer", infer_message((1, 64)))
        refusal(channel, "ModelInfer", raw_message(model_version="no such version"))
        assert httpx.post(url + INFER, json=body(ONE), timeout=20).status_code == 200
        spent = time.perf_counter() - began
        asked = pb.ModelStatisticsRequest(name="digits", version="1")
        (found,) = call(channel, "ModelStatistics", asked).model_stats
        stats = found.inference_stats
        assert (found.name, found.version) == ("digits", "1")
        assert (found.inference_count, found.execution_count) == (8, 3)
        assert (stats.success.count, stats.fail.count, stats.queue.count) == (4, 1, 4)
        assert [(b.batch_size, b.compute_infer.count) for b in found.batch_stats] == [
            (1, 1),
            (2, 1),
            (5, 1),
        ]
        # What a request takes is its waiting, its batch, and the way to both.
        assert stats.compute_infer.count == 4
        batch_ns = {b.batch_size: b.compute_infer.ns for b in found.batch_stats}
        assert stats.compute_infer.ns == batch_ns[1] + batch_ns[2] + 2 * batch_ns[5]
        assert 0 < stats.queue.ns + stats.compute_infer.ns <= stats.success.ns
        assert stats.success.ns <= 4 * spent * 1e9
        assert abs(found.last_inference / 1000 - time.time()) < 60
        # HTTP says the same.
        told = httpx.get(f"{url}/v2/models/digits/versions/1/stats", timeout=20).json()
        assert told["model_stats"][0]["inference_stats"]["success"] == {
            "count": 4,
            "ns": stats.success.ns,
        }
        assert httpx.get(f"{url}/v2/models/stats", timeout=20).json() == told
        assert httpx.get(f"{url}/v2/models/digits/versions/9/stats", timeout=20).status_code == 404
        # A round that takes over begins at nothing, and one that left is forgotten.
        commit(folder, 2)
        assert service.watcher.look()
        call(channel, "ModelInfer", raw_message())
        counted = call(channel, "ModelStatistics", pb.ModelStatisticsRequest()).model_stats
        assert [(s.version, s.inference_count) for s in counted] == [("2", 1), ("1", 8)]
        commit(folder, 3)
        assert service.watcher.look()
        call(channel, "ModelInfer", raw_message())
        counted = call(channel, "ModelStatistics", pb.ModelStatisticsRequest()).model_stats
        assert [(s.version, s.inference_count) for s in counted] == [("3", 1), ("2", 1)]
        assert set(service.statistics._rounds) == {"2", "3"}


def test_the_configuration_is_how_the_model_is_run(served: Served) -> None:
    service, channel = served
    config = call(channel, "ModelConfig", pb.ModelConfigRequest(name="digits")).config
    assert (config.name, config.platform) == ("digits", "fedveil_pytorch")
    assert config.max_batch_size == LIMITS.rows
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("input", pb.TYPE_FP32, [64])
    ]
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("output", pb.TYPE_FP32, [10])
    ]
    assert list(config.version_policy.specific.versions) == [2]
    kinds = {"cpu": pb.ModelInstanceGroup.KIND_CPU, "cuda": pb.ModelInstanceGroup.KIND_GPU}
    assert config.instance_group[0].kind == kinds[service.engine.devices[0].type]
    assert config.HasField("dynamic_batching")
    assert refusal(channel, "ModelConfig", pb.ModelConfigRequest(name="x"))[0].name == "NOT_FOUND"


def test_the_index_says_what_takes_requests(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    with serving(tmp_path / "run") as (service, url), channel_to(service) as channel:

        def index(**asked: object) -> list[tuple[str, str, str]]:
            reply = call(channel, "RepositoryIndex", pb.RepositoryIndexRequest(**asked))
            posted = httpx.post(
                f"{url}/v2/repository/index",
                json={"ready": asked["ready"]} if asked else None,
                timeout=20,
            ).json()
            found = [(m.version, m.state, m.reason) for m in reply.models]
            assert found == [(m["version"], m["state"], m["reason"]) for m in posted]
            return found

        assert index() == index(ready=True) == [("1", "READY", "")]
        service.drain()
        assert index() == [("1", "UNAVAILABLE", "the service is ending")]
        assert index(ready=True) == []
        named = refusal(channel, "RepositoryIndex", pb.RepositoryIndexRequest(repository_name="x"))
        assert named[0] == grpc.StatusCode.NOT_FOUND
        for wrong in (b"[]", b'{"ready": 1}', b"{"):
            reply = httpx.post(f"{url}/v2/repository/index", content=wrong, timeout=20)
            assert (reply.status_code, set(reply.json())) == (400, {"error"})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ModelMetadata", pb.ModelMetadataRequest(name="digits")),
        ("ModelConfig", pb.ModelConfigRequest(name="digits")),
        ("ModelStatistics", pb.ModelStatisticsRequest()),
        ("RepositoryIndex", pb.RepositoryIndexRequest()),
    ],
)
def test_tokens_hold_here_too(name: str, message: Message, guarded: Guarded) -> None:
    channel, shop = guarded
    assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
    assert refusal(channel, "ModelInfer", raw_message())[0] == grpc.StatusCode.UNAUTHENTICATED
    assert refusal(channel, name, message)[0] == grpc.StatusCode.UNAUTHENTICATED
    assert refusal(channel, name, message, shop)[0] == grpc.StatusCode.PERMISSION_DENIED
    assert call(channel, "ModelInfer", raw_message(), shop).model_version == "1"


def test_who_may_not_ask_is_told_so_before_a_message_is_read(guarded: Guarded) -> None:
    channel, _ = guarded
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(SERVICE + "ModelInfer")(b"\xff no message", timeout=20)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_generated_messages_are_those_of_the_proto_file() -> None:
    """The checked-in descriptor has every field and value of oip.proto under its number."""
    room = Path(pb.__file__).parent
    found = set(re.findall(r"(\w+) = (\d+);", (room / "oip.proto").read_text()))

    def fields(messages: Iterable[Descriptor]) -> Iterator[tuple[str, str]]:
        for message in messages:
            yield from ((field.name, str(field.number)) for field in message.fields)
            yield from values(message.enum_types)
            yield from fields(message.nested_types)

    def values(enums: Iterable[EnumDescriptor]) -> Iterator[tuple[str, str]]:
        for enum in enums:
            yield from ((value.name, str(value.number)) for value in enum.values)

    made = set(fields(pb.DESCRIPTOR.message_types_by_name.values()))
    made |= set(values(pb.DESCRIPTOR.enum_types_by_name.values()))
    assert found == made - {("key", "1"), ("value", "2")}


def test_serving_over_http_alone_loads_no_grpc() -> None:
    code = "import sys, fedveil.server.inference.http_server; print('grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"
