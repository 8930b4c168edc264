"""Requests over HTTP: JSON with, where the sender likes, raw tensors behind it.

Source: ``inference_rest.md`` of the Open Inference Protocol, and its binary tensor data extension:
the JSON is ``Inference-Header-Content-Length`` bytes long, and the tensors follow it in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import pydantic_core
from pydantic_core import SchemaValidator, ValidationError, core_schema

from fedveil.server.inference.errors import InvalidRequestError, TooLargeError
from fedveil.server.inference.oip import (
    Array,
    InferRequest,
    Limits,
    TensorSpec,
    WantedOutput,
)
from fedveil.server.inference.oip_tensors import (
    array_from_floats,
    array_from_raw,
    array_from_values,
    checked_rows,
    read_seconds,
)

__all__ = ["InferReader", "read_fields"]

_MOST_ID = 256
_FLOATS = ("FP32", "FP64")
_MOST_HEAD = 1024
_REMEMBERED = 256

_LIST = core_schema.list_schema(
    core_schema.float_schema(strict=True, allow_inf_nan=False), strict=True, fail_fast=True
)
_TENSOR = core_schema.typed_dict_schema(
    {"data": core_schema.typed_dict_field(_LIST)}, extra_behavior="allow"
)
_OF_FLOATS = SchemaValidator(
    core_schema.typed_dict_schema(
        {"inputs": core_schema.typed_dict_field(core_schema.list_schema(_TENSOR, fail_fast=True))},
        extra_behavior="allow",
    ),
    core_schema.CoreConfig(cache_strings=False),
)


class _Head(NamedTuple):
    """What a request says of itself, but for the values of its tensor."""

    datatype: str
    rows: int
    size: object
    has_data: bool
    id: str
    outputs: tuple[WantedOutput, ...]
    binary: bool
    timeout: float | None

    def request(self, rows: Array) -> InferRequest:
        return InferRequest(self.id, rows, self.outputs, self.binary, self.timeout)


def _head(
    fields: Mapping[str, object], spec: TensorSpec, output: TensorSpec, limits: Limits
) -> _Head:
    tensor = _single_input(fields, spec)
    datatype = tensor.get("datatype")
    rows = checked_rows(spec, datatype, tensor.get("shape"), limits)
    parameters = _parameters(fields, "the request")
    return _Head(
        datatype=str(datatype),
        rows=rows,
        size=_parameters(tensor, f"input {spec.name}").get("binary_data_size"),
        has_data="data" in tensor,
        id=_id(fields),
        outputs=_wanted(fields, output),
        binary=_flag(parameters, "binary_data_output") or False,
        timeout=read_seconds(parameters.get("timeout")),
    )


class InferReader:
    """Reads and checks the bodies of inference requests.

    Parameters
    ----------
    spec, output : TensorSpec
        What the model takes and gives.
    limits : Limits
        What a request may ask for.
    """

    def __init__(self, spec: TensorSpec, output: TensorSpec, limits: Limits) -> None:
        self._spec = spec
        self._output = output
        self._limits = limits
        # Most clients send the same words before every tensor.
        self._remembered = lru_cache(_REMEMBERED)(self._read_head)

    def read(self, body: bytes | bytearray, json_bytes: int | None) -> InferRequest:
        """Read a body.

        Parameters
        ----------
        body : bytes
            At most ``limits.body_bytes`` of it.
        json_bytes : int or None
            Length of the JSON at its start; None when it is all JSON.

        Raises
        ------
        InvalidRequestError
            If it is malformed, or not for this model.
        TooLargeError
            If it is over a limit.
        """
        length = len(body) if json_bytes is None else json_bytes
        if not 0 <= length <= len(body):
            raise InvalidRequestError(
                f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes"
            )
        if length == len(body):
            return self._read_listed(body)
        text = bytes(body[:length])
        head = (self._remembered if length <= _MOST_HEAD else self._read_head)(text)
        raw = memoryview(body)[length:]
        if head.size is None:
            raise InvalidRequestError(
                f"{len(raw)} bytes follow the JSON, but no input has a binary_data_size"
            )
        _check_size(head, self._spec, len(raw))
        return head.request(array_from_raw(self._spec, head.datatype, head.rows, raw))

    def _read_head(self, text: bytes) -> _Head:
        _check_length(text, self._limits)
        return _head(_read_any(text), self._spec, self._output, self._limits)

    def _read_listed(self, text: bytes | bytearray) -> InferRequest:
        """Read a request that is all JSON."""
        spec = self._spec
        _check_length(text, self._limits)
        fields = _read_floats(text) if spec.numpy.kind == "f" else None
        is_of_floats = fields is not None
        if fields is None:
            fields = _read_any(text)
        head = _head(fields, spec, self._output, self._limits)
        if head.size is not None:
            _check_size(head, spec, 0)
            return head.request(array_from_raw(spec, head.datatype, head.rows, memoryview(b"")))
        data = _single_input(fields, spec).get("data")
        if is_of_floats and head.datatype in _FLOATS and isinstance(data, list):
            return head.request(array_from_floats(spec, head.datatype, head.rows, data))
        if is_of_floats:
            # Its integers were read as floats, which this datatype may not take.
            data = _single_input(_read_any(text), spec).get("data")
        return head.request(array_from_values(spec, head.datatype, head.rows, data))


def _check_size(head: _Head, spec: TensorSpec, found: int) -> None:
    if type(head.size) is not int or head.size != found or head.has_data:
        raise InvalidRequestError(
            f"input {spec.name}: binary_data_size must be the {found} bytes that follow the JSON, "
            "with no data beside it"
        )


def read_fields(text: bytes | bytearray | memoryview, limits: Limits) -> Mapping[str, object]:
    """Return the fields of a JSON object.

    Raises
    ------
    InvalidRequestError
        If it is none.
    TooLargeError
        If it is over the limit of JSON.
    """
    _check_length(text, limits)
    return _read_any(bytes(text))


def _check_length(text: bytes | bytearray | memoryview, limits: Limits) -> None:
    if len(text) > limits.json_bytes:
        raise TooLargeError(
            f"{len(text)} bytes of JSON are more than {limits.json_bytes}; send tensors as raw "
            "bytes"
        )


def _read_floats(text: bytes | bytearray) -> Mapping[str, object] | None:
    """Return the fields of a body whose tensors are flat lists of numbers; None of any other.

    Reading and checking them at once takes half the time of doing one after the other.
    """
    try:
        fields: Mapping[str, object] = _OF_FLOATS.validate_json(text)
    except ValidationError:
        return None
    return fields


def _read_any(text: bytes | bytearray) -> Mapping[str, object]:
    try:
        fields = pydantic_core.from_json(text, allow_inf_nan=False, cache_strings=False)
    except ValueError as error:
        # The parser's own words name a line and a column, and quote nothing.
        raise InvalidRequestError(f"the body is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InvalidRequestError("the body is not a JSON object")
    return fields


def _single_input(fields: Mapping[str, object], spec: TensorSpec) -> Mapping[str, object]:
    inputs = fields.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InvalidRequestError(f"inputs must be a list of one tensor, {spec.name}")
    tensor: Mapping[str, object] = inputs[0]
    if tensor.get("name") != spec.name:
        raise InvalidRequestError(f"the input of this model is named {spec.name}")
    return tensor


def _wanted(fields: Mapping[str, object], spec: TensorSpec) -> tuple[WantedOutput, ...]:
    outputs = fields.get("outputs")
    if outputs is None or outputs == []:
        return ()
    if not isinstance(outputs, list) or len(outputs) != 1 or not isinstance(outputs[0], dict):
        raise InvalidRequestError(f"outputs must be a list of one tensor, {spec.name}")
    wanted: Mapping[str, object] = outputs[0]
    if wanted.get("name") != spec.name:
        raise InvalidRequestError(f"the output of this model is named {spec.name}")
    parameters = _parameters(wanted, f"output {spec.name}")
    if parameters.get("classification"):
        raise InvalidRequestError(f"output {spec.name}: classification is not offered")
    return (WantedOutput(spec.name, _flag(parameters, "binary_data")),)


def _parameters(fields: Mapping[str, object], what: str) -> Mapping[str, object]:
    parameters = fields.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        raise InvalidRequestError(f"{what}: parameters must be a JSON object")
    return parameters


def _flag(parameters: Mapping[str, object], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(f"parameter {name} must be true or false")
    return value


def _id(fields: Mapping[str, object]) -> str:
    value = fields.get("id", "")
    if not isinstance(value, str) or len(value) > _MOST_ID:
        raise InvalidRequestError(f"id must be a text of at most {_MOST_ID} characters")
    return value
