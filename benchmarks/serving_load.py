"""The load generator of `serving.py`: a process of its own, the same for every server.

It reads one JSON object a line from its standard input, puts that load on a server, and writes one
JSON object with what came of it. Sockets and epoll, and no more: it must cost less than any server.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

__all__ = ["Load", "Outcome"]

_END = b"\r\n\r\n"
_LENGTH = b"content-length: "
_OK = b"HTTP/1.1 200"
_RECEIVED = 1 << 18
_PATIENCE = 30.0
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT


@dataclass(frozen=True)
class Load:
    """Requests that are put on one server.

    Parameters
    ----------
    port : int
        Where it listens, on this machine.
    request : str
        A file with the whole request, headers and all.
    connections : int
        How many; each sends the next request when it has the answer to the last.
    seconds : float
        How long.
    warm_up : float
        Seconds before that, in which nothing is counted.
    """

    port: int
    request: str
    connections: int
    seconds: float
    warm_up: float


@dataclass(frozen=True)
class Outcome:
    """What came of a load: requests a second, and percentiles of their times in milliseconds."""

    rate: float
    p50: float
    p99: float


class _Connection:
    """Sends one request after the other, and notes when each began and how long it took."""

    def __init__(self, load: Load, request: memoryview, times: list[tuple[float, float]]) -> None:
        self._request = request
        self._times = times
        self._left = 0
        self._head = b""
        self._unsent = request
        self.socket = socket.create_connection(("127.0.0.1", load.port), _PATIENCE)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def begin(self) -> int:
        """Send the next request; return what is waited for."""
        self._unsent = self._request
        self._began = time.perf_counter()
        return self.write()

    def write(self) -> int:
        """Send what is left of the request; return what is waited for."""
        try:
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            return _WRITE
        return _WRITE if len(self._unsent) else _READ

    def read(self) -> bool:
        """Take what has arrived; return whether that was the end of an answer."""
        data = self.socket.recv(_RECEIVED)
        if not data:
            raise RuntimeError("the server closed a connection")
        if self._left:
            self._left -= len(data)
        else:
            head = self._head + data if self._head else data
            end = head.find(_END)
            if end < 0:
                self._head = head
                return False
            self._head = b""
            if not head.startswith(_OK):
                raise RuntimeError(head[:600].decode("latin-1"))
            lower = head[: end + 2].lower()
            begin = lower.index(_LENGTH) + len(_LENGTH)
            length = int(lower[begin : lower.index(b"\r", begin)])
            self._left = length - (len(head) - end - len(_END))
        if self._left:
            return False
        self._times.append((self._began, time.perf_counter() - self._began))
        return True


def _put(load: Load) -> Outcome:
    request = memoryview(Path(load.request).read_bytes())
    times: list[tuple[float, float]] = []
    poll = select.epoll()
    connections: dict[int, _Connection] = {}
    for _ in range(load.connections):
        made = _Connection(load, request, times)
        connections[made.socket.fileno()] = made
        poll.register(made.socket.fileno(), made.begin())
    counted_from = time.perf_counter() + load.warm_up
    until = counted_from + load.seconds
    try:
        while time.perf_counter() < until:
            events = poll.poll(_PATIENCE, load.connections)
            if not events:
                raise RuntimeError(f"no answer within {_PATIENCE:g} s")
            for number, event in events:
                connection = connections[number]
                if event & _WRITE:
                    if connection.write() == _READ:
                        poll.modify(number, _READ)
                elif connection.read() and connection.begin() == _WRITE:
                    poll.modify(number, _WRITE)
    finally:
        poll.close()
        for connection in connections.values():
            connection.socket.close()
    counted = np.array([took for began, took in times if began >= counted_from]) * 1e3
    if not len(counted):
        raise RuntimeError(f"no answer within {load.seconds:g} s")
    p50, p99 = np.percentile(counted, [50, 99])
    return Outcome(len(counted) / load.seconds, float(p50), float(p99))


def _main() -> None:
    for line in sys.stdin:
        print(json.dumps(asdict(_put(Load(**json.loads(line))))), flush=True)


if __name__ == "__main__":
    _main()
