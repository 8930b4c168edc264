"""The protocol over gRPC: from its messages to checked requests, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fedveil.server.inference.errors import InvalidRequestError, TooLargeError
from fedveil.server.inference.model_metadata import ModelMetadata
from fedveil.server.inference.oip import (
    BYTES,
    InferRequest,
    InferResponse,
    Limits,
    TensorSpec,
    dtype_name,
)
from fedveil.server.inference.oip_pb2 import (
    InferParameter,
    ModelInferRequest,
    ModelInferResponse,
    ModelMetadataResponse,
)
from fedveil.server.inference.oip_tensors import (
    array_from_raw,
    array_from_values,
    check_count,
    checked_rows,
    read_seconds,
)

__all__ = ["message_weight", "metadata_message", "read_message", "response_message"]

_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}
"""Which field holds the values of a type."""

_MOST_ID = 256
_MOST_FIELDS = 1024
_RAW_FIELD = ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER
_VARINT, _LENGTH, _VARINT_BITS = 0, 2, 70
_FIXED: Mapping[int, int] = {1: 8, 5: 4}
_SPREAD = 30
"""Memory that a byte of a list of values takes while it is read, as of JSON."""


def message_weight(sent: bytes, limits: Limits) -> int:
    """Return the memory that a message takes at most while it is read.

    An empty message within it, of two bytes, takes about a hundred; so that they are counted
    before they are made. Source: the wire format of Protocol Buffers (protobuf.dev, "Encoding").

    Parameters
    ----------
    sent : bytes
        A message of any of the protocol's kinds.
    limits : Limits
        Of which `json_bytes` hold for all but raw tensors.

    Raises
    ------
    InvalidRequestError
        If it has too many fields.
    TooLargeError
        If it has too many bytes that are no raw tensor.
    """
    place = raw = count = 0
    try:
        while place < len(sent):
            count += 1
            if count > _MOST_FIELDS:
                raise InvalidRequestError(f"a message has at most {_MOST_FIELDS} fields")
            key, place = _varint(sent, place)
            kind = key & 7
            if kind == _LENGTH:
                length, place = _varint(sent, place)
                place += length
                if key >> 3 == _RAW_FIELD:
                    raw += length
            elif kind == _VARINT:
                _, place = _varint(sent, place)
            else:
                place += _FIXED[kind]
    except (IndexError, KeyError):
        raise InvalidRequestError("the bytes are no message of the protocol") from None
    listed = len(sent) - min(raw, len(sent))
    if listed > limits.json_bytes:
        raise TooLargeError(
            f"{listed} bytes are more than {limits.json_bytes}; send tensors as raw bytes"
        )
    return raw + _SPREAD * listed


def read_message(
    message: ModelInferRequest, spec: TensorSpec, output: TensorSpec, limits: Limits
) -> InferRequest:
    """Check an inference request.

    Parameters
    ----------
    message : ModelInferRequest
        The request; its size was bounded before it was parsed.
    spec, output : TensorSpec
        What the model takes and gives.
    limits : Limits
        What it may ask for.

    Raises
    ------
    InvalidRequestError
        If it is not for this model.
    TooLargeError
        If it is over a limit.
    """
    if len(message.inputs) != 1 or message.inputs[0].name != spec.name:
        raise InvalidRequestError(f"inputs must be one tensor named {spec.name}")
    if len(message.outputs) > 1 or any(wanted.name != output.name for wanted in message.outputs):
        raise InvalidRequestError(f"outputs must be one tensor named {output.name}, or left out")
    if any("classification" in wanted.parameters for wanted in message.outputs):
        raise InvalidRequestError(f"output {output.name}: classification is not offered")
    if len(message.id) > _MOST_ID:
        raise InvalidRequestError(f"id must have at most {_MOST_ID} characters")
    tensor = message.inputs[0]
    datatype = tensor.datatype
    rows = checked_rows(spec, datatype, list(tensor.shape), limits)
    if message.raw_input_contents:
        if len(message.raw_input_contents) != 1 or tensor.HasField("contents"):
            raise InvalidRequestError(
                f"input {spec.name}: give one raw_input_contents, and no contents beside it"
            )
        found = array_from_raw(spec, datatype, rows, memoryview(message.raw_input_contents[0]))
    else:
        values = getattr(tensor.contents, _CONTENTS.get(datatype, ""), ())
        check_count(spec, datatype, rows, len(values))
        found = array_from_values(spec, datatype, rows, list(values))
    return InferRequest(
        id=message.id, rows=found, timeout=read_seconds(_value(message.parameters.get("timeout")))
    )


def response_message(response: InferResponse, spec: TensorSpec) -> ModelInferResponse:
    """Return the answer to a request, its output as raw bytes."""
    array = response.output
    return ModelInferResponse(
        model_name=response.model,
        model_version=response.version,
        id=response.id,
        outputs=[
            ModelInferResponse.InferOutputTensor(
                name=spec.name, datatype=dtype_name(array.dtype), shape=array.shape
            )
        ],
        raw_output_contents=[np.ascontiguousarray(array).tobytes()],
    )


def metadata_message(metadata: ModelMetadata) -> ModelMetadataResponse:
    """Return what describes a model."""
    message = ModelMetadataResponse(
        name=metadata.name,
        versions=metadata.versions,
        platform=metadata.platform,
        inputs=[_tensor(metadata.input)],
        outputs=[_tensor(metadata.output)],
    )
    for name, value in metadata.parameters.items():
        if isinstance(value, str):
            message.parameters[name].string_param = value
        elif isinstance(value, int):
            message.parameters[name].int64_param = value
        else:
            message.parameters[name].double_param = value
    return message


def _varint(sent: bytes, place: int) -> tuple[int, int]:
    """Return a number and the place behind it."""
    value = shift = 0
    while True:
        byte = sent[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
        if shift >= _VARINT_BITS:
            raise IndexError


def _tensor(spec: TensorSpec) -> ModelMetadataResponse.TensorMetadata:
    return ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=spec.dtype, shape=spec.shape
    )


def _value(parameter: InferParameter | None) -> object:
    if parameter is None:
        return None
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)
