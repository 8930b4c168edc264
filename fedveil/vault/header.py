"""The header of an encrypted checkpoint: what it says, and its canonical bytes."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal, TypeAlias, TypeGuard, get_args

from fedveil.vault.errors import HeaderError, NotACheckpointError

__all__ = [
    "HEADER_VERSION",
    "MAGIC",
    "MOST_HEADER_BYTES",
    "MOST_ROUND",
    "PREFIX_BYTES",
    "Address",
    "Header",
    "Kind",
    "MetaValue",
    "check_fingerprint",
    "check_public_id",
    "check_round",
    "check_run",
]

MAGIC = b"FVLT2\n"
PREFIX_BYTES = len(MAGIC) + 4
"""Bytes before the header: the magic and the header's length."""

HEADER_VERSION = 2
MOST_HEADER_BYTES = 1 << 16
MOST_ROUND = 999_999

Kind: TypeAlias = Literal["model", "strategy-state"]
MetaValue: TypeAlias = str | int | float | bool

_MOST_NAME = 128
_FIELDS = {
    *("version", "kind", "store", "run", "round", "created", "plaintext_bytes"),
    *("previous", "state", "commitment", "meta"),
}
_MOST_INT = 2**63 - 1
# Half of what the 2^32 segments of a stream can hold.
_MOST_PLAINTEXT = 1 << 51


@dataclass(frozen=True)
class Address:
    """Where a file belongs: which kind of which round of which store.

    Parameters
    ----------
    kind : {"model", "strategy-state"}
        What the arrays are.
    store : str
        Public name of the store, 16 hexadecimal characters.
    run : str
        Name of the training run, 1 to 128 printable characters.
    round : int
        Round after which the arrays were saved, 0 to 999999.

    Raises
    ------
    HeaderError
        If a value is not allowed.
    """

    kind: Kind
    store: str
    run: str
    round: int

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise HeaderError(f"kind {self.kind!r:.40} is not one of {', '.join(get_args(Kind))}")
        check_public_id("store", self.store)
        check_run(self.run)
        check_round(self.round)

    def __str__(self) -> str:
        return f"the {self.kind} of round {self.round} of run {self.run!r} (store {self.store})"


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an encrypted file says about itself, in clear and authenticated.

    Parameters
    ----------
    version : int
        Version of the file format, 2.
    kind, store, run, round
        As in `Address`.
    created : str
        When it was sealed, UTC, as ``2031-05-17T08:00:00Z``.
    plaintext_bytes : int
        Length of the safetensors file inside, at most 2^51.
    previous : str
        Fingerprint of the model saved before this round; empty in the first.
    state : str
        Fingerprint of the strategy state that was saved with this model; empty where there is
        none, and in a strategy state.
    commitment : str
        What the data key commits to, 64 hexadecimal characters: no other key opens the file.
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
    store: str
    run: str
    round: int
    created: str
    plaintext_bytes: int
    previous: str
    state: str
    commitment: str
    meta: Mapping[str, MetaValue]

    def __post_init__(self) -> None:
        if not _is_int(self.version) or self.version != HEADER_VERSION:
            raise HeaderError(f"version {self.version!r:.40} is not known; {HEADER_VERSION} is")
        self.address()
        if not _is_time(self.created):
            raise HeaderError("a time of creation looks like 2031-05-17T08:00:00Z")
        if not _is_int(self.plaintext_bytes) or not 0 <= self.plaintext_bytes <= _MOST_PLAINTEXT:
            raise HeaderError(
                f"plaintext_bytes {self.plaintext_bytes!r:.40} is not between 0 and "
                f"{_MOST_PLAINTEXT}"
            )
        for what, link in (("previous", self.previous), ("state", self.state)):
            if link != "":
                check_fingerprint(what, link)
        check_fingerprint("commitment", self.commitment)
        if not isinstance(self.meta, Mapping):
            raise HeaderError(f"meta is a {type(self.meta).__name__}, not a mapping")
        for name, value in self.meta.items():
            _check_meta(name, value)
        object.__setattr__(self, "meta", MappingProxyType(dict(self.meta)))

    def address(self) -> Address:
        """Return where the file belongs."""
        return Address(self.kind, self.store, self.run, self.round)

    def fingerprint(self) -> str:
        """Return the SHA-256 of `bound`, in hexadecimal: the name of exactly this file's header."""
        return hashlib.sha256(self.bound()).hexdigest()

    def bound(self) -> bytes:
        """Return the start of the file up to the end of the header, which binds all the rest.

        Raises
        ------
        HeaderError
            As `to_bytes` does.
        """
        encoded = self.to_bytes()
        return MAGIC + len(encoded).to_bytes(4, "big") + encoded

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


def check_round(round_: object) -> None:
    """Raise `HeaderError` unless a value can number a round."""
    if not _is_int(round_) or not 0 <= round_ <= MOST_ROUND:
        raise HeaderError(f"round {round_!r:.40} is not between 0 and {MOST_ROUND}")


def check_fingerprint(what: str, value: object) -> None:
    """Raise `HeaderError` unless a value is 32 bytes in hexadecimal."""
    if not _matches(r"[0-9a-f]{64}", value):
        raise HeaderError(f"the {what} has 64 hexadecimal characters")


def check_public_id(what: str, value: object) -> None:
    """Raise `HeaderError` unless a value can name a store or a key."""
    if not _matches(r"[0-9a-f]{16}", value):
        raise HeaderError(f"the name of a {what} has 16 hexadecimal characters")


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


def _is_int(value: object) -> TypeGuard[int]:
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
