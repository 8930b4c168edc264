"""A deployed round: seconds an exchange, with the guarded runner and with Flower's own processes.

One SuperLink and three clients on this machine, from kits, under TLS and with keys; `digits` under
secure aggregation and differential privacy. The clients are started in turn by `fedveil client` and
by plain `flower-supernode`, from the same kits, with the same installed app; Flower starts a
process a message. The server is the same: Fedveil's, which polls with back-off on either side.

An exchange is timed in the ServerApp, from when it pushes messages until it has pulled the last
reply; joining, and the first exchange of a run, are left out, since the guarded runner has not
imported PyTorch before. A round is what its record says: three exchanges, and what is between.
Figures are medians over the exchanges or rounds of a run, then over the runs; ratios are medians of
the ratios of one turn.

It takes five to six minutes on two cores, most of them for the imports of Flower's processes; what
each run took is told on standard error when it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import tomli_w
from claims import Claim, finish, parser
from rich.console import Console
from rich.table import Table

from fedveil.server.new_app import app_files
from fedveil.simulations.scenarios import find_scenario

CLIENTS = ("ward-a", "ward-b", "ward-c")
ROUNDS = 2
TURNS = 3
GUARDED, FLOWER = "guarded runner", "a process a message"
PATIENCE = 600.0
"""Seconds for one run, and for one command."""
BIN = Path(sys.executable).parent

TIMED_SERVER = '''
import json
import time

from flwr.serverapp import ServerApp

from fedveil.server.app import LoggingObserver, read_run_config
from fedveil.server.federation import run_federation
from fedveil.strategies.grid_view import GridView

app = ServerApp()


class TimedGrid(GridView):
    """Notes how long it took from each push until the last reply to it."""

    def __init__(self, grid):
        super().__init__(grid)
        self.exchanges = []
        self._open = {}

    def push_messages(self, messages):
        began = time.monotonic()
        messages = list(messages)
        kinds = sorted({message.metadata.message_type for message in messages})
        ids = list(super().push_messages(messages))
        exchange = {"kinds": kinds, "began": began, "waits": len(ids), "seconds": None}
        self._open |= dict.fromkeys(ids, exchange)
        self.exchanges.append(exchange)
        return ids

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        for reply in replies:
            exchange = self._open.pop(reply.metadata.reply_to_message_id, None)
            if exchange is not None:
                exchange["waits"] -= 1
                if not exchange["waits"]:
                    exchange["seconds"] = time.monotonic() - exchange["began"]
        return replies


@app.main()
def main(grid, context):
    config, options = read_run_config(context.run_config, context.run_id)
    timed = TimedGrid(grid)
    run_federation(timed, config, options, LoggingObserver())
    (options.out / "exchanges.json").write_text(json.dumps(timed.exchanges))
'''


@dataclass(frozen=True)
class Found:
    """What one run took.

    Parameters
    ----------
    exchange, round : float
        Medians, in seconds.
    """

    exchange: float
    round: float


class Federation:
    """Kits in a folder, and the processes that run from them.

    Parameters
    ----------
    folder : Path
        Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FLWR_")},
            "PATH": f"{BIN}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
            "FEDVEIL_HOME": str(folder / "home"),
            "FLWR_HOME": str(self.kit("coordinator") / "flwr"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        port, *ports = _free_ports(1 + len(CLIENTS))
        federation = {
            "format": "fedveil-federation-1",
            "name": "wards",
            "coordinator": {"hosts": ["127.0.0.1"], "port": port},
            "clients": {name: {"port": own} for name, own in zip(CLIENTS, ports, strict=True)},
            # Several runs on the same data: the budget is not what is measured.
            "policy": {"epsilon": 100.0, "delta": 1e-5},
        }
        (folder / "federation.toml").write_text(tomli_w.dumps(federation))
        self._run("fedveil", "provision", "federation.toml", "--out", "kits")
        config = find_scenario("digits").config(
            [("federation.clients", len(CLIENTS)), ("federation.rounds", ROUNDS)]
        )
        files = app_files("timed", config)
        files["timed_server.py"] = TIMED_SERVER.encode()
        files["pyproject.toml"] = files["pyproject.toml"].replace(
            b"fedveil.server.app:app", b"timed_server:app"
        )
        (folder / "app").mkdir()
        for name, content in files.items():
            (folder / "app" / name).write_bytes(content)

    def kit(self, party: str) -> Path:
        """Return where the kit of a party lies."""
        return self._folder / "kits" / party

    @contextmanager
    def server(self) -> Iterator[None]:
        """Run the SuperLink, its clients registered."""
        with self._started("server", "fedveil", "server", str(self.kit("coordinator"))) as log:
            _wait_for(log, "is registered", len(CLIENTS))
            yield

    def turn(self, side: str, number: int) -> Found:
        """Start the clients in one way, run the federation, and return what it took."""
        out = self._folder / f"{side.replace(' ', '-')}-{number}"
        with self._clients(side, number):
            self._run("flwr", "run", "app", "federation", "--run-config", f'run.out="{out}"')
            deadline = time.monotonic() + PATIENCE
            while not (out / "exchanges.json").exists():
                if time.monotonic() > deadline:
                    logs = sorted(self._folder.glob("*.log"))
                    shown = "\n".join(path.read_text(errors="replace")[-2000:] for path in logs)
                    raise TimeoutError(f"{side}: no end after {PATIENCE:g} s\n{shown}")
                time.sleep(0.2)
        exchanges = json.loads((out / "exchanges.json").read_text())
        records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        trains = [e["seconds"] for e in exchanges if e["kinds"] == ["train"] and e["seconds"]]
        return Found(
            statistics.median(trains[1:]),
            statistics.median(record["seconds"] for record in records[1:]),
        )

    @contextmanager
    def _clients(self, side: str, number: int) -> Iterator[None]:
        with ExitStack() as started:
            logs = []
            for name in CLIENTS:
                plain, kit = side == FLOWER, self.kit(name)
                command = [str(kit / "bin/supernode")] if plain else ["fedveil", "client", str(kit)]
                log_name = f"{name}-{side.replace(' ', '-')}-{number}"
                logs.append(started.enter_context(self._started(log_name, *command)))
            for log in logs:
                _wait_for(log, "SuperNode ID:", 1)
            yield

    @contextmanager
    def _started(self, name: str, *command: str) -> Iterator[Path]:
        log = self._folder / f"{name}.log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                cwd=self._folder,
                env=self._environment,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield log
        finally:
            # The whole session: a plain SuperNode leaves the processes that it started behind.
            for sent in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(process.pid, sent)
                    process.wait(20)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue
            process.wait()

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            [str(BIN / command[0]), *command[1:]],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def _wait_for(log: Path, text: str, count: int) -> None:
    deadline = time.monotonic() + 120.0
    while log.read_text(errors="replace").count(text) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{log.stem} did not say {text!r}:\n{log.read_text()[-2000:]}")
        time.sleep(0.1)


def claims_of(turns: Mapping[str, list[Found]]) -> list[Claim]:
    """Return the claims on what was measured."""
    pairs = list(zip(turns[FLOWER], turns[GUARDED], strict=True))
    exchange = statistics.median(theirs.exchange / ours.exchange for theirs, ours in pairs)
    round_ = statistics.median(theirs.round / ours.round for theirs, ours in pairs)
    what = f"digits, {len(CLIENTS)} clients, secure aggregation, TLS"
    return [
        Claim(
            f"{what}: an exchange, Flower's / the guarded runner's", exchange, "x", 3, "at least"
        ),
        Claim(f"{what}: a round, Flower's / the guarded runner's", round_, "x", 3, "at least"),
    ]


def show(turns: Mapping[str, list[Found]]) -> None:
    """Print the seconds behind the ratios."""
    table = Table()
    for name in ("clients", "seconds an exchange", "seconds a round"):
        table.add_column(name)
    for side, found in turns.items():
        exchange = statistics.median(one.exchange for one in found)
        round_ = statistics.median(one.round for one in found)
        table.add_row(side, f"{exchange:.2f}", f"{round_:.2f}")
    Console(width=140).print(table)


def main() -> None:
    """Measure and print."""
    options = parser(__doc__).parse_args()
    # Whoever ends the script ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    turns: dict[str, list[Found]] = {FLOWER: [], GUARDED: []}
    with tempfile.TemporaryDirectory() as folder:
        federation = Federation(Path(folder))
        with federation.server():
            for number in range(TURNS):
                for side, found in turns.items():
                    began = time.monotonic()
                    one = federation.turn(side, number)
                    found.append(one)
                    print(
                        f"turn {number + 1} of {TURNS}, {side}: {one.exchange:.2f} s an exchange, "
                        f"{one.round:.2f} s a round; {time.monotonic() - began:.0f} s in all",
                        file=sys.stderr,
                        flush=True,
                    )
    if not options.json:
        show(turns)
    finish(claims_of(turns), as_json=options.json)


if __name__ == "__main__":
    main()
