"""A grid for tests of secure aggregation: it listens in, loses clients, and asks real apps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

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
from fedveil.simulations.engines.answering import answer
from fedveil.simulations.engines.interface import Work
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
    shows_defects : bool
        Whether what an app raises comes through; else it is answered for, as by a SuperNode.
    """

    def __init__(
        self,
        app: ClientApp,
        node_configs: Mapping[int, Mapping[str, str | int | float | bool]],
        lost: Lost = lambda *_: False,
        *,
        shows_defects: bool = True,
    ) -> None:
        self.engine = _Listener(app, lost, shows_defects=shows_defects)
        super().__init__(self.engine, node_configs, run_id=1)

    @property
    def contexts(self) -> dict[int, Context]:
        return self._contexts

    @property
    def asked(self) -> list[tuple[str, int]]:
        return self.engine.asked

    @property
    def replies(self) -> list[Message]:
        return self.engine.replies

    @property
    def sent(self) -> list[bytes]:
        """Messages of the protocol that clients sent; whoever receives one takes it out."""
        return self.engine.sent

    def forget(self, client: int) -> None:
        """Let a client lose its state, as one that is started anew."""
        self._contexts[FIRST + client].state = RecordDict()


class _Listener:
    def __init__(self, app: ClientApp, lost: Lost, *, shows_defects: bool) -> None:
        self._app, self._lost, self._shows_defects = app, lost, shows_defects
        self.asked: list[tuple[str, int]] = []
        self.replies: list[Message] = []
        self.sent: list[bytes] = []

    def run(self, work: Sequence[Work]) -> Iterator[Message]:
        for message, context in work:
            yield self.answer(message, context)

    def close(self) -> None: ...

    def answer(self, message: Message, context: Context) -> Message:
        client = message.metadata.dst_node_id - FIRST
        stage = stage_of(message)
        self.asked.append((stage, client))
        if self._lost(stage, client, self.asked.count((stage, client))):
            return Message(Error(code=5, reason="node unavailable"), reply_to=message)
        try:
            reply = answer(self._app, message, context)
        except Exception as error:
            if self._shows_defects:
                raise
            return Message(Error(code=2, reason=str(error)), reply_to=message)
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
