"""A client that is paused or cut off is left behind after the deadline, and joins again."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator

import pytest
from cut_network import Network
from kits import Kits, children_of, kits
from waiting import (
    Run,
    held_in_training,
    ledger_rounds,
    report_covers_ledgers,
    run_folder,
    slow_training,
    started_run,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

CLIENTS = ("ward-a", "ward-b", "ward-c")
ROUNDS = 6
DEADLINE = 25.0
"""Seconds: below the 30 after which the SuperLink takes a silent node for gone."""


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Kits, Network]]:
    """Yield a federation whose ward-c reaches the SuperLink over a network that can be cut."""
    folder = tmp_path_factory.mktemp("pauses")
    with kits(folder, CLIENTS, slow_training(ROUNDS)) as made, Network(made.address) as between:
        toml = made.kit("ward-c") / "kit.toml"
        text = toml.read_text()
        assert made.address in text
        toml.write_text(text.replace(made.address, between.address))
        made.start_all()
        yield made, between


def test_a_paused_client_is_left_behind_and_joins_again(network: tuple[Kits, Network]) -> None:
    federation, _ = network
    client = federation.processes["ward-c"].pid
    options = f"federation.round_timeout={DEADLINE}", "training.local_steps=100"
    with started_run(federation, *[part for o in options for part in ("--set", o)]) as run:
        with held_in_training(federation, "ward-c", run, 2):
            paused = [client, *children_of(client)]
            for pid in paused:
                os.kill(pid, signal.SIGSTOP)
            try:
                wait_until(lambda: run.committed() >= 2, "the round without it", run)
            finally:
                for pid in paused:
                    os.kill(pid, signal.SIGCONT)
        assert run.ended() == 0, run.told()
    was_left_behind_and_came_back(federation, run)
    assert federation.processes["ward-c"].poll() is None


@pytest.mark.parametrize("cut", ["refusing", "silent"])
def test_a_client_that_is_cut_off_is_left_behind_and_joins_again(
    network: tuple[Kits, Network], cut: str
) -> None:
    federation, between = network
    with started_run(federation) as run:
        with held_in_training(federation, "ward-c", run, 2):
            between.cut(silent=cut == "silent")
        try:
            wait_until(lambda: run.committed() >= 2, "the round without it", run)
        finally:
            between.restore()
        # The others do not get through the next round before it is there again.
        with held_in_training(federation, "ward-b", run, 3):
            wait_until(lambda: is_online(federation, "ward-c"), "ward-c is there again", run)
        assert run.ended() == 0, run.told()
    was_left_behind_and_came_back(federation, run)


def is_online(federation: Kits, name: str) -> bool:
    told = federation.command("status", str(federation.kit("coordinator")), "--json").stdout
    states = {party["name"]: party["state"] for party in json.loads(told)["parties"]}
    return states[name] == "online"


def was_left_behind_and_came_back(federation: Kits, run: Run) -> None:
    records = run_folder(federation, run.path).records
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    assert [(record.clients, record.failed) for record in records[:2]] == [(3, 0), (2, 1)]
    assert records[-1].clients == 3, "it joined again"
    assert "round 2: client-2 is left out" in run.told()
    report_covers_ledgers(federation, run.path, run.number)
    together = {record.round for record in records if record.clients == 3}
    # What it was asked for counts, whether or not it was heard.
    assert set(ledger_rounds(federation, "ward-c", run.number)) >= together | {2}
    for name in ("ward-a", "ward-b"):
        assert set(ledger_rounds(federation, name, run.number)) == set(range(1, ROUNDS + 1))
