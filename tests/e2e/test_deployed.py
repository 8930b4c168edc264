"""The two apps under Flower's own processes: one SuperLink, three SuperNodes, on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.server.run_folder import RunFolder

BIN = Path(sys.executable).parent
CLIENTS = 3
ROUNDS = 2


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]
    finally:
        for s in sockets:
            s.close()


class Federation:
    """Starts processes, keeps their logs, and stops each by its pid."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "FEDVEIL_HOME": str(folder / "fedveil"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_PROXY": "127.0.0.1",
        }
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [str(BIN / command[0]), *command[1:]],
                    cwd=self.folder,
                    env=self.env,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def stop(self) -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in reversed(self._processes):
                if process.poll() is None:
                    os.killpg(process.pid, sent)
            deadline = time.monotonic() + 10
            for process in self._processes:
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


def wait_for_port(port: int, patience: float = 60.0) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"nothing listens on 127.0.0.1:{port}")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = Federation(tmp_path)
    try:
        yield running
    finally:
        running.stop()


def start_nodes(federation: Federation) -> None:
    """Start a SuperLink and SuperNodes, and name the SuperLink for `flwr run`."""
    port, *node_ports = free_ports(1 + CLIENTS)
    federation.start(
        "superlink",
        *("flower-superlink", "--insecure", "--disable-runtime-dependency-installation"),
        *("--host", "127.0.0.1", "--port", str(port)),
    )
    wait_for_port(port)
    for index, node_port in enumerate(node_ports):
        federation.start(
            f"supernode-{index}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
            *("--port", str(node_port)),
            *("--node-config", f"partition-id={index} num-partitions={CLIENTS}"),
        )
    home = Path(federation.env["FLWR_HOME"])
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )


def flwr_run(federation: Federation, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "flwr"), "run", "app", "local", "--stream"]
        + [part for text in overrides for part in ("--run-config", text)],
        cwd=federation.folder,
        env=federation.env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.timeout(280)
def test_two_rounds_of_digits_leave_a_complete_run_folder(federation: Federation) -> None:
    made = subprocess.run(
        [str(BIN / "fedveil"), "new", "app", "--clients", str(CLIENTS)],
        cwd=federation.folder,
        env=federation.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert not list((federation.folder / "app").rglob("*.py")), "configuration only, no code"

    start_nodes(federation)
    out = federation.folder / "run"
    done = flwr_run(federation, f'run.out="{out}" federation.rounds={ROUNDS}')
    # What Flower prints is for a person; the folder is what counts.
    deadline = time.monotonic() + 30
    while not (out / "report.html").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    shown = done.stdout + done.stderr + federation.logs()
    assert (out / "report.html").exists(), shown
    assert re.search(r"Fedveil round 2/2, accuracy 0\.\d+, epsilon", done.stdout), shown

    folder = RunFolder.open(out)
    assert [record.clients for record in folder.records] == [CLIENTS] * ROUNDS
    assert folder.store.rounds() == [1, 2]
    assert all(check.problem is None for check in folder.store.verify())
    for name in ("config.toml", "metrics.jsonl", "privacy.jsonl", "report.json", "report.html"):
        assert (out / name).stat().st_size > 0, name

    report = json.loads((out / "report.json").read_text())
    training = folder.config.training
    (release,) = report["clients"][0]["releases"]
    assert [c["client"] for c in report["clients"]] == ["client-0", "client-1", "client-2"]
    assert release["count"] == ROUNDS * training.local_steps
    expected = Release(training.sampling_rate, release["noise_multiplier"], release["count"])
    assert report["epsilon"] == pytest.approx(pld_epsilon([expected], 1e-5), abs=1e-6)
    assert report["epsilon"] <= 8.0
