"""What every key, seal and signature of a session is bound to."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Sequence
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.secagg.errors import ProtocolError

__all__ = [
    "DIGEST_BYTES",
    "agree_all",
    "commit_to_seed",
    "commit_to_share",
    "digest",
    "kdf",
    "refuse_low_order",
]

DIGEST_BYTES = 32
_KEY_BYTES = 32

_LABEL = b"fedveil/secagg/1/"
_NUMBERS = struct.Struct(">III")
_P = 2**255 - 19
_LOW_ORDER = {
    0,
    1,
    _P - 1,
    325606250916557431795983626356110631294008115727848805560023387167927233504,
    39382357235489614581723060781553021112529911719440698176882885853963445705823,
}
"""The u coordinates of the points whose order divides 8 (Bernstein, "Curve25519", 2006)."""


def digest(purpose: str, *parts: bytes) -> bytes:
    """Return the SHA-256 of labelled, length-prefixed parts: no two lists of parts collide."""
    return hashlib.sha256(_join(purpose, parts)).digest()


def kdf(secret: bytes, purpose: str, *context: bytes) -> bytes:
    """Return 32 bytes by HKDF-SHA256 (RFC 5869), the context in its info."""
    info = _join(purpose, context)
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=info).derive(secret)


def agree_all(private: bytes, publics: Iterable[bytes]) -> list[bytes]:
    """Return the X25519 shared secret of a key with each of others (RFC 7748, section 6.1).

    Raises
    ------
    ProtocolError
        If a public key is of low order, so that the secret would be known to everybody.
    """
    own = X25519PrivateKey.from_private_bytes(private)
    try:
        return [own.exchange(X25519PublicKey.from_public_bytes(public)) for public in publics]
    except ValueError:
        raise _low_order() from None


def refuse_low_order(publics: Iterable[bytes]) -> None:
    """Refuse X25519 public keys with which every secret is zero, without a private key to try.

    Raises
    ------
    ProtocolError
        If one is of low order (RFC 7748, section 5: the top bit does not count, and numbers of
        2^255 - 19 and more are reduced).
    """
    for public in publics:
        if (int.from_bytes(public, "little") % 2**255) % _P in _LOW_ORDER:
            raise _low_order()


def _low_order() -> ProtocolError:
    return ProtocolError("a public key is of low order; its sender is not honest")


def commit_to_share(
    transcript: bytes, slot: int, kind: str, owner: int, holder: int, value: int
) -> bytes:
    """Return the commitment to one share; the share has 256 random bits, so it stays hidden."""
    # Thousands are made in a set-up: all parts have fixed lengths, and the first is hashed once.
    hasher = _share_hasher(transcript, kind).copy()
    hasher.update(_NUMBERS.pack(slot, owner, holder) + value.to_bytes(33, "big"))
    return hasher.digest()


@lru_cache(maxsize=16)
def _share_hasher(transcript: bytes, kind: str) -> hashlib._Hash:
    return hashlib.sha256(_join("share", (transcript, kind.encode())))


def commit_to_seed(transcript: bytes, slot: int, owner: int, seed: bytes) -> bytes:
    """Return the commitment to a self-mask's seed."""
    return digest("seed", transcript, slot.to_bytes(4, "big"), owner.to_bytes(4, "big"), seed)


def _join(purpose: str, parts: Sequence[bytes]) -> bytes:
    joined = bytearray(_LABEL + purpose.encode() + b"\0")
    for part in parts:
        joined += len(part).to_bytes(8, "big")
        joined += part
    return bytes(joined)
