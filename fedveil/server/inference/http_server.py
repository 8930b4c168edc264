"""Runs the HTTP application: an event loop in a thread."""

from __future__ import annotations

import asyncio
import socket
import threading

import uvloop

from fedveil.server.inference.errors import ServeError
from fedveil.server.inference.hosts import KnownHosts
from fedveil.server.inference.http_app import HttpApp
from fedveil.server.inference.http_connection import Connection
from fedveil.server.inference.http_desk import Desk
from fedveil.server.inference.listening import listen
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tls import RenewableContext, TlsFiles

__all__ = ["HttpServer"]

_BACKLOG = 1024
_START_SECONDS = 30.0
_TICK_SECONDS = 0.02


class HttpServer:
    """Listens for HTTP.

    Parameters
    ----------
    service : InferenceService
        What answers.
    host : str
        Address to listen on.
    port : int or socket
        Port, 0 for a free one; or a socket of `listen`, which several servers may share.
    tls : TlsFiles or None
        Certificate and key; None for no TLS.
    names : tuple of str
        Further names that it is asked under; see `KnownHosts`.

    Raises
    ------
    ServeError
        If the address cannot be listened on.
    """

    def __init__(
        self,
        service: InferenceService,
        host: str,
        port: int | socket.socket,
        tls: TlsFiles | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self._socket = listen(host, port) if isinstance(port, int) else port
        self.port: int = self._socket.getsockname()[1]
        self._tls = None if tls is None else RenewableContext(tls)
        self._app = HttpApp(service, None if service.takes_tokens else KnownHosts(host, names))
        self._limits = service.limits
        self._patience = 0.0
        self._loop = uvloop.new_event_loop()
        self._ending = asyncio.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fedveil-http", daemon=True)

    def start(self) -> None:
        """Answer requests from now on."""
        self._thread.start()
        if not self._listens.wait(_START_SECONDS):
            raise ServeError("the HTTP server does not start")

    def reload_certificate(self) -> None:
        """Read the files of TLS anew, for connections from now on.

        Raises
        ------
        ServeError
            If they cannot be used; the old ones stay then.
        """
        if self._tls is not None:
            self._tls.renew()

    def stop(self, patience: float) -> None:
        """Take no more connections, finish the requests that are being answered, and end.

        Parameters
        ----------
        patience : float
            Seconds after which what is not finished is cut off.
        """
        self._patience = patience
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(patience + _START_SECONDS)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        desk = Desk(self._app, self._limits)
        tls = None if self._tls is None else self._tls.context
        server = await self._loop.create_server(
            lambda: Connection(desk),
            sock=self._socket,
            backlog=_BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=None if tls is None else self._limits.read_seconds,
        )
        self._listens.set()
        await self._ending.wait()
        server.close()
        desk.end()
        until = self._loop.time() + self._patience
        while desk.connections and self._loop.time() < until:
            await asyncio.sleep(_TICK_SECONDS)
        desk.abort()
