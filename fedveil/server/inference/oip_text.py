"""Text in a request: strings of type BYTES, each of which becomes a row of codes.

Source: the binary tensor data extension of the Open Inference Protocol (Triton,
``docs/protocol/extension_binary_data.md``): in raw bytes each string follows its length, four
bytes, little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from fedveil.server.inference.errors import InvalidRequestError
from fedveil.server.inference.oip import Array, TensorSpec

__all__ = ["rows_of_texts", "split_texts"]

_PREFIX = struct.Struct("<I")
_MOST_BYTES = 64 * 1024
"""Of one string: a model that looks at more characters takes more."""

_MOST_UTF8 = 4


def split_texts(spec: TensorSpec, rows: int, raw: memoryview) -> list[bytes]:
    """Return the strings that raw bytes hold.

    Parameters
    ----------
    spec : TensorSpec
        What the model takes.
    rows : int
        How many strings there must be.
    raw : memoryview
        Each after its length.

    Raises
    ------
    InvalidRequestError
        If there are fewer or more, or one is longer than any model reads.
    """
    texts: list[bytes] = []
    begin = 0
    for number in range(rows):
        left = len(raw) - begin - _PREFIX.size
        length = _PREFIX.unpack_from(raw, begin)[0] if left >= 0 else 0
        if length > left:
            raise InvalidRequestError(
                f"input {spec.name}: string {number} of {rows} is cut off; each is led by its "
                "length, four bytes, little-endian"
            )
        _check_length(spec, number, length)
        begin += _PREFIX.size + length
        texts.append(bytes(raw[begin - length : begin]))
    if begin != len(raw):
        raise InvalidRequestError(
            f"input {spec.name}: {len(raw) - begin} bytes follow the {rows} strings of its shape"
        )
    return texts


def rows_of_texts(spec: TensorSpec, rows: int, texts: Sequence[object]) -> Array:
    """Return a row of codes for each string.

    Parameters
    ----------
    spec : TensorSpec
        What the model takes, and how a text becomes a row of it.
    rows : int
        How many strings there must be; checked before, so that the result is not too large.
    texts : sequence of str or bytes
        The strings; bytes are UTF-8.

    Returns
    -------
    ndarray, shape (rows, length)
        Of the model's type.

    Raises
    ------
    InvalidRequestError
        If there are fewer or more, or one is no text.
    """
    form = spec.text
    if form is None:
        raise InvalidRequestError(f"input {spec.name}: takes numbers, not text")
    if len(texts) != rows:
        raise InvalidRequestError(
            f"input {spec.name}: has {len(texts)} strings, where its shape makes {rows}"
        )
    found: Array = np.empty((rows, form.length), dtype=spec.numpy)
    for number, text in enumerate(texts):
        found[number] = form.encode(_text(spec, number, text))
    return found


def _text(spec: TensorSpec, number: int, text: object) -> str:
    if not isinstance(text, str | bytes):
        raise InvalidRequestError(
            f"input {spec.name}: holds values of type {type(text).__name__}, which are not BYTES; "
            "send strings"
        )
    _check_length(spec, number, len(text))
    if isinstance(text, str):
        return text
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"input {spec.name}: string {number} is not UTF-8, from its byte {error.start} on"
        ) from None


def _check_length(spec: TensorSpec, number: int, length: int) -> None:
    characters = 0 if spec.text is None else spec.text.length
    most = max(_MOST_BYTES, _MOST_UTF8 * characters)
    if length > most:
        raise InvalidRequestError(
            f"input {spec.name}: string {number} has a length of {length}, more than {most}; the "
            f"model reads its last {characters} characters"
        )
