"""How many files the process may open, and how many connections fit into that.

A connection is an open file. A service that has no more of them cannot read tokens or the next
round, so that strangers who hold connections open would stop it.
"""

from __future__ import annotations

import resource
from contextlib import suppress
from dataclasses import replace

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.oip import Limits

__all__ = ["files_for", "limits_within", "raise_limit"]

# What a service opens beside connections.
_KEPT = 256
# Each takes a few hundred KiB, so that there shall not be room for any number of them.
_HANDSHAKES = 1024
_FEWEST_CONNECTIONS = 16


def files_for(limits: Limits, listeners: int) -> int:
    """Return how many files a service wants, with connections whose TLS handshake is not done.

    Parameters
    ----------
    limits : Limits
        How many connections each server takes.
    listeners : int
        How many servers there are.
    """
    return _KEPT + _HANDSHAKES + limits.connections * listeners


def raise_limit(wanted: int) -> int:
    """Let the process open so many files, if it may by itself; return how many it may open.

    The soft limit, often 1,024, is there for programs that call select(2); the hard one is the
    administrator's.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        # Some systems have a lower limit than the one that they name.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def limits_within(files: int, listeners: int, limits: Limits) -> Limits:
    """Return limits whose connections fit into the files that may be open.

    Parameters
    ----------
    files : int
        How many may be.
    listeners : int
        How many servers take so many connections each.
    limits : Limits
        What is wanted.

    Returns
    -------
    Limits
        With fewer connections where there is no room; one caller may have half of them at most.

    Raises
    ------
    ServeError
        If there is no room for a service.
    """
    connections = min(limits.connections, (files - _KEPT) // listeners)
    if connections < _FEWEST_CONNECTIONS:
        raise ServeError(
            f"{files} files may be open at a time, which leaves too few for connections; let it be "
            f"{files_for(limits, listeners)}, with: ulimit -n"
        )
    peers = min(limits.peer_connections, connections // 2)
    return replace(limits, connections=connections, peer_connections=peers)
