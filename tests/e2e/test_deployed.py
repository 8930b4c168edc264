"""The two apps under Flower's own processes: one SuperLink, three SuperNodes, on loopback."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from deployed import BIN, Federation, free_ports, wait_for_port
from disk_search import (
    files_under,
    holding,
    needles,
    open_files_of_watched,
    opened_for_writing,
    temporary_files,
)

from fedveil.client.app import partition_spec
from fedveil.privacy.accounting import Release, pld_epsilon
from fedveil.server.run_folder import RunFolder
from fedveil.tasks.registry import create_task

CLIENTS = 3
ROUNDS = 2


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
        *("fedveil", "server", "--insecure", "--host", "127.0.0.1", "--port", str(port)),
    )
    wait_for_port(port)
    for index, node_port in enumerate(node_ports):
        folder = federation.folder / f"client-{index}"
        federation.start(
            f"supernode-{index}",
            *("flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}"),
            *("--port", str(node_port)),
            "--node-config",
            f"partition-id={index} num-partitions={CLIENTS} "
            f'identity="{folder}/identity.json" roster="{folder}/roster.toml"',
        )
    home = Path(federation.env["FLWR_HOME"])
    home.mkdir(exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )


def make_identities(federation: Federation) -> None:
    """Let every client make its identity, and add all the others to its roster, by command."""
    lines = {}
    for index in range(CLIENTS):
        out = federation.folder / f"client-{index}" / "identity.json"
        shown = fedveil(federation, "keys", "new-identity", f"client-{index}", "--out", str(out))
        assert out.stat().st_mode & 0o777 == 0o600
        lines[index] = shown.splitlines()[-1].split()[1:]
    for index in range(CLIENTS):
        roster = federation.folder / f"client-{index}" / "roster.toml"
        for other in set(lines) - {index}:
            fedveil(federation, *lines[other], "--roster", str(roster))


def fedveil(federation: Federation, *arguments: str) -> str:
    done = subprocess.run(
        [str(BIN / "fedveil"), *arguments],
        cwd=federation.folder,
        env=federation.env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def flwr_run(federation: Federation, *overrides: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "flwr"), "run", "app", "local", "--stream"]
        + [part for text in overrides for part in ("--run-config", text)],
        cwd=federation.folder,
        env=federation.env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


SEED = 20_260_731
"""Of this test alone, so that its weights are nowhere but where it puts them."""


@pytest.mark.timeout(900)
def test_two_rounds_of_digits_leave_a_complete_run_folder_and_no_weights_in_clear(
    federation: Federation,
) -> None:
    others = temporary_files()
    fedveil(federation, "new", "app", "--clients", str(CLIENTS))
    make_identities(federation)
    assert not list((federation.folder / "app").rglob("*.py")), "configuration only, no code"

    start_nodes(federation)
    out = federation.folder / "run"
    done = flwr_run(federation, f'run.out="{out}" federation.rounds={ROUNDS} seed={SEED}')
    # What Flower prints is for a person; the folder is what counts.
    deadline = time.monotonic() + 120
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

    sought = needles_of(folder)
    written = [*files_under(federation.folder), *open_files_of_watched(federation.watched)]
    assert holding(written, sought) == []
    assert holding(temporary_files() - others, sought) == []
    opened = opened_for_writing(federation.watched)
    # All that was opened lies where it was searched; the list is not empty for want of a watch.
    assert [path for path in opened if not path.startswith(str(federation.folder))] == []
    assert any("round-000002.fvlt" in path for path in opened)

    # The search can find: the one command that writes weights in clear is found out.
    planted = federation.folder / "home" / "model.safetensors"
    export_in_clear(federation, out, planted)
    assert planted in holding(files_under(federation.folder), sought)


def needles_of(run: RunFolder) -> list[bytes]:
    """Return what to look for: the first model, and the global model after each round."""
    config = run.config
    task = create_task(
        config.task.name, seed=config.seed, partition=partition_spec(config.partition)
    )
    torch.manual_seed(config.seed)
    first = {name: value.numpy() for name, value in task.model().state_dict().items()}
    after = [run.store.load(number).tensors for number in run.store.rounds()]
    return [piece for tensors in (first, *after) for piece in needles(tensors)]


def export_in_clear(federation: Federation, run: Path, to: Path) -> None:
    fedveil(federation, "models", "export", str(run), "--to", str(to), "--plaintext")
