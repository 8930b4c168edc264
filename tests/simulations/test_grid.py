"""The in-process grid behaves like Flower's own towards apps and strategies."""

from __future__ import annotations

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from fedveil.errors import FedveilError
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.strategies.exchange import exchange
from fedveil.strategies.failures import failure_in


def make_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise FedveilError("partition 1 says no")
        seen = context.state.metric_records.setdefault("seen", MetricRecord({"calls": 0}))
        seen["calls"] = int(seen["calls"]) + 1  # type: ignore[arg-type]
        told = MetricRecord({"weight": 1.0, "calls": int(seen["calls"])})
        arrays = message.content.array_records.get("arrays", ArrayRecord())
        return Message(RecordDict({"arrays": arrays, "metrics": told}), reply_to=message)

    @app.query()
    def defect(message: Message, context: Context) -> Message:
        raise ZeroDivisionError

    return app


@pytest.fixture
def grid() -> InProcessGrid:
    nodes = {2 + i: {"partition-id": i} for i in range(3)}
    return InProcessGrid(SequentialEngine(make_app()), nodes, run_id=7)


def requests(grid: InProcessGrid, kind: str = "train") -> list[Message]:
    return [
        Message(RecordDict({"config": ConfigRecord()}), dst_node_id=node, message_type=kind)
        for node in grid.get_node_ids()
    ]


def test_replies_belong_to_their_requests(grid: InProcessGrid) -> None:
    replies = exchange(grid, requests(grid), timeout=10)
    assert [r.metadata.src_node_id for r in replies] == [2, 3, 4]
    assert {r.metadata.run_id for r in replies} == {7}
    assert [r.has_error() for r in replies] == [False, True, False]
    assert str(failure_in(replies[1])) == "partition 1 says no"


def test_a_node_keeps_its_state_between_messages(grid: InProcessGrid) -> None:
    for expected in (1, 2, 3):
        (first, *_) = grid.send_and_receive(requests(grid))
        assert first.content.metric_records["metrics"]["calls"] == expected


def test_a_defect_of_an_app_is_not_hidden(grid: InProcessGrid) -> None:
    with pytest.raises(ZeroDivisionError):
        exchange(grid, requests(grid, "query"), timeout=10)


def test_flowers_own_strategy_runs_on_it(grid: InProcessGrid) -> None:
    import numpy as np
    from flwr.app import Array

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=3, weighted_by_key="weight")
    result = strategy.start(
        grid, ArrayRecord({"w": Array(np.ones(3, np.float32))}), num_rounds=2, timeout=10
    )
    assert result.arrays["w"].numpy().tolist() == [1.0, 1.0, 1.0]


def test_time_runs_out_for_whoever_does_not_answer(grid: InProcessGrid) -> None:
    class Deaf(InProcessGrid):
        def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
            return []

    deaf = Deaf(SequentialEngine(make_app()), {2: {"partition-id": 0}}, run_id=7)
    assert exchange(deaf, requests(deaf), timeout=0.2) == []
    assert deaf.send_and_receive(requests(deaf), timeout=0.2) == []


def test_replies_that_nobody_waits_for_are_dropped(grid: InProcessGrid) -> None:
    class Echoes(InProcessGrid):
        def pull_messages(self, message_ids):  # type: ignore[no-untyped-def]
            replies = list(super().pull_messages(message_ids))
            return replies * 2 if replies else replies

    configs = {2: {"partition-id": 0}, 3: {"partition-id": 2}}
    noisy = Echoes(SequentialEngine(make_app()), configs, run_id=7)
    told: list[int] = []
    replies = exchange(noisy, requests(noisy), 10, told.append)
    assert len({r.metadata.reply_to_message_id for r in replies}) == 2
    assert len(replies) == 2
