"""Who sends a request: by a token, else by a client certificate, else by an address."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

__all__ = ["Caller", "Peer", "Protocol", "address_caller", "certificate_caller"]

Protocol = Literal["http", "grpc"]

_IPV6_PREFIX = 64
_REMEMBERED = 4096
_PLAIN = re.compile(r"[A-Za-z0-9._@ -]{1,64}")


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom rates, budgets and the audit log count a request for.

    Parameters
    ----------
    kind : {"token", "certificate", "address", "anonymous"}
        How the caller is known.
    name : str
        The token's name; the certificate's common name, or its fingerprint; the address, of IPv6
        the network of 64 bits, which one host may have all of. Empty where nothing is known.
    """

    kind: Literal["token", "certificate", "address", "anonymous"]
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection.

    Parameters
    ----------
    protocol : {"http", "grpc"}
        What it speaks.
    caller : Caller
        Who it is as long as no token is shown.
    """

    protocol: Protocol
    caller: Caller


@lru_cache(_REMEMBERED)
def address_caller(host: str) -> Caller:
    """Return whom an IP address stands for; anonymous where the text is none.

    IPv4 written as IPv6 (RFC 4291, section 2.5.5.2) is IPv4.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return Caller("anonymous")
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            network = ipaddress.ip_network((address, _IPV6_PREFIX), strict=False)
            return Caller("address", str(network))
        address = address.ipv4_mapped
    return Caller("address", str(address))


@lru_cache(_REMEMBERED)
def certificate_caller(der: bytes) -> Caller:
    """Return whom a client certificate stands for, which TLS has verified.

    Parameters
    ----------
    der : bytes
        The certificate.

    Returns
    -------
    Caller
        By the subject's common name, so that a renewed certificate is the same caller; by the
        SHA-256 of the certificate where there is not exactly one of up to 64 plain characters.

    Raises
    ------
    ValueError
        If it is no certificate.
    """
    certificate = x509.load_der_x509_certificate(der)
    names = [
        str(found.value)
        for found in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    if len(names) == 1 and _PLAIN.fullmatch(names[0]):
        return Caller("certificate", names[0])
    return Caller("certificate", f"sha256:{certificate.fingerprint(SHA256()).hex()}")
