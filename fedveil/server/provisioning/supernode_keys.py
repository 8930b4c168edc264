"""SuperNode authentication: EC key pairs in OpenSSH's format, as Flower reads them.

`flower-supernode` signs its requests with the private half (ECDSA with SHA-256), and
`flwr supernode register` takes the public one; both want a NIST curve.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
    load_ssh_public_key,
)

from fedveil.server.provisioning.errors import ProvisionError
from fedveil.vault.keyfile import read_secret_file

__all__ = ["load_supernode_key", "new_supernode_key", "parse_supernode_key"]

_MOST_BYTES = 1 << 14
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


def new_supernode_key() -> tuple[bytes, str]:
    """Draw a key pair on P-384.

    Returns
    -------
    tuple of bytes and str
        The private half, as a file holds it, and the public half in one line.
    """
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()), _show(key)


def parse_supernode_key(text: str) -> str:
    """Return a public key in one line without a comment.

    Raises
    ------
    ProvisionError
        If it is no key that Flower takes.
    """
    refusal = ProvisionError(
        "a SuperNode's public key is a line that begins with ecdsa-sha2-nistp384 (or 256, 521), as "
        f"`ssh-keygen -t ecdsa -b 384` writes it into a .pub file, not {text!r:.60}"
    )
    try:
        key = load_ssh_public_key(text.strip().encode())
    except (ValueError, UnsupportedAlgorithm):
        raise refusal from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVES):
        raise refusal
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")


def load_supernode_key(path: Path) -> str:
    """Return the public half of a private key's file.

    Raises
    ------
    KeyFileError
        If it is not there, is a symbolic link, belongs to another user, or others may use it.
    ProvisionError
        If it holds no key that Flower takes.
    """
    content = read_secret_file(path, _MOST_BYTES)
    refusal = ProvisionError(
        f"{path}: holds no EC key on a NIST curve in OpenSSH's format without a passphrase"
    )
    try:
        key = load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise refusal from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, _CURVES):
        raise refusal
    return _show(key)


def _show(key: ec.EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii")
