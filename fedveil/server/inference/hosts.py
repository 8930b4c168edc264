"""Requests that a web page of somebody else's sends through a browser, and how they are known.

Where a service admits whoever reaches its port, a browser on the same network reaches it too, on
behalf of any page that it shows. A page cannot forge two headers: ``Origin`` (RFC 6454, section 7)
names the page's own place, and ``Host`` the name that the browser looked up. A foreign Origin is
cross-site request forgery; a foreign name that leads here is DNS rebinding (Jackson et al. 2007,
"Protecting Browsers from DNS Rebinding Attacks").
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable, Mapping

from fedveil.server.inference.errors import ForbiddenError, MisdirectedError

__all__ = ["KnownHosts"]

_REMEMBERED = 1024
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^][:@/\s]+))(?::[0-9]{1,5})?")


class KnownHosts:
    """The names that a service answers under.

    Parameters
    ----------
    host : str
        The address that it listens on. On all addresses of a machine, every address is one of its
        names: a rebound name is never an address.
    names : iterable of str
        Further names, without a port.
    """

    def __init__(self, host: str, names: Iterable[str] = ()) -> None:
        address = _address(host)
        self._takes_addresses = address is not None and address.is_unspecified
        known = {host, *names}
        if self._takes_addresses:
            known |= {"localhost", socket.gethostname()}
        elif host.lower() == "localhost" or (address is not None and address.is_loopback):
            known |= {"localhost", "127.0.0.1", "::1"}
        self._names = frozenset(name.lower() for name in known if name)
        self._seen: set[bytes] = set()

    def check(self, headers: Mapping[bytes, bytes]) -> None:
        """Let a request pass, or refuse it.

        Parameters
        ----------
        headers : Mapping of bytes to bytes
            Of the request, names in small letters.

        Raises
        ------
        MisdirectedError
            If it names another host.
        ForbiddenError
            If it comes from a page of another host.
        """
        host = headers.get(b"host", b"")
        if host not in self._seen:
            self._learn(host)
        origin = headers.get(b"origin")
        if origin is not None and origin.lower() not in (
            b"http://" + host.lower(),
            b"https://" + host.lower(),
        ):
            raise ForbiddenError(
                "this comes from a page of another site; without tokens none but the service's "
                "own page is let in"
            )

    def _learn(self, host: bytes) -> None:
        name = _name(host)
        address = _address(name)
        if not (name in self._names or (self._takes_addresses and address is not None)):
            raise MisdirectedError(
                "the Host header is no name of this service; ask it by its address, or start it "
                "with --known-as NAME, or with --tokens FILE"
            )
        if len(self._seen) < _REMEMBERED:
            self._seen.add(host)


def _name(host: bytes) -> str:
    """Return the name that a ``Host`` header has; empty where it is malformed."""
    found = _HOST.fullmatch(host.decode("latin-1").lower())
    return "" if found is None else found[1] or found[2]


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
