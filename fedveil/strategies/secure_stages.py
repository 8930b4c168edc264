"""One stage of the secure aggregation: requests out by name, answers in, and why nodes fail."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.envelope import is_sealed, open_envelope, seal
from fedveil.errors import FedveilError
from fedveil.secagg.errors import ProtocolError, UnknownSessionError
from fedveil.secagg.messages import Refusal
from fedveil.secagg.wire import kind_of
from fedveil.strategies.exchange import exchange
from fedveil.strategies.failures import Failure, FailureKind, failure_in, failure_of, one_line

__all__ = ["STAGE_TYPE", "Stages"]

STAGE_TYPE = "train"
"""Flower's type of the messages in which nobody trains or evaluates."""

Take = Callable[[str, bytes, RecordDict], None]
"""Is given a client's name, its answer and what came with it; raises what is wrong with it."""


class Stages:
    """Who answers under which name, and who does not, with the reason.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self.names: dict[int, str] = {}
        """Names of the nodes that advertised in the last set-up."""
        self.failures: dict[int, str] = {}
        """Why nodes failed since this was last cleared."""
        self.refusing: set[int] = set()
        """Nodes that refused something since the last set-up."""
        self.has_lost_session = False
        """Whether a node has lost its keys since the last set-up."""
        self._objections: defaultdict[str, set[int]] = defaultdict(set)

    def begin_set_up(self, request: bytes, nodes: list[int], timeout: float, take: Take) -> None:
        """Ask nodes for their advertisements.

        Their names are not known yet: `take` is given a node's number in the place of its name,
        and puts the name into `names`.
        """
        self.names, self.refusing, self.has_lost_session = {}, set(), False
        self._objections.clear()
        sealed = {node: seal(request) for node in nodes}
        for node, (data, reply) in self._exchange(sealed, STAGE_TYPE, timeout).items():
            self._hand_in(take, node, str(node), data, reply)

    def ask(
        self,
        requests: Mapping[str, bytes],
        take: Take,
        timeout: float,
        *,
        content: RecordDict | None = None,
        message_type: str = STAGE_TYPE,
        on_reply: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Send a stage's requests by name, and hand in what comes.

        Parameters
        ----------
        requests : Mapping of str to bytes
            Name to encoded message.
        take : callable
            Takes an answer.
        timeout : float
            Seconds to wait.
        content : RecordDict, optional
            Records that go with each request.
        message_type : str
            Flower's type of the messages.
        on_reply : callable
            Told how many answers are there.
        """
        sealed = {self.node(name): seal(data, content) for name, data in requests.items()}
        answers = self._exchange(sealed, message_type, timeout, on_reply)
        for node, (data, reply) in answers.items():
            self._hand_in(take, node, self.names[node], data, reply)

    def node(self, name: str) -> int:
        """Return the node that advertised under a name."""
        return next(node for node, known in self.names.items() if known == name)

    def strangers(self) -> dict[int, str]:
        """Return the nodes that most members of the set-up refuse, each with the reason."""
        return {
            node: Failure(
                FailureKind.EXCLUDED,
                f"it says that it is {name}, which most other clients do not know, or not so",
            )
            for node, name in self.names.items()
            if 2 * len(self._objections[name]) > len(self.names)
        }

    def _hand_in(self, take: Take, node: int, name: str, data: bytes, reply: RecordDict) -> None:
        try:
            take(name, data, reply)
        except FedveilError as error:
            self.failures[node] = failure_of(error, FailureKind.PROTOCOL)

    def _exchange(
        self,
        contents: Mapping[int, RecordDict],
        message_type: str,
        timeout: float,
        on_reply: Callable[[int], None] = lambda _: None,
    ) -> dict[int, tuple[bytes, RecordDict]]:
        """Return what the nodes answer; errors, refusals and silence become failures."""
        messages = [
            Message(content, dst_node_id=node, message_type=message_type)
            for node, content in contents.items()
        ]
        answers: dict[int, tuple[bytes, RecordDict]] = {}
        for reply in exchange(self._grid, messages, timeout, on_reply):
            node = reply.metadata.src_node_id
            if node not in contents or node in answers:
                continue
            try:
                answers[node] = (self._answer_in(reply), reply.content)
            except FedveilError as error:
                self.failures[node] = failure_of(error, FailureKind.PROTOCOL)
        for node in contents:
            if node not in answers:
                self.failures.setdefault(
                    node, Failure(FailureKind.SILENT, "it did not answer in time")
                )
        return answers

    def _answer_in(self, reply: Message) -> bytes:
        node = reply.metadata.src_node_id
        if reply.has_error():
            # An app without the mod trips over a message of the protocol, in words of its own.
            hint = (
                "" if node in self.names else "; is secure_aggregation_mod in its ClientApp's mods?"
            )
            failure = failure_in(reply)
            raise FedveilError(Failure(failure.kind, failure + hint))
        if not is_sealed(reply.content):
            raise ProtocolError(
                "its app answers in clear; give its ClientApp mods=[secure_aggregation_mod]"
            )
        data = open_envelope(reply.content)
        if kind_of(data) != Refusal.KIND:
            return data
        refusal = Refusal.decode(data)
        if refusal.code == UnknownSessionError.__name__:
            # It was started anew and has lost its keys: the next attempt makes new ones.
            self.has_lost_session = True
            kind = FailureKind.RESTARTED
        else:
            kind = FailureKind.PROTOCOL
            self.refusing.add(node)
            self._objections[refusal.member].add(node)
        raise FedveilError(Failure(kind, one_line(refusal.reason)))
