"""TLS of a server: which files, what is refused about them, and how they are replaced."""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass, field
from pathlib import Path

from fedveil.server.inference.errors import ServeError

__all__ = ["RenewableContext", "TlsContents", "TlsFiles", "read_tls", "server_context"]

_TRIES = 3


@dataclass(frozen=True)
class TlsFiles:
    """The files of TLS.

    Parameters
    ----------
    certificate, key : Path
        Of this server, PEM; the key without a passphrase and for its owner alone.
    authority : Path, optional
        Certificate of an authority, PEM. A server that has one admits only clients with a
        certificate of it (mTLS).
    """

    certificate: Path
    key: Path
    authority: Path | None = None


@dataclass(frozen=True)
class TlsContents:
    """What the files of `TlsFiles` hold, all of one moment."""

    certificate: bytes
    key: bytes = field(repr=False)
    authority: bytes | None = None


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """Return what a server speaks TLS 1.2 or newer with.

    Raises
    ------
    ServeError
        If a file cannot be used, or others may read the key.
    """
    _read(files)
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
    if files.authority is not None:
        try:
            context.load_verify_locations(files.authority)
        except (ssl.SSLError, OSError):
            raise ServeError(f"{files.authority}: holds no PEM certificate") from None
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def read_tls(files: TlsFiles) -> TlsContents:
    """Return the contents of files that `server_context` takes.

    Raises
    ------
    ServeError
        As `server_context` does, or if the files keep changing.
    """
    for _ in range(_TRIES):
        contents = _read(files)
        server_context(files)
        if _read(files) == contents:
            return contents
    raise ServeError(f"{files.certificate}: changes while it is read; try again when it does not")


class RenewableContext:
    """A context whose files may be replaced; handshakes from then on use the new ones.

    Parameters
    ----------
    files : TlsFiles
        Certificate, key and authority.

    Attributes
    ----------
    context : SSLContext
        What a server is given; it stays the same.

    Raises
    ------
    ServeError
        If they cannot be used.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.context = server_context(files)
        self._current = self.context
        # OpenSSL asks it at every handshake, also of clients that name no host. A context that is
        # whole takes the place of another, where loading new files into one could fail half-way.
        self.context.sni_callback = self._choose

    def renew(self) -> None:
        """Read the files anew.

        Raises
        ------
        ServeError
            If they cannot be used; the old ones stay then.
        """
        self._current = server_context(self._files)

    def _choose(self, connection: ssl.SSLObject, _: str | None, __: ssl.SSLContext) -> None:
        connection.context = self._current


def _read(files: TlsFiles) -> TlsContents:
    authority = None if files.authority is None else _content(files.authority)
    return TlsContents(_content(files.certificate), _content(files.key), authority)


def _content(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ServeError(f"{path}: there is no such file; check the path")
        return path.read_bytes()
    except OSError as error:
        raise ServeError(f"{path}: cannot be read ({error.strerror})") from None
