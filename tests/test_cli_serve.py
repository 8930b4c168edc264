"""`fedveil serve` and `fedveil tokens`: the process, what it refuses, and how it ends."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from certificates import client_context, make_certificate, shown_certificate
from command_line import command
from served_run import INFER, answer, body, commit, new_run, run_of, some_rows

from fedveil.server.run_folder import RunFolder

ANYWHERE = "0.0.0.0"  # noqa: S104  # asked for, and refused
FEDVEIL = [sys.executable, "-m", "fedveil.cli"]
ROOT = Path(__file__).resolve().parents[1]
SENDERS = ("127.0.0.1", "127.0.0.2")


def fedveil(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run what a process of its own shows no more of."""
    return command(*arguments)


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
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
    command = [*FEDVEIL, "serve", str(run), "--port", "0", "--interval", "0.1", *arguments]
    with started(command, run.parent / "serve.log") as served:
        yield served


@contextmanager
def started(command: list[str], log: Path) -> Iterator[Served]:
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, text=True)
    try:
        yield Served(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


def test_a_service_follows_its_run_and_ends_when_asked(tmp_path: Path) -> None:
    folder = run_of(tmp_path / "run", 1)
    with serve(tmp_path / "run", "--known-as", "models.example") as served:
        url = served.wait_for(r"serving digits, round 1 of run digits-run, on \w+: (http\S+)")
        line = served.wait_for(r"try: (curl .*)")
        told = subprocess.run(
            ["/bin/sh", "-c", line], capture_output=True, text=True, timeout=30, check=True
        )
        assert '"model_version":"1"' in told.stdout
        assert served.wait_for(r"for people: (\S+) in a browser") == f"{url}/"
        for name, status in (("models.example", 200), ("evil.example", 421)):
            assert httpx.get(f"{url}/", headers={"host": name}).status_code == status
        served.process.send_signal(signal.SIGHUP)
        served.wait_for(r"(there is no TLS here)")
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
            answered: list[int] = []
            asked = [pool.submit(_ask_until_refused, url, seed, answered) for seed in range(8)]
            patience = time.monotonic() + 60
            while len(answered) <= 8 and time.monotonic() < patience:
                time.sleep(0.01)
            served.process.send_signal(signal.SIGTERM)
            assert sum(future.result(60) for future in asked) > 8
        assert served.process.wait(60) == 0
        assert "finishing what is being answered" in served.log
        assert "Traceback" not in served.log


def _ask_until_refused(url: str, seed: int, answered: list[int]) -> int:
    """Count right answers until the service is gone; what was begun must be finished.

    Whoever has one more puts it down in `answered`, too.
    """
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
            answered.append(seed)


def _check_renewal(served: Served, folder: Path) -> None:
    """Replace the certificate twice, by a good one and by a broken one."""
    ports = [
        int(served.wait_for(pattern))
        for pattern in (r"https://127\.0\.0\.1:(\d+)", r"gRPC on 127\.0\.0\.1:(\d+)")
    ]
    context = client_context(folder, "client")
    new = (folder / "next.pem").read_text()
    assert new not in [shown_certificate(port, context) for port in ports]
    for end in ("pem", "key"):
        (folder / f"server.{end}").write_text((folder / f"next.{end}").read_text())
    os.kill(served.process.pid, signal.SIGHUP)
    served.wait_for(r"the files of (TLS) were read anew")
    assert [shown_certificate(port, context) for port in ports] == [new, new]
    (folder / "server.pem").write_text("no certificate")
    os.kill(served.process.pid, signal.SIGHUP)
    served.wait_for(r"server.pem: is (no PEM certificate) whose private key")
    assert [shown_certificate(port, context) for port in ports] == [new, new]


def test_tls_client_certificates_and_tokens(tmp_path: Path) -> None:
    run_of(tmp_path / "run", 1)
    authority = make_certificate(tmp_path, "ca", None)
    make_certificate(tmp_path, "server", authority)
    make_certificate(tmp_path, "next", authority)
    make_certificate(tmp_path, "client", authority)
    tokens = tmp_path / "tokens.json"
    secret = fedveil("tokens", "new", "shop", "--scope", "infer", "--file", str(tokens)).stdout
    files = {
        "--ssl-certfile": "server.pem",
        "--ssl-keyfile": "server.key",
        "--ssl-client-ca": "ca.pem",
    }
    arguments = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    more = ("--grpc-port", "0", "--tokens", str(tokens))
    with serve(tmp_path / "run", *arguments, *more) as served:
        url = served.wait_for(r"on \w+: (https\S+)")
        told = served.wait_for(r"try: (curl .*)").replace("TOKEN", secret.strip())
        for end in ("pem", "key"):
            told = told.replace(f"CLIENT.{end}", str(tmp_path / f"client.{end}"))
        done = subprocess.run(
            ["/bin/sh", "-c", told], capture_output=True, text=True, timeout=30, check=True
        )
        assert '"model_version":"1"' in done.stdout
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
            _check_renewal(served, tmp_path)
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
        (["--signer", "x"], "--signer x: a verify key is 44 characters of base64"),
        (["--dtype", "fp64"], "--dtype fp64: a type is one of fp32, bf16"),
        (["--budget-file", "b"], "--budget-file b: counts nothing without --query-budget"),
        (["--tokens", "nowhere.json"], "there is no such file of tokens"),
        (["--ssl-certfile", "x", "--ssl-keyfile", "y"], "x: there is no such file"),
        (["--host", "203.0.113.7", "--insecure"], "cannot listen on 203.0.113.7, port"),
        (["--known-as", "a", "--tokens", "t"], "--known-as a: no names are looked at where"),
        (["--insecure", "--ssl-certfile", "x", "--ssl-keyfile", "y"], "--insecure for none"),
        (["--port", "4711", "--grpc-port", "4711"], "--port and --grpc-port are both 4711"),
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
    done = process("serve", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "is not a run folder" in done.stderr


def test_a_run_before_its_first_round_says_what_to_wait_for(tmp_path: Path) -> None:
    new_run(tmp_path / "run")
    done = process("serve", str(tmp_path / "run"), "--port", "0")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "run: has no round yet; serve it once its first round is committed" in done.stderr


@pytest.mark.parametrize("option", ["--port", "--grpc-port"])
def test_a_port_in_use_is_told_in_one_line_before_anything_is_loaded(
    option: str, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        # There is no run: nothing of it, nor PyTorch, was asked for when the port was.
        done = fedveil("serve", str(tmp_path / "none"), "--port", "0", option, str(port))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"cannot listen on 127.0.0.1, port {port}" in done.stderr
    assert f"choose another {'--host or ' * (option == '--port')}{option}" in done.stderr


def _limited(files: int, *arguments: str) -> list[str]:
    """Return a command that may open few files, of which it is given half at first."""
    code = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files // 2}, {files})); "
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    )
    return [sys.executable, "-c", code, "-m", "fedveil.cli", *arguments]


def test_connections_fit_into_the_files_that_may_be_open(tmp_path: Path) -> None:
    """Two callers, as far as the service can tell, hold as many connections as they get."""
    run_of(tmp_path / "run", 1)
    arguments = ("serve", str(tmp_path / "run"), "--port", "0", "--grpc-port", "0")
    with started(_limited(400, *arguments), tmp_path / "serve.log") as served:
        served.wait_for(r"only (72) connections are taken at a time")
        ports = [
            int(served.wait_for(pattern))
            for pattern in (r"http://127\.0\.0\.1:(\d+)", r"gRPC on 127\.0\.0\.1:(\d+)")
        ]
        with ExitStack() as stack:
            for port, sender in itertools.product(ports, SENDERS):
                for _ in range(150):
                    held = socket.create_connection(("127.0.0.1", port), 20, (sender, 0))
                    stack.enter_context(held)
            # A file that has to be opened can be: that of the new round.
            commit(RunFolder.open(tmp_path / "run", writing=True), 2)
            served.wait_for(r"round 2 of run (digits-run) is served now")
        assert "Too many open files" not in served.log
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                reply = httpx.get(f"http://127.0.0.1:{ports[0]}/v2/health/ready", timeout=20)
            except httpx.TransportError:
                continue
            if reply.status_code == 200:
                break
            time.sleep(0.1)
        assert reply.status_code == 200
    too_few = subprocess.run(
        _limited(200, *arguments), capture_output=True, text=True, timeout=120, check=False
    )
    assert (too_few.returncode, too_few.stderr.count("\n")) == (1, 1)
    assert "200 files may be open at a time" in too_few.stderr


def test_tokens_are_listed_without_secrets(tmp_path: Path) -> None:
    file = str(tmp_path / "tokens.json")
    secret = fedveil("tokens", "new", "shop", "--file", file).stdout.strip()
    listed = fedveil("tokens", "list", "--file", file).stdout
    assert "shop" in listed
    assert "infer, metadata" in listed
    assert secret not in listed
    nowhere = fedveil("tokens", "new", "bank", "--file", str(tmp_path / "none" / "t.json"))
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (1, 1)
    assert "make it, or correct the path" in nowhere.stderr
    wrong = fedveil("tokens", "new", "bank", "--scope", "all", "--file", file)
    assert "a scope is one of infer, metadata, admin" in wrong.stderr


def test_the_users_own_folder_is_made_for_the_first_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path / "some" / "home"))
    assert fedveil("tokens", "new", "shop").returncode == 0
    assert (tmp_path / "some" / "home" / "tokens.json").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "some" / "home").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDVEIL_HOME", str(tmp_path / "file" / "home"))
    done = fedveil("tokens", "new", "shop")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "set FEDVEIL_HOME to a folder that can be" in done.stderr


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
