"""The data model of the Open Inference Protocol v2: types, tensors, requests, and their checks.

Source: "Open Inference Protocol" (kserve/open-inference-protocol, ``inference_rest.md`` and
``inference_grpc.md``). Pure: bytes and objects in, numpy out. Whatever a request claims is held
against the model's own description before an array of that size is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from fedveil.server.inference.errors import InvalidRequestError, TooLargeError

__all__ = [
    "BF16",
    "DTYPES",
    "Array",
    "InferRequest",
    "InferResponse",
    "Limits",
    "TensorSpec",
    "WantedOutput",
    "array_from_raw",
    "array_from_values",
    "checked_rows",
    "dtype_name",
    "read_seconds",
]

Array = NDArray[np.generic]

DTYPES: Mapping[str, np.dtype[np.generic]] = MappingProxyType(
    {
        "BOOL": np.dtype(np.bool_),
        "UINT8": np.dtype(np.uint8),
        "UINT16": np.dtype("<u2"),
        "UINT32": np.dtype("<u4"),
        "UINT64": np.dtype("<u8"),
        "INT8": np.dtype(np.int8),
        "INT16": np.dtype("<i2"),
        "INT32": np.dtype("<i4"),
        "INT64": np.dtype("<i8"),
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
    }
)
"""The protocol's types that numpy has."""

BF16 = "BF16"
"""The upper half of an FP32, two bytes; numpy has no such type."""

_RAW_ONLY = frozenset({"FP16", BF16})
_SHOWN = 40
_MICROSECONDS = 1e6
_DAY = 86_400 * 10**6


def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """Return the protocol's name of a numpy type.

    Raises
    ------
    InvalidRequestError
        If it has none.
    """
    for name, known in DTYPES.items():
        if known == dtype:
            return name
    raise InvalidRequestError(f"the protocol has no type for arrays of {dtype}")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most.

    Parameters
    ----------
    rows : int
        Rows of one request.
    body_bytes : int
        Bytes of one request with its tensors.
    json_bytes : int
        Bytes of its JSON, which takes some thirty times of that in memory while it is read.
    queue_rows, queue_bytes : int
        What waits for the model, over all requests.
    batch_rows : int
        Rows that the model is given at once.
    connections : int
        Connections that are open at the same time.
    header_bytes : int
        Bytes of a request's line and headers.
    read_seconds : float
        Time in which a request must have arrived whole.
    deadline_seconds : float
        Time in which a request is answered, unless it asks for less.
    """

    rows: int = 4096
    body_bytes: int = 64 * 2**20
    json_bytes: int = 8 * 2**20
    queue_rows: int = 16_384
    queue_bytes: int = 256 * 2**20
    batch_rows: int = 1024
    connections: int = 1024
    header_bytes: int = 16 * 1024
    read_seconds: float = 20.0
    deadline_seconds: float = 30.0


@dataclass(frozen=True)
class TensorSpec:
    """What the model takes or gives.

    Parameters
    ----------
    name : str
        The name that requests use.
    dtype : str
        A key of `DTYPES`.
    row_shape : tuple of int
        Shape of one row, without the first axis, whose length is free.
    below : int, optional
        Of integers that are codes: they are at least 0 and below this.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    below: int | None = None

    @property
    def shape(self) -> list[int]:
        """The shape as metadata gives it: -1 for the free axis."""
        return [-1, *self.row_shape]

    @property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy type."""
        return DTYPES[self.dtype]

    def takes(self, datatype: str) -> bool:
        """Return whether every value of a type is exactly one of this tensor's type."""
        if datatype == BF16:
            return self.dtype in ("FP32", "FP64")
        given = DTYPES.get(datatype)
        return given is not None and np.can_cast(given, self.numpy, "safe")


@dataclass(frozen=True)
class WantedOutput:
    """An output that a request asks for; `binary` None leaves the form to the whole request."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True)
class InferRequest:
    """A request whose tensor was checked.

    Attributes
    ----------
    id : str
        The sender's own; comes back in the answer.
    rows : ndarray, shape (n, ...)
        The input, of the model's type.
    outputs : tuple of WantedOutput
        What is asked for; empty for everything.
    binary : bool
        Whether outputs come as raw bytes unless they say otherwise.
    timeout : float or None
        Seconds that the sender waits.
    """

    id: str
    rows: Array = field(repr=False)
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool = False
    timeout: float | None = None


@dataclass(frozen=True)
class InferResponse:
    """The answer to a request.

    Attributes
    ----------
    model : str
        Name of the model.
    version : str
        The round whose weights gave the output.
    id : str
        From the request.
    output : ndarray, shape (n, ...)
        The model's output.
    """

    model: str
    version: str
    id: str
    output: Array = field(repr=False)


def checked_rows(spec: TensorSpec, datatype: object, shape: object, limits: Limits) -> int:
    """Check what a request says of its input; return the number of its rows.

    Raises
    ------
    InvalidRequestError
        If type or shape are not the model's.
    TooLargeError
        If there are too many rows.
    """
    if not isinstance(datatype, str) or not spec.takes(datatype):
        fitting = ", ".join(name for name in (*DTYPES, BF16) if spec.takes(name))
        raise InvalidRequestError(
            f"input {spec.name}: datatype {_shown(datatype)} cannot be {spec.dtype} without loss; "
            f"send one of {fitting}"
        )
    fits = (
        isinstance(shape, Sequence)
        and not isinstance(shape, str | bytes)
        and len(shape) == 1 + len(spec.row_shape)
        and all(type(size) is int for size in shape)
        and shape[0] >= 1
        and tuple(shape[1:]) == spec.row_shape
    )
    if not fits or not isinstance(shape, Sequence):
        raise InvalidRequestError(
            f"input {spec.name}: shape {_shown(shape)} is not {spec.shape} with one row or more"
        )
    rows = int(shape[0])
    if rows > limits.rows:
        raise TooLargeError(
            f"input {spec.name}: {rows} rows are more than the {limits.rows} of one request; send "
            "several"
        )
    return rows


def array_from_raw(spec: TensorSpec, datatype: str, rows: int, raw: memoryview) -> Array:
    """Return the input that raw little-endian bytes hold.

    Parameters
    ----------
    spec : TensorSpec
        What the model takes.
    datatype, rows
        As `checked_rows` passed them.
    raw : memoryview
        Row-major bytes. The result may share them.

    Raises
    ------
    InvalidRequestError
        If there are too few or too many, or a value is no finite number.
    """
    itemsize = 2 if datatype == BF16 else DTYPES[datatype].itemsize
    needed = rows * math.prod(spec.row_shape) * itemsize
    if len(raw) != needed:
        raise InvalidRequestError(
            f"input {spec.name}: has {len(raw)} bytes, where its shape and datatype {datatype} "
            f"make {needed}"
        )
    shape = (rows, *spec.row_shape)
    if datatype == BF16:
        halves = np.frombuffer(raw, "<u2").astype("<u4")
        found: Array = (halves << 16).view("<f4")
    elif datatype == "BOOL":
        # A byte that is neither 0 nor 1 is no truth value, and torch does odd things with it.
        found = np.frombuffer(raw, np.uint8) != 0
    else:
        found = np.frombuffer(raw, DTYPES[datatype])
    return _in_range(spec, found.astype(spec.numpy, copy=False).reshape(shape))


def array_from_values(spec: TensorSpec, datatype: str, rows: int, data: object) -> Array:
    """Return the input that a list of JSON values holds, flat or nested like the shape.

    Parameters are those of `array_from_raw`.

    Raises
    ------
    InvalidRequestError
        If values are too few, too many, or not of the datatype.
    """
    if datatype in _RAW_ONLY:
        raise InvalidRequestError(
            f"input {spec.name}: {datatype} comes as raw bytes, not as a list of values"
        )
    shape = (rows, *spec.row_shape)
    values = _flat(spec, data, shape)
    kinds = set(map(type, values))
    wanted = DTYPES[datatype]
    allowed = {bool} if wanted.kind == "b" else {int} if wanted.kind in "iu" else {int, float}
    if not kinds <= allowed:
        wrong = sorted(kind.__name__ for kind in kinds - allowed)
        raise InvalidRequestError(
            f"input {spec.name}: holds values of type {', '.join(wrong)}, which are not {datatype}"
        )
    try:
        with np.errstate(over="ignore"):
            found = np.array(values, dtype=wanted)
    except OverflowError:
        raise InvalidRequestError(
            f"input {spec.name}: holds a number that {datatype} cannot"
        ) from None
    return _in_range(spec, found.astype(spec.numpy, copy=False).reshape(shape))


def read_seconds(microseconds: object) -> float | None:
    """Return the seconds of a ``timeout``, which Triton and its clients give in microseconds.

    Raises
    ------
    InvalidRequestError
        If it is no number, or below 0; 0 means none.
    """
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) not in (int, float) or not isinstance(microseconds, int | float):
        raise InvalidRequestError("parameter timeout must be a number of microseconds")
    if microseconds < 0:
        raise InvalidRequestError("parameter timeout must not be below 0")
    # More than a day is as good as none, and some integers are no floats.
    return min(microseconds, _DAY) / _MICROSECONDS


def _flat(spec: TensorSpec, data: object, shape: tuple[int, ...]) -> list[object]:
    total = math.prod(shape)
    if isinstance(data, list) and (not data or not isinstance(data[0], list)):
        if len(data) == total:
            return data
        raise InvalidRequestError(
            f"input {spec.name}: has {len(data)} values, where its shape makes {total}"
        )
    level: list[object] = [data]
    for size in shape:
        below: list[object] = []
        for part in level:
            if not isinstance(part, list) or len(part) != size:
                raise InvalidRequestError(
                    f"input {spec.name}: its nested lists are not of shape {list(shape)}"
                )
            below += part
        level = below
    return level


def _in_range(spec: TensorSpec, found: Array) -> Array:
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        raise InvalidRequestError(f"input {spec.name}: holds NaN or infinity")
    if spec.below is not None and not (int(found.min()) >= 0 and int(found.max()) < spec.below):
        raise InvalidRequestError(
            f"input {spec.name}: holds a code that is not between 0 and {spec.below - 1}"
        )
    return found


def _shown(value: object) -> str:
    """Return what a request holds in no more characters than a line has room for."""
    if isinstance(value, list | tuple):
        value = [item if type(item) in (int, float) else "..." for item in value[:9]]
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
