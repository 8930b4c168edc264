"""A client that is paused or cut off is left behind after the deadline, and joins again."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_network import Network
from kits import Kits, children_of, kits
from waiting import ledger_rounds, run_folder, started_run, train_answered, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

CLIENTS = ("ward-a", "ward-b", "ward-c")
ROUNDS = 12
"""Flower takes a client that was cut off for running for a minute; the run must outlast that."""
# A client trains for seconds, so that it can be met while it does.
SETTINGS = f"""\
federation.rounds = {ROUNDS}
federation.round_timeout = 20.0
secagg.stage_timeout = 15.0
training.local_steps = 100
[policy]
epsilon = 100.0
"""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kits, Network]]:
    """Yield a federation whose ward-c reaches the SuperLink over a network that can be cut."""
    folder = tmp_path_factory.mktemp("pauses")
    with kits(folder, CLIENTS, SETTINGS) as made, Network(made.address) as between:
        toml = made.kit("ward-c") / "kit.toml"
        text = toml.read_text()
        assert made.address in text
        toml.write_text(text.replace(made.address, between.address))
        made.start_server()
        made.start_clients()
        made.wait_for_clients()
        yield made, between


def test_a_paused_client_is_left_behind_and_joins_again(network: tuple[Kits, Network]) -> None:
    federation, _ = network
    client = federation.processes["ward-c"].pid
    with started_run(federation) as run:
        wait_until(lambda: 2 in ledger_rounds(federation, "ward-c", run.number), "round 2", run)
        paused = [client, *children_of(client)]
        for pid in paused:
            os.kill(pid, signal.SIGSTOP)
        try:
            assert not train_answered(federation, "ward-c", run.number, 2), "paused in time"
            wait_until(lambda: run.committed() >= 2, "the round without it", run)
        finally:
            for pid in paused:
                os.kill(pid, signal.SIGCONT)
        assert run.ended() == 0, run.told()
    was_left_behind_and_came_back(federation, run.path, run.number, run.told())
    assert federation.processes["ward-c"].poll() is None


@pytest.mark.parametrize("cut", ["refusing", "silent"])
def test_a_client_that_is_cut_off_is_left_behind_and_joins_again(
    network: tuple[Kits, Network], cut: str
) -> None:
    federation, between = network
    with started_run(federation) as run:
        wait_until(lambda: 2 in ledger_rounds(federation, "ward-c", run.number), "round 2", run)
        between.cut(silent=cut == "silent")
        try:
            assert not train_answered(federation, "ward-c", run.number, 2), "cut in time"
            wait_until(lambda: run.committed() >= 2, "the round without it", run)
        finally:
            between.restore()
        assert run.ended() == 0, run.told()
    was_left_behind_and_came_back(federation, run.path, run.number, run.told())


def was_left_behind_and_came_back(federation: Kits, path: Path, run: str, told: str) -> None:
    records = run_folder(federation, path).records
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    assert (records[0].clients, records[0].failed) == (3, 0)
    assert (records[1].clients, records[1].failed) == (2, 1)
    assert records[-1].clients == 3, "it joined again"
    assert "round 2: client-2 is left out" in told
    together = {record.round for record in records if record.clients == 3}
    # What it was asked for counts, whether or not it was heard.
    assert set(ledger_rounds(federation, "ward-c", run)) >= together | {2}
    for name in ("ward-a", "ward-b"):
        assert set(ledger_rounds(federation, name, run)) == set(range(1, ROUNDS + 1))
