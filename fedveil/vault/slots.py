"""The wrap slots of a file: its data key, encrypted under the model key or keys that open it.

A file has two slots, so that a new model key can be put in before the old one is taken out. Slots
are not signed and may be rewritten in place; the header, to which they are bound, may not.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.vault.errors import TamperedError, WrongKeyError
from fedveil.vault.keyfile import Key
from fedveil.vault.stream import KEY_BYTES

__all__ = [
    "FREE_SLOT",
    "SLOTS",
    "SLOT_BYTES",
    "commitment",
    "other_slot",
    "slot_owner",
    "unwrap_data_key",
    "wrap_data_key",
]

SLOTS = 2
SLOT_BYTES = 96
FREE_SLOT = bytes(SLOT_BYTES)

_ID_BYTES = 16
_NONCE_BYTES = 12
_NONCE_END = _ID_BYTES + _NONCE_BYTES
_USED_BYTES = _NONCE_END + KEY_BYTES + 16
_WRAP_LABEL = b"fedveil/vault/2/wrap"
_COMMIT_LABEL = b"fedveil/vault/2/commit"


def commitment(data_key: bytes) -> str:
    """Return what a data key commits to, 64 hexadecimal characters.

    HKDF-SHA256 (RFC 5869) with a label of its own. AES-GCM alone does not bind a ciphertext to one
    key (Grubbs, Lu and Ristenpart 2017); a collision of this value would be one of SHA-256.
    """
    return _derive(data_key, _COMMIT_LABEL).hex()


def wrap_data_key(data_key: bytes, model_key: Key, bound: bytes) -> bytes:
    """Return a slot of 96 bytes that holds a data key under a model key.

    Parameters
    ----------
    data_key : bytes
        32 bytes.
    model_key : Key
        What opens the slot.
    bound : bytes
        The start of the file up to the end of the header: the slot opens in no other file.
    """
    nonce = secrets.token_bytes(_NONCE_BYTES)
    wrapped = _cipher(model_key).encrypt(nonce, data_key, bound)
    return (model_key.key_id.encode("ascii") + nonce + wrapped).ljust(SLOT_BYTES, b"\0")


def unwrap_data_key(slots: Sequence[bytes], model_key: Key, bound: bytes, committed: str) -> bytes:
    """Return the data key of a file, which is the one that its header commits to.

    Parameters
    ----------
    slots : sequence of bytes
        The file's slots; those of other model keys are skipped.
    model_key, bound
        As in `wrap_data_key`.
    committed : str
        The header's `commitment`.

    Raises
    ------
    WrongKeyError
        If no slot belongs to the model key.
    TamperedError
        If the model key's slot was changed or put here from another file, or holds another key
        than the header commits to.
    """
    own = [slot for slot in slots if slot_owner(slot) == model_key.key_id]
    if not own:
        owners = sorted({owner for slot in slots if (owner := slot_owner(slot)) is not None})
        raise WrongKeyError(
            f"sealed under model key {' and '.join(owners) or '(none)'}, but the key given is "
            f"{model_key.key_id}; it is from before a rotation, or from another store"
        )
    swapped = TamperedError(
        f"the wrap list is swapped or changed: model key {model_key.key_id} does not open its slot"
    )
    if len(own) > 1 or any(own[0][_USED_BYTES:]):
        raise swapped
    nonce, wrapped = own[0][_ID_BYTES:_NONCE_END], own[0][_NONCE_END:_USED_BYTES]
    try:
        data_key = _cipher(model_key).decrypt(nonce, wrapped, bound)
    except InvalidTag:
        raise swapped from None
    if not hmac.compare_digest(commitment(data_key), committed):
        raise TamperedError(
            "the wrap list holds another data key than the header commits to: somebody made a "
            "file that opens under several keys"
        )
    return data_key


def other_slot(slots: Sequence[bytes], model_key: Key) -> int:
    """Return the place of the slot that is not a model key's, which must have one.

    Raises
    ------
    WrongKeyError
        If no slot belongs to the model key.
    """
    owners = [slot_owner(slot) for slot in slots]
    if model_key.key_id not in owners:
        raise WrongKeyError(f"no slot of the file belongs to model key {model_key.key_id}")
    return 1 - owners.index(model_key.key_id)


def slot_owner(slot: bytes) -> str | None:
    """Return the public name of the model key that a slot says it is for.

    It is None for a free slot, and ``(damaged)`` for one that names no key.
    """
    if slot == FREE_SLOT:
        return None
    owner = slot[:_ID_BYTES].decode("ascii", "replace")
    return owner if re.fullmatch("[0-9a-f]{16}", owner) else "(damaged)"


def _cipher(model_key: Key) -> AESGCM:
    return AESGCM(_derive(model_key.secret, _WRAP_LABEL))


def _derive(key: bytes, label: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=label).derive(key)
