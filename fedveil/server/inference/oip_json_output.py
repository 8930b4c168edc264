"""Answers over HTTP: JSON with, where the sender likes, the raw tensor behind it.

Source: as of `fedveil.server.inference.oip_json`, which reads requests.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pydantic_core

from fedveil.server.inference.errors import NotAcceptableError
from fedveil.server.inference.oip import (
    InferRequest,
    InferResponse,
    TensorSpec,
    WantedOutput,
    dtype_name,
)

__all__ = ["write_response"]

_REMEMBERED = 256


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
    NotAcceptableError
        If JSON cannot hold the output: it has NaN or infinity.
    """
    wanted = request.outputs[0] if request.outputs else WantedOutput(spec.name)
    is_binary = request.binary if wanted.binary is None else wanted.binary
    array = response.output
    if is_binary:
        raw = array.tobytes()
        # What stands before a tensor says nothing of its values, and is the same again and again;
        # but for the sender's own word.
        write = _raw_head.__wrapped__ if response.id else _raw_head
        text = write(*response[:3], spec.name, array.dtype, array.shape)
        return text + raw, len(text)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NotAcceptableError(
            "the output holds NaN or infinity, which JSON cannot; ask for raw bytes"
        )
    tensor = {**_tensor(spec.name, array.dtype, array.shape), "data": array.reshape(-1).tolist()}
    return _json(response.model, response.version, response.id, tensor), None


@lru_cache(_REMEMBERED)
def _raw_head(
    model: str,
    version: str,
    id_: str,
    name: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
) -> bytes:
    size = math.prod(shape) * dtype.itemsize
    tensor = {**_tensor(name, dtype, shape), "parameters": {"binary_data_size": size}}
    return _json(model, version, id_, tensor)


def _tensor(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> dict[str, object]:
    return {"name": name, "shape": list(shape), "datatype": dtype_name(dtype)}


def _json(model: str, version: str, id_: str, tensor: dict[str, object]) -> bytes:
    fields: dict[str, object] = {
        "model_name": model,
        "model_version": version,
        **({"id": id_} if id_ else {}),
        "outputs": [tensor],
    }
    return pydantic_core.to_json(fields)
