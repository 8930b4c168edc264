"""Replies through Flower's own grid: a client that dies while it uploads holds nobody up."""
# The double's methods bear Flower's names.
# ruff: noqa: N802

from __future__ import annotations

import time
from typing import cast

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.run import Run
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid.http_grid import HttpGrid

import fedveil.flower
from fedveil.flower import set_identity, set_message_id
from fedveil.strategies.exchange import exchange

RUN, DEAD, ALIVE = 11, 3, 5


class SuperLinkDouble:
    """What a grid asks of a SuperLink: the first client's reply stays without its content."""

    def __init__(self, late: int = 0) -> None:
        self._late = late
        self._replies: dict[str, Message] = {}
        self._objects: dict[str, bytes] = {}

    def PushMessages(self, request: PushAppMessagesRequest) -> PushAppMessagesResponse:
        for sent in request.messages_list:
            message = message_from_proto(sent)
            node = message.metadata.dst_node_id
            set_identity(RUN, node)
            reply = Message(RecordDict({"told": ConfigRecord({"node": node})}), reply_to=message)
            with no_object_id_recompute():
                set_message_id(reply, reply.object_id)
                parts = {
                    name: part.deflate() for name, part in get_all_nested_objects(reply).items()
                }
            if node != DEAD:
                self._objects |= parts
            self._replies[sent.metadata.message_id] = reply
        return PushAppMessagesResponse(message_ids=list(self._replies))

    def PushObject(self, request: PushObjectRequest) -> PushObjectResponse:
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: PullAppMessagesRequest) -> PullAppMessagesResponse:
        # As a SuperLink does: each once, as soon as its upload has begun.
        found = [self._replies.pop(i) for i in request.message_ids if i in self._replies]
        with no_object_id_recompute():
            return PullAppMessagesResponse(
                messages_list=[message_to_proto(remove_content_from_message(m)) for m in found],
                message_object_trees=[get_object_tree(m) for m in found],
            )

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:
        if self._late:
            self._late -= 1
            return PullObjectResponse(object_found=True, object_available=False)
        content = self._objects.get(request.object_id)
        return PullObjectResponse(
            object_found=True, object_available=content is not None, object_content=content or b""
        )

    def ConfirmMessageReceived(
        self, request: ConfirmMessageReceivedRequest
    ) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()


def grid_of(link: SuperLinkDouble) -> HttpGrid:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="unused")  # noqa: S106
    grid.set_run(Run.create_empty(RUN))
    grid._client = cast(RuntimeHttpClient, link)
    return grid


def requests(*nodes: int) -> list[Message]:
    set_identity(RUN, 1)
    return [Message(RecordDict(), message_type="train", dst_node_id=node) for node in nodes]


@pytest.mark.timeout(60)
def test_a_reply_that_is_never_whole_ends_at_the_deadline_and_the_others_come() -> None:
    began = time.monotonic()
    replies = exchange(grid_of(SuperLinkDouble()), requests(DEAD, ALIVE), 2.0)
    assert time.monotonic() - began >= 1.5, "it might still have come"
    lost = [reply.error.code for reply in replies if reply.has_error()]
    (whole,) = (reply for reply in replies if not reply.has_error())
    assert lost == [ErrorCode.MESSAGE_UNAVAILABLE]
    assert whole.metadata.src_node_id == ALIVE
    assert whole.content["told"]["node"] == ALIVE


@pytest.mark.timeout(60)
@pytest.mark.parametrize("late", [5, 3000], ids=["soon", "after more tries than Flower has"])
def test_a_reply_that_becomes_whole_in_time_is_taken(
    late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedveil.flower, "LONGEST_PULL_PAUSE", 1e-4)
    monkeypatch.setattr(fedveil.flower, "FIRST_PULL_PAUSE", 1e-4)
    (reply,) = exchange(grid_of(SuperLinkDouble(late)), requests(ALIVE), 30.0)
    assert reply.content["told"]["node"] == ALIVE
