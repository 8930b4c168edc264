"""The key that everything in a store is encrypted under, and the file that keeps it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.vault.errors import (
    KeyFileError,
    KeyFileExistsError,
    KeyFileMissingError,
    VaultError,
)
from fedveil.vault.files import create_file, open_private, read_small
from fedveil.vault.stream import KEY_BYTES

__all__ = [
    "KEY_FORMAT",
    "Key",
    "create_key",
    "create_secret_file",
    "load_key",
    "load_or_create_key",
    "read_secret_file",
]

KEY_FORMAT = "fedveil-key-1"

_KEY_ID_LABEL = b"fedveil/vault/key-id/1"
_KEY_ID_BYTES = 8
_MOST_BYTES = 4096


@dataclass(frozen=True, repr=False)
class Key:
    """A secret key; printing it shows its identifier only.

    Parameters
    ----------
    secret : bytes
        32 uniformly random bytes.

    Raises
    ------
    KeyFileError
        If the secret has another length.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise KeyFileError(f"a key has {KEY_BYTES} bytes, not {len(self.secret)}")

    def __repr__(self) -> str:
        return f"Key(key_id={self.key_id!r})"

    @classmethod
    def generate(cls) -> Key:
        """Draw a key from the operating system's generator."""
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def key_id(self) -> str:
        """The public name of the key, 16 hexadecimal characters.

        HKDF-SHA256 (RFC 5869) of the secret with an own label: it tells keys apart and reveals
        nothing about the secret or about what else is derived from it.
        """
        kdf = HKDF(algorithm=SHA256(), length=_KEY_ID_BYTES, salt=None, info=_KEY_ID_LABEL)
        return kdf.derive(self.secret).hex()


def load_key(path: Path) -> Key:
    """Read a key file.

    Raises
    ------
    KeyFileMissingError
        If there is nothing at the path.
    KeyFileError
        If it is refused as `read_secret_file` does, is malformed, or names another key than it
        holds.
    """
    return _parse(path, read_secret_file(path, _MOST_BYTES))


def read_secret_file(path: Path, most_bytes: int) -> bytes:
    """Read a small file that nobody but its owner may use; of a longer one, one byte too many.

    Raises
    ------
    KeyFileMissingError
        If there is nothing at the path.
    KeyFileError
        If it is a symbolic link or no regular file, belongs to another user, or lets group or
        others read, write or execute it.
    """
    try:
        with open_private(path) as (descriptor, status):
            _check_status(path, status)
            return read_small(descriptor, most_bytes)
    except FileNotFoundError:
        raise KeyFileMissingError(
            f"there is no key file at {path}; check the path, or create the key first"
        ) from None
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from None
    except KeyFileError:
        raise
    except VaultError as error:
        raise KeyFileError(f"key file refused: {error}") from None


def create_secret_file(path: Path, fields: Mapping[str, str], what: str) -> None:
    """Keep a secret in a new JSON file of mode 0600, complete and on the disk, or not at all.

    Parameters
    ----------
    path : Path
        Where.
    fields : Mapping[str, str]
        What it holds.
    what : str
        What it is called where it cannot be written.

    Raises
    ------
    KeyFileExistsError
        If anything is at the path already; it is left as it is.
    KeyFileError
        If the file cannot be written.
    """
    content = (json.dumps(fields, indent=2) + "\n").encode("ascii")
    try:
        create_file(path, lambda sink: sink.write(memoryview(content)))
    except FileExistsError:
        raise KeyFileExistsError(
            f"{path} exists already and is left as it is; load it, or choose another path"
        ) from None
    except OSError as error:
        raise KeyFileError(f"cannot create the {what} {path}: {error.strerror}") from None


def create_key(path: Path) -> Key:
    """Draw a new key and keep it in a new file of mode 0600.

    The file appears complete and on the disk, or not at all.

    Raises
    ------
    KeyFileExistsError
        If anything is at the path already; it is left as it is.
    KeyFileError
        If the file cannot be written.
    """
    key = Key.generate()
    encoded = base64.b64encode(key.secret).decode("ascii")
    fields = {"format": KEY_FORMAT, "key_id": key.key_id, "key": encoded}
    create_secret_file(path, fields, "key file")
    return key


def load_or_create_key(path: Path) -> Key:
    """Read the key file, or create it when there is none.

    Two processes that do so at once get the same key.

    Raises
    ------
    KeyFileError
        As `load_key` and `create_key` do.
    """
    with suppress(KeyFileMissingError):
        return load_key(path)
    with suppress(KeyFileExistsError):
        return create_key(path)
    return load_key(path)


def _check_status(path: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise KeyFileError(
            f"the key file {path} belongs to user {status.st_uid}, not to you ({os.geteuid()}); "
            "use a key file of your own"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise KeyFileError(
            f"the key file {path} has mode {mode:04o}, so that others may use it; "
            f"if nobody has read it, run: chmod 600 {path}"
        )


def _parse(path: Path, content: bytes) -> Key:
    # No message shows what was read, nor is the parser's error chained: either may hold the key.
    malformed = KeyFileError(f"{path} is not a key file of the format {KEY_FORMAT}")
    if len(content) > _MOST_BYTES:
        raise malformed
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise malformed from None
    if not isinstance(fields, dict) or set(fields) != {"format", "key_id", "key"}:
        raise malformed
    if fields["format"] != KEY_FORMAT or not isinstance(fields["key"], str):
        raise malformed
    try:
        secret = base64.b64decode(fields["key"], validate=True)
    except (ValueError, binascii.Error):
        raise malformed from None
    if len(secret) != KEY_BYTES:
        raise malformed
    key = Key(secret)
    if fields["key_id"] != key.key_id:
        raise KeyFileError(
            f"the key file {path} is damaged: it names the key {fields['key_id']!r:.40}, but holds "
            f"{key.key_id}; restore it from a copy"
        )
    return key
