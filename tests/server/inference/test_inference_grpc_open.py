"""Attacks on calls of gRPC: none stops others, and each is cut off."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from served_grpc import SERVICE, Metadata, call, infer_message, outputs, over_grpc
from served_run import answer, run_of, serving, some_rows

from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.errors import InvalidRequestError, TooLargeError
from fedveil.server.inference.grpc_messages import message_weight
from fedveil.server.inference.grpc_open import MOST_CALLS, OpenCalls
from fedveil.server.inference.grpc_server import GrpcServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.tokens import TokenFile, add_token

# Its answer is larger than what an HTTP/2 stream takes that nobody reads.
MANY = some_rows(4096)
QUICK, PATIENT = 1.0, 60.0


class Served:
    def __init__(self, server: GrpcServer, tokens: dict[str, str]) -> None:
        self.calls: OpenCalls = server._calls
        self.port = server.port
        self._tokens = tokens

    def token(self, name: str) -> Metadata:
        return (("authorization", f"Bearer {self._tokens[name]}"),)

    @contextmanager
    def channel(self) -> Iterator[grpc.Channel]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options=options) as channel:
            yield channel

    def answers_right(self, name: str) -> None:
        rows = some_rows(3)
        message = infer_message(rows.shape, raw_input_contents=[rows.tobytes()])
        with self.channel() as channel:
            found = outputs(call(channel, "ModelInfer", message, self.token(name)))
        assert np.array_equal(found, answer(1, rows))

    def until_none_is_open(self) -> None:
        until(lambda: not self.calls._open)
        assert (self.calls._held, self.calls._callers, self.calls._coming) == (0, {}, {})


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("FEDVEIL_HOME", str(folder / "home"))
        run_of(folder / "run", 1)
        yield folder


@contextmanager
def guarded(folder: Path, read_seconds: float) -> Iterator[Served]:
    path = folder / f"tokens-{read_seconds}.json"
    made = {name: add_token(path, name, ("infer",)) for name in ("shop", "ward")}
    limits = Limits(read_seconds=read_seconds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(folder / "home"))
        with (
            serving(folder / "run", limits, TokenFile(path)) as (service, _),
            over_grpc(service) as server,
        ):
            yield Served(server, made)


@pytest.fixture(scope="module")
def quick(run: Path) -> Iterator[Served]:
    """Return a service that cuts off soon."""
    with guarded(run, QUICK) as served:
        yield served


@pytest.fixture(scope="module")
def patient(run: Path) -> Iterator[Served]:
    """Return a service that must not depend on cutting off."""
    with guarded(run, PATIENT) as served:
        yield served


@contextmanager
def stalled(channel: grpc.Channel, count: int, token: Metadata) -> Iterator[list[grpc.Future]]:
    """Begin calls whose message does not come."""
    ended = threading.Event()

    def nothing() -> Iterator[bytes]:
        ended.wait(60)
        yield from ()

    method = channel.stream_unary(SERVICE + "ModelInfer")
    calls = [method.future(nothing(), timeout=60, metadata=token) for _ in range(count)]
    try:
        yield calls
    finally:
        for each in calls:
            each.cancel()
        ended.set()


def test_whoever_sends_no_message_stops_nobody_else(patient: Served) -> None:
    """Half of all calls, and half of the room for messages, are left to others."""
    with (
        patient.channel() as channel,
        stalled(channel, MOST_CALLS // 2 + 4, patient.token("shop")) as calls,
    ):
        until(lambda: len(patient.calls._open) == MOST_CALLS // 2)
        patient.answers_right("ward")
        until(lambda: any(each.done() for each in calls))
        refused = next(each for each in calls if each.done())
        assert refused.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert call(channel, "ServerLive", pb.ServerLiveRequest()).live
    patient.until_none_is_open()
    patient.answers_right("shop")


def test_whoever_sends_no_message_is_cut_off(quick: Served) -> None:
    with quick.channel() as channel, stalled(channel, 4, quick.token("shop")) as calls:
        for each in calls:
            with pytest.raises(grpc.RpcError) as caught:
                each.result(timeout=30)
            assert caught.value.code() == grpc.StatusCode.CANCELLED
        quick.until_none_is_open()
    quick.answers_right("shop")


def test_a_connection_that_says_nothing_is_closed(quick: Served) -> None:
    with socket.create_connection(("127.0.0.1", quick.port), timeout=20) as connection:
        while connection.recv(4096):
            pass
    quick.answers_right("shop")


def test_whoever_does_not_read_an_answer_is_cut_off(quick: Served) -> None:
    message = infer_message(MANY.shape, raw_input_contents=[MANY.tobytes()])
    with quick.channel() as channel:
        # grpcio's client takes from a stream what it is asked for, and no more.
        method = channel.unary_stream(
            SERVICE + "ModelInfer", request_serializer=pb.ModelInferRequest.SerializeToString
        )
        call_ = method(message, timeout=60, metadata=quick.token("shop"))
        until(lambda: any(each.answer_bytes for each in quick.calls._open))
        assert quick.calls._held >= answer(1, MANY).nbytes
        quick.until_none_is_open()
        with pytest.raises(grpc.RpcError) as caught:
            list(call_)
        assert caught.value.code() == grpc.StatusCode.CANCELLED
    quick.answers_right("shop")


def test_who_may_not_ask_is_told_so_before_a_message_comes(patient: Served) -> None:
    """Else strangers could have the service hold messages, and wait for them."""
    with patient.channel() as channel, stalled(channel, 1, ()) as (first,):
        with pytest.raises(grpc.RpcError) as caught:
            first.result(timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_health_is_told_without_a_message(patient: Served) -> None:
    ended = threading.Event()
    with patient.channel() as channel:
        method = channel.stream_unary(SERVICE + "ServerLive")
        told = method.future(iter(lambda: ended.wait(60), True), timeout=20)
        try:
            assert pb.ServerLiveResponse.FromString(told.result()).live
        finally:
            ended.set()


def test_of_two_tokens_none_counts(patient: Served) -> None:
    both = (*patient.token("shop"), ("authorization", "Bearer x"))
    for metadata in (both, both[::-1]):
        with patient.channel() as channel, pytest.raises(grpc.RpcError) as caught:
            call(channel, "ModelInfer", pb.ModelInferRequest(), metadata)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_a_call_without_a_message_is_refused(patient: Served) -> None:
    with patient.channel() as channel:
        method = channel.stream_unary(SERVICE + "ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            method(iter(()), timeout=20, metadata=patient.token("shop"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    patient.until_none_is_open()


def test_a_message_of_empty_tensors_is_refused_before_they_are_made(patient: Served) -> None:
    """Two bytes make an object of a hundred: of 8 MiB, it was 370 MiB."""
    with patient.channel() as channel:
        method = channel.unary_unary(SERVICE + "ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            method(b"\x2a\x00" * 2**20, timeout=20, metadata=patient.token("shop"))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "1024 fields" in caught.value.details()


def test_raw_tensors_weigh_what_they_have_and_all_else_more() -> None:
    limits = Limits(json_bytes=1000)
    raw = infer_message((1, 64), raw_input_contents=[bytes(50_000)], id="me")
    sent = raw.SerializeToString()
    rest = len(sent) - 50_000
    assert rest < 60
    assert message_weight(sent, limits) == 50_000 + 30 * rest
    listed = infer_message((4, 64))
    listed.inputs[0].contents.fp32_contents.extend([1.0] * 256)
    with pytest.raises(TooLargeError, match="more than 1000"):
        message_weight(listed.SerializeToString(), limits)
    assert message_weight(b"", limits) == 0
    assert message_weight(b"\x0d1234\x0912345678\x08\xff\x01", limits) == 30 * 17


@pytest.mark.parametrize("sent", [b"\xff" * 11, b"\x0b", b"\x2a", b"\x08\x80", b"\x0a\xff"])
def test_what_is_no_message_has_no_weight(sent: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="no message of the protocol"):
        message_weight(sent, Limits())
