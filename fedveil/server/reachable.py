"""Whether somebody listens at an address."""

from __future__ import annotations

import socket

__all__ = ["answers"]


def answers(host: str, port: int, within: float = 1.0) -> bool:
    """Tell whether a TCP connection is accepted.

    Parameters
    ----------
    host, port
        Where. To an address that stands for all of this machine's, Linux and macOS connect
        locally.
    within : float
        Seconds to wait for it.
    """
    try:
        socket.create_connection((host, port), timeout=within).close()
    except OSError:
        return False
    return True
