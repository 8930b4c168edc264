"""A network between a client and the SuperLink that can be cut: TCP, passed on as it comes."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType

from deployed import free_ports

_CHUNK = 1 << 16
_LOOK = 0.2


class Network:
    """Listens on an address of its own and passes all on; use as a context manager.

    Parameters
    ----------
    to : str
        ``HOST:PORT`` of whoever is reached over it.
    """

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        (self._port,) = free_ports(1)
        self.address = f"127.0.0.1:{self._port}"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._passes = threading.Event()
        self._passes.set()
        self._refuses = self._ended = False
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._listener.settimeout(_LOOK)
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Network:
        self._accepting.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self._passes.set()
        self._hang_up()
        self._accepting.join(10)
        self._listener.close()

    def cut(self, *, silent: bool) -> None:
        """Let nothing through: with every connection refused, or without a word to anybody."""
        self._passes.clear()
        if not silent:
            self._refuses = True
            self._hang_up()

    def restore(self) -> None:
        """Let new connections through; those that were cut are gone, as after a long silence."""
        self._hang_up()
        self._refuses = False
        self._passes.set()

    def _hang_up(self) -> None:
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
                one.close()
            self._open.clear()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except TimeoutError:
                continue
            if self._refuses or self._ended:
                near.close()
                continue
            try:
                far = socket.create_connection(self._to, timeout=5.0)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                # What was on its way when the network was cut arrives only if it comes back,
                # and then finds its connection gone.
                self._passes.wait()
                sink.sendall(data)
        for one in (source, sink):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
            with self._lock:
                self._open.discard(one)
