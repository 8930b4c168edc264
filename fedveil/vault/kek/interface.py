"""What a key-encryption key is to the vault: it wraps one small secret, and unwraps it again.

A KEK never meets weights. It encrypts model keys (one a store), which encrypt data keys (one a
file), which encrypt weights: a KEK can lie in a file, in somebody's head, or in a service that
never gives it out, and is exchanged by rewriting a few hundred bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Protocol

from fedveil.vault.errors import KekError

__all__ = ["MOST_BLOB_BYTES", "KekProvider", "WrappedKey"]

MOST_BLOB_BYTES = 8192

_MOST_NAME = 256
_MOST_PARAMETERS = 16
_MOST_INT = 2**63 - 1


@dataclass(frozen=True)
class WrappedKey:
    """A secret that one KEK has encrypted, and what is needed to find that KEK again.

    Nothing in it is secret, and nothing in it is trusted: whoever can write the file that holds it
    chooses these values, so a provider checks them before it acts on them.

    Parameters
    ----------
    provider : str
        Name of the provider, for example ``file``.
    key_id : str
        Public name of the KEK, 1 to 256 printable characters.
    blob : bytes
        The encrypted secret, 1 to 8192 bytes, in the provider's own form.
    parameters : Mapping[str, str | int]
        What else the provider needs, for example the salt and costs of a passphrase.

    Raises
    ------
    KekError
        If a value is not allowed.
    """

    provider: str
    key_id: str
    blob: bytes
    parameters: Mapping[str, str | int]

    def __post_init__(self) -> None:
        for what, value in (("provider", self.provider), ("key_id", self.key_id)):
            if not _is_name(value):
                raise KekError(
                    f"the {what} of a wrapped key has 1 to {_MOST_NAME} printable characters"
                )
        if not isinstance(self.blob, bytes) or not 1 <= len(self.blob) <= MOST_BLOB_BYTES:
            raise KekError(f"a wrapped key has 1 to {MOST_BLOB_BYTES} bytes")
        if not isinstance(self.parameters, Mapping) or len(self.parameters) > _MOST_PARAMETERS:
            raise KekError(f"a wrapped key has at most {_MOST_PARAMETERS} parameters")
        for name, parameter in self.parameters.items():
            is_number = type(parameter) is int and abs(parameter) <= _MOST_INT
            if not _is_name(name) or not (is_number or _is_name(parameter)):
                raise KekError(f"parameter {name!r:.40} of a wrapped key is not allowed")
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))


class KekProvider(Protocol):
    """One key-encryption key, wherever it is.

    `context` is authenticated with the secret, as associated data: what was wrapped for one store
    does not unwrap in the place of another. It is not secret.
    """

    name: ClassVar[str]
    """Name of the kind of provider, as it stands in `WrappedKey.provider`."""

    @property
    def key_id(self) -> str:
        """Public name of the KEK that `wrap` uses, as it stands in `WrappedKey.key_id`.

        Two KEKs never share one within a provider, or within a server where the provider is a
        service. A passphrase has a new one in every provider object. Which wrapped keys belong to
        a KEK is therefore found out by `unwrap`, with those of its provider: `WrongKeyError`
        means that another's is at hand.

        Raises
        ------
        KekError
            If a service has to be asked for it and cannot be.
        """

    def wrap(self, secret: bytes, context: bytes) -> WrappedKey:
        """Encrypt a secret of 32 bytes.

        Raises
        ------
        KekError
            If the KEK cannot be used.
        """

    def unwrap(self, wrapped: WrappedKey, context: bytes) -> bytes:
        """Return the secret that `wrap` was given.

        Raises
        ------
        WrongKeyError
            If another KEK wrapped it.
        TamperedError
            If the wrapped key or the context was changed.
        KekError
            If the KEK cannot be used, or the wrapped key asks for what is not allowed.
        """

    def rewrap(self, wrapped: WrappedKey, context: bytes) -> WrappedKey:
        """Wrap the same secret anew, under the KEK's newest version and with fresh randomness.

        A service that can do so without giving the secret out does. Errors are those of `unwrap`.
        """


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= _MOST_NAME and value.isprintable()
