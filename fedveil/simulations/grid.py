"""A Flower `Grid` without a network: an engine on this machine runs the nodes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping

from flwr.app import Context, Message, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.flower import Run, set_identity, set_message_id
from fedveil.simulations.engines.interface import Engine

__all__ = ["InProcessGrid"]

_SERVER_NODE = 1


class InProcessGrid(Grid):
    """Hands messages to an engine, which runs the very `ClientApp` that is deployed.

    Arrays are handed over as they are, so an app must not write into what it received; Flower's
    arrays are immutable bytes.

    Parameters
    ----------
    engine : Engine
        Runs the nodes; whoever made it closes it.
    node_configs : Mapping[int, Mapping]
        Node id (not 1, which is the server's) to that node's configuration.
    run_id : int
        Id of the run, in every message.
    """

    def __init__(
        self,
        engine: Engine,
        node_configs: Mapping[int, Mapping[str, str | int | float | bool]],
        run_id: int,
    ) -> None:
        self._engine = engine
        self._contexts = {
            node: Context(
                run_id=run_id,
                node_id=node,
                node_config=dict(config),
                state=RecordDict(),
                run_config={},
            )
            for node, config in node_configs.items()
        }
        self._run = Run.create_empty(run_id)
        self._ids = itertools.count(1)
        self._waiting: dict[str, Message] = {}
        self._batch: Iterator[Message] = iter(())
        self._replies: dict[str, Message] = {}
        # Messages take their sender from here; it is process-wide, as each Flower app has a
        # process of its own.
        set_identity(run_id, _SERVER_NODE)

    def set_run(self, run: Run) -> None:
        """Set the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message, as the constructor of `Message` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, ascending."""
        return sorted(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; each runs when its reply is first asked for."""
        pushed = []
        for message in messages:
            message_id = f"{next(self._ids):016x}"
            set_message_id(message, message_id)
            self._waiting[message_id] = message
            pushed.append(message_id)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the next reply to these messages, after running what must run for it.

        One at a time, so that whoever waits sees each reply as it comes. All that wait are run as
        one batch; only when it has come to its end does the next begin.
        """
        asked = dict.fromkeys(message_ids)
        while True:
            for message_id in self._replies:
                if message_id in asked:
                    return [self._replies.pop(message_id)]
            reply = next(self._batch, None)
            if reply is not None:
                self._replies[reply.metadata.reply_to_message_id] = reply
                continue
            messages = [self._waiting.pop(one) for one in asked if one in self._waiting]
            if not messages:
                return []
            self._batch = self._engine.run(
                [(one, self._contexts[one.metadata.dst_node_id]) for one in messages]
            )

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push messages and pull replies until all are there or time is out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = list(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = list(self.pull_messages(waiting))
            replies.extend(arrived)
            done = {reply.metadata.reply_to_message_id for reply in arrived}
            waiting = [message_id for message_id in waiting if message_id not in done]
        return replies
