"""The header of an encrypted checkpoint: what it says, and its canonical bytes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TypeAlias, get_args

from fedveil.vault.errors import HeaderError, NotACheckpointError

__all__ = [
    "HEADER_VERSION",
    "MOST_HEADER_BYTES",
    "MOST_ROUND",
    "Header",
    "Kind",
    "MetaValue",
    "check_key_id",
    "check_run",
]

HEADER_VERSION = 1
MOST_HEADER_BYTES = 1 << 16
MOST_ROUND = 999_999

Kind: TypeAlias = Literal["model", "strategy-state"]
MetaValue: TypeAlias = str | int | float | bool

_MOST_NAME = 128
_FIELDS = {"version", "kind", "run", "round", "key_id", "created", "plaintext_bytes", "meta"}
_MOST_INT = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an encrypted file says about itself, in clear and authenticated.

    Parameters
    ----------
    version : int
        Version of the file format, 1.
    kind : {"model", "strategy-state"}
        What the arrays are.
    run : str
        Name of the training run, 1 to 128 printable characters.
    round : int
        Round after which the arrays were saved, 0 to 999999.
    key_id : str
        Public name of the key, 16 hexadecimal characters.
    created : str
        When it was sealed, UTC, as ``2031-05-17T08:00:00Z``.
    plaintext_bytes : int
        Length of the safetensors file inside.
    meta : Mapping[str, str | int | float | bool]
        The caller's own, for example the metrics of the round. It is not secret: whoever can
        read the file can read it.

    Raises
    ------
    HeaderError
        If a value is not allowed.
    """

    version: int
    kind: Kind
    run: str
    round: int
    key_id: str
    created: str
    plaintext_bytes: int
    meta: Mapping[str, MetaValue]

    def __post_init__(self) -> None:
        if not _is_int(self.version) or self.version != HEADER_VERSION:
            raise HeaderError(f"version {self.version!r:.40} is not known; {HEADER_VERSION} is")
        if self.kind not in get_args(Kind):
            raise HeaderError(f"kind {self.kind!r:.40} is not one of {', '.join(get_args(Kind))}")
        check_run(self.run)
        if not _is_int(self.round) or not 0 <= self.round <= MOST_ROUND:
            raise HeaderError(f"round {self.round!r:.40} is not between 0 and {MOST_ROUND}")
        check_key_id(self.key_id)
        if not _is_time(self.created):
            raise HeaderError("a time of creation looks like 2031-05-17T08:00:00Z")
        if not _is_int(self.plaintext_bytes) or not 0 <= self.plaintext_bytes <= _MOST_INT:
            raise HeaderError(f"plaintext_bytes {self.plaintext_bytes!r:.40} is not a length")
        if not isinstance(self.meta, Mapping):
            raise HeaderError(f"meta is a {type(self.meta).__name__}, not a mapping")
        for name, value in self.meta.items():
            _check_meta(name, value)
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: UTF-8, sorted names, no spaces.

        Raises
        ------
        HeaderError
            If it is longer than 65536 bytes.
        """
        fields = {name: getattr(self, name) for name in _FIELDS - {"meta"}}
        fields["meta"] = dict(self.meta)
        encoded = _canonical(fields)
        if len(encoded) > MOST_HEADER_BYTES:
            raise HeaderError(
                f"the header needs {len(encoded)} bytes, the most is {MOST_HEADER_BYTES}; "
                "put less into meta"
            )
        return encoded

    @classmethod
    def from_bytes(cls, encoded: bytes) -> Header:
        """Parse canonical JSON, and nothing else.

        Raises
        ------
        NotACheckpointError
            If a field is missing, unknown or not allowed, or the bytes are not the canonical
            ones for these values (which excludes repeated names, too).
        """
        try:
            fields = json.loads(encoded.decode("utf-8"))
            canonical = _canonical(fields)
        except (ValueError, RecursionError):
            raise NotACheckpointError("the header of the checkpoint is not valid JSON") from None
        if canonical != encoded:
            raise NotACheckpointError("the header of the checkpoint is not canonical JSON")
        if not isinstance(fields, dict) or set(fields) != _FIELDS:
            raise NotACheckpointError("the header of the checkpoint has not the expected fields")
        try:
            return cls(**fields)
        except HeaderError as error:
            raise NotACheckpointError(f"the header of the checkpoint is wrong: {error}") from None


def check_run(run: object) -> None:
    """Raise `HeaderError` unless a value can name a run."""
    if not _is_name(run):
        raise HeaderError(f"a run's name has 1 to {_MOST_NAME} printable characters")


def check_key_id(key_id: object) -> None:
    """Raise `HeaderError` unless a value can name a key."""
    if not _matches(r"[0-9a-f]{16}", key_id):
        raise HeaderError("a key_id has 16 hexadecimal characters")


def _canonical(fields: object) -> bytes:
    text = json.dumps(
        fields, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
    )
    return text.encode("utf-8")


def _check_meta(name: object, value: object) -> None:
    if not _is_name(name):
        raise HeaderError(f"a name in meta has 1 to {_MOST_NAME} printable characters")
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        if not -_MOST_INT - 1 <= value <= _MOST_INT:
            raise HeaderError(f"meta {name!r} needs more than 64 bits")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise HeaderError(f"meta {name!r} is {value}; leave out what is not finite")
    elif not isinstance(value, str):
        raise HeaderError(f"meta {name!r} is a {type(value).__name__}; use str, int, float or bool")
    elif not _is_unicode(value):
        raise HeaderError(f"meta {name!r} is not valid Unicode")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= _MOST_NAME and value.isprintable()


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _matches(pattern: str, value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(pattern, value) is not None


def _is_time(value: object) -> bool:
    if not isinstance(value, str) or not _matches(
        r"[0-9]{4}(-[0-9]{2}){2}T[0-9]{2}(:[0-9]{2}){2}Z", value
    ):
        return False
    try:
        datetime.strptime(value, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return False
    return True
