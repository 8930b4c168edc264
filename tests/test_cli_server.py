"""`fedveil server`: the SuperLink that it becomes, and what it refuses to start."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from certificates import make_certificate, write_key
from cryptography.hazmat.primitives import serialization

from fedveil.cli_server import superlink_arguments, superlink_environment

FEDVEIL = str(Path(sys.executable).parent / "fedveil")
TLS = ("--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key", "--ssl-ca-certfile", "ca.pem")
ANYWHERE = "0.0.0.0"  # noqa: S104  # asked for, and refused or not started
HOSTILE = {
    "FLWR_DATABASE": "state.db",
    "FLWR_INTERNAL_GRPC_FLEET_API": "1",
    "FLWR_INTERNAL_GRPC_CONTROL_API": "1",
    "FLWR_LOG_LEVEL": "DEBUG",
    "FLWR_TELEMETRY_ENABLED": "1",
}
"""What would put the state on the disk, open ports on all addresses, log more, or report."""


@pytest.fixture(scope="module")
def tls_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a certificate, its key and its authority, and with what is wrong."""
    folder = tmp_path_factory.mktemp("tls")
    authority = make_certificate(folder, "ca", None)
    _, key = make_certificate(folder, "server", authority)
    make_certificate(folder, "other", authority)
    write_key(folder / "locked.key", key, serialization.BestAvailableEncryption(b"x"))
    (folder / "shared.key").write_bytes((folder / "server.key").read_bytes())
    (folder / "shared.key").chmod(0o640)
    (folder / "empty.pem").touch()
    return folder


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--insecure", "--database", "state.db"], "--database state.db: refused, since Flower"),
        (["--insecure", "--database", ":memory:"], "--database :memory:: refused"),
        ([], "no TLS certificate, and 127.0.0.1 is on this machine"),
        (["--host", ANYWHERE], "no TLS certificate, and 0.0.0.0 can be reached from other mach"),
        (["--host", "localhost"], "no TLS certificate, and localhost is on this machine"),
        ([*TLS, "--insecure"], "--ssl-certfile asks for TLS, --insecure for none"),
        (["--insecure", "--enable-supernode-auth"], "--enable-supernode-auth needs TLS"),
        (["--insecure", "--host", "203.0.113.7"], "cannot listen on 203.0.113.7, port"),
        (["--insecure", "--host", "no host"], "--host no host: is no address"),
        ([*TLS[:4]], "--ssl-ca-certfile is missing"),
        ([*TLS[:2], *TLS[4:]], "--ssl-keyfile is missing"),
        ([*TLS, "--ssl-certfile", "nowhere.pem"], "nowhere.pem: there is no such file"),
        ([*TLS, "--ssl-ca-certfile", "."], ".: there is no such file"),
        ([*TLS, "--ssl-keyfile", "shared.key"], "has mode 0640, so that others may use"),
        ([*TLS, "--ssl-keyfile", "other.key"], "whose private key, without a passphrase, is in"),
        ([*TLS, "--ssl-keyfile", "locked.key"], "whose private key, without a passphrase, is in"),
        ([*TLS, "--ssl-certfile", "empty.pem"], "empty.pem: is no PEM certificate"),
        ([*TLS, "--ssl-ca-certfile", "empty.pem"], "empty.pem: holds no PEM"),
    ],
)
def test_a_mistake_is_one_line(tls_folder: Path, arguments: list[str], says: str) -> None:
    done = run(tls_folder, "--port", str(free_port()), *arguments)
    assert done.returncode == 1
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run(tmp_path, "--insecure", "--port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port} (Address already in use)" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_flower_is_one_line(tmp_path: Path) -> None:
    # A Python of its own folder, which has the packages but not Flower's programs.
    alone = tmp_path / "bin" / "python"
    alone.parent.mkdir()
    alone.symlink_to(Path(sys.executable).resolve())
    done = subprocess.run(
        [str(alone), "-m", "fedveil.cli", "server", "--insecure", "--port", str(free_port())],
        env={"PATH": str(alone.parent), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert f"flower-superlink is neither in {alone.parent} nor on PATH" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [FEDVEIL, "server", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_environment_keeps_nothing_of_flower_but_its_home() -> None:
    told = {**HOSTILE, "FLWR_HOME": "here", "FLWR_SOMETHING_NEW": "1", "HOME": "h", "PATH": "p"}
    assert superlink_environment(told) == {
        "FLWR_HOME": "here",
        "HOME": "h",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}p",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }


def test_flower_is_told_the_files_and_to_admit_registered_nodes_only() -> None:
    tls = {"--ssl-certfile": Path("a"), "--ssl-keyfile": Path("b"), "--ssl-ca-certfile": Path("c")}
    told = superlink_arguments(ANYWHERE, 1, tls, enable_supernode_auth=True)
    assert "--insecure" not in told
    assert "--enable-supernode-auth" in told
    for option, path in tls.items():
        assert told[told.index(option) + 1] == str(path)


@contextmanager
def serving(folder: Path, port: int, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start `fedveil server` in a hostile environment and wait until it listens."""
    home = folder / "flower-home"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [FEDVEIL, "server", "--port", str(port), *arguments],
            cwd=folder,
            env={**os.environ, **HOSTILE, "FLWR_HOME": str(home), "PATH": os.defpath},
            stdout=log,
            stderr=subprocess.STDOUT,
            umask=0o022,
        )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text(errors="replace"))
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(timeout=10)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_it_becomes_a_superlink_in_memory_whatever_the_environment_says(tmp_path: Path) -> None:
    port = free_port()
    with serving(tmp_path, port, "--insecure") as process:
        proc = Path("/proc") / str(process.pid)
        told = (proc / "cmdline").read_bytes().decode().split("\0")
        assert told[1].endswith("/flower-superlink")
        assert told[told.index("--database") + 1] == ":flwr-in-memory:"
        assert "--disable-runtime-dependency-installation" in told
        environment = dict(
            line.split("=", 1)
            for line in (proc / "environ").read_bytes().decode().split("\0")
            if line.startswith("FLWR_")
        )
        assert environment == {
            "FLWR_HOME": str(tmp_path / "flower-home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        assert "Umask:\t0077\n" in (proc / "status").read_text()
        (core,) = [
            line.split()[4:6]
            for line in (proc / "limits").read_text().splitlines()
            if line.startswith("Max core file size")
        ]
        assert core in (["0", "0"], ["1", "1"])
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) in (0, -signal.SIGTERM)
    assert {path.name for path in tmp_path.iterdir()} <= {"log", "flower-home"}, "no database"
    for path in (tmp_path / "flower-home").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_it_serves_tls_and_stops_on_ctrl_c(tls_folder: Path) -> None:
    port = free_port()
    with serving(tls_folder, port, *TLS) as process:
        trusted = ssl.create_default_context(cafile=str(tls_folder / "ca.pem"))
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as s,
            trusted.wrap_socket(s, server_hostname="127.0.0.1") as secure,
        ):
            assert secure.version() == "TLSv1.3"
        with socket.create_connection(("127.0.0.1", port), timeout=10) as s:
            s.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200" not in answer(s)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) in (0, 1, 130, -signal.SIGINT)


def answer(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionError:
        return b""
