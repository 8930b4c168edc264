"""A Flower `Grid` whose nodes run in this process, one after another."""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.grid import Grid

from fedveil.errors import FedveilError
from fedveil.flower import CLIENT_APP_RAISED, Run, set_identity, set_message_id

__all__ = ["InProcessGrid"]

_SERVER_NODE = 1


class InProcessGrid(Grid):
    """Runs the very `ClientApp` that is deployed, without network, processes or copies.

    Arrays are handed over as they are, so an app must not write into what it received; Flower's
    arrays are immutable bytes.

    Parameters
    ----------
    client_app : ClientApp
        What every node runs.
    node_configs : Mapping[int, Mapping]
        Node id (not 1, which is the server's) to that node's configuration.
    run_id : int
        Id of the run, in every message.
    """

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Mapping[int, Mapping[str, str | int | float | bool]],
        run_id: int,
    ) -> None:
        self._app = client_app
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
        self._waiting: OrderedDict[str, Message] = OrderedDict()
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
        """Run the next of these messages and return its reply.

        One at a time, so that whoever waits sees each reply as it comes.
        """
        for message_id in message_ids:
            message = self._waiting.pop(message_id, None)
            if message is not None:
                return [self._execute(message)]
        return []

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

    def _execute(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._app(message, context)
        except FedveilError as error:
            # A deployed node answers a failure with an error too; a defect, unlike here, also
            # with one, but in a simulation its traceback is worth more than the run.
            # In Flower's words.
            reason = f"{type(error)}:<'{error}'>"
            return Message(Error(code=CLIENT_APP_RAISED, reason=reason), reply_to=message)
