"""X.509 certificates (RFC 5280): the authority's own, those it signs, what is wrong with one."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedveil.server.provisioning.errors import ProvisionError
from fedveil.vault.keyfile import read_secret_file

__all__ = [
    "has_key",
    "load_certificate",
    "load_tls_key",
    "new_tls_key",
    "show_certificate",
    "sign_authority",
    "sign_server",
    "trouble_with",
]

_MOST_BYTES = 1 << 16
# Clocks of the parties differ; a certificate must not be refused as not yet valid.
_SKEW = timedelta(hours=1)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def new_tls_key() -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """Draw a private key on P-256; return it, and as PEM (PKCS 8, not encrypted)."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key's file.

    Raises
    ------
    KeyFileError
        If it is not there, is a symbolic link, belongs to another user, or others may use it.
    ProvisionError
        If it holds no EC key.
    """
    refusal = ProvisionError(f"{path}: holds no EC private key (PEM, without a passphrase)")
    try:
        key = load_pem_private_key(read_secret_file(path, _MOST_BYTES), None)
    except (ValueError, TypeError):
        raise refusal from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise refusal
    return key


def load_certificate(path: Path) -> x509.Certificate:
    """Read a certificate's file.

    Raises
    ------
    ProvisionError
        If it is not there or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ProvisionError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ProvisionError(f"{path}: holds no certificate (PEM)") from None


def show_certificate(certificate: x509.Certificate) -> bytes:
    """Return a certificate as PEM."""
    return certificate.public_bytes(Encoding.PEM)


def sign_authority(
    key: ec.EllipticCurvePrivateKey, federation: str, days: int, now: datetime
) -> x509.Certificate:
    """Return the authority's certificate, signed by itself; it may sign servers only."""
    name = _name(f"{federation} authority")
    usage = _usage(key_cert_sign=True, crl_sign=True)
    public = key.public_key()
    return (
        _builder(name, name, public, now, now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, SHA256())
    )


def sign_server(
    authority: x509.Certificate,
    authority_key: ec.EllipticCurvePrivateKey,
    public: ec.EllipticCurvePublicKey,
    party: str,
    hosts: Sequence[str],
    days: int,
    now: datetime,
) -> x509.Certificate:
    """Return a server's certificate, good for `hosts` and for the machine itself.

    The app of a SuperLink connects to it on the loopback address, which is therefore always named.
    It ends no later than the authority's own.

    Raises
    ------
    ProvisionError
        If the authority's certificate has expired.
    """
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    if end <= now:
        raise ProvisionError(
            f"the authority's certificate expired on {authority.not_valid_after_utc:%Y-%m-%d}, so "
            "that it can sign no other; renew it with: fedveil provision FILE --renew ca"
        )
    names = [_general_name(host) for host in dict.fromkeys([*hosts, *_LOOPBACK])]
    return (
        _builder(_name(party), authority.subject, public, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()),
            critical=False,
        )
        .sign(authority_key, SHA256())
    )


def has_key(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Tell whether a private key is the one of a certificate."""
    formats = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    shown = certificate.public_key().public_bytes(*formats)
    return shown == key.public_key().public_bytes(*formats)


def trouble_with(
    certificate: x509.Certificate, authority: x509.Certificate, host: str, now: datetime
) -> str | None:
    """Return why a client that trusts `authority` would not take `certificate` for `host`.

    Dates are told apart first; the rest is the web's profile of RFC 5280, as `cryptography`
    checks it.

    Returns
    -------
    str or None
        None if it would.
    """
    for what, one in (("the certificate", certificate), ("the authority's", authority)):
        if now > one.not_valid_after_utc:
            return f"{what} expired on {one.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        if now < one.not_valid_before_utc:
            return (
                f"{what} is valid from {one.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on only (is "
                "this machine's clock right?)"
            )
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return "the certificate was not signed by the authority of this kit"
    verifier = (
        PolicyBuilder()
        .store(Store([authority]))
        .time(now)
        .build_server_verifier(_general_name(host))
    )
    try:
        verifier.verify(certificate, [])
    except VerificationError:
        return f"the certificate is not good for {host}"
    return None


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - _SKEW)
        .not_valid_after(end.astimezone(UTC))
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.DNSName | x509.IPAddress:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
