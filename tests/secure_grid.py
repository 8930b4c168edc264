"""A grid for tests of secure aggregation: it listens in, loses clients, and asks real apps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedveil.client.credentials import Credentials
from fedveil.client.secure_aggregation import make_secure_aggregation_mod
from fedveil.envelope import is_sealed
from fedveil.secagg.identity import Identity, Roster
from fedveil.secagg.messages import (
    ConfirmRequest,
    InputRequest,
    KeysRequest,
    SetupRequest,
    UnmaskRequest,
)
from fedveil.secagg.wire import kind_of
from fedveil.simulations.grid import InProcessGrid

FIRST = 2
STAGES = {
    SetupRequest.KIND: "advertise",
    KeysRequest.KIND: "share",
    InputRequest.KIND: "input",
    ConfirmRequest.KIND: "confirm",
    UnmaskRequest.KIND: "unmask",
}

Lost = Callable[[str, int, int], bool]


def stage_of(message: Message) -> str:
    """Return the stage that a request belongs to; ``clear`` for one outside the protocol."""
    if not is_sealed(message.content):
        return "clear"
    record = message.content.config_records["fedveil.secagg"]
    return STAGES[kind_of(bytes(record["message"]))]  # type: ignore[arg-type]


class ListeningGrid(InProcessGrid):
    """Remembers every stage and reply, and loses the clients that it is told to lose.

    Parameters
    ----------
    lost : callable
        Told (stage, client, how often that client was asked for that stage); whether the client
        dies at that moment, before it computes anything.
    """

    def __init__(
        self,
        app: ClientApp,
        node_configs: Mapping[int, Mapping[str, str | int | float | bool]],
        lost: Lost = lambda *_: False,
    ) -> None:
        super().__init__(app, node_configs, run_id=1)
        self._lost = lost
        self.asked: list[tuple[str, int]] = []
        self.replies: list[Message] = []
        self.sent: list[bytes] = []
        """Messages of the protocol that clients sent; whoever receives one takes it out."""

    @property
    def contexts(self) -> dict[int, Context]:
        return self._contexts

    def forget(self, client: int) -> None:
        """Let a client lose its state, as one that is started anew."""
        self._contexts[FIRST + client].state = RecordDict()

    def _execute(self, message: Message) -> Message:
        client = message.metadata.dst_node_id - FIRST
        stage = stage_of(message)
        self.asked.append((stage, client))
        if self._lost(stage, client, self.asked.count((stage, client))):
            return Message(Error(code=5, reason="node unavailable"), reply_to=message)
        reply = super()._execute(message)
        self.replies.append(reply)
        if reply.has_content() and is_sealed(reply.content):
            record = reply.content.config_records["fedveil.secagg"]
            self.sent.append(bytes(record["message"]))  # type: ignore[arg-type]
        return reply


def nodes(clients: int) -> dict[int, dict[str, str | int | float | bool]]:
    return {FIRST + i: {"partition-id": i} for i in range(clients)}


def credentials(clients: int, *, min_clients: int = 2) -> dict[int, Credentials]:
    """Return credentials by node, with one roster."""
    from fedveil.secagg.floors import Floors

    ids = {FIRST + i: Identity.generate(f"client-{i}") for i in range(clients)}
    roster = Roster({one.name: one.public_key for one in ids.values()})
    return {node: Credentials(one, roster, Floors(min_clients)) for node, one in ids.items()}


def secure_mod(known: Mapping[int, Credentials]):  # type: ignore[no-untyped-def]  # Flower's Mod
    return make_secure_aggregation_mod(lambda context: known[context.node_id])
