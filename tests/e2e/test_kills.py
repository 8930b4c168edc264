"""Kill -9 of every process of a federation: the run goes on or resumes, and no charge is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from kits import Kits, is_running, kits
from waiting import (
    descendants,
    held_in_training,
    ledger_rounds,
    report_covers_ledgers,
    run_folder,
    slow_training,
    started_run,
    train_answered,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = ("ward-a", "ward-b", "ward-c")
ROUNDS = 5


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kits]:
    with kits(tmp_path_factory.mktemp("kills"), CLIENTS, slow_training(ROUNDS)) as made:
        made.start_all()
        yield made


def kill(federation: Kits, name: str) -> None:
    """Kill a client with all that it started, and see it gone."""
    process = federation.processes[name]
    theirs = [process.pid, *descendants(process.pid)]
    for pid in theirs:
        os.kill(pid, signal.SIGKILL)
    process.wait(20)
    wait_until(lambda: not any(map(is_running, theirs)), f"{name} is gone", federation)


def start_again(federation: Kits, name: str) -> None:
    """Start a client that was killed; Flower admits it when two of its heartbeats are missing."""
    before = federation.log(name).count("SuperNode ID:")
    federation.start_clients(name)
    federation.wait_for(name, "SuperNode ID:", before + 1)


def test_a_client_killed_while_it_trains_is_left_out_and_comes_back(federation: Kits) -> None:
    with started_run(federation) as run:
        with held_in_training(federation, "ward-a", run, 2):
            kill(federation, "ward-a")
        # The others do not get through the next round before it is there again.
        with held_in_training(federation, "ward-b", run, 3):
            start_again(federation, "ward-a")
        assert run.ended() == 0, run.told()
    records = run_folder(federation, run.path).records
    assert [record.round for record in records] == [1, 2, 3, 4, 5]
    assert [(record.clients, record.failed) for record in records[:3]] == [(3, 0), (2, 1), (2, 0)]
    assert records[-1].clients == 3, "it came back"
    report_covers_ledgers(federation, run.path, run.number)
    # The charge of the second round stands, though nothing of it ever left.
    charged = set(ledger_rounds(federation, "ward-a", run.number))
    assert charged >= {2} | {record.round for record in records if record.clients == 3}
    for name in ("ward-b", "ward-c"):
        assert set(ledger_rounds(federation, name, run.number)) == {1, 2, 3, 4, 5}


def test_a_client_killed_between_masking_and_unmasking_is_in_the_sum(federation: Kits) -> None:
    with started_run(federation) as run:
        # While one client trains, no other is asked to unmask.
        with held_in_training(federation, "ward-b", run, 2):
            wait_until(
                lambda: train_answered(federation, "ward-a", run.number, 2), "ward-a's answer", run
            )
            kill(federation, "ward-a")
        with held_in_training(federation, "ward-b", run, 3):
            start_again(federation, "ward-a")
        assert run.ended() == 0, run.told()
    records = run_folder(federation, run.path).records
    assert [record.round for record in records] == [1, 2, 3, 4, 5]
    assert records[1].attempt == 1
    assert (records[1].clients, records[1].failed) == (3, 0), "the others opened its mask"
    assert records[-1].clients == 3, "it came back"
    report_covers_ledgers(federation, run.path, run.number)
    together = {record.round for record in records if record.clients == 3}
    assert set(ledger_rounds(federation, "ward-a", run.number)) >= together
    for name in ("ward-b", "ward-c"):
        assert set(ledger_rounds(federation, name, run.number)) == {1, 2, 3, 4, 5}


def test_a_run_whose_app_was_killed_is_resumed(federation: Kits) -> None:
    with started_run(federation) as run:
        wait_until(lambda: run.committed() >= 1, "a committed round", run)
        (app,) = descendants(federation.processes["server"].pid, "flwr-serverapp")
        os.kill(app, signal.SIGKILL)
        assert run.ended() == 1, run.told()
        assert f"--resume {run.path}" in run.told()
        assert "Traceback" not in run.told()
    resumes(federation, run.path, run.number)


def test_a_run_whose_superlink_was_killed_is_resumed(federation: Kits) -> None:
    with started_run(federation) as run:
        wait_until(lambda: run.committed() >= 1, "a committed round", run)
        server = federation.processes["server"]
        theirs = descendants(server.pid)
        (superlink,) = descendants(server.pid, "fedveil.server.superlink")
        before = {name: federation.log(name).count("SuperNode ID:") for name in CLIENTS}
        os.kill(superlink, signal.SIGKILL)
        assert federation.wait_for_end("server") == 1
        assert "the SuperLink was ended by SIGKILL" in federation.log("server")
        wait_until(lambda: not any(map(is_running, theirs)), "its processes are gone", federation)
        assert run.ended() == 1, run.told()
        assert "the SuperLink has ended" in run.told()
        assert f"--resume {run.path}" in run.told()
    registered = federation.log("server").count("is registered")
    federation.start_server()
    federation.wait_for("server", "is registered", registered + len(CLIENTS))
    for name in CLIENTS:
        federation.wait_for(name, "SuperNode ID:", before[name] + 1)
    resumes(federation, run.path, run.number)


def resumes(federation: Kits, path: Path, first: str) -> None:
    """Resume a run, and hold what it commits against what the clients were charged."""
    committed = len(run_folder(federation, path).records)
    assert 1 <= committed < ROUNDS
    with started_run(federation, "--resume", str(path)) as again:
        assert again.ended() == 0, again.told()
        assert f"round {committed}/{ROUNDS}" not in again.told(), "committed once"
    records = run_folder(federation, path).records
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    assert {record.clients for record in records} == {3}
    report_covers_ledgers(federation, path, first, again.number)
    for name in CLIENTS:
        before = ledger_rounds(federation, name, first)
        after = ledger_rounds(federation, name, again.number)
        assert set(before) >= set(range(1, committed + 1))
        assert set(after) == set(range(committed + 1, ROUNDS + 1))
