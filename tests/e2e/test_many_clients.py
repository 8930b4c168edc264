"""Twenty-four clients on one machine, each with its own processes: two rounds, nobody left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kits import kits
from waiting import ledger_rounds, run_folder, started_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

CLIENTS = tuple(f"ward-{number:02d}" for number in range(1, 25))
ROUNDS = 2
SETTINGS = f"""\
federation.rounds = {ROUNDS}
federation.join_timeout = 300.0
federation.round_timeout = 300.0
secagg.stage_timeout = 200.0
"""
MEMORY = 13 << 30
"""Bytes: a SuperNode, its runner and the process that trains take about 450 MB together."""
AT_ONCE = 4


def free_memory() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    (kilobytes,) = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(kilobytes) << 10


def test_twenty_four_clients_train_two_rounds_together(tmp_path: Path) -> None:
    if (free := free_memory()) < MEMORY:
        pytest.skip(f"needs {MEMORY >> 30} GiB of free memory; {free >> 30} GiB are free")
    with kits(tmp_path, CLIENTS, SETTINGS) as federation:
        federation.start_server()
        federation.wait_for("server", "is registered", len(CLIENTS))
        for first in range(0, len(CLIENTS), AT_ONCE):
            few = CLIENTS[first : first + AT_ONCE]
            federation.start_clients(*few)
            federation.wait_for_clients(*few)
        with started_run(federation) as run:
            assert federation.wait_for_end(run.name, patience=700.0) == 0, run.told()
        folder = run_folder(federation, run.path)
        assert [(r.clients, r.failed, r.attempt) for r in folder.records] == [(24, 0, 1)] * ROUNDS
        report = json.loads((run.path / "report.json").read_text())
        assert [client["rounds"] for client in report["clients"]] == [ROUNDS] * len(CLIENTS)
        for name in CLIENTS:
            assert ledger_rounds(federation, name, run.number) == [1, 2]
