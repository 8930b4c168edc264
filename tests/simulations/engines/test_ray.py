"""Clients on a Ray cluster: machines that die, that see no ledgers, that are full."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_apps import Counting
from flwr.app import Message, RecordDict

from fedveil.server.app import LoggingObserver
from fedveil.simulations.engines.errors import EngineError
from fedveil.simulations.engines.ray import RayEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.simulations.scenarios import find_scenario
from fedveil.simulations.simulate import simulate
from fedveil.strategies.exchange import exchange

pytestmark = pytest.mark.usefixtures("ray_cluster")

PATIENCE = 120.0


def ask(engine: RayEngine, what: str) -> None:
    grid = InProcessGrid(engine, {2 + i: {"partition-id": i} for i in range(6)}, run_id=1)
    nodes = grid.get_node_ids()
    exchange(
        grid, [Message(RecordDict(), dst_node_id=n, message_type=what) for n in nodes], PATIENCE
    )


def test_each_core_of_the_cluster_runs_a_client_and_is_free_afterwards() -> None:
    for _ in range(2):
        engine = RayEngine(Counting(), 6)
        assert (engine.size, engine.machines) == (2, 1)
        engine.close()


def test_no_more_are_started_than_asked_for() -> None:
    engine = RayEngine(Counting(), 1)
    assert engine.size == 1
    engine.close()


def test_a_client_that_kills_its_process_is_one_clear_line() -> None:
    engine = RayEngine(Counting(), 2)
    with pytest.raises(EngineError, match=r"has lost .*finished stands\. Resume") as caught:
        ask(engine, "query.die")
    assert "\n" not in str(caught.value)
    engine.close()


def test_a_cluster_that_is_full_says_so() -> None:
    engine = RayEngine(Counting(), 2)
    # Whoever else comes finds no core; not in this process, which is in the cluster once.
    code = (
        "from engine_apps import Counting\n"
        "from fedveil.simulations.engines.ray import RayEngine\n"
        "RayEngine(Counting(), 2)"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    ).stderr
    assert "the Ray cluster has no free core for a client; see `ray status`" in said
    engine.close()


def test_a_machine_that_does_not_see_the_ledgers_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a machine with a disk of its own: what is made here is not there.
    monkeypatch.setattr(Path, "touch", lambda _: None)
    monkeypatch.setattr(Path, "unlink", lambda _: None)
    with pytest.raises(EngineError, match=r"\S+ of the Ray cluster does not see"):
        RayEngine(Counting(), 2, shared=tmp_path / "ledgers")


def test_no_cluster_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(EngineError, match="no Ray cluster is found: start one with `ray start"):
        RayEngine(Counting(), 2)


def test_ray_takes_no_signal_for_itself() -> None:
    before = signal.getsignal(signal.SIGTERM)
    RayEngine(Counting(), 1).close()
    assert signal.getsignal(signal.SIGTERM) is before


SIZE = [("federation.rounds", 2), ("federation.clients", 4)]


def test_a_run_has_the_model_of_one_client_after_another(tmp_path: Path) -> None:
    config = find_scenario("digits").config([*SIZE, ("dp.insecure_seed", 7)])
    models = []
    for name in ("ray", "sequential"):
        run = simulate(config, tmp_path / name, LoggingObserver(), engine=name)
        tensors = run.folder.store.load(2).tensors
        models.append({key: tensor.tobytes() for key, tensor in tensors.items()})
    assert models[0] == models[1]


def test_each_data_owner_is_asked_and_charged_on_whatever_machine(
    charged_run: Callable[..., list[str]],
) -> None:
    said = charged_run(secure=True, engine="ray")
    assert said == ["engine ray: 2 at a time, on 1 machine(s)"]
