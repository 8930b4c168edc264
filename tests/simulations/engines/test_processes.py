"""A pool of processes: ledgers, processes that die, and none that is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_apps import Counting
from flwr.app import Message, RecordDict

from fedveil.simulations.engines.errors import EngineError
from fedveil.simulations.engines.processes import ProcessesEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.strategies.exchange import exchange

PATIENCE = 60.0
TESTS = Path(__file__).resolve().parents[2]


def until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # One whose parent has not asked for its end is gone all the same.
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_process_that_dies_is_one_clear_line() -> None:
    engine = ProcessesEngine(Counting(), 1)
    grid = InProcessGrid(engine, {2: {"partition-id": 0}}, run_id=1)
    request = Message(RecordDict(), dst_node_id=2, message_type="query.die")
    with pytest.raises(EngineError, match=r"has died.*with fewer --processes") as caught:
        exchange(grid, [request], PATIENCE)
    assert "\n" not in str(caught.value)
    engine.close()


def test_closing_ends_clients_in_the_middle_of_their_work(tmp_path: Path) -> None:
    engine = ProcessesEngine(Counting(tmp_path), 1)
    grid = InProcessGrid(engine, {2: {"partition-id": 0}}, run_id=1)
    message = Message(RecordDict(), dst_node_id=2, message_type="query.linger")
    engine._pool.submit(len, "")  # the process starts
    replies = engine.run([(message, grid._contexts[2])])
    ended: list[Exception] = []

    def ask() -> None:
        try:
            list(replies)
        except EngineError as error:
            ended.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    until(lambda: any(tmp_path.iterdir()), "the client did not begin")
    engine.close()
    waiting.join(PATIENCE)
    assert len(ended) == 1
    assert all(is_gone(int(path.name)) for path in tmp_path.iterdir())


SCRIPT = """
import sys
from pathlib import Path
from engine_apps import Counting
from flwr.app import Message, RecordDict
from fedveil.simulations.engines.processes import ProcessesEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.strategies.exchange import exchange

if __name__ == "__main__":
    engine = ProcessesEngine(Counting(Path(sys.argv[1])), 2)
    grid = InProcessGrid(engine, {2 + i: {"partition-id": i} for i in range(6)}, run_id=1)
    nodes = grid.get_node_ids()
    try:
        exchange(
            grid,
            [Message(RecordDict(), dst_node_id=n, message_type="query.linger") for n in nodes],
            600,
        )
    finally:
        engine.close()
"""


@pytest.mark.parametrize("how", ["Ctrl-C", "killed"])
def test_no_process_is_left(tmp_path: Path, how: str) -> None:
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    pids.mkdir()
    path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(pids)],
        env={**os.environ, "PYTHONPATH": path, "FLWR_TELEMETRY_ENABLED": "0"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        until(lambda: len(list(pids.iterdir())) == 2, "two processes did not begin")
        if how == "Ctrl-C":
            # A terminal sends it to all of them.
            os.killpg(parent.pid, signal.SIGINT)
        else:
            parent.kill()
        _, said = parent.communicate(timeout=PATIENCE)
        assert parent.returncode != 0
        if how == "Ctrl-C":
            assert said.count("KeyboardInterrupt") == 1, said
        workers = [int(path.name) for path in pids.iterdir()]
        assert len(workers) == 2
        until(lambda: all(map(is_gone, workers)), "a process is left")
    finally:
        if parent.poll() is None:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()


def test_each_data_owner_is_asked_and_charged_in_its_process(
    charged_run: Callable[..., list[str]],
) -> None:
    charged_run(secure=False, engine="processes", processes=2)
