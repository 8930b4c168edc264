"""The service over HTTP: the protocol, its limits, and swaps under load."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served_run import INFER, answer, body, commit, run_of, serving, some_rows

from fedveil.server.inference.oip import Limits
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tokens import TokenFile, add_token

SMALL = Limits(
    rows=64,
    body_bytes=100_000,
    json_bytes=50_000,
    queue_bytes=400_000,
    header_bytes=4096,
    connections=40,
    read_seconds=0.5,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        patch.setenv("FEDVEIL_HOME", str(folder / "home"))
        path = folder / "run"
        run_of(path, 1, 2, 3)
        yield path


@pytest.fixture(scope="module")
def small(run: Path) -> Iterator[httpx.Client]:
    """Return a client of a service with small limits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(run.parent / "home"))
        with serving(run, SMALL) as (_, url), httpx.Client(base_url=url, timeout=30) as client:
            yield client


def outputs(reply: httpx.Response) -> np.ndarray:
    assert reply.status_code == 200, reply.text
    found = reply.json()["outputs"][0]
    return np.array(found["data"], np.float32).reshape(found["shape"])


def test_health_and_metadata(small: httpx.Client) -> None:
    assert small.get("/v2/health/live").status_code == 200
    assert small.get("/v2/health/ready").status_code == 200
    assert small.get("/v2").json()["name"] == "fedveil"
    assert "binary_tensor_data" in small.get("/v2").json()["extensions"]
    assert small.get("/v2/models/digits/ready").status_code == 200
    assert small.get("/v2/models/digits/versions/3/ready").status_code == 200
    told = small.get("/v2/models/digits").json()
    assert told["versions"] == ["3"]
    assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 64]}]
    assert told["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, 10]}]
    found = told["parameters"]
    assert (found["run"], found["round"], found["epsilon"]) == ("digits-run", 3, 0.75)
    assert (found["delta"], found["privacy_unit"]) == (1e-5, "record")


def test_answers_are_the_rounds_own(small: httpx.Client) -> None:
    rows = some_rows(7)
    reply = small.post(INFER, json=body(rows, id="me"))
    assert np.array_equal(outputs(reply), answer(3, rows))
    assert (reply.json()["model_version"], reply.json()["id"]) == ("3", "me")
    named = small.post("/v2/models/digits/versions/3/infer", json=body(rows))
    assert np.array_equal(outputs(named), answer(3, rows))


def test_raw_tensors_both_ways(small: httpx.Client) -> None:
    rows = some_rows(5).astype(np.uint8)
    head = {
        "inputs": [
            {
                "name": "input",
                "shape": [5, 64],
                "datatype": "UINT8",
                "parameters": {"binary_data_size": rows.nbytes},
            }
        ],
        "outputs": [{"name": "output", "parameters": {"binary_data": True}}],
    }
    text = json.dumps(head).encode()
    reply = small.post(
        INFER,
        content=text + rows.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(text))},
    )
    length = int(reply.headers["inference-header-content-length"])
    assert reply.headers["content-type"] == "application/octet-stream"
    assert json.loads(reply.content[:length])["outputs"][0]["parameters"] == {
        "binary_data_size": 200
    }
    found = np.frombuffer(reply.content[length:], "<f4").reshape(5, 10)
    assert np.array_equal(found, answer(3, rows.astype(np.float32)))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/admin/roll-back", 403),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/digits/versions/2", 404),
        ("GET", "/v2/models/digits/versions/3/x", 404),
        ("GET", INFER, 405),
        ("POST", "/v2", 405),
        ("DELETE", "/v2/models/digits", 405),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/digits/versions/9/infer", 404),
        ("POST", "/v2/models/digits/x/3/infer", 404),
        ("POST", INFER, 400),
    ],
)
def test_what_is_not_there_is_said_in_json(
    method: str, path: str, status: int, small: httpx.Client
) -> None:
    reply = small.request(method, path)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200) | st.text(max_size=80).map(str.encode),
    st.text("0123456789-x", max_size=14) | st.none(),
)
def test_malformed_bodies_are_refused_and_nothing_breaks(
    small: httpx.Client, content: bytes, length: str | None
) -> None:
    headers = {} if length is None else {"Inference-Header-Content-Length": length}
    reply = small.post(INFER, content=content, headers=headers)
    assert 400 <= reply.status_code < 500
    assert "error" in reply.json()


def test_what_is_over_a_limit_is_refused(small: httpx.Client) -> None:
    assert small.post(INFER, json=body(some_rows(65))).status_code == 413
    assert small.post(INFER, content=b" " * 60_000).status_code == 413
    assert small.post(INFER, content=b" " * 100_001).status_code == 413
    chunks = (b" " * 10_000 for _ in range(11))
    assert small.post(INFER, content=chunks).status_code == 413
    compressed = small.post(INFER, content=b"x", headers={"content-encoding": "gzip"})
    assert (compressed.status_code, "compressed" in compressed.text) == (400, True)
    assert np.array_equal(
        outputs(small.post(INFER, json=body(some_rows(1)))), answer(3, some_rows(1))
    )


def exchange(url: str, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send pieces over a connection of one's own; return what comes back until it is closed."""
    address = httpx.URL(url)
    found = b""
    with socket.create_connection((address.host, address.port or 80), timeout=20) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
                time.sleep(pause)
            while part := connection.recv(65_536):
                found += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return found


def test_giant_headers_are_cut_off(small: httpx.Client) -> None:
    url = str(small.base_url)
    start = b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n"
    for attack in (
        start + b"x: " + b"a" * 5000 + b"\r\n\r\n",
        start + b"x: " + b"a" * 500_000,
        b"GET /" + b"a" * 500_000,
        start + b"a: b\r\n" * 100_000,
    ):
        assert not exchange(url, attack).startswith(b"HTTP/1.1 200")
    assert small.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        (b"", b"\r\n"),
        (b"", b"G"),
        (b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n", b"a: b\r\n"),
        (
            b"POST "
            + INFER.encode()
            + b" HTTP/1.1\r\nhost: localhost\r\ncontent-length: 999\r\n\r\n",
            b" ",
        ),
        (b"GET /v2/health/live HTTP/1.1\r\nhost: localhost\r\n\r\n", b"\r\n"),
    ],
    ids=["empty-lines", "method", "headers", "body", "after-a-request"],
)
def test_whoever_sends_bytes_one_by_one_is_cut_off(
    start: bytes, piece: bytes, small: httpx.Client
) -> None:
    began = time.monotonic()
    exchange(str(small.base_url), start, *[piece] * 100, pause=0.05)
    # All pieces take 5 s; the limit is 0.5 s, and the reader may be slow.
    assert time.monotonic() - began < 4.5
    assert small.get("/v2/health/live").status_code == 200


def test_a_flood_of_connections_leaves_room(small: httpx.Client) -> None:
    address = httpx.URL(str(small.base_url))
    idle = []
    for _ in range(200):
        idle.append(socket.create_connection((address.host, address.port or 80), timeout=20))
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                if httpx.get(address.join("/v2/health/live"), timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        else:
            pytest.fail("the flood keeps others out")
    finally:
        for connection in idle:
            connection.close()


def test_metrics_count_what_happened_and_nothing_of_inputs(small: httpx.Client) -> None:
    small.post(INFER, json=body(some_rows(3)))
    small.post(INFER, content=b"{")
    text = small.get("/metrics").text
    assert 'fedveil_requests_total{outcome="ok",protocol="http"}' in text
    assert 'fedveil_requests_total{outcome="invalidrequest",protocol="http"}' in text
    assert "fedveil_round 3.0" in text
    assert "fedveil_batch_rows_count" in text


def test_tokens_and_their_scopes(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    path = tmp_path / "tokens.json"
    infer = {"authorization": f"Bearer {add_token(path, 'shop', ('infer',))}"}
    look = {"authorization": f"Bearer {add_token(path, 'probe', ('metadata',))}"}
    with (
        serving(tmp_path / "run", tokens=TokenFile(path)) as (_, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert client.get("/v2/health/live").status_code == 200
        for place in ("/v2", "/v2/models/digits", "/v2/models/digits/ready", "/metrics", "/x"):
            refused = client.get(place)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get(place, headers=infer).status_code == 403
        assert client.get("/v2/models/digits", headers=look).status_code == 200
        assert client.post(INFER, json=body(some_rows(1))).status_code == 401
        assert client.post(INFER, json=body(some_rows(1)), headers=look).status_code == 403
        assert client.post(INFER, json=body(some_rows(1)), headers=infer).status_code == 200


def test_an_administrator_rolls_back_and_nobody_else(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    path = tmp_path / "tokens.json"
    shop = {"authorization": f"Bearer {add_token(path, 'shop', ('infer', 'metadata'))}"}
    boss = {"authorization": f"Bearer {add_token(path, 'boss', ('admin',))}"}
    with (
        serving(tmp_path / "run", tokens=TokenFile(path)) as (service, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        assert client.post("/admin/roll-back", headers=boss).status_code == 404
        commit(folder, 2)
        assert service.watcher.look()
        assert client.post("/admin/roll-back", headers=shop).status_code == 403
        assert client.post("/admin/roll-back", headers=boss).json() == {"model_version": "1"}
        for version in ("1", "2"):
            place = f"/v2/models/digits/versions/{version}/infer"
            reply = client.post(place, json=body(some_rows(2)), headers=shop)
            assert np.array_equal(outputs(reply), answer(int(version), some_rows(2)))
        reply = client.post(INFER, json=body(some_rows(2)), headers=shop)
        assert reply.json()["model_version"] == "1"
        assert client.get("/v2/models/digits", headers=shop).json()["versions"] == ["1", "2"]


def hold(service: InferenceService) -> threading.Event:
    """Stop the model; return what lets it go on."""
    go, run = threading.Event(), service.engine.run

    def held(*arguments: object) -> object:
        assert go.wait(30)
        return run(*arguments)  # type: ignore[arg-type]

    service.engine.run = held  # type: ignore[assignment,method-assign]
    return go


def test_deadlines_and_a_full_queue(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    limits = Limits(queue_rows=2)
    with (
        serving(tmp_path / "run", limits) as (service, url),
        httpx.Client(base_url=url, timeout=30) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        go = hold(service)
        late = client.post(INFER, json=body(some_rows(1), parameters={"timeout": 50_000}))
        assert (late.status_code, "within 0.05 s" in late.text) == (504, True)
        waiting = pool.submit(client.post, INFER, json=body(some_rows(2)))
        until = time.monotonic() + 20
        while service._batcher.queued_rows < 2 and time.monotonic() < until:
            time.sleep(0.01)
        full = client.post(INFER, json=body(some_rows(1)))
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert "the queue is full with 2 rows" in full.text
        go.set()
        assert np.array_equal(outputs(waiting.result(30)), answer(1, some_rows(2)))


def test_swaps_under_load_never_mix_rounds(tmp_path: Path) -> None:
    """Good rounds, and damaged ones, appear while sixteen connections ask all the time."""
    folder = run_of(tmp_path / "run", 1)
    last, requests = 12, 1200
    with serving(tmp_path / "run") as (service, url):
        service.watcher.start()
        done = threading.Event()

        def train() -> None:
            for round_ in range(2, last + 1):
                commit(folder, round_)
                if round_ % 4 == 0:
                    path = folder.store.path(round_ + 1)
                    path.write_bytes(folder.store.path(round_).read_bytes()[:-7])
                    path.chmod(0o600)
                    time.sleep(0.1)
                    path.unlink()
                time.sleep(0.1)
            done.set()

        def ask(worker: int) -> Counter[str]:
            seen: Counter[str] = Counter()
            with httpx.Client(base_url=url, timeout=30) as client:
                number = 0
                while number < requests // 16 or not done.is_set():
                    rows = some_rows(1 + number % 5, seed=1000 * worker + number)
                    reply = client.post(INFER, json=body(rows))
                    version = reply.json()["model_version"]
                    assert np.array_equal(outputs(reply), answer(int(version), rows))
                    seen[version] += 1
                    number += 1
            return seen

        with ThreadPoolExecutor(17) as pool:
            training = pool.submit(train)
            counts = sum(pool.map(ask, range(16)), Counter())
            training.result(60)
        deadline = time.monotonic() + 20
        while service.holder.current.round < last and time.monotonic() < deadline:
            time.sleep(0.02)
        text = httpx.get(f"{url}/metrics").text
    assert service.holder.current.round == last
    assert sum(counts.values()) >= requests
    assert len(counts) > 3
    assert "fedveil_refused_rounds_total 0.0" not in text
    assert (
        f'fedveil_requests_total{{outcome="ok",protocol="http"}} {sum(counts.values())}.0' in text
    )
