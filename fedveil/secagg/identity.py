"""Who a client is: long-term Ed25519 keys, and the roster of everybody's."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedveil.secagg.errors import RosterError

__all__ = ["NAME_BYTES", "Identity", "Roster", "check_name", "verifies"]

NAME_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """A client's name and private key; printing it shows the name only.

    Parameters
    ----------
    name : str
        1 to 64 bytes, printable, without spaces.
    secret : bytes
        Private key of Ed25519 (RFC 8032), 32 bytes.

    Raises
    ------
    RosterError
        If either is malformed.
    """

    name: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(self.secret) != 32:
            raise RosterError(f"a private key has 32 bytes, not {len(self.secret)}")

    @classmethod
    def generate(cls, name: str) -> Identity:
        """Draw a new key from the operating system's generator."""
        return cls(name, Ed25519PrivateKey.generate().private_bytes_raw())

    @cached_property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """Return the signature, 64 bytes."""
        return self._key.sign(message)

    @property
    def _key(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.secret)


@dataclass(frozen=True)
class Roster:
    """The clients that one's own updates may be summed with, by name and public key.

    Parameters
    ----------
    keys : Mapping of str to bytes
        Name to public key of Ed25519, 32 bytes.

    Raises
    ------
    RosterError
        If a name or a key is malformed, or two names have one key.
    """

    keys: Mapping[str, bytes]

    def __post_init__(self) -> None:
        owner: dict[bytes, str] = {}
        for name, key in self.keys.items():
            check_name(name)
            if len(key) != 32:
                raise RosterError(f"the public key of {name} has {len(key)} bytes, not 32")
            if key in owner:
                raise RosterError(
                    f"{owner[key]} and {name} have the same public key; each needs its own"
                )
            owner[key] = name
        object.__setattr__(self, "keys", MappingProxyType(dict(self.keys)))

    def check(self, name: str, key: bytes) -> None:
        """Refuse a client that is not in the roster, or has another key there.

        Raises
        ------
        RosterError
            Which it is.
        """
        pinned = self.keys.get(name)
        if pinned is None:
            raise RosterError(
                f"{name!r} is not in this client's roster; if it belongs there, add it with "
                "`fedveil roster add`",
                name,
            )
        if not hmac.compare_digest(pinned, key):
            raise RosterError(
                f"{name!r} shows another key than the one in this client's roster; somebody may "
                "be posing as it. Ask its owner; if the key is right, remove it from the roster, "
                "then add it",
                name,
            )


# In a simulation every client verifies what the others did in the same process.
@lru_cache(maxsize=2048)
def verifies(key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether a signature is right."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def check_name(name: str) -> None:
    """Refuse a name that could not be told apart, shown or sent.

    Raises
    ------
    RosterError
        If it is empty, long, or has spaces or characters that do not print.
    """
    if not (0 < len(name.encode()) <= NAME_BYTES and name.isprintable() and " " not in name):
        raise RosterError(
            f"a client's name is 1 to {NAME_BYTES} printable bytes without spaces, not {name!r:.80}"
        )
