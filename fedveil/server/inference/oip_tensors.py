"""A request's tensors, from bytes or lists to arrays that fit the model.

Pure. Whatever a request claims is held against the model's own description before an array of
that size is made.
"""

from __future__ import annotations

import math

import numpy as np

from fedveil.server.inference.errors import InvalidRequestError, TooLargeError
from fedveil.server.inference.oip import BF16, BYTES, DTYPES, Array, Limits, TensorSpec
from fedveil.server.inference.oip_text import rows_of_texts, split_texts

__all__ = [
    "array_from_floats",
    "array_from_raw",
    "array_from_values",
    "check_count",
    "checked_rows",
    "read_seconds",
]

_RAW_ONLY = frozenset({"FP16", BF16})
_SHOWN = 40
_FEW_VALUES = 8192
_MICROSECONDS = 1e6
_DAY = 86_400 * 10**6


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
        fitting = ", ".join(name for name in (*DTYPES, BF16, BYTES) if spec.takes(name))
        why = (
            "is text, which this model does not take"
            if datatype == BYTES
            else f"cannot be {spec.dtype} without loss"
        )
        raise InvalidRequestError(
            f"input {spec.name}: datatype {_shown(datatype)} {why}; send one of {fitting}"
        )
    row_shape = spec.row_of(datatype)
    fits = (
        isinstance(shape, list | tuple)
        and len(shape) == 1 + len(row_shape)
        and set(map(type, shape)) == {int}
        and shape[0] >= 1
        and tuple(shape[1:]) == row_shape
    )
    if not fits or not isinstance(shape, list | tuple):
        kind = " of strings" if datatype == BYTES else ""
        raise InvalidRequestError(
            f"input {spec.name}: shape {_shown(shape)} is not {[-1, *row_shape]}{kind} with one "
            "row or more"
        )
    rows = int(shape[0])
    if rows > limits.rows:
        raise TooLargeError(
            f"input {spec.name}: {rows} rows are more than the {limits.rows} of one request; send "
            "several"
        )
    size = rows * spec.row_values * spec.numpy.itemsize
    if size > limits.body_bytes:
        raise TooLargeError(
            f"input {spec.name}: {rows} rows are {size} bytes for the model, more than the "
            f"{limits.body_bytes} of one request; send several"
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
        If there are too few or too many, a value is no finite number, or a string no text.
    """
    if datatype == BYTES:
        return rows_of_texts(spec, rows, split_texts(spec, rows, raw))
    itemsize = 2 if datatype == BF16 else DTYPES[datatype].itemsize
    needed = rows * spec.row_values * itemsize
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


def check_count(spec: TensorSpec, datatype: str, rows: int, count: int) -> None:
    """Refuse a flat list of values before it is read.

    Raises
    ------
    InvalidRequestError
        If its length is not what its shape makes, or the datatype comes in no list.
    """
    _check_listed(spec, datatype)
    total = rows * math.prod(spec.row_of(datatype))
    if count != total:
        raise InvalidRequestError(
            f"input {spec.name}: has {count} values, where its shape makes {total}"
        )


def array_from_values(spec: TensorSpec, datatype: str, rows: int, data: object) -> Array:
    """Return the input that a list of values holds, flat or nested like the shape.

    Parameters are those of `array_from_raw`; a string may be bytes.

    Raises
    ------
    InvalidRequestError
        If values are too few, too many, or not of the datatype.
    """
    _check_listed(spec, datatype)
    shape = (rows, *spec.row_of(datatype))
    if isinstance(data, list) and (not data or not isinstance(data[0], list)):
        check_count(spec, datatype, rows, len(data))
        values = data
    else:
        values = _unnested(spec, data, shape)
    if datatype == BYTES:
        return rows_of_texts(spec, rows, values)
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


def array_from_floats(spec: TensorSpec, datatype: str, rows: int, values: list[float]) -> Array:
    """Return the input that a flat list of floats holds.

    Parameters and errors are those of `array_from_raw`; the datatype is FP32 or FP64.
    """
    check_count(spec, datatype, rows, len(values))
    with np.errstate(over="ignore"):
        found = np.fromiter(values, DTYPES[datatype], len(values))
    shape = (rows, *spec.row_shape)
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


def _check_listed(spec: TensorSpec, datatype: str) -> None:
    if datatype in _RAW_ONLY:
        raise InvalidRequestError(
            f"input {spec.name}: {datatype} comes as raw bytes, not as a list of values"
        )


def _unnested(spec: TensorSpec, data: object, shape: tuple[int, ...]) -> list[object]:
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
    if found.dtype.kind == "f" and not _is_finite(found):
        raise InvalidRequestError(f"input {spec.name}: holds NaN or infinity")
    if spec.below is not None and not (int(found.min()) >= 0 and int(found.max()) < spec.below):
        raise InvalidRequestError(
            f"input {spec.name}: holds a code that is not between 0 and {spec.below - 1}"
        )
    return found


def _is_finite(found: Array) -> bool:
    # The sum of squares is finite only where each value is; where it overflows, it says nothing.
    # Of a few values it takes a third of the time; of many, BLAS would wake threads for it.
    if found.size <= _FEW_VALUES and math.isfinite(np.vdot(found, found)):  # type: ignore[arg-type]
        return True
    return bool(np.isfinite(found).all())


def _shown(value: object) -> str:
    """Return what a request holds in no more characters than a line has room for."""
    if isinstance(value, list | tuple):
        value = [item if type(item) in (int, float) else "..." for item in value[:9]]
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
