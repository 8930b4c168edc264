"""A SuperNode without a SuperLink: Flower's own interface for tasks, filled by a test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from fedveil.flower import set_identity

NODE, RUN = 7, 11


class SuperNodeDouble:
    """Gives tasks out, and keeps the replies."""

    def __init__(self, secret: bytes, fab: bytes = b"no bundle at all") -> None:
        objects = ObjectStoreFactory()
        states = NodeStateFactory(objectstore_factory=objects)
        self.state, self.store = states.state(), objects.store()
        self.state.set_node_id(NODE)
        run = Run.create_empty(RUN)
        run.fab_hash = self.state.store_fab(Fab("", fab, {}))
        self._fab_hash = run.fab_hash
        self.state.store_run(run)
        self.state.set_run_series_context(
            run.series_id, Context(RUN, NODE, {}, RecordDict(), {}, series_id=run.series_id)
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        # uvicorn's own logging would close all handlers of the process, pytest's among them.
        config = uvicorn.Config(
            create_app(states, secret),
            host="127.0.0.1",
            port=self.port,
            log_config=None,
            log_level="error",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self._server.started

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def ask(self, action: str, **facts: str | int | bytes) -> None:
        """Put a message in, as the SuperNode does that got it from the SuperLink."""
        self.put(action, **facts)
        self.give_out()

    def give_out(self) -> None:
        """Give a task out, as the SuperNode does before it stores its message."""
        task = self.state.create_task(TaskType.CLIENT_APP, RUN, fab_hash=self._fab_hash)
        assert task is not None

    def put(self, action: str, *, is_loading: bool = False, **facts: str | int | bytes) -> None:
        """Store the message of a task; its parts come later where it is still loading."""
        set_identity(RUN, NODE)
        content = RecordDict({"asked": ConfigRecord(dict(facts))})
        message = Message(content, message_type=f"query.{action}", dst_node_id=NODE)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.state.store_message(message)
            self.store.preregister(RUN, get_object_tree(message))
            self._parts = {n: part.deflate() for n, part in get_all_nested_objects(message).items()}
        if not is_loading:
            self.load()

    def load(self) -> None:
        """Store the parts of the message that was put in last."""
        for name, part in self._parts.items():
            self.store.put(name, part)

    def reply(self) -> Message:
        """Return the reply that came; there must be one."""
        (found,) = self.state.get_messages_legacy(is_reply=True)
        if found.has_error():
            return found
        tree = self.store.get_object_tree(found.metadata.message_id)
        parts = {
            part.object_id: self.store.get(part.object_id) or b""
            for part in iterate_object_tree(tree)
        }
        return cast(Message, inflate_object_from_contents(tree.object_id, parts))


@contextmanager
def supernode(secret: bytes, fab: bytes = b"no bundle at all") -> Iterator[SuperNodeDouble]:
    double = SuperNodeDouble(secret, fab)
    double.start()
    try:
        yield double
    finally:
        double.stop()
