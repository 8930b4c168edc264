"""Kits under Flower's own commands: who may join over TLS and node authentication, and who not."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from deployed import BIN, Federation, free_ports, wait_for_port
from provisioned import FEDERATION, make_kits

WARDS = ("ward-a", "ward-b", "ward-c")


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    running = Federation(tmp_path)
    try:
        yield running
    finally:
        running.stop()


def text_for(ports: list[int]) -> str:
    """Return a federation on ports that are free."""
    text = FEDERATION.replace("hosts = ['127.0.0.1']", f"hosts = ['127.0.0.1']\nport = {ports[0]}")
    for ward, port in zip(WARDS, ports[1:], strict=True):
        text = text.replace(f"[clients.{ward}]", f"[clients.{ward}]\nport = {port}")
    return text


def command(federation: Federation, *arguments: str) -> str:
    """Run a script of a kit, which must succeed."""
    done = subprocess.run(
        arguments,
        cwd=federation.folder,
        env=federation.env,
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr + federation.logs()
    return done.stdout


def refused(federation: Federation, name: str, *arguments: str) -> str:
    """Run a SuperNode that must give up by itself; return what it said."""
    federation.start(name, *arguments, "--max-retries", "1")
    code, said = federation.ended(name)
    assert code == 1, said
    assert "Failed to initialize the connection to the SuperLink" in said
    return said


def nodes(federation: Federation, kits: Path) -> list[str]:
    """Return the states of the nodes that the SuperLink knows."""
    shown = command(
        federation,
        str(kits / "coordinator/bin/flwr"),
        *("supernode", "ls", "federation", "--format", "json"),
    )
    listed = json.loads(shown[shown.index("{") :])["nodes"]
    return sorted(str(node["status"]) for node in listed)


@pytest.mark.timeout(900)
def test_registered_clients_join_and_nobody_else(federation: Federation) -> None:
    kits = federation.folder / "kits"
    spare, *ports = free_ports(5)
    for folder in (kits, federation.folder / "others" / "kits"):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        make_kits(folder, text_for(ports), now=datetime.now(UTC))
    others = federation.folder / "others" / "kits"
    federation.start("superlink", str(kits / "coordinator/bin/superlink"))
    wait_for_port(ports[0])
    command(federation, str(kits / "coordinator/bin/register"))
    federation.start("supernode-0", str(kits / "ward-a/bin/supernode"))
    federation.wait_for_lines("superlink", "Activated node_id", 1)

    # A key that nobody registered, with the right authority.
    stranger = federation.folder / "stranger"
    shutil.copytree(kits / "ward-b", stranger)
    shutil.copy(others / "ward-b" / "supernode.key", stranger)
    said = refused(federation, "stranger", str(stranger / "bin/supernode"), "--port", str(spare))
    assert "[code: 2004] Failed to activate SuperNode" in said
    assert "No SuperNode found with the given public key" in federation.logs()

    # A registered key, and another authority: the client does not talk to this server.
    deceived = federation.folder / "deceived"
    shutil.copytree(kits / "ward-b", deceived)
    shutil.copy(others / "ward-b" / "ca.pem", deceived)
    said = refused(federation, "deceived", str(deceived / "bin/supernode"), "--port", str(spare))
    assert "CERTIFICATE_VERIFY_FAILED" in said

    # Without TLS.
    plain = ("--insecure", "--superlink", f"127.0.0.1:{ports[0]}", "--port", str(spare))
    refused(federation, "plain", str(BIN / "flower-supernode"), *plain)

    assert nodes(federation, kits) == ["online", "registered", "registered"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kits_train_under_plain_flower_and_a_revoked_client_is_refused(
    federation: Federation,
) -> None:
    kits = federation.folder / "kits"
    kits.mkdir(mode=0o700)
    ports = free_ports(4)
    make_kits(kits, text_for(ports), now=datetime.now(UTC))
    federation.start("superlink", str(kits / "coordinator/bin/superlink"))
    wait_for_port(ports[0])
    command(federation, str(kits / "coordinator/bin/register"))
    for ward in WARDS:
        federation.start(ward, str(kits / ward / "bin/supernode"))
    federation.wait_for_lines("superlink", "Activated node_id", 3)
    done = command(
        federation,
        str(kits / "coordinator/bin/flwr"),
        *("run", str(kits / "coordinator/app"), "federation", "--stream", "--run-config"),
        f"federation.rounds=1 run.roster='{kits}/coordinator/roster.toml'",
    )
    assert re.search(r"Fedveil round 1/1, accuracy 0\.\d+, epsilon", done), done
    (run,) = (kits / "coordinator" / "runs").iterdir()
    report = json.loads((run / "report.json").read_text())
    assert [client["rounds"] for client in report["clients"]] == [1, 1, 1]
    # Each client's own ledger and policy were in use, and stand in its own kit.
    assert all((kits / ward / "ledger.db").exists() for ward in WARDS)

    federation.stop()
    without = text_for(ports).replace(f"[clients.ward-b]\nport = {ports[2]}\n", "")
    make_kits(kits, without, revoke=["ward-b"], now=datetime.now(UTC))
    federation.start("superlink-again", str(kits / "coordinator/bin/superlink"))
    wait_for_port(ports[0])
    command(federation, str(kits / "coordinator/bin/register"))
    said = refused(federation, "revoked", str(kits / "revoked/ward-b/bin/supernode"))
    assert "[code: 2004] Failed to activate SuperNode" in said
    assert nodes(federation, kits) == ["registered", "registered"]
