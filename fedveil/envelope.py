"""How a message of the secure aggregation travels inside a Flower message."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from numpy.lib.format import dtype_to_descr, write_array_header_1_0
from numpy.typing import NDArray

from fedveil.secagg.errors import ProtocolError
from fedveil.secagg.transcript import digest

__all__ = [
    "ROUND_FACTS",
    "WITHIN",
    "array_of",
    "content_digest",
    "environment_digest",
    "float_arrays",
    "is_sealed",
    "open_envelope",
    "seal",
    "values_of",
    "vector_in",
]

ROUND_FACTS = "fedveil.round"
"""Record in which the mod tells its app what is sure of the sum; no server can supply it."""

WITHIN = "within_clip_norm"
"""Metric of an update to which the server adds the noise: whether it was within the clip norm."""

_RECORD = "fedveil.secagg"
_MESSAGE = "message"
_VECTOR = "fedveil.secagg.vector"
_FLOATS = {"float16", "float32", "float64"}
_NUMPY = "numpy.ndarray"
_PLAIN = b"\x93NUMPY\x01\x00"


def seal(data: bytes, content: RecordDict | None = None, vector: bytes | None = None) -> RecordDict:
    """Return the content of a Flower message that carries `data`.

    Parameters
    ----------
    data : bytes
        Encoded message of the protocol.
    content : RecordDict, optional
        Records that go with it.
    vector : bytes, optional
        A masked vector. It goes as an array, which Flower sends in pieces, unlike a setting.
    """
    sealed = RecordDict(dict(content)) if content is not None else RecordDict()
    sealed[_RECORD] = ConfigRecord({_MESSAGE: data})
    if vector is not None:
        array = Array("uint8", (len(vector),), _VECTOR, vector)
        sealed[_VECTOR] = ArrayRecord({"vector": array})
    return sealed


def is_sealed(content: RecordDict) -> bool:
    """Tell whether a content carries a message of the protocol."""
    return _RECORD in content


def open_envelope(content: RecordDict) -> bytes:
    """Take the message of the protocol out of a content, and leave the rest.

    Raises
    ------
    ProtocolError
        If there is none.
    """
    record = content.pop(_RECORD, None)
    data = record.get(_MESSAGE) if isinstance(record, ConfigRecord) else None
    if not isinstance(data, bytes):
        raise ProtocolError("the message carries nothing of the secure aggregation")
    return data


def vector_in(content: RecordDict) -> bytes:
    """Return the masked vector in a content.

    Raises
    ------
    ProtocolError
        If there is none.
    """
    record = content.get(_VECTOR)
    array = record.get("vector") if isinstance(record, ArrayRecord) else None
    if array is None or array.stype != _VECTOR:
        raise ProtocolError("the reply carries no masked vector")
    return array.data


def content_digest(content: RecordDict, message_type: str) -> bytes:
    """Return the hash of a request, on which server and clients must agree.

    Parameters
    ----------
    content : RecordDict
        The records that come with it.
    message_type : str
        Flower's type of the message, which decides what the app does with them.
    """
    parts = [message_type.encode()]
    for name in sorted(content):
        record = content[name]
        parts += (name.encode(), type(record).__name__.encode(), len(record).to_bytes(8, "big"))
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                shape = repr((key, array.dtype, tuple(array.shape), array.stype))
                parts += (shape.encode(), array.data)
        else:
            parts += _items(record)
    return digest("content", *parts)


def environment_digest(run_id: int, run_config: Mapping[str, object]) -> bytes:
    """Return the hash of what Flower gives an app beside the messages."""
    return _environment_digest(run_id, tuple(_items(run_config)))


@lru_cache(maxsize=16)
def _environment_digest(run_id: int, items: tuple[bytes, ...]) -> bytes:
    return digest("environment", str(run_id).encode(), *items)


def _items(record: Mapping[str, object]) -> list[bytes]:
    # The repr of a number, a text, bytes or a list of them says all of it.
    return [repr((key, record[key])).encode() for key in sorted(record)]


def values_of(array: Array) -> NDArray[np.generic]:
    """Return an array's values, read-only and without a copy where its bytes are plain.

    Raises
    ------
    TypeError, ValueError
        As `Array.numpy`, which reads whatever is not plain.
    """
    head, body = array.data[:8], 10 + int.from_bytes(array.data[8:10], "little")
    plain = f"{{'descr': '{np.dtype(array.dtype).str}', 'fortran_order': False, 'shape': "
    shape = tuple(array.shape)
    if head == _PLAIN and array.data[10:body].startswith(f"{plain}{shape}, }}".encode()):
        return np.frombuffer(array.data, array.dtype, math.prod(shape), body).reshape(shape)
    return array.numpy()


def array_of(values: NDArray[np.generic]) -> Array:
    """Return `Array(values)`, in C order, without its detour through a file in memory.

    Raises
    ------
    ValueError
        If the values are no plain numbers.
    """
    if values.dtype.kind not in "biufc":
        raise ValueError(f"no message carries values of the type {values.dtype}")
    data = _plain_header(values.dtype, values.shape) + values.tobytes()
    return Array(str(values.dtype), values.shape, _NUMPY, data)


@lru_cache(maxsize=1024)
def _plain_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    written = BytesIO()
    facts = {"descr": dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    write_array_header_1_0(written, facts)
    return written.getvalue()


def float_arrays(arrays: ArrayRecord) -> list[str]:
    """Return the names of the arrays that can be averaged, in order.

    Integers and truth values cannot: they stay what they are in the global model.
    """
    return [name for name, array in arrays.items() if array.dtype in _FLOATS]
