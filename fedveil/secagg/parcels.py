"""How shares are sealed for the neighbour that is to hold them, and opened by it."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedveil.secagg.shamir import SHARE_BYTES
from fedveil.secagg.transcript import commit_to_share, kdf

__all__ = ["OVERHEAD_BYTES", "commitments_to", "open_parcel", "parcel_key", "seal_parcel"]

_NONCE_BYTES = 12
OVERHEAD_BYTES = _NONCE_BYTES + 16
"""What a sealed parcel is longer than the shares in it."""


def parcel_key(shared: bytes, transcript: bytes, owner: int, holder: int) -> bytes:
    """Return the key of AES-256-GCM that seals the shares of `owner` for `holder`."""
    return kdf(shared, "parcel", _bound_to(transcript, owner, holder))


def seal_parcel(
    key: bytes, transcript: bytes, owner: int, holder: int, shares: Sequence[int]
) -> bytes:
    """Return the sealed shares, behind a random nonce.

    The key seals one parcel; the nonce is for a client that was set back to an earlier state and
    seals another.

    Parameters
    ----------
    key : bytes
        From `parcel_key`.
    transcript : bytes
        The set-up.
    owner, holder : int
        Whose secrets, and for whom.
    shares : sequence of int
        For each slot the share of the seed, then that of the mask key.
    """
    plain = b"".join(share.to_bytes(SHARE_BYTES, "big") for share in shares)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, _bound_to(transcript, owner, holder))


def open_parcel(
    key: bytes, transcript: bytes, owner: int, holder: int, sealed: bytes, commitments: bytes
) -> tuple[int, ...] | None:
    """Return the shares in a parcel; None unless they are what `owner` sealed and committed to."""
    nonce, body = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        plain = AESGCM(key).decrypt(nonce, body, _bound_to(transcript, owner, holder))
    except (InvalidTag, ValueError):
        return None
    shares = tuple(
        int.from_bytes(plain[at : at + SHARE_BYTES], "big")
        for at in range(0, len(plain), SHARE_BYTES)
    )
    if len(plain) % SHARE_BYTES or commitments_to(shares, transcript, owner, holder) != commitments:
        return None
    return shares


def commitments_to(shares: Sequence[int], transcript: bytes, owner: int, holder: int) -> bytes:
    """Return the commitments to a parcel's shares, one after the other."""
    return b"".join(
        commit_to_share(transcript, 1 + i // 2, ("seed", "key")[i % 2], owner, holder, share)
        for i, share in enumerate(shares)
    )


def _bound_to(transcript: bytes, owner: int, holder: int) -> bytes:
    return transcript + owner.to_bytes(4, "big") + holder.to_bytes(4, "big")
