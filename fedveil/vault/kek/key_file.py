"""A KEK in a key file: ``file:PATH``."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.vault.errors import KekError
from fedveil.vault.kek.interface import WrappedKey
from fedveil.vault.kek.sealing import LABEL, check_wrapped, open_sealed, seal
from fedveil.vault.keyfile import Key, load_key

__all__ = ["KeyFileKek", "open_key_file"]


class KeyFileKek:
    """Wraps with AES-256-GCM under a key that is derived from the one in a key file.

    The derived key is HKDF-SHA256 (RFC 5869) of the file's 32 bytes without a salt, info
    ``fedveil/vault/kek/1``, 32 bytes long. The blob is nonce (12), ciphertext (32) and tag (16);
    its associated data are the label, the provider's name, the key's id and the context, each
    after its length in 4 bytes.

    Parameters
    ----------
    key : Key
        What the key file holds; its id is the KEK's.
    """

    name: ClassVar[str] = "file"

    def __init__(self, key: Key) -> None:
        self._key_id = key.key_id
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=LABEL)
        self._derived = kdf.derive(key.secret)

    @property
    def key_id(self) -> str:
        """Public name of the key in the file, 16 hexadecimal characters."""
        return self._key_id

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        """Encrypt a secret of 32 bytes; see `KekProvider.wrap`."""
        blob = seal(self._derived, secret, self.name, self._key_id, context)
        return WrappedKey(self.name, self._key_id, blob, {})

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the secret that `wrap` was given; see `KekProvider.unwrap`."""
        check_wrapped(wrapped, self.name, self._key_id)
        return open_sealed(self._derived, wrapped.blob, self.name, self._key_id, context)

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """Wrap the same secret anew; see `KekProvider.rewrap`."""
        return self.wrap(self.unwrap(wrapped, context), context)


def open_key_file(path: str) -> KeyFileKek:
    """Return the KEK of a key file of the format ``fedveil-key-1``.

    Raises
    ------
    KekError
        If no path is given, or the file is refused as `load_key` does.
    """
    if not path:
        raise KekError("file: needs the path of a key file, for example file:keys/model.key")
    return KeyFileKek(load_key(Path(path)))
