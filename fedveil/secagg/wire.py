"""Canonical bytes of messages: fields in order, lengths first, nothing optional, nothing spare.

A record is a frozen dataclass with a layout, one field of the wire for each of its own. It has
exactly one encoding; decoding refuses every other sequence of bytes, and allocates nothing before
the length that it is told has been compared with a limit and with what is there.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar, Generic, Protocol, Self, TypeVar

from fedveil.secagg.errors import WireError

__all__ = [
    "F64",
    "U32",
    "U64",
    "Blob",
    "Fixed",
    "Nested",
    "Record",
    "Seq",
    "Text",
    "U32s",
    "kind_of",
]

T = TypeVar("T")
R = TypeVar("R", bound="Record")

_VERSION = 1


class Field(Protocol[T]):
    """How one field is written and read."""

    def write(self, out: bytearray, value: T) -> None:
        """Append the value."""

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        """Return the value that begins at `at`, and where it ends."""


class _Number(Generic[T]):
    def __init__(self, code: str) -> None:
        self._struct = struct.Struct(">" + code)

    def write(self, out: bytearray, value: T) -> None:
        try:
            out += self._struct.pack(value)
        except struct.error:
            raise WireError(f"{value!r} does not fit its field") from None

    def read(self, data: bytes, at: int) -> tuple[T, int]:
        end = at + self._struct.size
        (value,) = self._struct.unpack(_take(data, at, end))
        return value, end


class U32(_Number[int]):
    """An integer of 32 bits."""

    def __init__(self) -> None:
        super().__init__("I")


class U64(_Number[int]):
    """An integer of 64 bits."""

    def __init__(self) -> None:
        super().__init__("Q")


class F64(_Number[float]):
    """A double, by its bits; NaN is refused, since its bits are not unique."""

    def __init__(self) -> None:
        super().__init__("d")

    def read(self, data: bytes, at: int) -> tuple[float, int]:
        """Return the value that begins at `at`, and where it ends."""
        value, end = super().read(data, at)
        if value != value:
            raise WireError("a number of the message is NaN")
        return value, end


class Fixed:
    """Exactly `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def write(self, out: bytearray, value: bytes) -> None:
        """Append the value."""
        if len(value) != self._size:
            raise WireError(f"{len(value)} bytes where {self._size} belong")
        out += value

    def read(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Return the value that begins at `at`, and where it ends."""
        end = at + self._size
        return _take(data, at, end), end


class Blob:
    """At most `most` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most

    def write(self, out: bytearray, value: bytes) -> None:
        """Append the value."""
        out += _length(len(value), self._most)
        out += value

    def read(self, data: bytes, at: int) -> tuple[bytes, int]:
        """Return the value that begins at `at`, and where it ends."""
        length, start = _read_length(data, at, self._most)
        return _take(data, start, start + length), start + length


class Text:
    """At most `most` bytes of UTF-8, printable."""

    def __init__(self, most: int) -> None:
        self._blob = Blob(most)

    def write(self, out: bytearray, value: str) -> None:
        """Append the value."""
        if not value.isprintable():
            raise WireError("a text of the message is not printable")
        self._blob.write(out, value.encode())

    def read(self, data: bytes, at: int) -> tuple[str, int]:
        """Return the value that begins at `at`, and where it ends."""
        raw, end = self._blob.read(data, at)
        try:
            value = raw.decode()
        except UnicodeDecodeError:
            raise WireError("a text of the message is not UTF-8") from None
        if not value.isprintable():
            raise WireError("a text of the message is not printable")
        return value, end


class Seq(Generic[T]):
    """At most `most` values of one kind."""

    def __init__(self, item: Field[T], most: int) -> None:
        self._item = item
        self._most = most

    def write(self, out: bytearray, value: Sequence[T]) -> None:
        """Append the values."""
        out += _length(len(value), self._most)
        for item in value:
            self._item.write(out, item)

    def read(self, data: bytes, at: int) -> tuple[tuple[T, ...], int]:
        """Return the values that begin at `at`, and where they end."""
        count, at = _read_length(data, at, self._most)
        # Every item takes at least one byte, so that a short message cannot promise many.
        if count > len(data) - at:
            raise WireError(f"the message promises {count} items and ends before")
        items = []
        for _ in range(count):
            item, at = self._item.read(data, at)
            items.append(item)
        return tuple(items), at


class U32s(Seq[int]):
    """At most `most` integers of 32 bits, all at once."""

    def __init__(self, most: int) -> None:
        super().__init__(U32(), most)

    def write(self, out: bytearray, value: Sequence[int]) -> None:
        """Append the values."""
        out += _length(len(value), self._most)
        try:
            out += struct.pack(f">{len(value)}I", *value)
        except struct.error:
            raise WireError("a number of the message does not fit 32 bits") from None

    def read(self, data: bytes, at: int) -> tuple[tuple[int, ...], int]:
        """Return the values that begin at `at`, and where they end."""
        count, start = _read_length(data, at, self._most)
        end = start + 4 * count
        return struct.unpack(f">{count}I", _take(data, start, end)), end


class Record:
    """A frozen dataclass that has one canonical encoding.

    Attributes
    ----------
    KIND : int
        Byte that tells records apart.
    LAYOUT : tuple of Field
        One for each field of the dataclass, in order.
    """

    KIND: ClassVar[int]
    LAYOUT: ClassVar[tuple[Field, ...]]  # type: ignore[type-arg]  # of many types at once
    __match_args__: ClassVar[tuple[str, ...]]  # names of a dataclass's fields, in order

    def encode(self) -> bytes:
        """Return the canonical bytes.

        Raises
        ------
        WireError
            If a value does not fit its field.
        """
        out = bytearray((_VERSION, self.KIND))
        self.write_fields(out)
        return bytes(out)

    def write_fields(self, out: bytearray) -> None:
        """Append the fields, without version and kind."""
        for name, kind in zip(self.__match_args__, self.LAYOUT, strict=True):
            kind.write(out, getattr(self, name))

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the record of which these are the canonical bytes.

        Raises
        ------
        WireError
            If they are not.
        """
        if len(data) < 2 or data[0] != _VERSION:
            raise WireError(f"not a message of version {_VERSION} of the protocol")
        if data[1] != cls.KIND:
            raise WireError(f"message of kind {data[1]} where {cls.__name__} was expected")
        record, end = cls.read_fields(data, 2)
        if end != len(data):
            raise WireError(f"{len(data) - end} bytes too many behind {cls.__name__}")
        return record

    @classmethod
    def read_fields(cls, data: bytes, at: int) -> tuple[Self, int]:
        """Return the record whose fields begin at `at`, and where they end."""
        values: list[object] = []
        for kind in cls.LAYOUT:
            value, at = kind.read(data, at)
            values.append(value)
        return cls(*values), at


class Nested(Generic[R]):
    """A record within a record."""

    def __init__(self, record: type[R]) -> None:
        self._record = record

    def write(self, out: bytearray, value: R) -> None:
        """Append the record's fields."""
        value.write_fields(out)

    def read(self, data: bytes, at: int) -> tuple[R, int]:
        """Return the record that begins at `at`, and where it ends."""
        return self._record.read_fields(data, at)


def _take(data: bytes, start: int, end: int) -> bytes:
    if end > len(data):
        raise WireError(f"the message ends {end - len(data)} bytes early")
    return data[start:end]


def _length(length: int, most: int) -> bytes:
    if length > most:
        raise WireError(f"{length} is more than the {most} that a message may hold")
    return length.to_bytes(4, "big")


def _read_length(data: bytes, at: int, most: int) -> tuple[int, int]:
    length = int.from_bytes(_take(data, at, at + 4), "big")
    if length > most:
        raise WireError(f"{length} is more than the {most} that a message may hold")
    return length, at + 4


def kind_of(data: bytes) -> int:
    """Return the kind of an encoded record, without decoding it.

    Raises
    ------
    WireError
        If the bytes are too short to have one.
    """
    if len(data) < 2:
        raise WireError("an empty message")
    return data[1]
