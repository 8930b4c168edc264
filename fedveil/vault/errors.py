"""The errors of the vault, each one line for a person."""

from __future__ import annotations

from fedveil.errors import FedveilError

__all__ = [
    "ExtendedError",
    "HeaderError",
    "KekError",
    "KeyFileError",
    "KeyFileExistsError",
    "KeyFileMissingError",
    "NotACheckpointError",
    "RollbackError",
    "SignatureError",
    "StoreDestroyedError",
    "StoreError",
    "StoreLockedError",
    "TamperedError",
    "TensorError",
    "TruncatedError",
    "VaultError",
    "WrongKeyError",
]


class VaultError(FedveilError):
    """Something that is kept encrypted cannot be written, read or trusted."""


class TruncatedError(VaultError):
    """Bytes are missing at the end."""


class ExtendedError(VaultError):
    """There are more bytes than were written."""


class TamperedError(VaultError):
    """Authentication failed: bytes were changed, or the key or the associated data differ."""


class NotACheckpointError(VaultError):
    """The bytes are not an encrypted checkpoint of a version that is known here."""


class WrongKeyError(VaultError):
    """The data was sealed under another key than the one given."""


class HeaderError(VaultError):
    """A field of a checkpoint's header has a value that is not allowed."""


class TensorError(VaultError):
    """Arrays that the safetensors layout cannot hold, or a layout that is not valid."""


class KekError(VaultError):
    """A key-encryption key, or what it has wrapped, cannot be used."""


class KeyFileError(KekError):
    """A key file cannot be used."""


class KeyFileMissingError(KeyFileError):
    """There is no key file at that path."""


class KeyFileExistsError(KeyFileError):
    """There is something at the path where a key file was to be created."""


class StoreError(VaultError):
    """A model store cannot be opened, written or read."""


class StoreLockedError(StoreError):
    """Another writer holds the store."""


class StoreDestroyedError(StoreError):
    """The model key of the store was destroyed: nothing in it can be read again."""


class RollbackError(StoreError):
    """The store holds less, or something else, than was seen in it before."""


class SignatureError(VaultError):
    """A round is not signed by the coordinator that it should be signed by."""
