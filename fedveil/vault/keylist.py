"""``keys.json``: the model key of a store, encrypted under every key-encryption key that opens it.

While the model key is being exchanged there are two, or the files still have slots of one that is
gone; the list says so, so that whoever comes next can finish.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedveil.vault.errors import HeaderError, KekError, StoreError, VaultError
from fedveil.vault.files import open_private, read_small, replace_file
from fedveil.vault.header import check_public_id
from fedveil.vault.kek.interface import WrappedKey

__all__ = [
    "KEYS_FORMAT",
    "KEYS_NAME",
    "MOST_KEKS",
    "KeyList",
    "WrappedModelKey",
    "read_keys",
    "write_keys",
]

KEYS_FORMAT = "fedveil-keys-2"
KEYS_NAME = "keys.json"
MOST_KEKS = 16

_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class WrappedModelKey:
    """A model key, encrypted under each of some key-encryption keys.

    Parameters
    ----------
    key_id : str
        Public name of the model key, 16 hexadecimal characters.
    wraps : tuple of WrappedKey
        One a KEK, 1 to 16, no two of one name.

    Raises
    ------
    HeaderError, KekError
        If a value is not allowed.
    """

    key_id: str
    wraps: tuple[WrappedKey, ...]

    def __post_init__(self) -> None:
        check_public_id("model key", self.key_id)
        if not 1 <= len(self.wraps) <= MOST_KEKS:
            raise KekError(f"a store has 1 to {MOST_KEKS} key-encryption keys")
        names = [wrapped.key_id for wrapped in self.wraps]
        for name in names:
            if names.count(name) > 1:
                raise KekError(f"there is a key-encryption key {name} already")


@dataclass(frozen=True)
class KeyList:
    """What ``keys.json`` says. None of it is secret, and nothing vouches for it.

    A changed list can make a store unreadable, but opens it to nobody: every wrapped key is bound
    to the store and the model key that it is for.

    Parameters
    ----------
    store : str
        Public name of the store, 16 hexadecimal characters.
    current : WrappedModelKey
        The key that every file has a slot for.
    upcoming : WrappedModelKey or None
        The key that files are being given a slot for, while the model key is being exchanged.
    clearing : bool
        Whether files may still have slots of the key before `current`.

    Raises
    ------
    HeaderError, KekError
        If a value is not allowed.
    """

    store: str
    current: WrappedModelKey
    upcoming: WrappedModelKey | None = None
    clearing: bool = False

    def __post_init__(self) -> None:
        check_public_id("store", self.store)
        if type(self.clearing) is not bool:
            raise KekError("clearing is true or false")
        if self.upcoming is not None and (
            self.clearing or self.upcoming.key_id == self.current.key_id
        ):
            raise KekError("a store has one other model key at a time")

    def model_keys(self) -> Iterator[WrappedModelKey]:
        """Yield the current model key and the upcoming one, if any."""
        yield self.current
        if self.upcoming is not None:
            yield self.upcoming

    def to_bytes(self) -> bytes:
        """Return the canonical JSON: sorted names, indented by two, a newline at the end."""
        return _canonical(
            {
                "format": KEYS_FORMAT,
                "store": self.store,
                "current": _key_fields(self.current),
                "upcoming": None if self.upcoming is None else _key_fields(self.upcoming),
                "clearing": self.clearing,
            }
        )

    @classmethod
    def from_bytes(cls, encoded: bytes) -> KeyList:
        """Parse canonical JSON, and nothing else.

        Raises
        ------
        StoreError
            If it is not a key list, or not in its one form.
        """
        try:
            return _parse(encoded)
        except (StoreError, HeaderError, KekError) as error:
            raise StoreError(f"not a key list of the format {KEYS_FORMAT}: {error}") from None
        except (ValueError, RecursionError, TypeError, KeyError):
            raise StoreError(f"not a key list of the format {KEYS_FORMAT}") from None


def read_keys(directory: Path, store: str) -> KeyList:
    """Read the key list of a store.

    Raises
    ------
    StoreError
        If it is missing, cannot be read, is malformed, or belongs to another store.
    """
    path = directory / KEYS_NAME
    try:
        with open_private(path) as (descriptor, _):
            content = read_small(descriptor, _MOST_BYTES)
    except FileNotFoundError:
        raise StoreError(
            f"the model store {directory} has no {KEYS_NAME}: without its model key no round can "
            "be read; restore the file from a copy"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}") from None
    except VaultError as error:
        raise StoreError(f"model store refused: {error}") from None
    if len(content) > _MOST_BYTES:
        raise StoreError(f"{path} is longer than {_MOST_BYTES} bytes: not a key list")
    try:
        keys = KeyList.from_bytes(content)
    except StoreError as error:
        raise StoreError(f"{path} is {error}") from None
    if keys.store != store:
        raise StoreError(
            f"{path} belongs to the store {keys.store}, not to {store}; restore it from a copy"
        )
    return keys


def write_keys(directory: Path, keys: KeyList) -> None:
    """Write a key list, durably, in the place of what may be there.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    content = memoryview(keys.to_bytes())
    replace_file(directory / KEYS_NAME, lambda sink: sink.write(content))


def _canonical(fields: object) -> bytes:
    text = json.dumps(fields, ensure_ascii=False, allow_nan=False, sort_keys=True, indent=2)
    return f"{text}\n".encode()


def _parse(encoded: bytes) -> KeyList:
    fields = json.loads(encoded.decode("utf-8"))
    if _canonical(fields) != encoded:
        raise StoreError("it is not canonical JSON")
    if set(fields) != {"format", "store", "current", "upcoming", "clearing"}:
        raise StoreError("it has other fields")
    if fields["format"] != KEYS_FORMAT:
        raise StoreError(f"it says {fields['format']!r:.40}")
    upcoming = None if fields["upcoming"] is None else _parse_key(fields["upcoming"])
    return KeyList(fields["store"], _parse_key(fields["current"]), upcoming, fields["clearing"])


def _key_fields(key: WrappedModelKey) -> Mapping[str, object]:
    wraps = [
        {
            "provider": wrapped.provider,
            "key_id": wrapped.key_id,
            "blob": base64.b64encode(wrapped.blob).decode("ascii"),
            "parameters": dict(wrapped.parameters),
        }
        for wrapped in key.wraps
    ]
    return {"key_id": key.key_id, "wraps": wraps}


def _parse_key(fields: dict[str, object]) -> WrappedModelKey:
    if set(fields) != {"key_id", "wraps"}:
        raise StoreError("it describes a model key wrongly")
    key_id, wraps = fields["key_id"], fields["wraps"]
    if not isinstance(key_id, str) or not isinstance(wraps, list):
        raise StoreError("it describes a model key wrongly")
    return WrappedModelKey(key_id, tuple(_parse_wrap(each) for each in wraps))


def _parse_wrap(fields: dict[str, object]) -> WrappedKey:
    wrong = StoreError("it describes a wrapped key wrongly")
    if set(fields) != {"provider", "key_id", "blob", "parameters"}:
        raise wrong
    provider, key_id, blob, parameters = (
        fields[name] for name in ("provider", "key_id", "blob", "parameters")
    )
    if not (isinstance(provider, str) and isinstance(key_id, str) and isinstance(blob, str)):
        raise wrong
    if not isinstance(parameters, dict):
        raise wrong
    raw = base64.b64decode(blob.encode("ascii"), validate=True)
    if base64.b64encode(raw).decode("ascii") != blob:
        raise wrong
    return WrappedKey(provider, key_id, raw, parameters)
