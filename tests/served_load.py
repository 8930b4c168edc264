"""Connections that ask a service all the time, and compare every answer with a round's own."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from served_run import INFER, answer, body, some_rows

__all__ = ["Load"]

_BODIES = 48
_SECONDS = 60.0


class Load:
    """Asks over many connections, in a thread with an event loop of its own.

    Every answer must have status 200, name a round, and be exactly what that round answers; and
    no connection may see an older round after a newer one.

    Parameters
    ----------
    url : str
        The service.
    connections : int
        How many ask at the same time, each again as soon as it has its answer.
    is_enough : callable
        Given this; the connections end when it returns True.

    Attributes
    ----------
    count : int
        Answers so far.
    seen : dict of str to int
        The same by round.
    """

    def __init__(self, url: str, connections: int, is_enough: Callable[[Load], bool]) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self._connections = connections
        self._is_enough = is_enough
        self._rows = [some_rows(1 + seed % 3, seed) for seed in range(_BODIES)]
        self._requests = [self._request(json.dumps(body(rows)).encode()) for rows in self._rows]
        self._expected: dict[tuple[str, int], list[float]] = {}
        self.seen: dict[str, int] = {}
        self.count = 0
        self._done: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until it is enough; raise what went wrong."""
        self._done.result(_SECONDS)
        self._thread.join(_SECONDS)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true while this asks; raise what went wrong meanwhile."""
        patience = time.monotonic() + _SECONDS
        while not condition():
            if self._done.done():
                self._done.result()
                break
            assert time.monotonic() < patience, "it does not become true"
            time.sleep(0.002)

    def _request(self, content: bytes) -> bytes:
        head = f"POST {INFER} HTTP/1.1\r\nhost: {self._host}:{self._port}\r\n"
        kind = "content-type: application/json\r\n"
        return f"{head}{kind}content-length: {len(content)}\r\n\r\n".encode() + content

    def _run(self) -> None:
        try:
            asyncio.run(self._ask_all())
        except BaseException as error:  # noqa: BLE001  # given to whoever waits
            self._done.set_exception(error)
        else:
            self._done.set_result(None)

    async def _ask_all(self) -> None:
        async with asyncio.timeout(_SECONDS), asyncio.TaskGroup() as group:
            for number in range(self._connections):
                group.create_task(self._ask(number))

    async def _ask(self, number: int) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        newest = 0
        try:
            while not self._is_enough(self):
                number = (number + 1) % _BODIES
                writer.write(self._requests[number])
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                content = await reader.readexactly(length)
                assert head.startswith(b"HTTP/1.1 200"), (head, content)
                told = json.loads(content)
                version = told["model_version"]
                assert told["outputs"][0]["data"] == self._wanted(version, number), version
                assert int(version) >= newest, (version, newest)
                newest = int(version)
                self.seen[version] = self.seen.get(version, 0) + 1
                self.count += 1
        finally:
            writer.close()

    def _wanted(self, version: str, number: int) -> list[float]:
        key = (version, number)
        if key not in self._expected:
            self._expected[key] = answer(int(version), self._rows[number]).reshape(-1).tolist()
        return self._expected[key]
