"""Whether somebody listens at an address, or certainly nobody does, and who it is."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

__all__ = ["answers", "refuses", "tls_problem"]


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


def refuses(host: str, port: int, within: float = 1.0) -> bool:
    """Tell whether a machine says that nobody listens there; a network that is silent does not.

    Parameters
    ----------
    host, port, within
        As `answers` takes them.
    """
    try:
        socket.create_connection((host, port), timeout=within).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def tls_problem(host: str, port: int, authority: Path, within: float = 5.0) -> str:
    """Return why whoever listens is not who an authority vouches for; empty if that is not known.

    Parameters
    ----------
    host, port, within
        As `answers` takes them.
    authority : Path
        The certificate that must have signed the server's.
    """
    context = ssl.create_default_context(cafile=authority)
    try:
        with (
            socket.create_connection((host, port), timeout=within) as near,
            context.wrap_socket(near, server_hostname=host),
        ):
            return ""
    except ssl.SSLCertVerificationError as error:
        return f"its certificate is not good for this kit ({error.verify_message})"
    except ssl.SSLError:
        return "it does not speak TLS"
    except OSError:
        return ""
