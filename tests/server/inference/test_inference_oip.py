"""The protocol's codec: what goes in comes out, and nothing false gets through."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from served_text import TEXTS, WINDOW, codes, packed

from fedveil.server.inference.errors import (
    InvalidRequestError,
    NotAcceptableError,
    RequestError,
    ServeError,
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
from fedveil.server.inference.oip_json import InferReader
from fedveil.server.inference.oip_json_output import write_response
from fedveil.server.inference.oip_tensors import (
    array_from_values,
    checked_rows,
    read_seconds,
)
from fedveil.tasks.forms import TextForm
from fedveil.tasks.partition import PartitionSpec
from fedveil.tasks.registry import create_task

LIMITS = Limits(rows=8, json_bytes=20_000)
OUTPUT = TensorSpec("output", "FP32", (2,))
FLOATS = TensorSpec("input", "FP32", (3,))
CODES = TensorSpec("input", "INT64", (2,), below=97)
FORM = TextForm(alphabet="\n" + "".join(map(chr, range(32, 127))), length=WINDOW)
TEXT = TensorSpec("input", "INT64", (WINDOW,), below=97, text=FORM)
FITTING = {"FP32": ["FP32", "FP16", "UINT8", "INT8", "UINT16", "INT16", "BOOL"], "INT64": ["INT64"]}


def request(fields: object, raw: bytes = b"", spec: TensorSpec = FLOATS) -> InferRequest:
    text = json.dumps(fields).encode()
    return InferReader(spec, OUTPUT, LIMITS).read(text + raw, len(text) if raw else None)


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
        InferReader(FLOATS, OUTPUT, LIMITS).read(body, length)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "other"}, "the input of this model is named input"),
        ({"datatype": "FP64"}, "datatype 'FP64' cannot be FP32 without loss; send one of"),
        ({"datatype": "INT32"}, "datatype 'INT32' cannot be FP32 without loss"),
        ({"datatype": "BYTES"}, "datatype 'BYTES' is text, which this model does not take"),
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
        InferReader(FLOATS, OUTPUT, LIMITS).read(text, None)


def test_json_is_bounded_before_it_is_read() -> None:
    with pytest.raises(TooLargeError, match="20001 bytes of JSON are more than 20000"):
        InferReader(FLOATS, OUTPUT, LIMITS).read(b" " * 20_001, None)


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
        with pytest.raises(NotAcceptableError):
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


def strings(raw: bytes, shape: object = (1,), **fields: object) -> InferRequest:
    """Ask for strings that follow the JSON."""
    head = {"name": "input", "shape": shape, "datatype": "BYTES"} | fields
    head |= {"parameters": {"binary_data_size": len(raw)}}
    return request({"inputs": [head]}, raw, TEXT)


@given(st.lists(st.text(max_size=3 * WINDOW), min_size=1, max_size=8))
def test_a_text_is_the_same_row_in_every_form(texts: list[str]) -> None:
    expected = [codes(text) for text in texts]
    head = {"name": "input", "shape": [len(texts)], "datatype": "BYTES"}
    listed = request({"inputs": [head | {"data": texts}]}, spec=TEXT)
    assert (listed.rows.dtype, listed.rows.tolist()) == (np.int64, expected)
    assert strings(packed(texts), [len(texts)]).rows.tolist() == expected
    encoded = [text.encode() for text in texts]
    assert array_from_values(TEXT, "BYTES", len(texts), encoded).tolist() == expected
    numbers = {"name": "input", "shape": [len(texts), WINDOW], "datatype": "INT64"}
    assert request({"inputs": [numbers | {"data": expected}]}, spec=TEXT).rows.tolist() == expected


@pytest.mark.parametrize(
    ("raw", "shape", "says"),
    [
        (b"", [1], "string 0 of 1 is cut off"),
        (b"\0\0\0", [1], "string 0 of 1 is cut off"),
        (b"\xff\xff\xff\xff", [1], "string 0 of 1 is cut off"),
        (packed(["a"]) + b"\2\0\0\0b", [2], "string 1 of 2 is cut off"),
        (packed(["a", "b"]), [1], "5 bytes follow the 1 strings of its shape"),
        (packed(["a"]), [2], "string 1 of 2 is cut off"),
        (packed([b"ab\xff"]), [1], "string 0 is not UTF-8, from its byte 2 on"),
        (packed([b"\xed\xa0\x80"]), [1], "string 0 is not UTF-8, from its byte 0 on"),
        (packed([b"\xc0\x80"]), [1], "string 0 is not UTF-8, from its byte 0 on"),
        (packed(["a"]), [1, 1], r"is not \[-1\] of strings with one row or more"),
        (packed(["a"]), [1, WINDOW], r"is not \[-1\] of strings"),
        (packed([]), [0], r"is not \[-1\] of strings"),
        (packed(["x" * 65_537]), [1], "string 0 has a length of 65537, more than 65536"),
    ],
)
def test_strings_that_do_not_fit_are_refused(raw: bytes, shape: object, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        strings(raw, shape)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([1], "holds values of type int, which are not BYTES"),
        ([None], "holds values of type NoneType, which are not BYTES"),
        (["a", "b"], "has 2 values, where its shape makes 1"),
        ([["a"]], "holds values of type list, which are not BYTES"),
        ("a", r"nested lists are not of shape \[1\]"),
        (["x" * 65_537], "a length of 65537, more than 65536"),
    ],
)
def test_values_that_are_no_strings_are_refused(data: object, says: str) -> None:
    limits = Limits(json_bytes=2**20)
    fields = {"inputs": [{"name": "input", "shape": [1], "datatype": "BYTES", "data": data}]}
    with pytest.raises(InvalidRequestError, match=says):
        InferReader(TEXT, OUTPUT, limits).read(json.dumps(fields).encode(), None)


def test_numbers_are_not_asked_for_as_text() -> None:
    head = {"name": "input", "shape": [1], "datatype": "BYTES", "data": ["1"]}
    with pytest.raises(InvalidRequestError, match="is text, which this model does not take; send"):
        request({"inputs": [head]}, spec=CODES)
    with pytest.raises(InvalidRequestError, match=r"send one of .*INT64, BYTES$"):
        request({"inputs": [head | {"datatype": "FP32"}]}, spec=TEXT)


def test_short_strings_make_no_large_array() -> None:
    """Each string is four bytes in a request, and 640 for the model."""
    limits = Limits(body_bytes=2 * 8 * WINDOW)
    assert checked_rows(TEXT, "BYTES", [2], limits) == 2
    with pytest.raises(TooLargeError, match="3 rows are 1920 bytes for the model, more than the"):
        checked_rows(TEXT, "BYTES", [3], limits)


@pytest.mark.parametrize(("shape", "below"), [((79,), 97), ((80,), 96), ((80,), None)])
def test_a_task_whose_text_is_not_what_its_model_takes_is_not_served(
    shape: tuple[int, ...], below: int | None
) -> None:
    with pytest.raises(ServeError, match="makes rows of shape"):
        TensorSpec("input", "INT64", shape, below, FORM)


def test_a_task_says_of_text_what_it_was_trained_on() -> None:
    task = create_task("shakespeare", seed=0, partition=PartitionSpec("iid"))
    form = task.form()
    assert isinstance(form, TextForm)
    assert (form.alphabet, form.length) == (FORM.alphabet, FORM.length)
    assert [form.encode(text) for text in TEXTS] == [codes(text) for text in TEXTS]
