"""Small JSON files that the coordinator signs: what names a run, its report, its audit."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedveil.errors import FedveilError
from fedveil.server.storage import own_verify_key
from fedveil.vault.errors import SignatureError
from fedveil.vault.signing import SigningKey, VerifyKey

__all__ = [
    "Fields",
    "SignedFields",
    "SignedFileError",
    "canonical",
    "parse_signed",
    "read_signed",
    "signed_text",
    "trusted_signer",
]

Fields = dict[str, object]

_SIGNATURE, _SIGNER = "signature", "signer"
_MOST_BYTES = 1 << 28


class SignedFileError(FedveilError):
    """A signed file is not there, or is not one."""


@dataclass(frozen=True)
class SignedFields:
    """What a signed file holds.

    Parameters
    ----------
    fields : dict
        All but the signature, as JSON has them.
    signer : VerifyKey
        Who the file says signed it.
    signature : bytes
        Over the label and `fields`.
    """

    fields: Fields
    signer: VerifyKey
    signature: bytes

    def check(self, label: bytes, key: VerifyKey) -> None:
        """Check the signature.

        Raises
        ------
        SignatureError
            If this key's owner did not sign exactly that.
        """
        key.verify(self.signature, canonical(self.fields, label), _no_stream())


def trusted_signer(named: VerifyKey | None, claimed: VerifyKey) -> VerifyKey:
    """Return whose signatures count: the key that the user names, else this machine's own.

    Where there is neither, as on a machine that only reads, what is read is believed.
    """
    return named or own_verify_key() or claimed


def canonical(fields: Mapping[str, object], label: bytes) -> bytes:
    """Return what a signature is over: a label of the kind of file, then its fields in one form."""
    return label + json.dumps(fields, sort_keys=True).encode()


def signed_text(fields: Mapping[str, object], label: bytes, key: SigningKey) -> str:
    """Return a signed file's text.

    Parameters
    ----------
    fields : Mapping
        What JSON can hold; the signer is added.
    label : bytes
        Kind of file; no signature of one kind is one of another.
    key : SigningKey
        Who signs.
    """
    # In the form that a reader will find them in: JSON knows no integer keys.
    whole: Fields = json.loads(json.dumps({**fields, _SIGNER: key.verify_key.to_text()}))
    signature = key.sign(canonical(whole, label), _no_stream())
    text = base64.b64encode(signature).decode("ascii")
    return json.dumps({**whole, _SIGNATURE: text}, indent=2) + "\n"


def parse_signed(content: bytes) -> SignedFields:
    """Read a signed file's content; nothing is checked yet.

    Raises
    ------
    SignedFileError
        If it is none.
    """
    try:
        fields = json.loads(content)
        signature = base64.b64decode(fields.pop(_SIGNATURE), validate=True)
        signer = VerifyKey.from_text(fields[_SIGNER])
    except (
        *(ValueError, KeyError, TypeError, AttributeError, RecursionError),
        *(binascii.Error, SignatureError),
    ):
        raise SignedFileError("it is not a file that a coordinator signed") from None
    return SignedFields(fields, signer, signature)


def read_signed(path: Path, label: bytes, signer: VerifyKey | None) -> Fields:
    """Read a signed file and check its signature.

    Parameters
    ----------
    path : Path
        The file.
    label : bytes
        Kind of file.
    signer : VerifyKey, optional
        Whose signature counts; see `trusted_signer`.

    Returns
    -------
    dict
        Its fields, without signer and signature.

    Raises
    ------
    SignedFileError
        If there is no such file, or it is none.
    SignatureError
        If it was signed by somebody else, or changed.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise SignedFileError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        found = parse_signed(content)
    except SignedFileError as error:
        raise SignedFileError(f"{path}: {error}") from None
    key = trusted_signer(signer, found.signer)
    if key != found.signer:
        raise SignatureError(
            f"{path}: is signed by the coordinator {found.signer.to_text()}, not by "
            f"{key.to_text()}; if you trust it, name it with --signer"
        )
    try:
        found.check(label, key)
    except SignatureError:
        raise SignatureError(
            f"{path}: was changed after the coordinator signed it; restore it from a copy"
        ) from None
    return {name: value for name, value in found.fields.items() if name != _SIGNER}


def _no_stream() -> bytes:
    """Return the digest of nothing, where a file of a store has that of its stream."""
    return hashlib.sha256(b"").digest()
