"""Whatever is sent, the answer is a refusal in one line, and the next right request is answered.

Never a 5xx, never UNKNOWN or INTERNAL: those would be faults that anybody could cause.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from served_grpc import SERVICE, channel_to, infer_message, outputs
from served_run import INFER, answer, body, run_of, serving, some_rows
from served_text import codes, packed, text_run

from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.grpc_messages import _CONTENTS
from fedveil.server.inference.oip import Limits

LIMITS = Limits(rows=64, body_bytes=50_000, json_bytes=20_000, header_bytes=4096)
ROWS = some_rows(2)
TEXT_INFER = "/v2/models/shakespeare/infer"
RIGHT = answer(1, ROWS)

quick = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Target:
    """A service of numbers and one of text, over both protocols."""

    http: httpx.Client
    text_http: httpx.Client
    grpc: grpc.Channel
    text_grpc: grpc.Channel
    port: int

    def check(self) -> None:
        """Ask for something right over both protocols."""
        reply = self.http.post(INFER, json=body(ROWS))
        assert reply.status_code == 200, reply.text
        assert np.array_equal(np.array(reply.json()["outputs"][0]["data"]), RIGHT.reshape(-1))
        right = infer_message(ROWS.shape, raw_input_contents=[ROWS.tobytes()])
        sent = self.grpc.unary_unary(SERVICE + "ModelInfer")(right.SerializeToString(), timeout=20)
        assert np.array_equal(outputs(pb.ModelInferResponse.FromString(sent)), RIGHT)

    def post(
        self, content: bytes, length: str | None = None, address: str = INFER
    ) -> httpx.Response:
        """Post a body; whatever comes back is checked."""
        client = self.text_http if address == TEXT_INFER else self.http
        headers = {} if length is None else {"inference-header-content-length": length}
        reply = client.post(address, content=content, headers=headers)
        assert reply.status_code == 200 or 400 <= reply.status_code < 500, reply.text
        if reply.status_code != 200:
            assert set(reply.json()) == {"error"}
            assert len(reply.json()["error"].splitlines()) == 1
        return reply

    def call(self, sent: bytes, method: str = "ModelInfer", *, is_text: bool = False) -> bytes:
        """Call with any bytes; whatever comes back is checked."""
        channel = self.text_grpc if is_text else self.grpc
        answered = channel.unary_unary(SERVICE + method).future(sent, timeout=20)
        if answered.code() == grpc.StatusCode.OK:
            return answered.result()
        assert answered.code().name in ("INVALID_ARGUMENT", "NOT_FOUND"), answered
        assert len(answered.details().splitlines()) == 1
        return b""


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(tmp_path_factory.mktemp("home")))
        folder: Path = tmp_path_factory.mktemp("runs")
        run_of(folder / "run", 1)
        text_run(folder / "text")
        with (
            serving(folder / "run", LIMITS) as (service, url),
            serving(folder / "text", LIMITS) as (text_service, text_url),
            channel_to(service) as channel,
            channel_to(text_service) as text_channel,
            httpx.Client(base_url=url, timeout=20) as client,
            httpx.Client(base_url=text_url, timeout=20) as text_client,
        ):
            port = int(url.rpartition(":")[2])
            yield Target(client, text_client, channel, text_channel, port)


def mutations(tokens: list[bytes]) -> st.SearchStrategy[list[tuple[float, float, bytes]]]:
    """Draw places, as parts of the whole, that are replaced."""
    place = st.floats(0, 1)
    piece = st.sampled_from(tokens) | st.binary(max_size=12)
    return st.lists(st.tuples(place, st.floats(0, 0.2), piece), min_size=1, max_size=4)


def mutated(whole: bytes, changes: list[tuple[float, float, bytes]]) -> bytes:
    for begin, size, piece in changes:
        at = int(begin * len(whole))
        whole = whole[:at] + piece + whole[at + int(size * len(whole)) :]
    return whole


JSON_TOKENS = [
    b"1e999",
    b"-1e-999",
    b"9" * 400,
    b"9" * 5000,
    b"[" * 400,
    b'{"a":' * 400,
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\xed\xa0\x80"',
    b"\xff\xfe",
    b"\x00",
    b"NaN",
    b"-Infinity",
    b"null",
    b"true",
    b"-0",
    b"{}",
    b"[]",
    b"}",
    b"]",
    b'"',
    b",",
    b'"shape":[1,1],',
    b'"inputs":[],',
    b'"name":"x",',
    b'"datatype":"BYTES",',
    b'"datatype":"FP16",',
    b'"id":5,',
    b'"outputs":[{"name":"output","parameters":{"binary_data":true}}],',
]


def head(name: str, shape: list[int], datatype: str, size: int) -> bytes:
    tensor = {"name": name, "shape": shape, "datatype": datatype}
    tensor["parameters"] = {"binary_data_size": size}
    return json.dumps({"inputs": [tensor]}).encode()


VALID_JSON = json.dumps(body(ROWS, id="me", parameters={"binary_data_output": False})).encode()
TEXT_TENSOR = {"name": "input", "shape": [2], "datatype": "BYTES", "data": ["ab", "\u00e9"]}
VALID_TEXT = json.dumps({"inputs": [TEXT_TENSOR]}).encode()
STRINGS = packed(["To be", "or not"])

LENGTHS = st.sampled_from(
    ["0", "1", "-1", "+5", "0x10", "1e3", "999999999999", "9" * 40, "", "a", "1,1", "1_0"]
)


@quick
@given(mutations(JSON_TOKENS), st.booleans())
def test_mutated_json(
    target: Target, changes: list[tuple[float, float, bytes]], text: bool
) -> None:
    if text:
        target.post(mutated(VALID_TEXT, changes), address=TEXT_INFER)
    else:
        target.post(mutated(VALID_JSON, changes))
    target.check()


@quick
@given(st.binary(max_size=300), LENGTHS | st.none())
@example(b"[" * 19_000, None)
@example(b'{"inputs":' * 1900, None)
@example(b'{"inputs":[],"inputs":[]}', None)
@example(b"9" * 19_000, None)
@example(b'"' + b"\\u0000" * 3000 + b'"', None)
def test_any_bytes_as_a_body(target: Target, content: bytes, length: str | None) -> None:
    assert target.post(content, length).status_code != 200
    assert target.post(content, length, TEXT_INFER).status_code != 200
    assert target.post(content, None, "/v2/repository/index").status_code in (200, 400)
    target.check()


@quick
@given(
    st.sampled_from(["FP32", "FP16", "BF16", "UINT8", "BOOL", "BYTES"]),
    st.binary(max_size=600),
    mutations([b"\xff" * 4, b"\0" * 4, *JSON_TOKENS]),
    st.integers(-3, 3),
    LENGTHS | st.none(),
)
@example("FP32", np.float32(3e38).tobytes(), [(0.0, 0.0, b"")], 0, None)  # infinite outputs
def test_mutated_binary_bodies(
    target: Target,
    datatype: str,
    noise: bytes,
    changes: list[tuple[float, float, bytes]],
    off: int,
    length: str | None,
) -> None:
    shape = [2] if datatype == "BYTES" else [2, 64]
    raw = noise if datatype == "BYTES" else (noise * 512)[: 128 * (1 + ("16" in datatype))]
    if datatype == "FP32":
        raw = (noise * 512)[:512]
    json_part = head("input", shape, datatype, len(raw))
    told = str(len(json_part) + off) if length is None else length
    address = TEXT_INFER if datatype == "BYTES" else INFER
    target.post(json_part + raw, told, address)
    target.post(mutated(json_part + raw, changes), str(len(json_part)), address)
    strings = head("input", [2], "BYTES", len(STRINGS))
    broken = mutated(STRINGS, changes)
    resized = head("input", [2], "BYTES", len(broken))
    target.post(strings + broken, str(len(strings)), TEXT_INFER)
    target.post(resized + broken, str(len(resized)), TEXT_INFER)
    target.check()


METHODS = [
    name.removesuffix("Request")
    for name in pb.DESCRIPTOR.message_types_by_name
    if name.endswith("Request")
]


@quick
@given(st.sampled_from(METHODS), st.binary(max_size=300))
@example("ModelInfer", b"\x2b" * 200)  # groups within groups
@example("ModelInfer", b"\x0a\xff\xff\xff\xff\x0f")  # a string of four gigabytes
@example("ModelInfer", b"\x0a\x02\xff\xfe")  # a name that is not UTF-8
@example("ModelMetadata", b"\x0a\x03\xed\xa0\x80")
def test_any_bytes_as_a_message(target: Target, method: str, sent: bytes) -> None:
    target.call(sent, method)
    target.call(sent, method, is_text=True)
    target.check()


PROTO_TOKENS = [b"\xff" * 10, b"\x80" * 10 + b"\x01", b"\x00", b"\x0a", b"\x2a\x00", b"\x3a\x00"]


@quick
@given(mutations(PROTO_TOKENS), mutations(PROTO_TOKENS), st.booleans())
def test_mutated_messages(
    target: Target,
    changes: list[tuple[float, float, bytes]],
    others: list[tuple[float, float, bytes]],
    typed: bool,
) -> None:
    number = infer_message(ROWS.shape, id="me")
    if typed:
        number.inputs[0].contents.fp32_contents.extend(ROWS.reshape(-1))
    else:
        number.raw_input_contents.append(ROWS.tobytes())
    target.call(mutated(number.SerializeToString(), changes))
    text = infer_message((2,), "BYTES", "shakespeare")
    if typed:
        text.inputs[0].contents.bytes_contents.extend([b"ab", b"cd"])
    else:
        text.raw_input_contents.append(mutated(STRINGS, others))
    target.call(mutated(text.SerializeToString(), changes), is_text=True)
    target.check()


@quick
@given(
    st.sampled_from([*_CONTENTS, "FP16", "BF16", "", "FP33", "\u00e9"]),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), max_size=4),
    st.sampled_from(sorted(set(_CONTENTS.values()))),
    st.integers(0, 200),
    st.lists(st.binary(max_size=40), max_size=2),
    st.integers(0, 3),
)
def test_messages_that_say_odd_things(
    target: Target,
    datatype: str,
    shape: list[int],
    field: str,
    count: int,
    raw: list[bytes],
    tensors: int,
) -> None:
    message = infer_message((), datatype)
    message.inputs[0].shape.extend(shape)
    values = getattr(message.inputs[0].contents, field)
    values.extend([b"\xff" if field == "bytes_contents" else 1] * count)
    message.raw_input_contents.extend(raw)
    message.inputs.extend([message.inputs[0]] * tensors)
    message.inputs[0].parameters["shared_memory_region"].string_param = "x"
    target.call(message.SerializeToString())
    message.model_name = "shakespeare"
    target.call(message.SerializeToString(), is_text=True)
    target.check()


@quick
@given(st.text(max_size=40), st.text(max_size=20))
def test_any_name_and_version(target: Target, name: str, version: str) -> None:
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics", "ModelReady"):
        asked = getattr(pb, f"{method}Request")(name=name, version=version)
        target.call(asked.SerializeToString(), method)
    target.check()


def send(port: int, content: bytes) -> bytes:
    """Send bytes, say that no more come, and return what comes back."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        received = b""
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                received += part
        except ConnectionError:
            pass
    return received


HEADS = [
    b"content-length: -1\r\n",
    b"content-length: 99999999999999999999999\r\n",
    b"content-length: 5\r\ncontent-length: 6\r\n",
    b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
    b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"transfer-encoding: gzip, chunked\r\n",
    b"transfer-encoding: identity\r\n",
    b"content-encoding: gzip\r\n",
    b"content-encoding: \xff\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: websocket\r\nconnection: upgrade\r\n",
    b"connection: upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n",
    b"authorization: Bearer \xff\xfe\r\n",
    b"inference-header-content-length: 1\r\ninference-header-content-length: 2\r\n",
    b"x: " + b"a" * 5000 + b"\r\n",
    b"x" * 5000 + b": a\r\n",
    b"x: a\r\n" * 1000,
    b" folded\r\n",
    b": nothing\r\n",
    b"host: evil\r\n",
    b"\x00: a\r\n",
]


@quick
@given(
    st.sampled_from(HEADS) | st.binary(max_size=60),
    st.sampled_from([INFER, "/v2", "/" + "a" * 5000, "/%ff%00", "/v2/models/%2e%2e/x", "*", "x:1"])
    | st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=20),
    mutations([b"\r\n", b"\n", b"\x00", b" ", b"HTTP/9.9", b"GET ", b":", b"\xff"]),
    st.booleans(),
)
def test_heads_of_every_kind(
    target: Target,
    header: bytes,
    address: str,
    changes: list[tuple[float, float, bytes]],
    mutate: bool,
) -> None:
    start = b"POST " + address.encode("latin-1") + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    content = start + header + b"content-length: 2\r\n\r\n{}"
    received = send(target.port, mutated(content, changes) if mutate else content)
    assert not received or received.startswith((b"HTTP/1.1 4", b"HTTP/1.1 100", b"HTTP/1.1 200"))
    assert b"HTTP/1.1 5" not in received
    target.check()


@pytest.mark.parametrize(
    "metadata",
    [
        (("x", "a" * 100_000),),
        tuple((f"x{number}", "a" * 100) for number in range(1000)),
        (("authorization", "a" * 60_000),),
        (("x-bin", b"\x00\xff" * 30_000),),
    ],
)
def test_giant_headers_over_grpc(target: Target, metadata: tuple[tuple[str, str], ...]) -> None:
    method = target.grpc.unary_unary(SERVICE + "ServerLive")
    with pytest.raises(grpc.RpcError) as caught:
        method(b"", timeout=20, metadata=metadata)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    target.check()


def test_a_right_string_is_answered_as_its_codes(target: Target) -> None:
    """What the others ask is near to something that is answered."""
    listed = target.post(VALID_TEXT, address=TEXT_INFER).json()["outputs"][0]["data"]
    numbers = {"name": "input", "shape": [2, 80], "datatype": "INT64"}
    numbers["data"] = [code for text in TEXT_TENSOR["data"] for code in codes(text)]
    same = target.post(json.dumps({"inputs": [numbers]}).encode(), address=TEXT_INFER)
    assert same.json()["outputs"][0]["data"] == listed
    told = target.text_http.get("/v2/models/shakespeare").json()
    assert told["inputs"] == [{"name": "input", "datatype": "INT64", "shape": [-1, 80]}]
    assert told["parameters"]["text_characters"] == 80
    assert "text_characters" not in target.http.get("/v2/models/digits").json()["parameters"]
