"""Asks a service with NVIDIA's tritonclient; run by an interpreter that has it, not by pytest.

The only argument is JSON: ports of services, tokens, and files of certificates.
"""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Sequence
from http.client import HTTPException

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

TOLD = json.loads(sys.argv[1])
ROOMS = {"http": triton_http, "grpc": triton_grpc}
ROWS = np.arange(3 * 64).reshape(3, 64) % 17
NUMPY = {
    "BOOL": np.bool_,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BF16": ml_dtypes.bfloat16,
    "BYTES": np.object_,
}
FOR_FLOATS = {"BOOL", "INT8", "INT16", "UINT8", "UINT16", "FP16", "FP32", "BF16"}
FOR_CODES = {"BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "BYTES"}


def tensor(kind, array, datatype, name="input", binary=True):
    """Return an input that holds an array."""
    given = ROOMS[kind].InferInput(name, list(array.shape), datatype)
    array = array.astype(NUMPY[datatype])
    if kind == "http":
        given.set_data_from_numpy(array, binary_data=binary)
    else:
        given.set_data_from_numpy(array)
    return given


def ask(client, kind, given, model="digits", binary=True, **more):
    """Return the output, and the version that gave it."""
    room = ROOMS[kind]
    wanted = (
        room.InferRequestedOutput("output", binary_data=binary)
        if kind == "http"
        else room.InferRequestedOutput("output")
    )
    result = client.infer(model, [given], outputs=[wanted], **more)
    response = result.get_response()
    version = response["model_version"] if kind == "http" else response.model_version
    return result.as_numpy("output"), version


def refused(call, *arguments, **more):
    """Return the line of a refusal."""
    try:
        call(*arguments, **more)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    raise AssertionError("not refused")


def same(found: object, expected: object, what: object = "") -> None:
    """Fail unless both are the same."""
    is_array = isinstance(expected, np.ndarray)
    assert np.array_equal(found, expected) if is_array else found == expected, (what, found)


def check_metadata(client, kind: str) -> None:
    """Ask what is there."""
    as_json = {} if kind == "http" else {"as_json": True}
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    server = client.get_server_metadata(**as_json)
    same(server["name"], "fedveil")
    assert {"model_configuration", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("digits", **as_json)
    same((model["name"], model["versions"]), ("digits", ["1"]))
    same([int(size) for size in model["inputs"][0]["shape"]], [-1, 64])
    config = client.get_model_config("digits", **as_json)
    config = config if kind == "http" else config["config"]
    same((config["name"], config["max_batch_size"]), ("digits", 64))
    same(config["input"][0]["data_type"], "TYPE_FP32")
    same([int(size) for size in config["output"][0]["dims"]], [10])
    same([int(v) for v in config["version_policy"]["specific"]["versions"]], [1])
    assert config["instance_group"][0]["kind"] in ("KIND_CPU", "KIND_GPU")
    index = client.get_model_repository_index(**as_json)
    index = index if kind == "http" else index["models"]
    same([(m["name"], m["version"], m["state"]) for m in index], [("digits", "1", "READY")])
    for call in (client.get_model_config, client.get_inference_statistics):
        assert "no model of this name" in refused(call, "other")
    for call in (client.load_model, client.unload_model):
        line = refused(call, "digits")
        assert "404" in line or "405" in line or "UNIMPLEMENTED" in line, line


def check_answers(client, kind: str) -> None:
    """Ask with every type, in batches of every size, and see that they are counted."""
    before = statistics(client, kind)
    expected = ask(client, kind, tensor(kind, ROWS, "FP32"))[0]
    same((expected.shape, expected.dtype), ((3, 10), np.dtype(np.float32)))
    count, rows = 1, 3
    for datatype in NUMPY:
        if datatype in FOR_FLOATS:
            forms = (
                (True, False) if kind == "http" and datatype not in ("FP16", "BF16") else (True,)
            )
            given = ROWS % 2 if datatype == "BOOL" else ROWS
            right = ask(client, kind, tensor(kind, given, "FP32"))[0]
            for binary in forms:
                sent = tensor(kind, given, datatype, binary=binary)
                found, version = ask(client, kind, sent, binary=binary, request_id="7")
                same(found, right, (datatype, binary))
                same(version, "1")
            count, rows = count + 1 + len(forms), rows + 3 * (1 + len(forms))
        else:
            given = np.array([b"a"]) if datatype == "BYTES" else ROWS
            line = refused(ask, client, kind, tensor(kind, given, datatype))
            assert "is text, which" in line or "cannot be FP32 without loss" in line, line
    for size in (1, 2, 63, 64):
        batch = np.resize(ROWS, (size, 64))
        found = ask(client, kind, tensor(kind, batch, "FP32"))[0]
        same(found, np.resize(expected, (size, 10)), size)
        count, rows = count + 1, rows + size
    after = statistics(client, kind)
    same(after["success"] - before["success"], count)
    same(after["rows"] - before["rows"], rows)
    assert after["fail"] > before["fail"]
    assert after["ns"] > before["ns"]


def statistics(client, kind: str) -> dict[str, int]:
    """Return what the service has counted."""
    as_json = {} if kind == "http" else {"as_json": True}
    (found,) = client.get_inference_statistics("digits", "1", **as_json)["model_stats"]
    same((found["name"], found["version"]), ("digits", "1"))
    stats = found["inference_stats"]
    return {
        "rows": int(found.get("inference_count", 0)),
        "success": int(stats["success"].get("count", 0)),
        "fail": int(stats["fail"].get("count", 0)),
        "ns": int(stats["compute_infer"].get("ns", 0)),
    }


def check_refusals(client, kind: str) -> None:
    """Ask for what is not there."""

    def line(name="input", shape: Sequence[int] = (1, 64), **more: object) -> str:
        given = tensor(kind, np.ones(shape), "FP32", name)
        return refused(ask, client, kind, given, **more)

    assert "named input" in line("other")
    assert "is not [-1, 64]" in line(shape=(1, 63))
    assert "is not [-1, 64]" in line(shape=(64,))
    assert "no model of this name" in line(model="other")
    assert "is not in memory" in line(model_version="9")
    assert "65 rows are more than the 64" in line(shape=(65, 64))
    late = line(timeout=1)
    assert "504" in late or "DEADLINE_EXCEEDED" in late, late
    large = line(shape=(1500, 64))
    assert "413" in large or "RESOURCE_EXHAUSTED" in large, large
    # What was refused has broken nothing.
    same(ask(client, kind, tensor(kind, ROWS, "FP32"))[1], "1")


def check_tokens(client, kind: str) -> None:
    """Ask with no token, with a wrong one, and with one that is good for infer alone."""
    given = tensor(kind, ROWS, "FP32")
    shop = {"authorization": f"Bearer {TOLD['token']}"}
    wrong = {"authorization": "Bearer fvt_wrong"}
    for headers in (None, wrong):
        line = refused(ask, client, kind, given, headers=headers)
        assert "401" in line or "UNAUTHENTICATED" in line, line
    for call in (client.get_model_repository_index, client.get_server_metadata):
        line = refused(call, headers=shop)
        assert "403" in line or "PERMISSION_DENIED" in line, line
    same(ask(client, kind, given, headers=shop)[1], "1")


def check_text(client, kind: str) -> None:
    """Ask with strings, and with the codes that they stand for."""
    texts = np.array([text.encode() for text in TOLD["texts"]], dtype=np.object_)
    codes = np.array(TOLD["codes"])
    expected = ask(client, kind, tensor(kind, codes, "INT64"), "shakespeare")[0]
    for datatype in NUMPY:
        if datatype not in FOR_CODES:
            line = refused(ask, client, kind, tensor(kind, codes, datatype), "shakespeare")
            assert "cannot be INT64 without loss" in line, line
        elif datatype != "BOOL":
            given = texts if datatype == "BYTES" else codes
            for binary in (True, False) if kind == "http" else (True,):
                sent = tensor(kind, given, datatype, binary=binary)
                same(ask(client, kind, sent, "shakespeare")[0], expected, datatype)
    line = refused(ask, client, kind, tensor(kind, codes + 60, "INT64"), "shakespeare")
    assert "a code that is not between 0 and 96" in line, line
    line = refused(ask, client, kind, tensor(kind, np.array([b"\xff"]), "BYTES"), "shakespeare")
    assert "string 0 is not UTF-8" in line, line


def secured(kind: str, certificate: str | None):
    """Return a client that speaks TLS, with a certificate of its own or without."""
    url = f"127.0.0.1:{TOLD['secured'][kind]}"
    folder = TOLD["certificates"]
    chain, key = (
        (None, None)
        if certificate is None
        else (f"{folder}/{certificate}.pem", f"{folder}/{certificate}.key")
    )
    if kind == "grpc":
        return triton_grpc.InferenceServerClient(
            url,
            ssl=True,
            root_certificates=f"{folder}/ca.pem",
            private_key=key,
            certificate_chain=chain,
        )

    def context() -> ssl.SSLContext:
        found = ssl.create_default_context(cafile=f"{folder}/ca.pem")
        if chain is not None:
            found.load_cert_chain(chain, key)
        return found

    return triton_http.InferenceServerClient(url, ssl=True, ssl_context_factory=context)


def check_certificates(kind: str) -> None:
    """Ask with a certificate of the authority, with another one, and with none."""
    given = tensor(kind, ROWS, "FP32")
    same(ask(secured(kind, "client"), kind, given)[1], "1")
    for certificate in ("stranger", None):
        try:
            ask(secured(kind, certificate), kind, given)
        except (InferenceServerException, HTTPException, OSError):
            continue
        raise AssertionError(f"{certificate} is let in")


for kind, room in ROOMS.items():
    for name, check in (
        ("open", check_metadata),
        ("open", check_answers),
        ("open", check_refusals),
        ("guarded", check_tokens),
        ("text", check_text),
    ):
        client = room.InferenceServerClient(f"127.0.0.1:{TOLD[name][kind]}")
        check(client, kind)
        client.close()
    check_certificates(kind)
sys.stdout.write("all well\n")
