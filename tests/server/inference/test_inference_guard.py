"""Attacks on connections: each is run against a service, which then gives a right answer."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from served_run import INFER, answer, body, run_of, serving, some_rows

from fedveil.server.inference.oip import Limits

ROWS = 80_000
"""Their answer is larger than what the system keeps for a client that does not read."""

QUICK = Limits(rows=ROWS, read_seconds=1.0, connections=60, header_bytes=4096)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("FEDVEIL_HOME", str(folder / "home"))
        path = folder / "run"
        run_of(path, 1)
        yield path


@pytest.fixture(autouse=True)
def _home_of_the_run(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDVEIL_HOME", str(run.parent / "home"))


@contextlib.contextmanager
def attacked(run: Path, limits: Limits) -> Iterator[httpx.URL]:
    """Serve a run to an attacker, then ask it something."""
    with serving(run, limits) as (_, url):
        yield httpx.URL(url)
        answers_right(url)


def answers_right(url: str) -> None:
    deadline = time.monotonic() + 20
    while True:
        # After a flood there may be no room at once.
        with contextlib.suppress(httpx.TransportError):
            reply = httpx.post(f"{url}{INFER}", json=body(some_rows(3)), timeout=20)
            break
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert reply.status_code == 200, reply.text
    found = np.array(reply.json()["outputs"][0]["data"]).reshape(3, 10)
    assert np.array_equal(found, answer(1, some_rows(3)))


@pytest.fixture(scope="module")
def patient(run: Path) -> Iterator[httpx.URL]:
    """Return the address of a service that refuses by size, long before it would by time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(run.parent / "home"))
        limits = Limits(header_bytes=4096, body_bytes=100_000, read_seconds=20)
        with serving(run, limits) as (_, url):
            yield httpx.URL(url)


def connect(url: httpx.URL, source: str = "127.0.0.1") -> socket.socket:
    connection = socket.socket()
    # Before it connects, so that the other side is told how little it may send.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(20)
    connection.bind((source, 0))
    connection.connect((url.host, url.port or 80))
    return connection


def large_request(*headers: str) -> bytes:
    tensor = {
        "name": "input",
        "shape": [ROWS, 64],
        "datatype": "UINT8",
        "parameters": {"binary_data_size": ROWS * 64},
    }
    head = json.dumps({"inputs": [tensor]}).encode()
    lines = [
        f"POST {INFER} HTTP/1.1",
        "host: 127.0.0.1",
        f"content-length: {len(head) + ROWS * 64}",
        f"inference-header-content-length: {len(head)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + head + bytes(ROWS * 64)


def is_cut(connection: socket.socket, seconds: float = 20) -> bool:
    """Return whether the other side ends a connection, of which nothing is read."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    return bool(poll.poll(seconds * 1000))


@pytest.mark.parametrize("headers", [(), ("connection: close",)], ids=["kept", "closed"])
def test_whoever_does_not_read_an_answer_is_cut_off(run: Path, headers: tuple[str, ...]) -> None:
    with attacked(run, QUICK) as url, connect(url) as connection:
        connection.sendall(large_request(*headers))
        assert is_cut(connection)


def test_whoever_reads_an_answer_byte_by_byte_is_cut_off(run: Path) -> None:
    with attacked(run, QUICK) as url, connect(url) as connection:
        connection.sendall(large_request())
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while not is_cut(connection, 0.02):
                got += len(connection.recv(1))
                assert got < 1000
        assert got < 1000


def test_whoever_reads_a_large_answer_at_leisure_gets_it_whole(run: Path) -> None:
    with attacked(run, QUICK) as url:
        address = f"{url}{INFER}"
        request = large_request()
        head, _, content = request.partition(b"\r\n\r\n")
        length = head.split(b"inference-header-content-length: ")[1].decode()
        reply = httpx.post(
            address,
            content=content,
            headers={"inference-header-content-length": length},
            timeout=20,
        )
        assert len(reply.json()["outputs"][0]["data"]) == ROWS * 10


def test_what_nobody_reads_is_bounded_over_all_connections(run: Path) -> None:
    limits = Limits(rows=ROWS, read_seconds=20, queue_bytes=2**20)
    with attacked(run, limits) as url, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(url)) for _ in range(5)]
        for connection in idle:
            connection.sendall(large_request())
            # Once its answer begins, nothing is held of the request.
            assert connection.recv(1) == b"H"
        # Long before the time that one alone would have.
        poll = select.poll()
        for connection in idle:
            poll.register(connection, select.POLLRDHUP)
        assert poll.poll(15_000)
        assert sum(is_cut(connection, 1) for connection in idle) >= 3


def test_one_address_leaves_room_for_others(run: Path) -> None:
    limits = Limits(connections=60, peer_connections=20, read_seconds=20)
    with serving(run, limits) as (_, url), contextlib.ExitStack() as stack:
        address = httpx.URL(url)
        flood = [stack.enter_context(connect(address)) for _ in range(100)]
        for connection in flood[20:]:
            assert is_cut(connection)
        assert not any(is_cut(connection, 0) for connection in flood[:20])
        other = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=other, base_url=url, timeout=20) as client:
            reply = client.post(INFER, json=body(some_rows(1)))
        found = np.array(reply.json()["outputs"][0]["data"]).reshape(1, 10)
        assert np.array_equal(found, answer(1, some_rows(1)))
        flood[0].close()
        deadline = time.monotonic() + 20
        while True:
            assert time.monotonic() < deadline
            with contextlib.suppress(httpx.TransportError):
                assert httpx.get(f"{url}/v2/health/live", timeout=20).status_code == 200
                break
            time.sleep(0.05)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"\r\n"),
        (b"GET /v2/health/live HTTP/1.1\r\nhost: x\r\n", b"a: b\r\n"),
        (b"POST " + INFER.encode() + b" HTTP/1.1\r\ncontent-length: 99999\r\n\r\n", b" "),
    ],
    ids=["empty-lines", "headers", "body"],
)
def test_slow_senders_by_the_dozen_are_cut_off(run: Path, start: bytes, piece: bytes) -> None:
    with attacked(run, QUICK) as url, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(url)) for _ in range(QUICK.connections)]
        for connection in slow:
            connection.sendall(start)
        deadline = time.monotonic() + 20
        while slow:
            assert time.monotonic() < deadline
            for connection in list(slow):
                try:
                    connection.sendall(piece)
                except (ConnectionResetError, BrokenPipeError):
                    slow.remove(connection)
            time.sleep(0.02)


@pytest.mark.parametrize(
    "attack",
    [
        b"GET /v2 HTTP/1.1\r\nx: " + b"a" * 1_000_000,
        b"GET /" + b"a" * 1_000_000,
        b"GET /v2 HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        b"transfer-encoding: chunked\r\n\r\n" + b"1;" + b"x" * 1_000_000,
        b"\r\n" * 1_000_000,
        b"\x16\x03\x01" + b"\0" * 100_000,
    ],
    ids=["header", "address", "headers", "chunk", "empty-lines", "tls"],
)
def test_giants_are_refused_without_reading_them(patient: httpx.URL, attack: bytes) -> None:
    with connect(patient) as connection:
        found = b""
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(attack)
            while part := connection.recv(4096):
                found += part
        assert not found.startswith(b"HTTP/1.1 2")
    answers_right(str(patient))


@pytest.mark.parametrize(
    "attack",
    [
        b"content-length: 4\r\ncontent-length: 5\r\n\r\nabcde",
        b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"content-length: -1\r\n\r\n",
        b"content-length: 4_0\r\n\r\n",
        b"transfer-encoding: gzip, x\r\n\r\n",
        b"content-length : 4\r\n\r\nabcd",
        b"a\0b: c\r\n\r\n",
    ],
)
def test_requests_that_two_servers_could_read_differently_are_refused(
    patient: httpx.URL, attack: bytes
) -> None:
    with connect(patient) as connection:
        connection.sendall(b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n" + attack)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(4096):
                found += part
        assert found.startswith(b"HTTP/1.1 400") or not found
        assert found.count(b"HTTP/1.1") <= 1
    answers_right(str(patient))
