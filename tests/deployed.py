"""Real processes of a federation on 127.0.0.1: started, watched, and each stopped by its pid."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from disk_search import watched_environment

BIN = Path(sys.executable).parent


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
    """Starts processes, keeps their logs, and stops each by its pid.

    Whatever a process writes lies in one folder, and what it deletes again is kept in `watched`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.watched = folder / "watched"
        places = {"HOME": folder / "home", "TMPDIR": folder / "tmp"}
        for place in places.values():
            place.mkdir()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("XDG_")},
            **{name: str(place) for name, place in places.items()},
            **watched_environment(self.watched),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "FEDVEIL_HOME": str(folder / "fedveil"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_PROXY": "127.0.0.1",
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._named: dict[str, subprocess.Popen[bytes]] = {}

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
        self._named[name] = self._processes[-1]

    def wait_for_lines(self, name: str, text: str, count: int, patience: float = 300.0) -> None:
        """Wait until a process has logged a text so many times."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if (self.folder / f"{name}.log").read_text(errors="replace").count(text) >= count:
                return
            time.sleep(0.05)
        pytest.fail(f"{name} did not log {text!r} {count} times\n{self.logs()}")

    def ended(self, name: str, patience: float = 300.0) -> tuple[int, str]:
        """Wait until a process ends by itself; return its exit code and what it said.

        What it started and left behind is killed.
        """
        process = self._named[name]
        code = process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        return code, (self.folder / f"{name}.log").read_text(errors="replace")

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


def wait_for_port(port: int, patience: float = 120.0) -> None:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    pytest.fail(f"nothing listens on 127.0.0.1:{port}")
