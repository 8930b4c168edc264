"""Names and addresses of servers: checked, and written as others read them."""

from __future__ import annotations

import ipaddress
import re

__all__ = ["check_host", "check_listen", "host_and_port", "is_local", "split_address"]

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"^{_LABEL}(\.{_LABEL})*$")


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_host(text: str) -> str:
    """Return an IP address or DNS name, or raise `ValueError`."""
    # 10.0.0.256 would pass as a DNS name and never be found.
    looks_like_ip = re.fullmatch(r"[0-9.]+", text) is not None
    if not _is_ip(text) and (looks_like_ip or len(text) > 253 or not _DNS_NAME.match(text)):
        raise ValueError(f"{text!r:.80} is neither an IP address nor a DNS name")
    return text


def check_listen(text: str) -> str:
    """Return an IP address to listen on, or raise `ValueError`."""
    if not _is_ip(text):
        raise ValueError(f"{text!r:.80} is no IP address; 0.0.0.0 is all of this machine's")
    return text


def host_and_port(host: str, port: int) -> str:
    """Return an address as Flower and URLs write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of what `host_and_port` wrote."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def is_local(host: str) -> bool:
    """Tell whether only this machine is reached under a name or address."""
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)
