"""The coordinator's signature: Ed25519 (RFC 8032), its key file, and the public half of the key.

Encryption under a key that several machines share cannot tell which of them wrote a file. The
signature can: only the coordinator holds the signing key, and whoever holds the verify key checks
a file without being able to read it.
"""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedveil.vault.errors import (
    KeyFileError,
    KeyFileExistsError,
    KeyFileMissingError,
    SignatureError,
)
from fedveil.vault.keyfile import create_secret_file, read_secret_file

__all__ = [
    "SIGNATURE_BYTES",
    "SIGNING_FORMAT",
    "SigningKey",
    "VerifyKey",
    "create_signing_key",
    "load_or_create_signing_key",
    "load_signing_key",
]

SIGNATURE_BYTES = 64
SIGNING_FORMAT = "fedveil-signing-1"

_KEY_BYTES = 32
_MOST_BYTES = 4096
_LABEL = b"fedveil/vault/2/file"


@dataclass(frozen=True)
class VerifyKey:
    """The public half of a signing key.

    Parameters
    ----------
    raw : bytes
        32 bytes, as RFC 8032 encodes a public key.

    Raises
    ------
    SignatureError
        If the length is another one.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if not isinstance(self.raw, bytes) or len(self.raw) != _KEY_BYTES:
            raise SignatureError(f"a verify key has {_KEY_BYTES} bytes")

    def __repr__(self) -> str:
        return f"VerifyKey({self.to_text()!r})"

    @classmethod
    def from_text(cls, text: str) -> VerifyKey:
        """Parse what `to_text` gave, and nothing else.

        Raises
        ------
        SignatureError
            If it is not that.
        """
        try:
            key = cls(base64.b64decode(text.encode("ascii"), validate=True))
        except (ValueError, SignatureError):
            raise SignatureError("a verify key is 44 characters of base64") from None
        if key.to_text() != text:
            raise SignatureError("a verify key is 44 characters of base64, in its one form")
        return key

    def to_text(self) -> str:
        """Return the key in base64, 44 characters."""
        return base64.b64encode(self.raw).decode("ascii")

    def verify(self, signature: bytes, bound: bytes, digest: bytes) -> None:
        """Check a signature that `SigningKey.sign` made of the same values.

        Raises
        ------
        SignatureError
            If this key's owner did not sign exactly that.
        """
        try:
            public = Ed25519PublicKey.from_public_bytes(self.raw)
            public.verify(signature, _statement(bound, digest))
        except (InvalidSignature, ValueError):
            raise SignatureError(
                f"not signed by the coordinator's key {self.to_text()}: the file was made or "
                "changed by somebody else"
            ) from None


@dataclass(frozen=True, repr=False)
class SigningKey:
    """The coordinator's signing key; printing it shows the public half only.

    Parameters
    ----------
    secret : bytes
        32 uniformly random bytes, the seed of RFC 8032.

    Raises
    ------
    KeyFileError
        If the secret has another length.
    """

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != _KEY_BYTES:
            raise KeyFileError(f"a signing key has {_KEY_BYTES} bytes, not {len(self.secret)}")

    def __repr__(self) -> str:
        return f"SigningKey(verify_key={self.verify_key.to_text()!r})"

    @classmethod
    def generate(cls) -> SigningKey:
        """Draw a key from the operating system's generator."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    @property
    def verify_key(self) -> VerifyKey:
        """The half that others check signatures with."""
        private = Ed25519PrivateKey.from_private_bytes(self.secret)
        return VerifyKey(private.public_key().public_bytes_raw())

    def sign(self, bound: bytes, digest: bytes) -> bytes:
        """Sign a file.

        Parameters
        ----------
        bound : bytes
            The start of the file up to the end of the header.
        digest : bytes
            32 bytes of the hash list of its encrypted stream.

        Returns
        -------
        bytes
            64 bytes: Ed25519 over a label, SHA-256 of `bound`, and `digest`.
        """
        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(_statement(bound, digest))


def load_signing_key(path: Path) -> SigningKey:
    """Read a signing key's file.

    Raises
    ------
    KeyFileMissingError
        If there is nothing at the path.
    KeyFileError
        If it is refused as `read_secret_file` does, is malformed, or names another verify key
        than belongs to it.
    """
    return _parse(path, read_secret_file(path, _MOST_BYTES))


def create_signing_key(path: Path) -> SigningKey:
    """Draw a new signing key and keep it in a new file of mode 0600.

    Raises
    ------
    KeyFileExistsError
        If anything is at the path already; it is left as it is.
    KeyFileError
        If the file cannot be written.
    """
    key = SigningKey.generate()
    fields = {
        "format": SIGNING_FORMAT,
        "verify_key": key.verify_key.to_text(),
        "key": base64.b64encode(key.secret).decode("ascii"),
    }
    create_secret_file(path, fields, "signing key")
    return key


def load_or_create_signing_key(path: Path) -> SigningKey:
    """Read the signing key's file, or create it when there is none.

    Two processes that do so at once get the same key.

    Raises
    ------
    KeyFileError
        As `load_signing_key` and `create_signing_key` do.
    """
    with suppress(KeyFileMissingError):
        return load_signing_key(path)
    with suppress(KeyFileExistsError):
        return create_signing_key(path)
    return load_signing_key(path)


def _statement(bound: bytes, digest: bytes) -> bytes:
    return _LABEL + hashlib.sha256(bound).digest() + digest


def _parse(path: Path, content: bytes) -> SigningKey:
    # No message shows what was read, nor is the parser's error chained: either may hold the key.
    malformed = KeyFileError(f"{path} is not a signing key of the format {SIGNING_FORMAT}")
    if len(content) > _MOST_BYTES:
        raise malformed
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        raise malformed from None
    if not isinstance(fields, dict) or set(fields) != {"format", "verify_key", "key"}:
        raise malformed
    if fields["format"] != SIGNING_FORMAT or not isinstance(fields["key"], str):
        raise malformed
    try:
        secret = base64.b64decode(fields["key"], validate=True)
    except ValueError:
        raise malformed from None
    if len(secret) != _KEY_BYTES:
        raise malformed
    key = SigningKey(secret)
    if fields["verify_key"] != key.verify_key.to_text():
        raise KeyFileError(
            f"the signing key {path} is damaged: it does not belong to the verify key that it "
            "names; restore it from a copy"
        )
    return key
