"""Runs the HTTP application: uvicorn in a thread, within limits."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import TYPE_CHECKING

import uvicorn

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.http_app import HttpApp
from fedveil.server.inference.http_guard import guarded_protocol
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tls import TlsFiles, server_context

if TYPE_CHECKING:
    import ssl

__all__ = ["HttpServer"]

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 1024
_START_SECONDS = 30.0


class HttpServer:
    """Listens for HTTP.

    Parameters
    ----------
    service : InferenceService
        What answers.
    host : str
        Address to listen on.
    port : int
        Port; 0 takes a free one.
    tls : TlsFiles or None
        Certificate and key; None for no TLS.

    Raises
    ------
    ServeError
        If the address cannot be listened on.
    """

    def __init__(
        self, service: InferenceService, host: str, port: int, tls: TlsFiles | None = None
    ) -> None:
        self._socket = _listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        context = None if tls is None else server_context(tls)
        config = uvicorn.Config(
            HttpApp(service),
            http=guarded_protocol(service.limits),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            backlog=_BACKLOG,
        )
        config.load()
        config.ssl = context
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._tls = tls
        self._context: ssl.SSLContext | None = context
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="fedveil-http", daemon=True)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()
        patience = time.monotonic() + _START_SECONDS
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > patience:
                raise ServeError("the HTTP server does not start")
            time.sleep(0.005)

    def reload_certificate(self) -> None:
        """Read certificate and key anew; connections from now on get the new one.

        Raises
        ------
        ServeError
            If they cannot be used; the old ones stay then.
        """
        if self._tls is not None and self._context is not None:
            server_context(self._tls)
            self._context.load_cert_chain(self._tls.certificate, self._tls.key)

    def stop(self, patience: float) -> None:
        """Take no more connections, finish the requests that are being answered, and end.

        Parameters
        ----------
        patience : float
            Seconds after which what is not finished is cut off.
        """
        self._server.config.timeout_graceful_shutdown = max(1, int(patience))
        self._server.should_exit = True
        self._thread.join(patience + _START_SECONDS)

    def _run(self) -> None:
        self._server.run(sockets=[self._socket])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no such address"
        raise ServeError(
            f"cannot listen on {host}, port {port} ({reason}); choose another --host or --port"
        ) from None
    return listener
