"""Where a secret may be sent: over https, or to this machine itself."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fedveil.vault.errors import KekError

__all__ = ["check_address", "is_encrypted"]


def check_address(url: str, setting: str) -> str:
    """Refuse the address of a service that a secret would cross the network to in clear.

    Parameters
    ----------
    url : str
        For example ``https://vault.example.org:8200``.
    setting : str
        Where the address comes from, for the message; for example ``VAULT_ADDR``.

    Returns
    -------
    str
        Scheme, host and port of the address, to be shown in messages.

    Raises
    ------
    KekError
        If it is no http or https address, holds a password, or is http to another machine.
    """
    malformed = KekError(
        f"{setting} is not the address of a service; give one like https://host:8200, without a "
        "user name, password, query or fragment"
    )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise malformed from None
    if parts.scheme not in ("http", "https") or not host or not url.isprintable() or " " in url:
        raise malformed
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise malformed
    bracketed = f"[{host}]" if ":" in host else host
    shown = f"{parts.scheme}://{bracketed}" + (f":{port}" if port is not None else "")
    if parts.scheme == "http" and not _is_loopback(host):
        raise KekError(
            f"{setting} is {shown}: the key would cross the network in clear; use https://"
        )
    return shown


def is_encrypted(url: str) -> bool:
    """Tell whether a checked address is https."""
    return urlsplit(url).scheme == "https"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
