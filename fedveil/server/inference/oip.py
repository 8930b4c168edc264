"""The data model of the Open Inference Protocol v2: types, tensors, requests and their limits.

Source: "Open Inference Protocol" (kserve/open-inference-protocol, ``inference_rest.md`` and
``inference_grpc.md``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedveil.server.inference.errors import InvalidRequestError, ServeError
from fedveil.tasks.forms import TextForm

__all__ = [
    "BF16",
    "BYTES",
    "DTYPES",
    "Array",
    "InferRequest",
    "InferResponse",
    "Limits",
    "TensorSpec",
    "WantedOutput",
    "dtype_name",
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

_NAMES = {dtype: name for name, dtype in DTYPES.items()}

BF16 = "BF16"
"""The upper half of an FP32, two bytes; numpy has no such type."""

BYTES = "BYTES"
"""Strings of any length; here each is a text in UTF-8, which becomes one row."""


def dtype_name(dtype: np.dtype[np.generic]) -> str:
    """Return the protocol's name of a numpy type.

    Raises
    ------
    InvalidRequestError
        If it has none.
    """
    name = _NAMES.get(dtype)
    if name is not None:
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
    peer_connections : int
        How many of these one address, or one client certificate, may have.
    header_bytes : int
        Bytes of a request's line and headers.
    read_seconds : float
        Time in which a request must have arrived whole, and an answer been read.
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
    peer_connections: int = 512
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
    text : TextForm, optional
        Of codes of characters: how a text becomes a row of them.

    Raises
    ------
    ServeError
        If a text does not become a row.
    """

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    below: int | None = None
    text: TextForm | None = None

    def __post_init__(self) -> None:
        if self.text is None:
            return
        made = ((self.text.length,), len(self.text.alphabet) + 1)
        if made != (self.row_shape, self.below):
            raise ServeError(
                f"the task makes rows of shape {made[0]} with codes below {made[1]} of a text, but "
                f"its model takes {self.row_shape} below {self.below}"
            )

    @property
    def shape(self) -> list[int]:
        """The shape as metadata gives it: -1 for the free axis."""
        return [-1, *self.row_shape]

    @cached_property
    def numpy(self) -> np.dtype[np.generic]:
        """The numpy type."""
        return DTYPES[self.dtype]

    @cached_property
    def row_values(self) -> int:
        """How many values a row has."""
        return math.prod(self.row_shape)

    def row_of(self, datatype: str) -> tuple[int, ...]:
        """Return the shape of a row that comes in a type: a string is a whole row."""
        return () if datatype == BYTES else self.row_shape

    def takes(self, datatype: str) -> bool:
        """Return whether values of a type become this tensor's own without loss."""
        if datatype == BYTES:
            return self.text is not None
        if datatype == BF16:
            return self.dtype in ("FP32", "FP64")
        if datatype == self.dtype:
            return True
        given = DTYPES.get(datatype)
        return given is not None and np.can_cast(given, self.numpy, "safe")


@dataclass(frozen=True)
class WantedOutput:
    """An output that a request asks for; `binary` None leaves the form to the whole request."""

    name: str
    binary: bool | None = None


class InferRequest(NamedTuple):
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
    rows: Array
    outputs: tuple[WantedOutput, ...] = ()
    binary: bool = False
    timeout: float | None = None

    def __repr__(self) -> str:
        """Tell nothing of the input, wherever this is shown."""
        return f"InferRequest({self.id!r}, {len(self.rows)} rows)"


class InferResponse(NamedTuple):
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
    output: Array

    def __repr__(self) -> str:
        """Tell nothing of the output, wherever this is shown."""
        return f"InferResponse({self.model!r}, {self.version!r}, {len(self.output)} rows)"
