"""Who may take part: refusals are told, names outlive nodes, nobody is served twice."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp.grid import Grid

from fedveil.errors import FedveilError
from fedveil.server.joining import JoinError, Roster
from fedveil.simulations.engines.sequential import SequentialEngine
from fedveil.simulations.grid import InProcessGrid
from fedveil.strategies.grid_view import GridView

app = ClientApp()


@app.query()
def join(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    if partition < 0:
        raise FedveilError("my data are not for you")
    content = RecordDict({"join": MetricRecord({"partition": partition})})
    return Message(content, reply_to=message)


def roster(*partitions: int) -> tuple[Roster, list[str], InProcessGrid]:
    nodes = {2 + i: {"partition-id": p} for i, p in enumerate(partitions)}
    grid = InProcessGrid(SequentialEngine(app), nodes, run_id=1)
    told: list[str] = []
    return Roster(grid, ConfigRecord(), 10, 10.0, told.append), told, grid


def test_clients_are_named_by_their_partition() -> None:
    who, told, _ = roster(4, 0, 2)
    assert who.clients() == {"client-4": 2, "client-0": 3, "client-2": 4}
    assert told == []


def test_a_refusal_is_told_once_and_the_others_go_on() -> None:
    who, told, _ = roster(0, -1, 2)
    assert set(who.wait_for(3, 2, patience=5.0)) == {"client-0", "client-2"}
    who.clients()
    assert told == ["node 3 is left out: my data are not for you"]


def test_too_few_clients_end_it_with_the_reason() -> None:
    who, told, _ = roster(0, -1, -1)
    with pytest.raises(
        JoinError,
        match=r"1 of 3 connected nodes can .* 2 are needed; my data are not",
    ):
        who.wait_for(3, 2, patience=0.1)
    assert told == [], "the one line says it already"


def test_one_reason_of_many_is_told_once() -> None:
    who, told, _ = roster(0, 1, -1, -2, -3)
    assert len(who.wait_for(5, 2, patience=1.0)) == 2
    assert told == ["3 nodes are left out: my data are not for you"]


def test_two_nodes_cannot_serve_one_partition() -> None:
    who, told, _ = roster(0, 0)
    assert who.clients() == {"client-0": 2}
    assert "served by another node already" in told[0]


def test_a_client_that_comes_back_under_another_node_keeps_its_name() -> None:
    who, _, grid = roster(0, 1)
    assert who.clients() == {"client-0": 2, "client-1": 3}
    grid._contexts[9] = grid._contexts.pop(3)
    assert who.clients() == {"client-0": 2, "client-1": 9}


class Troubled(GridView):
    """Puts an error in the place of a node's first replies.

    Parameters
    ----------
    grid : Grid
        What is troubled.
    node : int
        Whose replies.
    times : int
        How many of them.
    code : int
        Of the error; a reply that never gets whole is told in Flower's own name.
    """

    def __init__(self, grid: Grid, node: int, times: int, code: int) -> None:
        super().__init__(grid)
        self.node, self.left, self.code = node, times, code

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._changed(reply) for reply in super().pull_messages(message_ids)]

    def _changed(self, reply: Message) -> Message:
        if reply.metadata.src_node_id != self.node or not self.left:
            return reply
        self.left -= 1
        error = Message(Error(self.code, "in trouble"), reply_to=reply)
        is_lost = self.code == ErrorCode.MESSAGE_UNAVAILABLE
        vars(error.metadata).update(
            _src_node_id=SUPERLINK_NODE_ID if is_lost else self.node,
            _reply_to_message_id=reply.metadata.reply_to_message_id,
        )
        return error


PASSING = pytest.mark.parametrize(
    "code", [ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.CLIENT_APP_CRASHED], ids=["lost", "crashed"]
)


@PASSING
def test_a_client_whose_answer_was_lost_is_asked_again(code: int) -> None:
    _, told, grid = roster(0, 1)
    who = Roster(Troubled(grid, 2, 1, code), ConfigRecord(), 10, 10.0, told.append)
    assert set(who.wait_for(2, 2, patience=5.0)) == {"client-0", "client-1"}
    assert told == []


@PASSING
def test_one_whose_answers_are_lost_again_and_again_is_told_once_and_joins_later(code: int) -> None:
    _, told, grid = roster(0, 1)
    troubled = Troubled(grid, 2, 1000, code)
    who = Roster(troubled, ConfigRecord(), 10, 10.0, told.append)
    assert set(who.wait_for(2, 1, patience=0.3)) == {"client-1"}
    who.clients()
    is_lost = code == ErrorCode.MESSAGE_UNAVAILABLE
    assert told == [f"node 2 is left out: {'it gave no answer' if is_lost else 'in trouble'}"]
    troubled.left = 0
    assert set(who.clients()) == {"client-0", "client-1"}


class Silent(GridView):
    """Keeps what node 3 says."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [r for r in super().pull_messages(message_ids) if r.metadata.src_node_id != 3]


def test_a_node_that_is_silent_is_counted_and_named() -> None:
    _, told, grid = roster(0, 1)
    who = Roster(Silent(grid), ConfigRecord(), 10, 0.3, told.append)
    with pytest.raises(
        JoinError, match=r"^1 of 2 connected nodes .* 2 are needed; it gave no answer"
    ):
        who.wait_for(2, 2, patience=0.1)


def test_one_that_refused_is_asked_before_the_next_round() -> None:
    who, told, grid = roster(0, -1)
    assert set(who.wait_for(2, 1, patience=5.0)) == {"client-0"}
    grid._contexts[3].node_config["partition-id"] = 1
    assert set(who.connected()) == {"client-0"}, "nobody was asked"
    assert set(who.clients()) == {"client-0", "client-1"}
    grid._contexts[4] = grid._contexts.pop(3)
    grid._contexts[4].node_config["partition-id"] = 11
    assert set(who.clients()) == {"client-0"}
    assert told == [
        "node 3 is left out: my data are not for you",
        "node 4 is left out: it says partition 11, which is not in 0 .. 9",
    ]


def test_waiting_is_bounded() -> None:
    who, _, _ = roster(0, 1)
    assert len(who.wait_for(10, 2, patience=0.3)) == 2


def test_a_partition_that_does_not_exist_is_refused() -> None:
    who, told, _ = roster(0, 10)
    assert who.clients() == {"client-0": 2}
    assert "partition 10, which is not in 0 .. 9" in told[0]
