"""The safetensors layout, written in pieces and read without a copy.

The layout is the one of https://github.com/huggingface/safetensors: the length of the header as
u64 little-endian, a JSON header padded with spaces to a multiple of eight bytes, then the arrays.
The library itself wants the whole file as one immutable `bytes` and copies every array out of it:
plaintext that cannot be overwritten, in memory that would not be needed. It is the test oracle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedveil.vault.errors import TensorError

__all__ = ["Array", "Place", "TensorFile", "copy_tensors", "head_bytes", "places", "view_tensors"]

Array = NDArray[np.generic]

# In the library's order: within a file, wide types come first, so that all stay aligned.
_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "uint16": "U16",
    "float16": "F16",
    "int32": "I32",
    "uint32": "U32",
    "float32": "F32",
    "complex64": "C64",
    "float64": "F64",
    "int64": "I64",
    "uint64": "U64",
}
_DTYPES = {name: np.dtype(numpy).newbyteorder("<") for numpy, name in _NAMES.items()}
_ORDER = {name: place for place, name in enumerate(_NAMES.values())}
_METADATA = "__metadata__"
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class TensorFile:
    """Arrays as a safetensors file that need never be in memory as a whole.

    Parameters
    ----------
    tensors : Mapping[str, ndarray]
        Arrays of any shape, strides and byte order; bool, (u)int8 to 64, float16 to 64 or
        complex64. They are not copied, so they must not change while `chunks` is in use.

    Raises
    ------
    TensorError
        If a value is not an array of one of these types, or a name cannot be stored.
    """

    tensors: Mapping[str, Array]

    def __post_init__(self) -> None:
        for name, array in self.tensors.items():
            if not isinstance(array, np.ndarray):
                raise TensorError(f"tensor {name!r} is a {type(array).__name__}, not a numpy array")
            if array.dtype.name not in _NAMES:
                raise TensorError(
                    f"tensor {name!r} has type {array.dtype}, which cannot be stored; use one of "
                    + ", ".join(_NAMES)
                )
            if name == _METADATA:
                raise TensorError(f"a tensor cannot be called {name!r}: the format reserves it")
            try:
                name.encode()
            except UnicodeEncodeError:
                raise TensorError(f"the name {name!r} of a tensor is not valid Unicode") from None

    @property
    def nbytes(self) -> int:
        """Exact length of the file in bytes."""
        return len(self._head()) + sum(array.nbytes for array in self.tensors.values())

    def chunks(self) -> Iterator[memoryview]:
        """Yield the file in order: the header, then one array at a time."""
        yield memoryview(self._head())
        for name in self._sorted():
            array = self.tensors[name]
            flat = np.asarray(array, dtype=_DTYPES[_NAMES[array.dtype.name]], order="C")
            yield flat.reshape(-1).view(np.uint8).data

    def _sorted(self) -> list[str]:
        def place(name: str) -> tuple[int, str]:
            return -_ORDER[_NAMES[self.tensors[name].dtype.name]], name

        return sorted(self.tensors, key=place)

    def _head(self) -> bytes:
        fields: dict[str, dict[str, str | list[int]]] = {}
        end = 0
        for name in self._sorted():
            array = self.tensors[name]
            begin, end = end, end + array.nbytes
            fields[name] = {
                "dtype": _NAMES[array.dtype.name],
                "shape": list(array.shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(_LENGTH_BYTES, "little") + text


@dataclass(frozen=True)
class Place:
    """Where a safetensors file holds an array.

    Attributes
    ----------
    name : str
        Name of the array.
    dtype : dtype
        Its type, little-endian.
    shape : tuple of int
        Its shape.
    begin, end : int
        Its bytes within the file.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    begin: int
    end: int

    def view(self, data: bytearray | memoryview, offset: int) -> Array:
        """Return the array as a view of a buffer that holds it from an offset on.

        Raises
        ------
        TensorError
            If numpy cannot hold the shape.
        """
        try:
            return np.ndarray(self.shape, self.dtype, buffer=data, offset=offset)
        except ValueError:
            raise TensorError(f"tensor {self.name!r} has a shape that numpy cannot hold") from None


def head_bytes(start: bytes | bytearray | memoryview, total: int) -> int:
    """Return the length in bytes of everything before the first array.

    Parameters
    ----------
    start : bytes, bytearray or memoryview
        The file's first bytes, eight or more.
    total : int
        Length of the whole file.

    Raises
    ------
    TensorError
        If the file is too short for its header.
    """
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if total < _LENGTH_BYTES + length or len(start) < _LENGTH_BYTES:
        raise TensorError(f"{total} bytes hold no safetensors header of {length} bytes")
    return _LENGTH_BYTES + length


def places(head: bytes | bytearray | memoryview, total: int) -> list[Place]:
    """Return where the arrays of a safetensors file lie, in their order.

    Parameters
    ----------
    head : bytes, bytearray or memoryview
        Everything before the first array.
    total : int
        Length of the whole file.

    Raises
    ------
    TensorError
        If the layout is not valid: every byte must belong to exactly one array or the header.
    """
    try:
        fields = json.loads(bytes(head[_LENGTH_BYTES:]))
    except (ValueError, RecursionError):
        raise TensorError("the safetensors header is not valid JSON") from None
    if not isinstance(fields, dict):
        raise TensorError("the safetensors header is not a JSON object")
    fields.pop(_METADATA, None)

    found = [_place(name, field, len(head)) for name, field in fields.items()]
    found.sort(key=lambda place: (place.begin, place.end))
    position = len(head)
    for place in found:
        if place.begin != position or place.end > total:
            begin, end = place.begin - len(head), place.end - len(head)
            raise TensorError(
                f"tensor {place.name!r} lies at bytes {begin} to {end}: gap or overlap"
            )
        position = place.end
    if position != total:
        raise TensorError(f"{total - position} bytes belong to no tensor")
    return found


def view_tensors(data: bytearray | memoryview) -> dict[str, Array]:
    """Return the arrays of a safetensors file as views.

    Parameters
    ----------
    data : bytearray or memoryview
        The whole file. The arrays share its memory and are writable; it lives as long as any
        of them.

    Returns
    -------
    dict of str to ndarray
        The arrays in the order of the file, little-endian.

    Raises
    ------
    TensorError
        If the layout is not valid, as for `places`.
    """
    head = data[: head_bytes(data, len(data))]
    return {place.name: place.view(data, place.begin) for place in places(head, len(data))}


def copy_tensors(found: Mapping[str, Array], live: Mapping[str, Array]) -> None:
    """Copy arrays into arrays that are in use, all or none.

    Parameters
    ----------
    found : Mapping[str, ndarray]
        What to copy.
    live : Mapping[str, ndarray]
        Where to: writable arrays of the same names, shapes and types, of any strides and byte
        order; for example the parameters of a model.

    Raises
    ------
    TensorError
        If the two do not match. Nothing is copied then.
    """
    if found.keys() != live.keys():
        missing, unknown = sorted(live.keys() - found.keys()), sorted(found.keys() - live.keys())
        raise TensorError(
            f"the tensors are not those of the model: {len(missing)} are missing {missing[:3]}, "
            f"{len(unknown)} are unknown to it {unknown[:3]}"
        )
    for name, array in live.items():
        theirs = found[name]
        if array.shape != theirs.shape or array.dtype.name != theirs.dtype.name:
            raise TensorError(
                f"tensor {name!r} is {theirs.dtype.name} of shape {theirs.shape}, but the model "
                f"has {array.dtype.name} of shape {array.shape}"
            )
        if not array.flags.writeable:
            raise TensorError(f"tensor {name!r} of the model is read-only")
    for name, array in live.items():
        np.copyto(array, found[name])


def _place(name: str, field: object, start: int) -> Place:
    wrong = TensorError(f"the safetensors header describes tensor {name!r} wrongly")
    if not isinstance(field, dict) or set(field) != {"dtype", "shape", "data_offsets"}:
        raise wrong
    dtype = _DTYPES.get(field["dtype"]) if isinstance(field["dtype"], str) else None
    shape, offsets = field["shape"], field["data_offsets"]
    if dtype is None or not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise wrong
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise wrong
    return Place(name, dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
