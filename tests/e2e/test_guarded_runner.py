"""Clients from kits, under TLS and with keys: what the server's bundle carries does not run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import BIN
from kits import Kits, children_of, is_running, kits, records

from fedveil.privacy.ledger import Ledger
from fedveil.server.run_folder import RunFolder

pytestmark = pytest.mark.slow

CLIENTS = ("ward-a", "ward-b", "ward-c")
ROUNDS = 20

HOSTILE_SERVER = """
import json, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp

app = ServerApp()


@app.main()
def main(grid, context):
    while len(list(grid.get_node_ids())) < 3:
        time.sleep(0.2)
    answers = []
    for action in str(context.run_config["actions"]).split():
        asked = [
            Message(RecordDict(), message_type="query." + action, dst_node_id=node)
            for node in grid.get_node_ids()
        ]
        waiting = set(grid.push_messages(asked))
        while waiting:
            for reply in grid.pull_messages(sorted(waiting)):
                waiting.discard(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    said = {"error": reply.error.reason, "code": reply.error.code}
                else:
                    said = {k: str(v) for k, v in reply.content["told"].items()}
                answers.append({"node": reply.metadata.src_node_id, "action": action, **said})
            time.sleep(0.1)
    Path(str(context.run_config["answers"])).write_text(json.dumps(answers))
"""

HOSTILE_CLIENT = """
import os
from pathlib import Path

Path({ran!r}).joinpath(Path(os.environ["FEDVEIL_HOME"]).name).touch()

from flwr.clientapp import ClientApp

app = ClientApp()
"""


def write_hostile_app(folder: Path, ran: Path) -> None:
    """Write an app whose code leaves a file wherever it runs on a client, under several names."""
    project = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "hostile"
version = "1.0.0"
license = {file = "LICENSE"}
dependencies = ["flwr>=1.41.0"]
[tool.flwr.app]
publisher = "hostile"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "hostile_server:app"
clientapp = "fedveil.client.app:app"
[tool.flwr.app.config]
actions = ""
answers = ""
"""
    code = HOSTILE_CLIENT.format(ran=str(ran))
    files = {
        "pyproject.toml": project,
        "LICENSE": "Apache-2.0",
        "hostile_server.py": HOSTILE_SERVER,
        # The name of the component is the installed one's, and the bundle has a module of it.
        "fedveil/__init__.py": code,
        "fedveil/client/__init__.py": code,
        "fedveil/client/app.py": code,
        "runner_apps.py": code,
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def flwr_run(federation: Kits, app: Path, config: str) -> None:
    done = subprocess.run(
        [str(BIN / "flwr"), "run", str(app), "federation", "--run-config", config],
        cwd=federation.folder,
        env=federation.env
        | {
            "FLWR_HOME": str(federation.kit("coordinator") / "flwr"),
            "FEDVEIL_HOME": str(federation.kit("coordinator")),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.timeout(900)
def test_a_hostile_bundle_runs_under_flower_and_not_under_the_guarded_runner(
    tmp_path: Path,
) -> None:
    ran, answers = tmp_path / "ran", tmp_path / "answers.json"
    ran.mkdir()
    write_hostile_app(tmp_path / "hostile", ran)
    with kits(tmp_path, CLIENTS) as federation:
        runner = 'app = "runner_apps:app"\nmemory_mib = 1024\nseconds = 5.0\n'
        (federation.kit("ward-b") / "runner.toml").write_text(runner)
        (federation.kit("ward-b") / "runner.toml").chmod(0o600)
        federation.start_server()
        federation.wait_for("server", "is registered", 3)
        federation.start_clients("ward-a", "ward-b")
        # The same kit under plain Flower, which runs what the server sends: the attack is real.
        federation.start("ward-c", str(federation.kit("ward-c") / "bin" / "supernode"))
        federation.wait_for_clients()
        actions = "who who crash who hang eat who"
        flwr_run(federation, tmp_path / "hostile", f'actions="{actions}" answers="{answers}"')
        deadline = time.monotonic() + 600
        while not answers.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert answers.exists(), federation.logs()
        time.sleep(0.5)
        registered = json.loads((federation.kit("coordinator") / "registered.json").read_text())
        installed = sorted(path.name for path in federation.kit("ward-a").rglob("*hostile*"))
        log = records(federation.log("ward-b"))

    # The coordinator runs its own code, and so does whoever lets Flower run what comes along.
    assert {path.name for path in ran.iterdir()} - {"coordinator"} == {"ward-c"}
    assert installed == [], "the bundle is not even unpacked"
    told = json.loads(answers.read_text())
    of = {
        name: [reply for reply in told if str(reply["node"]) == number]
        for name, number in registered.items()
    }
    # Fedveil's own app answered: it knows no such question.
    assert all("No query function registered" in reply["error"] for reply in of["ward-a"])
    # So did the app that this client's owner named, through crash, deadline and limit.
    first, second, crash, third, hang, eat, last = of["ward-b"]
    assert first["pid"] == second["pid"]
    assert second["counted"] == "2"
    assert "was ended by SIGSEGV" in crash["error"]
    assert third["pid"] != first["pid"]
    assert third["counted"] == "3"
    assert "limit of 5 s" in hang["error"]
    assert "limit of 1024 MiB" in eat["error"]
    assert last["counted"] == "4"
    assert any("was ended by SIGSEGV" in record["message"] for record in log)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kits]:
    folder = tmp_path_factory.mktemp("three")
    # Flower admits a killed SuperNode only when it no longer holds it for running, which is also
    # when the first round stops waiting: the client is back some ten to twenty seconds later.
    settings = (
        f"federation.rounds = {ROUNDS}\nsecagg.stage_timeout = 30.0\n[policy]\nepsilon = 100.0\n"
    )
    with kits(folder, CLIENTS, settings) as federation:
        # It is revoked later, and its owner has the kit all the same.
        federation.hand_over("ward-c")
        federation.start_all()
        yield federation


@pytest.mark.timeout(900)
def test_a_run_survives_the_death_of_a_task_and_of_a_supernode(three: Kits) -> None:
    def kill_children() -> None:
        three.wait_for("ward-a", "answered after", 3)
        three.wait_for("ward-b", "answered after", 3)
        for name in ("ward-a", "ward-b"):
            for child in children_of(three.processes[name].pid):
                is_worker = "runner.worker" in Path(f"/proc/{child}/cmdline").read_text()
                if is_worker == (name == "ward-a"):
                    os.kill(child, signal.SIGKILL)

    running = subprocess.Popen(
        [str(BIN / "fedveil"), "run", str(three.kit("coordinator"))],
        cwd=three.folder,
        env=three.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        kill_children()
        shown, _ = running.communicate(timeout=600)
    finally:
        running.kill()
    assert running.returncode == 0, shown + three.logs()
    assert f"round {ROUNDS}/{ROUNDS}" in shown
    (path,) = (three.kit("coordinator") / "runs").iterdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDVEIL_HOME", str(three.kit("coordinator")))
        folder = RunFolder.open(path)
    assert folder.committed == ROUNDS
    assert folder.records[-1].clients == 3, "both came back"
    charged = Ledger(three.kit("ward-c") / "ledger.db", three.kit("ward-c") / "marks").read()
    assert {entry.round for entry in charged.entries} == set(range(1, ROUNDS + 1))


@pytest.mark.timeout(600)
def test_status_tells_who_is_there(three: Kits) -> None:
    told = json.loads(three.command("status", str(three.kit("coordinator")), "--json").stdout)
    assert told["answers"] is True
    assert {party["name"]: party["state"] for party in told["parties"]} == dict.fromkeys(
        CLIENTS, "online"
    )
    client = json.loads(three.command("status", str(three.kit("ward-a")), "--json").stdout)
    assert (client["node"], client["reachable"]) == (True, True)


@pytest.mark.timeout(600)
def test_a_revoked_client_is_put_out_while_the_server_runs(three: Kits) -> None:
    three.revoke("ward-c")
    three.wait_for("server", "ward-c is no longer registered")
    three.wait_for("ward-c", "its key is not registered there, or was revoked")
    assert three.processes["ward-c"].poll() is None, "it was admitted once, and tries again"


@pytest.mark.timeout(600)
def test_a_node_ends_cleanly_and_leaves_nobody_behind(three: Kits) -> None:
    server, client = three.processes["server"], three.processes["ward-a"]
    theirs = [*children_of(server.pid), *children_of(client.pid)]
    assert len(theirs) >= 3
    for process in (server, client):
        process.send_signal(signal.SIGTERM)
    assert three.wait_for_end("server") == 0, three.logs()
    assert three.wait_for_end("ward-a") == 0, three.logs()
    assert records(three.log("ward-a"))[-1]["message"] == "stopped"
    # Killed, a node takes its processes with it all the same.
    killed = three.processes["ward-b"]
    theirs += children_of(killed.pid)
    killed.kill()
    deadline = time.monotonic() + 20
    while any(map(is_running, theirs)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in theirs if is_running(pid)] == []
