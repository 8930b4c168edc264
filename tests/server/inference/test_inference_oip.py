"""The protocol's codec: what goes in comes out, and nothing false gets through."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedveil.server.inference.errors import (
    InvalidRequestError,
    OutputError,
    RequestError,
    TooLargeError,
)
from fedveil.server.inference.oip import (
    DTYPES,
    Array,
    InferRequest,
    InferResponse,
    Limits,
    TensorSpec,
    WantedOutput,
    dtype_name,
)
from fedveil.server.inference.oip_json import read_request, write_response
from fedveil.server.inference.oip_tensors import (
    checked_rows,
    read_seconds,
)

LIMITS = Limits(rows=8, json_bytes=20_000)
OUTPUT = TensorSpec("output", "FP32", (2,))
FLOATS = TensorSpec("input", "FP32", (3,))
CODES = TensorSpec("input", "INT64", (2,), below=97)
FITTING = {"FP32": ["FP32", "FP16", "UINT8", "INT8", "UINT16", "INT16", "BOOL"], "INT64": ["INT64"]}


def request(fields: object, raw: bytes = b"", spec: TensorSpec = FLOATS) -> InferRequest:
    text = json.dumps(fields).encode()
    return read_request(text + raw, len(text) if raw else None, spec, OUTPUT, LIMITS)


def tensor(**fields: object) -> dict[str, object]:
    return {"name": "input", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]} | fields


@given(st.data(), st.sampled_from(["FP32", "INT64"]))
def test_json_and_raw_bytes_hold_the_same(data: st.DataObject, kind: str) -> None:
    given_type = DTYPES[data.draw(st.sampled_from(FITTING[kind]))]
    spec = TensorSpec("input", kind, (3,))
    values = {"allow_nan": False, "allow_infinity": False} if given_type.kind == "f" else {}
    found = data.draw(arrays(given_type, (data.draw(st.integers(1, 8)), 3), elements=values))
    name = dtype_name(given_type)
    head = {"name": "input", "shape": list(found.shape), "datatype": name}
    raw = found.tobytes()
    binary = request({"inputs": [head | {"parameters": {"binary_data_size": len(raw)}}]}, raw, spec)
    assert binary.rows.dtype == spec.numpy
    assert np.array_equal(binary.rows, found.astype(spec.numpy))
    if name != "FP16":
        flat = request({"inputs": [head | {"data": found.reshape(-1).tolist()}]}, spec=spec)
        nested = request({"inputs": [head | {"data": found.tolist()}]}, spec=spec)
        assert np.array_equal(flat.rows, binary.rows)
        assert np.array_equal(nested.rows, binary.rows)


@given(arrays(np.uint16, 3))
def test_bf16_is_the_upper_half_of_a_float(halves: Array) -> None:
    head = tensor(datatype="BF16", parameters={"binary_data_size": 6})
    del head["data"]
    expected = (halves.astype(np.uint32) << 16).view(np.float32)
    if np.isfinite(expected).all():
        assert np.array_equal(request({"inputs": [head]}, halves.tobytes()).rows[0], expected)
    else:
        with pytest.raises(InvalidRequestError, match="NaN or infinity"):
            request({"inputs": [head]}, halves.tobytes())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


@settings(max_examples=300)
@given(JSON, JSON, JSON, JSON)
def test_any_json_is_read_or_refused_in_one_line(
    data: object, shape: object, parameters: object, outputs: object
) -> None:
    fields = {
        "inputs": [tensor(data=data, shape=shape, parameters=parameters)],
        "outputs": outputs,
        "parameters": parameters,
    }
    line = ""
    try:
        assert request(fields).rows.shape[1:] == (3,)
    except RequestError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 300


@given(st.binary(max_size=300), st.none() | st.integers(-5, 400))
def test_any_bytes_are_refused(body: bytes, length: int | None) -> None:
    with pytest.raises(RequestError):
        read_request(body, length, FLOATS, OUTPUT, LIMITS)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "other"}, "the input of this model is named input"),
        ({"datatype": "FP64"}, "datatype 'FP64' cannot be FP32 without loss; send one of"),
        ({"datatype": "INT32"}, "datatype 'INT32' cannot be FP32 without loss"),
        ({"datatype": "BYTES"}, "datatype 'BYTES' cannot be FP32"),
        ({"datatype": ["FP32"]}, "cannot be FP32"),
        ({"shape": [3]}, r"shape \[3\] is not \[-1, 3\] with one row or more"),
        ({"shape": [1, 4], "data": [1, 2, 3, 4]}, r"shape \[1, 4\] is not \[-1, 3\]"),
        ({"shape": [0, 3], "data": []}, r"shape \[0, 3\] is not"),
        ({"shape": [-1, 3]}, r"shape \[-1, 3\] is not"),
        ({"shape": [True, 3]}, "is not"),
        ({"shape": [1.0, 3]}, "is not"),
        ({"shape": [1, 3, 1]}, "is not"),
        ({"shape": [1] * 5000}, "is not"),
        ({"shape": "13"}, "is not"),
        ({"shape": [10**30, 3]}, "rows are more than the 8 of one request"),
        ({"data": [1, 2]}, "has 2 values, where its shape makes 3"),
        ({"data": [[1, 2], [3]]}, "nested lists are not of shape"),
        ({"data": [[[1, 2, 3]]]}, "nested lists are not of shape"),
        ({"data": [[[1], 2, 3]]}, "values of type list"),
        ({"data": [1, "2", 3]}, "values of type str, which are not FP32"),
        ({"data": [1, True, 3]}, "values of type bool"),
        ({"data": [1, None, 3]}, "values of type NoneType"),
        ({"data": None}, "nested lists"),
        ({"data": [1, 10**400, 3]}, "holds a number that FP32 cannot"),
        ({"data": [1, 1e300, 3]}, "holds NaN or infinity"),
        ({"datatype": "UINT8", "data": [1, 256, 3]}, "holds a number that UINT8 cannot"),
        ({"datatype": "UINT8", "data": [1, 2.5, 3]}, "values of type float, which are not UINT8"),
        ({"datatype": "BOOL", "data": [1, 0, 1]}, "values of type int, which are not BOOL"),
        ({"datatype": "FP16"}, "FP16 comes as raw bytes"),
        ({"parameters": {"binary_data_size": 12}}, "must be the 0 bytes that follow"),
        ({"parameters": 5}, "parameters must be a JSON object"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(fields: dict[str, object], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        request({"inputs": [tensor(**fields)]})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "inputs must be a list of one tensor"),
        ({"inputs": [tensor(), tensor()]}, "inputs must be a list of one tensor"),
        ({"inputs": [tensor()], "id": 5}, "id must be a text"),
        ({"inputs": [tensor()], "id": "x" * 257}, "at most 256 characters"),
        ({"inputs": [tensor()], "outputs": [{"name": "x"}]}, "the output of this model is named"),
        ({"inputs": [tensor()], "outputs": [1]}, "outputs must be a list of one tensor"),
        (
            {
                "inputs": [tensor()],
                "outputs": [{"name": "output", "parameters": {"classification": 2}}],
            },
            "classification is not offered",
        ),
        ({"inputs": [tensor()], "parameters": {"timeout": "1"}}, "number of microseconds"),
        ({"inputs": [tensor()], "parameters": {"timeout": -1}}, "must not be below 0"),
        ({"inputs": [tensor()], "parameters": {"binary_data_output": 1}}, "must be true or false"),
        ([], "not a JSON object"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(fields: object, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        request(fields)


@pytest.mark.parametrize("text", [b'{"inputs": [NaN]}', b"[" * 10_000, b'{"a": 1', b"\xff"])
def test_malformed_json_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequestError, match="not valid JSON"):
        read_request(text, None, FLOATS, OUTPUT, LIMITS)


def test_json_is_bounded_before_it_is_read() -> None:
    with pytest.raises(TooLargeError, match="20001 bytes of JSON are more than 20000"):
        read_request(b" " * 20_001, None, FLOATS, OUTPUT, LIMITS)


@pytest.mark.parametrize("change", [-1, 1])
def test_raw_bytes_of_another_length_are_refused(change: int) -> None:
    raw = bytes(12 + change)
    head = tensor(parameters={"binary_data_size": len(raw)})
    del head["data"]
    with pytest.raises(InvalidRequestError, match=f"has {len(raw)} bytes, where"):
        request({"inputs": [head]}, raw)


@pytest.mark.parametrize("code", [-1, 97, 2**40])
def test_a_code_out_of_range_never_reaches_the_model(code: int) -> None:
    fields = tensor(shape=[1, 2], datatype="INT64", data=[0, code])
    with pytest.raises(InvalidRequestError, match="a code that is not between 0 and 96"):
        request({"inputs": [fields]}, spec=CODES)
    assert request({"inputs": [fields | {"data": [0, 96]}]}, spec=CODES).rows.tolist() == [[0, 96]]


def test_rows_are_counted_before_anything_is_made() -> None:
    with pytest.raises(TooLargeError):
        checked_rows(FLOATS, "FP32", [10**15, 3], LIMITS)
    assert checked_rows(FLOATS, "FP32", [8, 3], LIMITS) == 8


@given(arrays(np.float32, (2, 2)), st.sampled_from([None, True, False]), st.booleans())
def test_an_answer_comes_in_the_form_that_is_asked_for(
    output: Array, wanted: bool | None, whole: bool
) -> None:
    asked = InferRequest("a", output, (WantedOutput("output", wanted),), binary=whole)
    response = InferResponse("digits", "7", "a", output)
    is_binary = whole if wanted is None else wanted
    if not is_binary and not np.isfinite(output).all():
        with pytest.raises(OutputError):
            write_response(response, asked, OUTPUT)
        return
    text, length = write_response(response, asked, OUTPUT)
    fields = json.loads(text[:length])
    assert (fields["model_name"], fields["model_version"], fields["id"]) == ("digits", "7", "a")
    if is_binary:
        assert np.array_equal(
            np.frombuffer(text[length:], "<f4").reshape(2, 2), output, equal_nan=True
        )
    else:
        assert length is None
        found = np.array(fields["outputs"][0]["data"], np.float32).reshape(2, 2)
        assert np.array_equal(found, output)


def test_every_type_has_one_name() -> None:
    for name, dtype in DTYPES.items():
        assert dtype_name(dtype) == name


@pytest.mark.parametrize(
    ("given", "seconds"), [(None, None), (0, None), (1500, 0.0015), (10**400, 86_400.0)]
)
def test_a_timeout_is_in_microseconds(given: object, seconds: float | None) -> None:
    found = read_seconds(given)
    assert found == seconds if seconds is None else math.isclose(found or 0, seconds)
