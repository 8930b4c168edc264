"""Sockets to listen on."""

from __future__ import annotations

import socket

from fedveil.server.inference.errors import ServeError

__all__ = ["begin", "check_free", "listen", "reserve_port"]

_BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address; whoever connects before `begin` is refused.

    Raises
    ------
    ServeError
        If it cannot be, or somebody listens there.
    """
    try:
        return _bound(host, port, socket.SO_REUSEADDR)
    except (OSError, UnicodeError) as error:
        raise _refused(host, port, error, "", "--host or --port") from None


def begin(listener: socket.socket) -> None:
    """Let connections come to a socket of `listen`.

    Raises
    ------
    ServeError
        If somebody else was quicker to listen there.
    """
    try:
        listener.listen(_BACKLOG)
    except OSError as error:
        host, port = listener.getsockname()[:2]
        raise _refused(host, port, error, "", "--host or --port") from None


def check_free(host: str, port: int) -> None:
    """Refuse a port for gRPC that somebody has, which gRPC tells by lines of its own.

    Raises
    ------
    ServeError
        If somebody listens there, or nobody can.
    """
    _find_free(host, port)


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
    found = _find_free(host, port)
    try:
        return _bound(host, found, socket.SO_REUSEPORT)
    except OSError as error:
        raise _refused(host, port, error, " for gRPC", "--grpc-port") from None


def _find_free(host: str, port: int) -> int:
    """Return the port if it is free, or a free one for 0."""
    try:
        # A socket that does not share finds out whether others listen there, even if they would.
        with _bound(host, port, socket.SO_REUSEADDR) as probe:
            probe.listen()
            found: int = probe.getsockname()[1]
    except (OSError, UnicodeError) as error:
        raise _refused(host, port, error, " for gRPC", "--grpc-port") from None
    return found


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


def _refused(
    host: str, port: int, error: OSError | UnicodeError, what: str, choice: str
) -> ServeError:
    reason = getattr(error, "strerror", None) or "no such address"
    return ServeError(
        f"cannot listen on {host}, port {port}{what} ({reason}); choose another {choice}"
    )
