"""HTTP/1.1 on real sockets, before a small application of the test's own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import pytest
import uvloop

from fedveil.server.inference.batcher import Done
from fedveil.server.inference.errors import NotFoundError, RequestError
from fedveil.server.inference.http_answer import Answer, Request, Upload, refusal
from fedveil.server.inference.http_connection import Connection
from fedveil.server.inference.http_desk import Desk
from fedveil.server.inference.oip import Limits

LIMITS = Limits(
    body_bytes=200_000, header_bytes=4096, read_seconds=1.0, connections=8, queue_bytes=150_000
)


class Echo:
    """Sends bodies back: at once, or when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Request] = []
        self.waiting: list[Done] = []
        self.failed: list[str] = []

    def together(self) -> nullcontext[None]:
        return nullcontext()

    def begin(self, request: Request) -> Answer | Upload:
        self.begun.append(request)
        match request.path:
            case "/echo":
                return Taken(self, is_later=False)
            case "/later":
                return Taken(self, is_later=True)
            case "/large":
                return Answer(200, b"x" * 5_000_000)
            case "/broken":
                raise ZeroDivisionError("a secret")
            case "/closes":
                return Answer(200, b"bye", closes=True)
        return refusal(NotFoundError("nothing here"))


class Taken:
    """A body that is sent back, or whose size is told when the test says so."""

    def __init__(self, app: Echo, *, is_later: bool) -> None:
        self.app = app
        self.is_later = is_later
        self.size = 0

    def submit(self, body: bytes | bytearray, done: Done) -> Answer | float:
        if not self.is_later:
            return Answer(200, bytes(body))
        self.app.waiting.append(done)
        self.size = len(body)
        return 2.0

    def finish(self, result: object) -> Answer:
        if isinstance(result, RequestError):
            return refusal(result)
        return Answer(200, b"%d" % self.size)

    def fail(self, error: RequestError) -> Answer:
        self.app.failed.append(type(error).__name__)
        return refusal(error)


class Server:
    def __init__(self, limits: Limits) -> None:
        self.app = Echo()
        self.limits = limits
        self.listening = threading.Event()
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        assert self.listening.wait(20)

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.run(self.serve())

    async def serve(self) -> None:
        self.desk = Desk(self.app, self.limits)
        server = await self.loop.create_server(lambda: Connection(self.desk), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self.ending = asyncio.Event()
        self.listening.set()
        await self.ending.wait()
        server.close()
        self.desk.abort()

    def call(self, what: Callable[[], object]) -> None:
        self.loop.call_soon_threadsafe(what)

    def connect(self) -> socket.socket:
        made = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        made.settimeout(20)
        return made


@contextmanager
def serving(limits: Limits = LIMITS) -> Iterator[Server]:
    server = Server(limits)
    try:
        yield server
    finally:
        server.call(server.ending.set)
        server.thread.join(20)
        assert server.desk.held == 0


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as made:
        yield made


def post(path: str, body: bytes, *headers: bytes, length: bool = True) -> bytes:
    size = [b"content-length: %d" % len(body)] if length else []
    lines = [b"POST %b HTTP/1.1" % path.encode(), b"host: x", *size, *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def read_answer(connection: socket.socket) -> tuple[int, dict[bytes, bytes], bytes]:
    """Read one answer, and no byte of the next."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        part = connection.recv(1)
        assert part, head
        head += part
    head, body = head[:-4], b""
    status, *lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines)
    size = int(headers[b"content-length"])
    while len(body) < size:
        body += connection.recv(size - len(body))
    return int(status.split()[1]), headers, body


def is_cut_off(connection: socket.socket) -> bool:
    """Return whether nothing more comes."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("size", [0, 1, 64, 70_000, 140_000])
@pytest.mark.parametrize("piece", [7, 4096, 1_000_000])
def test_bodies_come_back_however_they_are_cut(server: Server, size: int, piece: int) -> None:
    body = np.random.default_rng(size).bytes(size)
    whole = post("/echo", body)
    if len(whole) > 1000 * piece:
        piece = len(whole) // 1000
    with server.connect() as connection:
        for _ in range(2):
            for begin in range(0, len(whole), piece):
                connection.sendall(whole[begin : begin + piece])
            status, headers, found = read_answer(connection)
            assert (status, found) == (200, body)
            assert b"connection" not in headers
            assert b"gmt" in headers[b"date"]


def test_chunks_are_put_together(server: Server) -> None:
    request = post("/echo", b"", b"transfer-encoding: chunked", length=False)
    with server.connect() as connection:
        connection.sendall(request + b"3\r\nabc\r\n" + b"4\r\ndefg\r\n" + b"0\r\n\r\n")
        assert read_answer(connection)[2] == b"abcdefg"


def test_requests_sent_ahead_are_answered_in_order(server: Server) -> None:
    sent = [b"a", b"b" * 1000, b"", b"c" * 50]
    ahead = b"".join(post("/echo", body) for body in sent) + b"GET /none HTTP/1.1\r\n\r\n"
    with server.connect() as connection:
        connection.sendall(ahead)
        assert [read_answer(connection)[2] for _ in sent] == sent
        assert read_answer(connection)[0] == 404


def test_what_is_sent_ahead_waits_for_what_is_computed(server: Server) -> None:
    with server.connect() as connection:
        before = len(server.app.waiting)
        connection.sendall(post("/later", b"four") + post("/echo", b"next"))
        until(lambda: len(server.app.waiting) > before)
        assert server.app.begun[-1].path == "/later"
        # From another thread, as a batch is.
        server.app.waiting[-1](("1", np.zeros(1)))
        assert read_answer(connection)[2] == b"4"
        assert read_answer(connection)[2] == b"next"


def test_too_many_requests_ahead_are_cut_off(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(post("/later", b"") + b"GET /echo HTTP/1.1\r\n\r\n" * 1000)
        assert is_cut_off(connection)
    assert server.app.begun[-1].path == "/later"


def test_an_answer_that_comes_too_late_is_not_waited_for(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(post("/later", b"x"))
        assert read_answer(connection)[0] == 504
        server.app.waiting[-1](("1", np.zeros(1)))
        connection.sendall(post("/echo", b"still there"))
        assert read_answer(connection)[2] == b"still there"


def test_who_waits_for_word_is_told_to_go_on_or_not(server: Server) -> None:
    expecting = b"expect: 100-continue"
    with server.connect() as connection:
        whole = post("/echo", b"body", expecting)
        connection.sendall(whole[:-4])
        assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert read_answer(connection)[2] == b"body"
        # Refused: nobody knows whether the body comes, so that this is the end.
        connection.sendall(post("/none", b"body", expecting)[:-4])
        status, headers, _ = read_answer(connection)
        assert (status, headers[b"connection"]) == (404, b"close")
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    "request_",
    [
        post("/echo", b"x").replace(b"HTTP/1.1", b"HTTP/1.0"),
        post("/echo", b"x", b"connection: close"),
        post("/echo", b"x", b"connection: upgrade", b"upgrade: h2c"),
        b"GET /closes HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
    ids=["1.0", "close", "upgrade", "answer"],
)
def test_a_connection_ends_when_it_should(server: Server, request_: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(request_)
        status, headers, _ = read_answer(connection)
        assert (status, headers[b"connection"]) == (200, b"close")
        assert connection.recv(1) == b""


def test_head_has_no_body(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"HEAD /large HTTP/1.1\r\nhost: x\r\n\r\n" + post("/echo", b"y"))
        found = b""
        while not found.endswith(b"\r\n\r\ny"):
            found += connection.recv(65_536)
        assert found.count(b"HTTP/1.1 200 OK") == 2
        assert b"content-length: 5000000" in found


def test_a_fault_of_the_application_costs_its_request_alone(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /broken HTTP/1.1\r\nhost: x\r\n\r\n")
        status, headers, body = read_answer(connection)
        assert (status, headers[b"connection"]) == (500, b"close")
        assert b"secret" not in body


@pytest.mark.parametrize(
    "attack",
    [
        b"\x16\x03\x01\x00\xa5hello",
        b"GET\r\n\r\n",
        b"CONNECT example.com:443 HTTP/1.1\r\n\r\n",
        b"GET /%ff\xff HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        b"POST /echo HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nhost: x\r\n name: folded\r\n\r\n",
    ],
    ids=["tls", "half", "connect", "bytes", "lengths", "smuggled", "negative", "folded"],
)
def test_what_is_no_request_ends_the_connection(server: Server, attack: bytes) -> None:
    with server.connect() as connection:
        connection.sendall(attack)
        found = b""
        while part := connection.recv(65_536):
            found += part
        assert found.startswith(b"HTTP/1.1 4")
        assert found.count(b"HTTP/1.1") == 1


def test_who_does_not_read_is_cut_off(server: Server) -> None:
    with server.connect() as connection:
        connection.sendall(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 4)
        before = server.app.begun.count(server.app.begun[-1])
        time.sleep(0.2)
        # Neither are answers piled up: the second waits until the first is taken.
        assert server.app.begun.count(server.app.begun[-1]) <= before + 1
        until(lambda: len(server.desk.connections) == 0)


def test_a_trailer_is_no_header_and_none_is_kept(server: Server) -> None:
    """Each took a hundred bytes; and of a request that waits, they came before it was let in."""
    chunked = b"POST /%b HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    trailers = b"".join(b"t%d:\r\n" % number for number in range(500))
    # Requests of other tests may have been given up, and still be there.
    server.app.waiting.clear()
    with server.connect() as connection:
        for _ in range(2):
            connection.sendall(chunked % b"later" + b"authorization: me\r\n" + trailers + b"\r\n")
        for _ in range(2):
            until(lambda: len(server.app.waiting) > 0)
            assert set(server.app.begun[-1].headers) == {b"host", b"transfer-encoding"}
            server.app.waiting.pop()(("1", np.zeros(1)))
            assert read_answer(connection)[2] == b"2"


@pytest.mark.parametrize("name", [b"host", b"Authorization", b"origin", b"content-encoding"])
def test_a_header_that_decides_is_there_once(name: bytes, server: Server) -> None:
    before = len(server.app.begun)
    with server.connect() as connection:
        connection.sendall(post("/echo", b"x", name + b": a", name.upper() + b": b"))
        assert read_answer(connection)[0] == 400
        assert is_cut_off(connection)
    assert len(server.app.begun) == before


def test_headers_that_come_in_pieces_are_counted_once(server: Server) -> None:
    whole = post("/echo", b"x", *(b"h%d: %b" % (number, b"v" * 150) for number in range(20)))
    assert LIMITS.header_bytes / 2 < len(whole) < LIMITS.header_bytes
    with server.connect() as connection:
        for piece in (whole[:3000], whole[3000:]):
            connection.sendall(piece)
            time.sleep(0.05)
        assert read_answer(connection)[2] == b"x"
        # The end of a body and the begin of what follows come together.
        connection.sendall(post("/echo", b"y" * 10_000) + whole[:50])
        assert read_answer(connection)[2] == b"y" * 10_000
        connection.sendall(whole[50:])
        assert read_answer(connection)[2] == b"x"


@pytest.mark.parametrize("start", [b"GET /", b"GET / HTTP/1.1\r\na: "])
def test_headers_without_end_are_refused(start: bytes, server: Server) -> None:
    with server.connect() as connection:
        for _ in range(3):
            connection.sendall(start + b"a" * 3000)
            start = b""
            time.sleep(0.05)
        assert read_answer(connection)[0] == 431


def test_bodies_together_are_bounded_and_given_back(server: Server) -> None:
    half = 80_000
    with server.connect() as first, server.connect() as second:
        first.sendall(post("/echo", b"a" * 100_000)[:half])
        until(lambda: server.desk.held > 70_000)
        second.sendall(post("/echo", b"b" * 100_000))
        assert read_answer(second)[0] == 503
        first.sendall(b"a" * (100_000 - half + 200))
        until(lambda: server.desk.held == 0)


def test_who_goes_away_takes_the_bytes_along_and_is_counted(server: Server) -> None:
    before = len(server.app.failed)
    with server.connect() as connection:
        connection.sendall(post("/echo", b"a" * 100_000)[:50_000])
        until(lambda: server.desk.held > 0)
    until(lambda: server.desk.held == 0)
    assert server.app.failed[before:] == ["InvalidRequestError"]


def test_at_the_end_all_are_answered_and_told_to_go() -> None:
    with serving(replace(LIMITS, read_seconds=10.0)) as made:
        with made.connect() as busy, made.connect() as idle, made.connect() as late:
            idle.sendall(post("/echo", b"x"))
            late.sendall(post("/echo", b"x"))
            read_answer(idle)
            read_answer(late)
            busy.sendall(post("/later", b"four"))
            until(lambda: len(made.app.waiting) == 1)
            made.call(made.desk.end)
            # A request may have been on its way when the end began.
            late.sendall(post("/echo", b"late"))
            status, headers, body = read_answer(late)
            assert (status, headers[b"connection"], body) == (200, b"close", b"late")
            assert idle.recv(1) == b""
            made.app.waiting[0](("1", np.zeros(1)))
            status, headers, body = read_answer(busy)
            assert (status, headers[b"connection"], body) == (200, b"close", b"4")
        until(lambda: not made.desk.connections)
