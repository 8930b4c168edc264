"""The protocol over HTTP: JSON with, where the sender likes, raw tensors behind it.

Source: ``inference_rest.md`` of the Open Inference Protocol, and its binary tensor data extension:
the JSON is ``Inference-Header-Content-Length`` bytes long, and the tensors follow it in order.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pydantic_core

from fedveil.server.inference.errors import InvalidRequestError, OutputError, TooLargeError
from fedveil.server.inference.oip import (
    InferRequest,
    InferResponse,
    Limits,
    TensorSpec,
    WantedOutput,
    dtype_name,
)
from fedveil.server.inference.oip_tensors import (
    array_from_raw,
    array_from_values,
    checked_rows,
    read_seconds,
)

__all__ = ["read_request", "write_response"]

_MOST_ID = 256


def read_request(
    body: bytes | bytearray,
    json_bytes: int | None,
    spec: TensorSpec,
    output: TensorSpec,
    limits: Limits,
) -> InferRequest:
    """Read and check the body of an inference request.

    Parameters
    ----------
    body : bytes
        At most ``limits.body_bytes`` of it.
    json_bytes : int or None
        Length of the JSON at its start; None when it is all JSON.
    spec, output : TensorSpec
        What the model takes and gives.
    limits : Limits
        What it may ask for.

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
    if length > limits.json_bytes:
        raise TooLargeError(
            f"{length} bytes of JSON are more than {limits.json_bytes}; send tensors as raw bytes"
        )
    view = memoryview(body)
    fields = _parse(bytes(view[:length]))
    tensor = _single_input(fields, spec)
    datatype = tensor.get("datatype")
    rows = checked_rows(spec, datatype, tensor.get("shape"), limits)
    size = _parameters(tensor, f"input {spec.name}").get("binary_data_size")
    raw = view[length:]
    if size is None:
        if len(raw):
            raise InvalidRequestError(
                f"{len(raw)} bytes follow the JSON, but no input has a binary_data_size"
            )
        found = array_from_values(spec, str(datatype), rows, tensor.get("data"))
    else:
        if type(size) is not int or size != len(raw) or "data" in tensor:
            raise InvalidRequestError(
                f"input {spec.name}: binary_data_size must be the {len(raw)} bytes that follow "
                "the JSON, with no data beside it"
            )
        found = array_from_raw(spec, str(datatype), rows, raw)
    parameters = _parameters(fields, "the request")
    return InferRequest(
        id=_id(fields),
        rows=found,
        outputs=_wanted(fields, output),
        binary=_flag(parameters, "binary_data_output") or False,
        timeout=read_seconds(parameters.get("timeout")),
    )


def write_response(
    response: InferResponse, request: InferRequest, spec: TensorSpec
) -> tuple[bytes, int | None]:
    """Write the answer to a request.

    Parameters
    ----------
    response, request
        Both.
    spec : TensorSpec
        The model's output.

    Returns
    -------
    tuple of bytes and int or None
        The body, and the length of the JSON at its start when raw bytes follow.

    Raises
    ------
    OutputError
        If JSON cannot hold the output: it has NaN or infinity.
    """
    wanted = request.outputs[0] if request.outputs else WantedOutput(spec.name)
    is_binary = request.binary if wanted.binary is None else wanted.binary
    array = response.output
    tensor: dict[str, object] = {
        "name": spec.name,
        "shape": list(array.shape),
        "datatype": dtype_name(array.dtype),
    }
    raw = b""
    if is_binary:
        raw = np.ascontiguousarray(array).tobytes()
        tensor["parameters"] = {"binary_data_size": len(raw)}
    else:
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise OutputError("the output holds NaN or infinity, which JSON cannot; ask for raw")
        tensor["data"] = array.reshape(-1).tolist()
    fields: dict[str, object] = {
        "model_name": response.model,
        "model_version": response.version,
        **({"id": response.id} if response.id else {}),
        "outputs": [tensor],
    }
    text = pydantic_core.to_json(fields)
    return (text + raw, len(text)) if is_binary else (text, None)


def _parse(text: bytes) -> Mapping[str, object]:
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
