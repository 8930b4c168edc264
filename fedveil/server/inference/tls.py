"""TLS of the service: which files, and what is refused about them."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from pathlib import Path

from fedveil.server.inference.errors import ServeError

__all__ = ["TlsFiles", "server_context"]


@dataclass(frozen=True)
class TlsFiles:
    """The files of TLS.

    Parameters
    ----------
    certificate, key : Path
        Of this server, PEM; the key without a passphrase and for its owner alone.
    client_ca : Path, optional
        Authority that clients must show a certificate of (mTLS).
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a server speaks TLS 1.2 or newer with.

    Raises
    ------
    ServeError
        If a file cannot be used, or others may read the key.
    """
    for path in (files.certificate, files.key, files.client_ca):
        if path is not None and not path.is_file():
            raise ServeError(f"{path}: there is no such file; check the path")
    mode = stat.S_IMODE(files.key.stat().st_mode)
    if mode & 0o077:
        raise ServeError(
            f"{files.key}: has mode {mode:04o}, so that others may use the private key; if nobody "
            f"has read it, run: chmod 600 {files.key}"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        # Without a password of our own, OpenSSL would ask the terminal for one.
        context.load_cert_chain(files.certificate, files.key, password="")
    except (ssl.SSLError, ValueError, OSError):
        raise ServeError(
            f"{files.certificate}: is no PEM certificate whose private key, without a passphrase, "
            f"is in {files.key}"
        ) from None
    if files.client_ca is not None:
        try:
            context.load_verify_locations(files.client_ca)
        except (ssl.SSLError, OSError):
            raise ServeError(f"{files.client_ca}: holds no PEM certificate") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context
