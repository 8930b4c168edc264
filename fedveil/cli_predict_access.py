"""How `fedveil predict` reaches a service: its address, TLS, and a token that stays secret."""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from fedveil.errors import FedveilError

__all__ = ["Access", "AskError", "checked_address", "printable", "tls_context"]

_MOST_SHOWN = 64


class AskError(FedveilError):
    """The service cannot be asked, or does not answer."""


@dataclass(frozen=True)
class Access:
    """How a service is reached.

    Parameters
    ----------
    token : str or None
        Sent as bearer token.
    ca : Path or None
        Authorities that its certificate may be of, or itself, PEM; None for those that the system
        trusts.
    certificate, key : Path or None
        Shown to a service that demands a client certificate, PEM.
    insecure : bool
        Whether a token may cross a network without TLS.
    seconds : float
        Time for one answer.

    Raises
    ------
    AskError
        If the token has characters that none has.
    """

    token: str | None = field(default=None, repr=False)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    insecure: bool = False
    seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.token is not None and not re.fullmatch(r"[\x21-\x7e]+", self.token):
            raise AskError("the token is empty or has blanks in it; a file holds one, and no more")
        if (self.certificate is None) != (self.key is None):
            raise AskError("--cert and --key belong together: give both or neither")


def printable(text: str) -> str:
    """Return a text of somebody else's without what a terminal would obey."""
    return "".join(one if one.isprintable() else "?" for one in text)


def checked_address(url: str, access: Access) -> httpx.URL:
    """Return the address of a service.

    Raises
    ------
    AskError
        If it is none, holds a password, or a token would cross a network in clear.
    """
    try:
        address = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        address = httpx.URL("")
    if address.userinfo:
        raise AskError("the address holds a password, which others on this machine can see")
    if address.scheme not in ("http", "https") or not address.host or address.query:
        raise AskError(
            f"{printable(url)[:_MOST_SHOWN]}: is no address of a service; give one such as "
            "http://127.0.0.1:8080"
        )
    is_clear = address.scheme == "http" and not _is_local(address.host)
    if is_clear and access.token is not None and not access.insecure:
        raise AskError(
            f"{printable(url)[:_MOST_SHOWN]}: the token would cross the network in clear; use "
            "https://, or say --insecure if whoever sees the traffic may have it"
        )
    return address


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(access: Access) -> ssl.SSLContext:
    """Return what speaks TLS 1.2 or newer.

    Raises
    ------
    AskError
        If a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=access.ca)
    except FileNotFoundError:
        raise AskError(f"--ca {access.ca}: there is no such file; check the path") from None
    except (OSError, ssl.SSLError):
        raise AskError(f"--ca {access.ca}: holds no PEM certificate that can be read") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if access.ca is not None:
        # A certificate that the user names is trusted, of an authority or not, as curl has it.
        context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN
    if access.certificate is not None and access.key is not None:
        try:
            # Without a password of our own, OpenSSL would ask the terminal for one.
            context.load_cert_chain(access.certificate, access.key, password="")
        except (OSError, ssl.SSLError, ValueError):
            raise AskError(
                f"{access.certificate}: is no PEM certificate whose private key, without a "
                f"passphrase, is in {access.key}"
            ) from None
    return context
