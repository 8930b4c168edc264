"""How shares are sealed for the neighbour that is to hold them."""

from __future__ import annotations

from fedveil.secagg.transcript import kdf

__all__ = ["PARCEL_NONCE", "parcel_aad", "parcel_key"]

PARCEL_NONCE = bytes(12)
"""A parcel's key seals that parcel alone, so its nonce may stand still."""


def parcel_key(shared: bytes, transcript: bytes, owner: int, holder: int) -> bytes:
    """Return the key of AES-256-GCM that seals the shares of `owner` for `holder`."""
    return kdf(shared, "parcel", parcel_aad(transcript, owner, holder))


def parcel_aad(transcript: bytes, owner: int, holder: int) -> bytes:
    """Return what a parcel is bound to."""
    return transcript + owner.to_bytes(4, "big") + holder.to_bytes(4, "big")
