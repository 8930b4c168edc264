"""What every engine does, whichever runs the clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from engine_apps import Counting
from flwr.app import ConfigRecord, Message, RecordDict

from fedveil.simulations.engines.cohort import CohortEngine
from fedveil.simulations.engines.errors import ClientDefectError, EngineError
from fedveil.simulations.engines.interface import Engine
from fedveil.simulations.engines.processes import ProcessesEngine
from fedveil.simulations.engines.ray import RayEngine
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.strategies.exchange import exchange
from fedveil.strategies.failures import failure_in

NODES = {2 + i: {"partition-id": i} for i in range(5)}


@pytest.fixture(params=["sequential", "cohort", "processes", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    clients = Counting()
    match request.param:
        case "sequential":
            made: Engine = SequentialEngine(clients.app())
        case "cohort":
            made = CohortEngine(clients.app())
        case "processes":
            made = ProcessesEngine(clients, 2)
        case _:
            request.getfixturevalue("ray_cluster")
            made = RayEngine(clients, 2)
    yield made
    made.close()


def requests(grid: InProcessGrid, kind: str = "train") -> list[Message]:
    content = RecordDict({"config": ConfigRecord()})
    return [Message(content, dst_node_id=n, message_type=kind) for n in grid.get_node_ids()]


def test_clients_that_refuse_or_fail_stop_nobody_and_each_keeps_its_state(engine: Engine) -> None:
    grid = InProcessGrid(engine, NODES, run_id=7)
    for times in (1, 2, 3):
        heard: list[int] = []
        replies = exchange(grid, requests(grid), 60, heard.append)
        assert heard == [1, 2, 3, 4, 5], "each is told when it comes"
        assert [reply.metadata.src_node_id for reply in replies] == [2, 3, 4, 5, 6]
        assert {reply.metadata.run_id for reply in replies} == {7}
        reasons = [str(failure_in(reply)) if reply.has_error() else "" for reply in replies]
        assert reasons == ["", "client 1 refuses", "", "client 3 fails", ""]
        told = [dict(r.content.metric_records["metrics"]) for r in replies if r.has_content()]
        assert told == [{"client": client, "calls": times} for client in (0, 2, 4)]
    calls = [grid._contexts[node].state.metric_records.get("seen") for node in NODES]
    assert [None if c is None else c["calls"] for c in calls] == [3, None, 3, 3, 3]


def test_what_nobody_asks_for_stays_for_whoever_does(engine: Engine) -> None:
    grid = InProcessGrid(engine, NODES, run_id=7)
    first, *others = grid.push_messages(requests(grid))
    while not (found := list(grid.pull_messages([first]))):
        pass
    assert [reply.metadata.reply_to_message_id for reply in found] == [first]
    assert list(grid.pull_messages([first])) == []
    arrived = [reply for _ in others for reply in grid.pull_messages(others)]
    assert {reply.metadata.reply_to_message_id for reply in arrived} == set(others)


def test_a_reply_of_a_batch_that_was_left_is_there_later() -> None:
    grid = InProcessGrid(SequentialEngine(Counting().app()), NODES, run_id=7)
    left = list(grid.push_messages(requests(grid)))
    (first,) = grid.pull_messages(left)
    new = list(grid.push_messages(requests(grid)))
    (other,) = grid.pull_messages(new)
    assert other.metadata.reply_to_message_id in new
    remaining = set(left) - {first.metadata.reply_to_message_id}
    found = {
        reply.metadata.reply_to_message_id for _ in remaining for reply in grid.pull_messages(left)
    }
    assert found == remaining


def test_a_defect_is_shown_where_it_is(engine: Engine) -> None:
    grid = InProcessGrid(engine, NODES, run_id=7)
    with pytest.raises(Exception, match="a defect of client") as caught:
        exchange(grid, requests(grid, "query"), 60)
    assert not isinstance(caught.value, EngineError)
    if isinstance(engine, ProcessesEngine):
        assert caught.type is ClientDefectError
        assert "engine_apps.py" in str(caught.value), "with its traceback"
    # The engine is whole, and the next batch runs.
    assert len(exchange(grid, requests(grid), 60)) == 5
