"""The policy over both protocols: who a caller is, what it may ask, what is said and written."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from certificates import client_context, make_certificate
from cryptography.hazmat.primitives.serialization import Encoding
from served_run import INFER, answer, body, commit, run_of, serving, some_rows

from fedveil.audit_log import chain
from fedveil.audit_log.chain import head_path, read_head
from fedveil.audit_log.errors import AuditError
from fedveil.audit_log.verify import verify_audit
from fedveil.server.inference import oip_pb2 as pb
from fedveil.server.inference.budget_file import read_use
from fedveil.server.inference.callers import Caller, address_caller, certificate_caller
from fedveil.server.inference.grpc_server import GrpcServer
from fedveil.server.inference.http_server import HttpServer
from fedveil.server.inference.oip import Limits
from fedveil.server.inference.outputs import parse_outputs
from fedveil.server.inference.policy import PolicyOptions
from fedveil.server.inference.service import InferenceService
from fedveil.server.inference.tls import TlsFiles
from fedveil.server.inference.tokens import TokenFile, add_token

LOCAL = "address:127.0.0.1"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run_of(tmp_path / "run", 1)
    return tmp_path / "run"


@pytest.fixture
def options(tmp_path: Path) -> PolicyOptions:
    return PolicyOptions(
        budget_file=tmp_path / "budgets.sqlite3",
        audit_log=tmp_path / "audit.log",
        audit_heads=tmp_path / "heads",
    )


def tokens(
    tmp_path: Path, **scopes: tuple[str, ...]
) -> tuple[TokenFile, dict[str, dict[str, str]]]:
    path = tmp_path / "tokens.json"
    headers = {
        name: {"authorization": f"Bearer {add_token(path, name, scope)}"}  # type: ignore[arg-type]
        for name, scope in scopes.items()
    }
    return TokenFile(path), headers


@contextmanager
def calling(service: InferenceService) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    server = GrpcServer(service, "127.0.0.1", 0)
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield channel.unary_unary(
                "/inference.GRPCInferenceService/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
    finally:
        server.stop(5)


def message(rows: np.ndarray) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(name="input", datatype="FP32", shape=rows.shape)
    return pb.ModelInferRequest(
        model_name="digits", inputs=[tensor], raw_input_contents=[rows.tobytes()]
    )


def written(options: PolicyOptions) -> list[dict[str, object]]:
    assert options.audit_log is not None
    return [json.loads(line) for line in options.audit_log.read_text().splitlines()]


def test_an_address_is_a_caller_and_a_network_of_ipv6_one() -> None:
    assert str(address_caller("192.0.2.7")) == "address:192.0.2.7"
    assert address_caller("::ffff:192.0.2.7") == address_caller("192.0.2.7")
    assert str(address_caller("2001:db8:1:2:3::4")) == "address:2001:db8:1:2::/64"
    assert address_caller("2001:db8:1:2:ffff::%eth0") == address_caller("2001:db8:1:2::1")
    for unknown in ("", "unix", "/run/socket", "1.2.3"):
        assert str(address_caller(unknown)) == "anonymous"


def test_a_certificate_is_a_caller_by_its_plain_name(tmp_path: Path) -> None:
    authority = make_certificate(tmp_path, "ca", None)
    first, _ = make_certificate(tmp_path, "ward-3", authority)
    (tmp_path / "again").mkdir()
    renewed, _ = make_certificate(tmp_path / "again", "ward-3", authority)
    named = certificate_caller(first.public_bytes(Encoding.DER))
    assert named == certificate_caller(renewed.public_bytes(Encoding.DER))
    assert named == Caller("certificate", "ward-3")
    # A name that could pass for something else, or break a line of the log, is none.
    odd, _ = make_certificate(tmp_path, "a\nb:c", authority)
    told = certificate_caller(odd.public_bytes(Encoding.DER)).name
    assert told.startswith("sha256:")
    assert len(told) == 71


def test_rates_and_budgets_are_of_the_token_and_hold_over_both_protocols(
    run: Path, tmp_path: Path, options: PolicyOptions
) -> None:
    known, headers = tokens(tmp_path, shop=("infer",), bank=("infer",))
    policy = replace(options, query_budget=10)
    with (
        serving(run, tokens=known, policy=policy) as (service, url),
        httpx.Client(base_url=url, timeout=30) as client,
        calling(service) as infer,
    ):
        sent = tuple(headers["shop"].items())
        assert (
            client.post(INFER, json=body(some_rows(4)), headers=headers["shop"]).status_code == 200
        )
        infer(message(some_rows(4)), timeout=20, metadata=sent)
        line = "token:shop was granted 10 rows of run digits-run, and 2 are left; 3 were asked for"
        refused = client.post(INFER, json=body(some_rows(3)), headers=headers["shop"])
        assert (refused.status_code, refused.json()) == (429, {"error": line})
        assert "retry-after" not in refused.headers
        with pytest.raises(grpc.RpcError) as caught:
            infer(message(some_rows(3)), timeout=20, metadata=sent)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == line
        assert (
            client.post(INFER, json=body(some_rows(2)), headers=headers["shop"]).status_code == 200
        )
        assert (
            client.post(INFER, json=body(some_rows(9)), headers=headers["bank"]).status_code == 200
        )
    assert options.budget_file is not None
    assert {(use.caller, use.rows) for use in read_use(options.budget_file)} == {
        ("token:shop", 10),
        ("token:bank", 9),
    }


def test_who_asks_too_fast_is_told_when_to_come_again(run: Path, tmp_path: Path) -> None:
    known, headers = tokens(tmp_path, shop=("infer",), bank=("infer", "metadata"))
    with (
        serving(run, tokens=known, policy=PolicyOptions(rate=0.1, rate_rows=1e6)) as (service, url),
        httpx.Client(base_url=url, timeout=30) as client,
        calling(service) as infer,
    ):
        shop, bank = headers["shop"], headers["bank"]
        assert client.post(INFER, json=body(some_rows(1)), headers=shop).status_code == 200
        refused = client.post(INFER, json=body(some_rows(1)), headers=shop)
        assert refused.status_code == 429
        assert 9 <= int(refused.headers["retry-after"]) <= 10
        assert "token:shop may ask for 0.1 requests a second" in refused.json()["error"]
        with pytest.raises(grpc.RpcError) as caught:
            infer(message(some_rows(1)), timeout=20, metadata=tuple(shop.items()))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 8 <= int(dict(caught.value.trailing_metadata())["retry-after"]) <= 10
        # Guesses at tokens are counted by where they come from, and hinder nobody else.
        guess = {"authorization": "Bearer fvt_guess"}
        assert client.get("/v2", headers=guess).status_code == 401
        for _ in range(3):
            assert client.get("/v2", headers=guess).status_code == 429
        assert client.get("/metrics", headers=bank).status_code == 200
        assert client.get("/v2/health/ready").status_code == 200
        assert service.metrics.text().count(b'fedveil_turned_away_total{reason="rate"} 5.0') == 1


@pytest.mark.parametrize("form", ["labels", "top-2", "round-1"])
def test_answers_and_their_description_have_the_form_asked_for(run: Path, form: str) -> None:
    rows = some_rows(6)
    chosen = parse_outputs(form)
    with (
        serving(run, policy=PolicyOptions(outputs=chosen)) as (service, url),
        httpx.Client(base_url=url, timeout=30) as client,
        calling(service) as infer,
    ):
        told = client.get("/v2/models/digits").json()
        sent = client.post(INFER, json=body(rows)).json()["outputs"][0]
        found = infer(message(rows), timeout=20)
    assert told["parameters"]["outputs"] == form
    wanted = chosen.apply(answer(1, rows))
    assert told["outputs"][0]["datatype"] == sent["datatype"] == found.outputs[0].datatype
    assert [-1, *wanted.shape[1:]] == told["outputs"][0]["shape"]
    assert list(wanted.shape) == sent["shape"] == list(found.outputs[0].shape)
    assert np.array_equal(np.array(sent["data"], wanted.dtype).reshape(wanted.shape), wanted)
    assert found.raw_output_contents[0] == wanted.tobytes()
    labels = wanted if form == "labels" else wanted.argmax(-1)
    assert np.array_equal(labels, answer(1, rows).argmax(-1))


def test_everything_that_matters_is_written_down_and_nothing_private(
    tmp_path: Path, options: PolicyOptions, caplog: pytest.LogCaptureFixture
) -> None:
    folder = run_of(tmp_path / "run", 1)
    caplog.set_level(logging.DEBUG)
    known, headers = tokens(tmp_path, shop=("infer",), boss=("admin",))
    private = some_rows(3) + np.float32(0.123)
    secret = headers["shop"]["authorization"].removeprefix("Bearer ")
    with (
        serving(tmp_path / "run", tokens=known, policy=options) as (service, url),
        httpx.Client(base_url=url, timeout=30) as client,
        calling(service) as infer,
    ):
        shop, boss = headers["shop"], headers["boss"]
        assert client.post(INFER, json=body(private), headers=shop).status_code == 200
        infer(message(some_rows(2)), timeout=20, metadata=tuple(shop.items()))
        assert client.post(INFER, content=b"{", headers=shop).status_code == 400
        # A token in an address is not looked at, and goes nowhere.
        place = f"{INFER}?token={secret}&access_token={secret}"
        assert client.post(place, json=body(private)).status_code == 401
        assert client.get(f"/{secret}", headers=boss).status_code == 403
        assert client.post(INFER, json=body(private), headers=boss).status_code == 403
        assert client.post("/admin/roll-back", headers=shop).status_code == 403
        commit(folder, 2)
        assert service.watcher.look()
        assert client.post("/admin/roll-back", headers=boss).status_code == 200
    events = [
        tuple(
            line.get(name) for name in ("event", "caller", "protocol", "version", "rows", "outcome")
        )
        for line in written(options)
    ]
    assert sorted(events, key=str) == sorted(
        [
            ("start", None, None, "1", None, None),
            ("infer", "token:shop", "http", "1", 3, "ok"),
            ("infer", "token:shop", "grpc", "1", 2, "ok"),
            ("infer", "token:shop", "http", None, None, "invalidrequest"),
            ("refuse", LOCAL, "http", None, None, "unauthenticated"),
            ("refuse", "token:boss", "http", None, None, "forbidden"),
            ("refuse", "token:boss", "http", None, None, "forbidden"),
            ("refuse", "token:shop", "http", None, None, "forbidden"),
            ("swap", None, None, "2", None, "ok"),
            ("roll-back", "token:boss", "http", "1", None, "ok"),
            ("stop", None, None, None, None, None),
        ],
        key=str,
    )
    assert "outputs full, rate any, rows a second any, query budget any" in str(written(options)[0])
    assert options.audit_log is not None
    assert options.audit_heads is not None
    kept = read_head(head_path(options.audit_heads, options.audit_log))
    assert verify_audit([options.audit_log], kept=kept).last == len(events)
    # The client of this test logs what it sends.
    log = [r.getMessage() for r in caplog.records if not r.name.startswith("http")]
    assert any("rolled back" in line for line in log)
    text = options.audit_log.read_text() + "".join(log)
    for value in (secret, "0.123", *map(str, private[0][:3])):
        assert value not in text


def test_nothing_is_answered_that_cannot_be_written_down(
    run: Path, tmp_path: Path, options: PolicyOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, headers = tokens(tmp_path, shop=("infer", "metadata"), boss=("admin",))
    fails = threading.Event()
    real = chain.os.fsync

    def fsync(descriptor: int) -> None:
        if fails.is_set():
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(chain.os, "fsync", fsync)
    with (
        serving(run, tokens=known, policy=options) as (_, url),
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        shop = headers["shop"]
        fails.set()
        answered = 0
        while (
            reply := client.post(INFER, json=body(some_rows(1)), headers=shop)
        ).status_code == 200:
            answered += 1
            assert answered < 1000
        assert (reply.status_code, "audit log cannot be written" in reply.text) == (503, True)
        assert client.post("/admin/roll-back", headers=headers["boss"]).status_code == 503
        assert client.get("/v2", headers=shop).status_code == 200
        fails.clear()
        for _ in range(100):
            if client.post(INFER, json=body(some_rows(1)), headers=shop).status_code == 200:
                break
            threading.Event().wait(0.05)
        else:
            pytest.fail("the service does not come back")
    infers = [line for line in written(options) if line["event"] == "infer"]
    assert len(infers) == answered + 1


def test_a_service_does_not_start_with_a_log_that_was_cut(
    run: Path, options: PolicyOptions
) -> None:
    for _ in range(2):
        with serving(run, policy=options):
            pass
    assert options.audit_log is not None
    lines = options.audit_log.read_bytes().splitlines(keepends=True)
    options.audit_log.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(AuditError, match="was cut"), serving(run, policy=options):
        pass


def test_the_name_in_a_client_certificate_is_the_caller(
    run: Path, tmp_path: Path, options: PolicyOptions
) -> None:
    authority = make_certificate(tmp_path, "ca", None)
    make_certificate(tmp_path, "server", authority)
    make_certificate(tmp_path, "ward-3", authority)
    tls = TlsFiles(tmp_path / "server.pem", tmp_path / "server.key", tmp_path / "ca.pem")
    policy = replace(options, query_budget=5)
    with serving(run, policy=policy) as (service, _):
        http = HttpServer(service, "127.0.0.1", 0, tls)
        server = GrpcServer(service, "127.0.0.1", 0, tls)
        http.start()
        server.start()
        credentials = grpc.ssl_channel_credentials(
            (tmp_path / "ca.pem").read_bytes(),
            (tmp_path / "ward-3.key").read_bytes(),
            (tmp_path / "ward-3.pem").read_bytes(),
        )
        context = client_context(tmp_path, "ward-3")
        context.set_alpn_protocols(["http/1.1"])
        try:
            with grpc.secure_channel(f"127.0.0.1:{server.port}", credentials) as channel:
                infer = channel.unary_unary(
                    "/inference.GRPCInferenceService/ModelInfer",
                    request_serializer=pb.ModelInferRequest.SerializeToString,
                    response_deserializer=pb.ModelInferResponse.FromString,
                )
                infer(message(some_rows(2)), timeout=20)
            url = f"https://127.0.0.1:{http.port}"
            with httpx.Client(base_url=url, verify=context, timeout=20) as client:
                assert client.post(INFER, json=body(some_rows(3))).status_code == 200
                refused = client.post(INFER, json=body(some_rows(1)))
                assert "certificate:ward-3 was granted 5 rows" in refused.text
        finally:
            http.stop(5)
            server.stop(5)
    assert [line["caller"] for line in written(options) if line["event"] == "infer"] == [
        "certificate:ward-3"
    ] * 3


def test_heads_and_options_say_what_is_allowed_and_no_more(run: Path) -> None:
    with serving(run) as (_, url), httpx.Client(base_url=url, timeout=20) as client:
        for place in ("/v2", "/v2/models/digits", "/v2/health/live", "/metrics"):
            reply = client.head(place)
            assert (reply.status_code, reply.content) == (200, b"")
            # Metrics change from one look to the next.
            if place != "/metrics":
                whole = client.get(place)
                assert reply.headers["content-length"] == whole.headers["content-length"]
        for method, place, allowed in (
            ("OPTIONS", "/v2", "GET"),
            ("OPTIONS", INFER, "POST"),
            ("HEAD", INFER, "POST"),
            ("PUT", "/v2/models/digits", "GET"),
            ("GET", "/admin/roll-back", "POST"),
        ):
            reply = client.request(method, place)
            assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
            assert "access-control-allow-origin" not in reply.headers


def test_a_fault_of_the_service_tells_nobody_what_it_was(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        serving(run) as (service, url),
        httpx.Client(base_url=url, timeout=20) as client,
        calling(service) as infer,
    ):

        def broken(*_: object) -> object:
            raise ValueError("patient 4711")

        monkeypatch.setattr(service, "ask", broken)
        reply = client.post(INFER, json=body(some_rows(1)))
        assert reply.status_code == 500
        assert "4711" not in reply.text
        with pytest.raises(grpc.RpcError) as caught:
            infer(message(some_rows(1)), timeout=20)
        assert caught.value.code() == grpc.StatusCode.INTERNAL
        assert "4711" not in str(caught.value)
        monkeypatch.undo()
        monkeypatch.setattr(service.engine, "run", broken)
        reply = client.post(INFER, json=body(some_rows(1)))
        assert (reply.status_code, "4711" in reply.text) == (500, False)


def test_error_bodies_never_repeat_what_was_sent(run: Path) -> None:
    marker = "4711.25"
    with serving(run) as (_, url), httpx.Client(base_url=url, timeout=20) as client:
        bad = some_rows(1).tolist()
        tensor = {"name": "input", "shape": [1, 64], "datatype": "FP32"}
        for content in (
            {"inputs": [{**tensor, "data": [*bad[0][:63], marker]}]},
            {"inputs": [{**tensor, "data": [4711.25] * 63}]},
            {"inputs": [{**tensor, "data": [[4711.25] * 63]}]},
            {"inputs": [{**tensor, "name": marker, "data": bad}]},
            {"inputs": [{**tensor, "data": bad}], "outputs": [{"name": marker}]},
            {"inputs": [{**tensor, "data": bad}], "parameters": {"timeout": marker}},
        ):
            reply = client.post(INFER, json=content)
            assert reply.status_code == 400
            assert marker not in reply.text
        reply = client.post(INFER, content=f'{{"inputs": [{marker}'.encode())
        assert (reply.status_code, marker in reply.text) == (400, False)
        for place in (f"/{marker}", f"/v2/models/{marker}", f"/v2/models/digits/versions/{marker}"):
            reply = client.get(place)
            assert (reply.status_code, marker in reply.text) == (404, False)


def test_a_header_that_breaks_lines_is_no_way_into_a_log(
    run: Path, tmp_path: Path, options: PolicyOptions
) -> None:
    known, _ = tokens(tmp_path, shop=("infer",))
    with serving(run, tokens=known, policy=options) as (_, url):
        address = httpx.URL(url)
        with socket.create_connection((address.host, address.port or 80), timeout=20) as raw:
            raw.sendall(
                f"POST {INFER} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer a\r\n\tb\x01c\r\n"
                "content-length: 0\r\n\r\n".encode()
            )
            assert raw.recv(4096).startswith(b"HTTP/1.1 4")
    assert options.audit_log is not None
    assert verify_audit([options.audit_log]).first == 1


def test_asking_for_what_is_not_there_is_written_down_over_both_protocols(
    run: Path, options: PolicyOptions
) -> None:
    strange = message(some_rows(1))
    strange.model_version = "77"
    with (
        serving(run, policy=replace(options, query_budget=None)) as (service, url),
        calling(service) as ask,
    ):
        for address in ("/v2/models/digits/versions/77/infer", "/v2/models/other/infer"):
            assert httpx.post(url + address, json=body(some_rows(1))).status_code == 404
        with pytest.raises(grpc.RpcError):
            ask(strange, timeout=20)
    lines = [line for line in written(options) if line["event"] == "infer"]
    counted = {
        protocol: sum(int(line.get("times", 1)) for line in lines if line["protocol"] == protocol)
        for protocol in ("http", "grpc")
    }
    assert {line["outcome"] for line in lines} == {"notfound"}
    assert counted == {"http": 2, "grpc": 1}


def test_what_waits_for_the_file_of_budgets_is_bounded(run: Path, options: PolicyOptions) -> None:
    """Each waited with its rows, even after nobody waited for the answer any more."""
    granted = replace(options, query_budget=1000, audit_log=None)
    rows = some_rows(8)
    impatient = body(rows, parameters={"timeout": 50_000})
    with serving(run, Limits(queue_bytes=3 * rows.nbytes), policy=granted) as (service, url):
        with closing(sqlite3.connect(granted.budget_file or "", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            told = [httpx.post(url + INFER, json=impatient, timeout=20) for _ in range(6)]
        assert [reply.status_code for reply in told] == [504, 504, 504, 503, 503, 503]
        assert "wait to be counted" in told[-1].text
        deadline = time.monotonic() + 20
        while (reply := httpx.post(url + INFER, json=body(rows), timeout=20)).status_code == 503:
            assert time.monotonic() < deadline
        assert reply.status_code == 200
        computed = service.statistics.read("1")["inference_count"]
    (use,) = read_use(granted.budget_file or Path())
    # Those that were late by then are neither counted nor computed, no more than those refused.
    assert computed == use.rows == len(rows)
