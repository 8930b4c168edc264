"""A federation of real processes that start from kits, each ended by its number."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from deployed import BIN, free_ports

TESTS = Path(__file__).resolve().parent


class Kits:
    """Kits of one federation in a folder, and the processes that were started from them."""

    def __init__(self, folder: Path, clients: Sequence[str], settings: str = "") -> None:
        self.folder = folder
        self.clients = list(clients)
        port, *ports = free_ports(1 + len(clients))
        self.address = f"127.0.0.1:{port}"
        entries = "".join(
            f"[clients.{name}]\nport = {own}\n" for name, own in zip(clients, ports, strict=True)
        )
        self._file = folder / "federation.toml"
        self._file.write_text(
            'format = "fedveil-federation-1"\nname = "wards"\n'
            f'[coordinator]\nhosts = ["127.0.0.1"]\nport = {port}\n'
            f'[run]\nscenario = "digits"\n[run.settings]\n{settings}\n{entries}'
        )
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(
                [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(folder / "home"),
            "FEDVEIL_HOME": str(folder / "home" / "fedveil"),
            "FLWR_HOME": str(folder / "home" / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "NO_PROXY": "127.0.0.1",
        }
        (folder / "home").mkdir()
        self._handed_over: set[str] = set()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.command("provision", str(self._file), "--out", str(folder / "kits"))

    def kit(self, party: str) -> Path:
        return self.folder / ("owners" if party in self._handed_over else "kits") / party

    def hand_over(self, party: str) -> None:
        """Take a kit from where kits are made to where its owner would have it."""
        made = self.kit(party)
        self._handed_over.add(party)
        self.kit(party).parent.mkdir(mode=0o700, exist_ok=True)
        made.rename(self.kit(party))

    def command(
        self, *arguments: str, code: int = 0, timeout: float = 300.0, party: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run `fedveil` to its end; for a party, with its kit as the home."""
        home = {"FEDVEIL_HOME": str(self.kit(party))} if party else {}
        done = subprocess.run(
            [str(BIN / "fedveil"), *arguments],
            cwd=self.folder,
            env=self.env | home,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, f"{done.stdout}\n{done.stderr}\n{self.logs()}"
        return done

    def revoke(self, name: str) -> None:
        """Take a client out of the federation's file and provision again."""
        text = self._file.read_text()
        start = text.index(f"[clients.{name}]")
        end = text.find("[", start + 1)
        self._file.write_text(text[:start] + (text[end:] if end > 0 else ""))
        kits = str(self.folder / "kits")
        self.command("provision", str(self._file), "--out", kits, "--revoke", name)

    def start(self, name: str, *command: str, home: Path | None = None) -> None:
        """Start a process in a session of its own; its lines go into NAME.log."""
        env = self.env if home is None else self.env | {"FLWR_HOME": str(home)}
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self.folder,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start_server(self) -> None:
        self.start("server", "fedveil", "server", str(self.kit("coordinator")))

    def start_clients(self, *names: str) -> None:
        for name in names or self.clients:
            self.start(name, "fedveil", "client", str(self.kit(name)), "--log-format", "json")

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, text: str, count: int = 1, patience: float = 300.0) -> None:
        """Wait until a process has logged `text` so many times."""
        deadline = time.monotonic() + patience
        while self.log(name).count(text) < count:
            if time.monotonic() > deadline:
                pytest.fail(f"{name} did not log {text!r} {count} times\n{self.logs()}")
            time.sleep(0.1)

    def start_all(self) -> None:
        """Start the server and every client, and wait until all are connected."""
        self.start_server()
        self.start_clients()
        self.wait_for_clients()

    def wait_for_clients(self, *names: str) -> None:
        for name in names or self.clients:
            self.wait_for(name, "SuperNode ID:")

    def wait_for_end(self, name: str, patience: float = 300.0) -> int:
        try:
            return self.processes[name].wait(patience)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} does not end\n{self.logs()}")

    def stop(self) -> None:
        for sent in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes.values():
                if process.poll() is None:
                    process.send_signal(sent)
            deadline = time.monotonic() + 20
            for process in self.processes.values():
                try:
                    process.wait(max(0.1, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    continue

    def logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )


@contextmanager
def kits(folder: Path, clients: Sequence[str], settings: str = "") -> Iterator[Kits]:
    made = Kits(folder, clients, settings)
    try:
        yield made
    finally:
        made.stop()


def records(log: str) -> list[dict[str, str]]:
    """Return the records of a log that was written as JSON."""
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in found]


def is_running(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
