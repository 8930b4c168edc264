"""`fedveil serve` and `fedveil tokens`: the process, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from certificates import make_certificate
from served_run import INFER, answer, body, commit, run_of, some_rows

ANYWHERE = "0.0.0.0"  # noqa: S104  # asked for, and refused
FEDVEIL = [sys.executable, "-m", "fedveil.cli"]
ROOT = Path(__file__).resolve().parents[1]
TRITON_PYTHON = os.environ.get("FEDVEIL_TRITON_PYTHON") or str(
    ROOT / ".venv-triton" / "bin" / "python"
)


def fedveil(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*FEDVEIL, *arguments], capture_output=True, text=True, timeout=120, check=False
    )


class Served:
    """A running `fedveil serve`."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log)
            if found:
                return found[1]
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        pytest.fail(f"no {pattern!r} in: {self.log}")


@contextmanager
def serve(run: Path, *arguments: str) -> Iterator[Served]:
    log = run.parent / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*FEDVEIL, "serve", str(run), "--port", "0", "--interval", "0.1", *arguments],
            stdout=file,
            stderr=subprocess.STDOUT,
            text=True,
        )
    try:
        yield Served(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def test_a_service_follows_its_run_and_ends_when_asked(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    with serve(tmp_path / "run") as served:
        url = served.wait_for(r"serving digits, round 1 of run digits-run, on \w+: (http\S+)")
        line = served.wait_for(r"try: (curl .*)")
        told = subprocess.run(
            ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=30, check=True
        )
        assert '"model_version":"1"' in told.stdout
        commit(folder, 2)
        assert served.wait_for(r"round 2 of run (digits-run) is served now")
        rows = some_rows(3)
        with httpx.Client(base_url=url, timeout=30) as client:
            reply = client.post(INFER, json=body(rows)).json()
            assert reply["model_version"] == "2"
            assert np.array_equal(
                np.array(reply["outputs"][0]["data"]).reshape(3, 10), answer(2, rows)
            )
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(_ask_until_refused, url, seed) for seed in range(8)]
            time.sleep(0.5)
            served.process.send_signal(signal.SIGTERM)
            assert sum(future.result(60) for future in asked) > 8
        assert served.process.wait(60) == 0
        assert "finishing what is being answered" in served.log
        assert "Traceback" not in served.log


def _ask_until_refused(url: str, seed: int) -> int:
    """Count right answers until the service is gone; what was begun must be finished."""
    rows, count = some_rows(2, seed), 0
    with httpx.Client(base_url=url, timeout=30) as client:
        while True:
            try:
                reply = client.post(INFER, json=body(rows))
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                return count
            assert reply.status_code == 200
            found = np.array(reply.json()["outputs"][0]["data"]).reshape(2, 10)
            assert np.array_equal(found, answer(2, rows))
            count += 1


def test_tls_client_certificates_and_tokens(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    authority = make_certificate(tmp_path, "ca", None)
    make_certificate(tmp_path, "server", authority)
    make_certificate(tmp_path, "client", authority)
    tokens = tmp_path / "tokens.json"
    secret = fedveil("tokens", "new", "shop", "--scope", "infer", "--file", str(tokens)).stdout
    files = {
        "--ssl-certfile": "server.pem",
        "--ssl-keyfile": "server.key",
        "--ssl-client-ca": "ca.pem",
    }
    arguments = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    with serve(tmp_path / "run", *arguments, "--tokens", str(tokens)) as served:
        url = served.wait_for(r"on \w+: (https\S+)")
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{url}/v2/health/live", verify=context, timeout=30)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        with httpx.Client(base_url=url, verify=context, timeout=30) as client:
            assert client.get("/v2/health/live").status_code == 200
            assert client.post(INFER, json=body(some_rows(1))).status_code == 401
            known = {"authorization": f"Bearer {secret.strip()}"}
            assert client.post(INFER, json=body(some_rows(1)), headers=known).status_code == 200
            assert client.get("/v2", headers=known).status_code == 403
            os.kill(served.process.pid, signal.SIGHUP)
            assert fedveil("tokens", "revoke", "shop", "--file", str(tokens)).returncode == 0
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                status = client.post(INFER, json=body(some_rows(1)), headers=known).status_code
                if status == 401:
                    break
                time.sleep(0.1)
            assert status == 401


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--host", ANYWHERE], "0.0.0.0 can be reached from other machines: give --ssl-certfile"),
        (["--ssl-certfile", "x"], "--ssl-certfile and --ssl-keyfile belong together"),
        (["--ssl-client-ca", "x"], "--ssl-client-ca needs TLS"),
        (["--signer", "x"], "verify key"),
        (["--tokens", "nowhere.json"], "there is no such file of tokens"),
        (["--ssl-certfile", "x", "--ssl-keyfile", "y"], "x: there is no such file"),
        (["--host", "203.0.113.7", "--insecure"], "cannot listen on 203.0.113.7, port"),
    ],
)
def test_what_cannot_be_served_is_said_in_one_line(
    arguments: list[str], says: str, tmp_path: Path
) -> None:
    run_of(tmp_path / "run", 1)
    done = fedveil("serve", str(tmp_path / "run"), "--port", "0", *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_run_is_one_line_too(tmp_path: Path) -> None:
    done = fedveil("serve", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is not a run folder" in done.stderr


def test_tokens_are_listed_without_secrets(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    secret = fedveil("tokens", "new", "shop", "--file", file).stdout.strip()
    listed = fedveil("tokens", "list", "--file", file).stdout
    assert "shop" in listed
    assert "infer, metadata" in listed
    assert secret not in listed
    wrong = fedveil("tokens", "new", "bank", "--scope", "all", "--file", file)
    assert "a scope is one of infer, metadata, admin" in wrong.stderr


def test_the_line_in_the_readme_gets_a_right_answer(tmp_path: Path) -> None:
    """It is a zero, under a model that was trained with differential privacy as it says."""
    run = tmp_path / "run"
    assert fedveil("simulate", "digits", "--out", str(run)).returncode == 0
    line = re.search(r"^curl .*?\}'$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert line
    with serve(run) as served:
        url = served.wait_for(r"on \w+: (http\S+)")
        asked = line[0].replace("http://127.0.0.1:8080", url)
        done = subprocess.run(
            ["/bin/sh", "-c", asked], capture_output=True, text=True, timeout=30, check=True
        )
    logits = json.loads(done.stdout)["outputs"][0]["data"]
    assert int(np.argmax(logits)) == 0


TRITON = r"""
import sys
import ml_dtypes
import numpy as np

host, http_port, grpc_port = sys.argv[1:]
from tritonclient.utils import InferenceServerException
import tritonclient.grpc as tgrpc
import tritonclient.http as thttp

rows = np.arange(3 * 64, dtype=np.float32).reshape(3, 64) % 17
for room, port in ((thttp, http_port), (tgrpc, grpc_port)):
    client = room.InferenceServerClient(f"{host}:{port}")
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("digits") and client.is_model_ready("digits", "1")
    about = client.get_model_metadata("digits")
    name = about["name"] if room is thttp else about.name
    assert name == "digits"
    server = client.get_server_metadata()
    assert (server["name"] if room is thttp else server.name) == "fedveil"
    expected = None
    for datatype, kind in (
        ("FP32", np.float32), ("FP16", np.float16), ("UINT8", np.uint8), ("INT16", np.int16),
        ("INT8", np.int8), ("UINT16", np.uint16), ("BF16", ml_dtypes.bfloat16),
    ):
        has_json = room is thttp and datatype not in ("FP16", "BF16")
        for binary in (True, False) if has_json else (True,):
            given = room.InferInput("input", [3, 64], datatype)
            if room is thttp:
                given.set_data_from_numpy(rows.astype(kind), binary_data=binary)
                wanted = room.InferRequestedOutput("output", binary_data=binary)
            else:
                given.set_data_from_numpy(rows.astype(kind))
                wanted = room.InferRequestedOutput("output")
            result = client.infer("digits", [given], outputs=[wanted], request_id="7")
            found = result.as_numpy("output")
            expected = found if expected is None else expected
            assert found.shape == (3, 10) and np.array_equal(found, expected), (datatype, binary)
            response = result.get_response()
            version = response["model_version"] if room is thttp else response.model_version
            assert version == "1"
    boolean = room.InferInput("input", [1, 64], "BOOL")
    boolean.set_data_from_numpy(np.ones((1, 64), dtype=bool))
    assert client.infer("digits", [boolean]).as_numpy("output").shape == (1, 10)

    def refused(given, model="digits", version="", **more):
        try:
            client.infer(model, [given], model_version=version, **more)
        except InferenceServerException as error:
            return str(error)
        raise AssertionError("not refused")

    def tensor(name="input", shape=(1, 64), datatype="FP32", kind=np.float32):
        given = room.InferInput(name, list(shape), datatype)
        given.set_data_from_numpy(np.ones(shape, dtype=kind))
        return given

    assert "is named input" in refused(tensor("other")) or "named input" in refused(tensor("other"))
    assert "is not [-1, 64]" in refused(tensor(shape=(1, 63)))
    assert "without loss" in refused(tensor(datatype="FP64", kind=np.float64))
    assert "no model of this name" in refused(tensor(), model="other")
    assert "not in memory" in refused(tensor(), version="9")
    assert "rows are more than" in refused(tensor(shape=(5000, 64)))
    client.close()
print("all well")
"""


def test_tritonclient_over_http_and_grpc(tmp_path: Path) -> None:
    """NVIDIA's own client, in an environment of its own (`make triton`)."""
    if not Path(TRITON_PYTHON).exists():
        pytest.skip("tritonclient has no environment here; make it with: make triton")
    run_of(tmp_path / "run", 1)
    with serve(tmp_path / "run", "--grpc-port", "0") as served:
        port = served.wait_for(r"http://127\.0\.0\.1:(\d+)")
        grpc_port = served.wait_for(r"gRPC on 127\.0\.0\.1:(\d+)")
        done = subprocess.run(
            [TRITON_PYTHON, "-c", TRITON, "127.0.0.1", port, grpc_port],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.stdout.strip() == "all well", done.stderr
