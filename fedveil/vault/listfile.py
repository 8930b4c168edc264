"""``keys.json``, the file of the key list: reading it, and writing it durably."""

from __future__ import annotations

from pathlib import Path

from fedveil.vault.errors import KekError, StoreError, VaultError
from fedveil.vault.files import open_private, read_small, replace_file
from fedveil.vault.keyfile import Key
from fedveil.vault.keylist import KEYS_FORMAT, KeyList, SealedKeyList

__all__ = ["KEYS_NAME", "is_key_list", "read_keys", "write_keys"]

KEYS_NAME = "keys.json"

_MOST_BYTES = 1 << 16


def is_key_list(path: Path) -> bool:
    """Return whether a file is, by what it calls itself, a key list, whole or damaged."""
    try:
        with open_private(path) as (descriptor, _):
            return KEYS_FORMAT.encode("ascii") in read_small(descriptor, _MOST_BYTES)
    except (OSError, VaultError):
        return False


def read_keys(directory: Path, store: str) -> SealedKeyList:
    """Read the key list of a store; its code is not checked yet.

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
        listed = SealedKeyList.from_bytes(content)
    except StoreError as error:
        raise StoreError(f"{path} is {error}") from None
    if listed.keys.store != store:
        raise StoreError(
            f"{path} belongs to the store {listed.keys.store}, not to {store}; restore it from a "
            "copy"
        )
    return listed


def write_keys(directory: Path, keys: KeyList, key: Key) -> None:
    """Write a key list, durably, in the place of what may be there.

    Parameters
    ----------
    directory : Path
        The folder of the store.
    keys : KeyList
        The list.
    key : Key
        Its current model key.

    Raises
    ------
    KekError
        If the list is longer than what is read again.
    OSError
        If it cannot be written.
    """
    content = memoryview(keys.seal(key).to_bytes())
    if len(content) > _MOST_BYTES:
        raise KekError(
            f"{directory / KEYS_NAME} would have {len(content)} bytes, and {_MOST_BYTES} are the "
            "most; retire a key-encryption key first"
        )
    replace_file(directory / KEYS_NAME, lambda sink: sink.write(content))
