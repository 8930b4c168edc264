"""Sockets to listen on."""

from __future__ import annotations

import socket

from fedveil.server.inference.errors import ServeError

__all__ = ["listen", "reserve_port"]


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address.

    Raises
    ------
    ServeError
        If it cannot be.
    """
    try:
        return _bound(host, port, socket.SO_REUSEADDR)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise ServeError(
            f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port"
        ) from None


def reserve_port(host: str, port: int) -> socket.socket:
    """Return a socket that keeps a port for several processes, each with a socket of its own.

    They must ask for the port to be shared (``SO_REUSEPORT``). Nothing is listened for here.

    Parameters
    ----------
    host : str
        The address.
    port : int
        The port; 0 takes a free one.

    Raises
    ------
    ServeError
        If somebody else has it.
    """
    try:
        # One that is not shared finds out whether others listen there already.
        with _bound(host, port, socket.SO_REUSEADDR) as probe:
            probe.listen()
            found = probe.getsockname()[1]
        return _bound(host, found, socket.SO_REUSEPORT)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise ServeError(
            f"cannot listen on {host}, port {port} for gRPC ({reason}); choose another --grpc-port"
        ) from None


def _bound(host: str, port: int, option: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(address)
    except BaseException:
        listener.close()
        raise
    return listener
