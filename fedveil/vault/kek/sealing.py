"""What providers share: the checks, the associated data, and AES-256-GCM of one secret."""

from __future__ import annotations

import secrets
from collections.abc import Set

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedveil.vault.errors import KekError, TamperedError, WrongKeyError
from fedveil.vault.kek.interface import WrappedKey

__all__ = [
    "LABEL",
    "SECRET_BYTES",
    "check_secret",
    "check_unwrapped",
    "check_wrapped",
    "frame",
    "open_sealed",
    "seal",
]

LABEL = b"fedveil/vault/kek/1"
SECRET_BYTES = 32

_NONCE_BYTES = 12
_TAG_BYTES = 16


def check_secret(secret: bytes) -> None:
    """Refuse to wrap what is no secret of 32 bytes.

    Raises
    ------
    KekError
        If it has another length.
    """
    if len(secret) != SECRET_BYTES:
        raise KekError(f"a key to wrap has {SECRET_BYTES} bytes, not {len(secret)}")


def check_unwrapped(secret: bytes) -> bytes:
    """Return what was unwrapped, unless no `wrap` can have been given it.

    Raises
    ------
    TamperedError
        If it has another length than 32 bytes.
    """
    if len(secret) != SECRET_BYTES:
        raise TamperedError(
            f"the wrapped key holds {len(secret)} bytes in the place of {SECRET_BYTES}; "
            "restore the file that it comes from"
        )
    return secret


def check_wrapped(
    wrapped: WrappedKey, provider: str, key_id: str | None, parameters: Set[str] = frozenset()
) -> None:
    """Refuse a wrapped key of another KEK, or one with other parameters than the provider's.

    Parameters
    ----------
    wrapped : WrappedKey
        What is to be unwrapped.
    provider : str
        Name of the provider that is to do so.
    key_id : str, optional
        Public name of its KEK; without one, any name will do.
    parameters : set of str
        Exactly the names that the parameters must have.

    Raises
    ------
    WrongKeyError
        If the provider or the name differ.
    KekError
        If the parameters do.
    """
    if wrapped.provider != provider:
        raise WrongKeyError(
            f"the key is wrapped by a KEK of the provider {wrapped.provider!r:.40}, not by one of "
            f"{provider!r}; name the KEK that wrapped it"
        )
    if key_id is not None and wrapped.key_id != key_id:
        raise WrongKeyError(
            f"the key is wrapped by the {provider} KEK {wrapped.key_id!r:.200}, not by "
            f"{key_id!r:.200}; name the KEK that wrapped it"
        )
    if wrapped.parameters.keys() != parameters:
        raise KekError(
            f"a key wrapped by {provider!r} has {len(parameters)} parameters of fixed names, not "
            f"the {len(wrapped.parameters)} given; restore the file that it comes from"
        )


def frame(*parts: bytes) -> bytes:
    """Join parts so that no two lists of parts give the same bytes.

    Each part is preceded by its length as an unsigned number of 4 bytes, big-endian.
    """
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def seal(key: bytes, secret: bytes, provider: str, key_id: str, context: bytes) -> bytes:
    """Encrypt a secret with AES-256-GCM (NIST SP 800-38D) under a random nonce.

    Parameters
    ----------
    key : bytes
        32 bytes, used for nothing else.
    secret : bytes
        32 bytes.
    provider, key_id : str
        Authenticated with the label and the context, as associated data.
    context : bytes
        As `KekProvider.wrap` is given it.

    Returns
    -------
    bytes
        Nonce (12), ciphertext (32) and tag (16).

    Raises
    ------
    KekError
        If the secret has another length.
    """
    check_secret(secret)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, secret, _associated(provider, key_id, context))


def open_sealed(key: bytes, blob: bytes, provider: str, key_id: str, context: bytes) -> bytes:
    """Return the secret that `seal` was given, with the same parameters.

    Raises
    ------
    TamperedError
        If the key, the blob, or anything in the associated data is not the same.
    """
    if len(blob) == _NONCE_BYTES + SECRET_BYTES + _TAG_BYTES:
        nonce, ciphertext = blob[:_NONCE_BYTES], blob[_NONCE_BYTES:]
        try:
            return AESGCM(key).decrypt(nonce, ciphertext, _associated(provider, key_id, context))
        except InvalidTag:
            pass
    raise TamperedError(
        f"the key wrapped by the {provider} KEK {key_id!r:.200} was changed, or belongs to another "
        "store; restore the file that it comes from"
    )


def _associated(provider: str, key_id: str, context: bytes) -> bytes:
    return frame(LABEL, provider.encode(), key_id.encode(), context)
