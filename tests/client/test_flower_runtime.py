from __future__ import annotations

import importlib.metadata
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flwr.app import Message
from flwr.proto.runtime_pb2 import SendTaskHeartbeatResponse
from flwr.supercore.constant import PULL_MAX_TRIES_PER_OBJECT
from supernode_double import SuperNodeDouble, supernode

import fedveil.client.flower_runtime
from fedveil.client.flower_runtime import (
    ClaimedTask,
    FlowerVersionError,
    SuperNodeGoneError,
    TaskQueue,
    check_flower_version,
)


def test_the_installed_flower_is_the_tested_one() -> None:
    check_flower_version()


@pytest.mark.parametrize("version", ["1.40.3", "1.42.0", "2.41.0", "1.4", "1.410.0"])
def test_another_flower_is_refused_with_the_range(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    with pytest.raises(FlowerVersionError, match=f"Flower {version} is installed") as caught:
        check_flower_version()
    assert "pip install 'flwr>=1.41,<1.42'" in str(caught.value)


def test_the_range_is_the_one_that_the_package_asks_for() -> None:
    wanted = [r for r in importlib.metadata.requires("fedveil") or [] if r.startswith("flwr")]
    assert wanted == ["flwr<1.42,>=1.41"]


@contextmanager
def supernode_that_hangs_up(times: int) -> Iterator[str]:
    """Answer the first request, and close the connection when the next ones come over it."""
    answer = SendTaskHeartbeatResponse(success=True).SerializeToString()
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n"
        f"content-length: {len(answer)}\r\n\r\n"
    )

    def serve(listener: socket.socket) -> None:
        for left in range(times, -1, -1):
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head.encode() + answer)
                connection.recv(65536)
                if not left:
                    return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(20)
    assert not thread.is_alive()


def test_a_request_is_sent_anew_whose_idle_connection_was_closed_meanwhile() -> None:
    with supernode_that_hangs_up(1) as address:
        task = ClaimedTask(address)
        task.use("a token")
        assert task.keep()
        # The connection is closed under this one, and it is answered over the next.
        assert task.keep()
        task.close()


SECRET = b"of this test alone"


def claimed(node: SuperNodeDouble) -> ClaimedTask:
    queue, task = TaskQueue(node.address, SECRET), ClaimedTask(node.address)
    token = queue.claim()
    assert token is not None
    task.use(token)
    queue.close()
    return task


def test_a_message_is_waited_for_longer_than_flower_has_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FIRST_PULL_PAUSE", "LONGEST_PULL_PAUSE"):
        monkeypatch.setattr(fedveil.client.flower_runtime, name, 1e-4)
    with supernode(SECRET) as node:
        node.put("who", is_loading=True)
        node.give_out()
        task = claimed(node)
        asked = 0
        get = node.store.get

        def count(name: str) -> bytes | None:
            nonlocal asked
            asked += 1
            if asked == 4 * PULL_MAX_TRIES_PER_OBJECT:
                node.load()
            return get(name)

        monkeypatch.setattr(node.store, "get", count)
        message = task.load(task.open())
        assert message.metadata.message_type == "query.who"
        task.close()


def test_a_reply_whose_parts_are_not_taken_is_the_supernodes_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with supernode(SECRET) as node:
        node.ask("who")
        task = claimed(node)
        opened = task.open()
        message = task.load(opened)

        def refuse(*_: object) -> None:
            raise ValueError("its session is over")

        monkeypatch.setattr(node.store, "put", refuse)
        with pytest.raises(SuperNodeGoneError, match="the SuperNode of this client: "):
            task.answer(Message(message.content, reply_to=message), opened.context)
        task.close()
