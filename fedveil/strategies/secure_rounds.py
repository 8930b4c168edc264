"""Sums over clients by secure aggregation, over a Flower grid: the stages and who answers them."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.envelope import content_digest, float_arrays, open_envelope, seal, vector_in
from fedveil.errors import FedveilError
from fedveil.secagg.encoding import DecodedSum
from fedveil.secagg.errors import BelowThresholdError, UnknownSessionError
from fedveil.secagg.identity import Roster
from fedveil.secagg.messages import FIGURES, UPDATE, Refusal, Settings
from fedveil.secagg.parameters import Plan, plan_for
from fedveil.secagg.server_round import ServerRound
from fedveil.secagg.server_session import ServerSession
from fedveil.secagg.wire import kind_of
from fedveil.strategies.exchange import exchange
from fedveil.strategies.replies import error_reason, one_line

__all__ = ["SecureRounds", "SecureSettings", "SecureSum"]

_STAGE_TYPE = "train"
_MOST_LOSSES = 2


@dataclass(frozen=True)
class SecureSettings:
    """How sums are made; what of it the clients see, they check.

    Parameters
    ----------
    run : str
        Name of the run.
    clip_norm : float
        L2 bound of an update.
    max_weight : float
        Largest weight of a client.
    ring_bits : {16, 32}
        Bits of a word.
    setup_rounds : int
        Rounds and attempts that one set-up serves.
    corrupt_share, dropped_share : float
        Shares of the clients that are taken to collude, and to drop out, above 100 clients.
    stage_timeout : float
        Seconds to wait for the replies of a stage in which nobody trains.
    """

    run: str
    clip_norm: float
    max_weight: float
    ring_bits: int = 32
    setup_rounds: int = 10
    corrupt_share: float = 0.05
    dropped_share: float = 0.05
    stage_timeout: float = 60.0

    def plan(self, clients: int) -> Plan:
        """Return the numbers for so many clients."""
        return plan_for(clients, corrupt=self.corrupt_share, dropped=self.dropped_share)


@dataclass(frozen=True)
class SecureSum:
    """A sum, and whose it is.

    Parameters
    ----------
    decoded : DecodedSum
        What it says.
    nodes : tuple of int
        Whose vectors are in it.
    failures : Mapping of int to str
        Why those of other nodes are not.
    """

    decoded: DecodedSum
    nodes: tuple[int, ...]
    failures: Mapping[int, str]


class SecureRounds:
    """Runs the protocol with the nodes of a grid, keeping a set-up for as long as it serves.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    settings : SecureSettings
        How sums are made.
    roster : Roster, optional
        Who may take part, where the coordinator keeps a roster too.
    """

    def __init__(self, grid: Grid, settings: SecureSettings, roster: Roster | None = None) -> None:
        self._grid = grid
        self._settings = settings
        self._roster = roster
        self._session: ServerSession | None = None
        self._names: dict[int, str] = {}
        self._failures: dict[int, str] = {}
        # Who refuses a set-up is asked again with the next one; who was silent, in the next round.
        self._refusing: set[int] = set()
        # Who is not asked any more: whose own commitments prove that it dealt wrong shares, whose
        # secret was lost more than once, and whom most others do not know.
        self._expelled: set[int] = set()
        self._sitting_out: set[int] = set()
        self._losses: Counter[int] = Counter()
        self._objections: defaultdict[str, set[int]] = defaultdict(set)

    def attempt(
        self,
        round_: int,
        attempt: int,
        messages: Sequence[Message],
        *,
        weight_key: str,
        timeout: float,
        on_reply: Callable[[int], None] = lambda _: None,
    ) -> SecureSum:
        """Try once to sum what the receivers of messages answer.

        Parameters
        ----------
        round_, attempt : int
            Which round, and which try at it.
        messages : sequence of Message
            One a node, all with the same content. Where they ask to train, one ArrayRecord of the
            global model is in it, and updates are summed; otherwise figures alone.
        weight_key : str
            Metric that weighs a client; empty when all weigh 1.
        timeout : float
            Seconds to wait for the masked vectors.
        on_reply : callable
            Told how many of them are there.

        Raises
        ------
        BelowThresholdError
            If too few clients are left. Nothing was unmasked; another attempt uses other keys.
        FedveilError
            If the messages differ, or the sum is impossible.
        """
        left_out = self._expelled | self._sitting_out
        contents = {
            message.metadata.dst_node_id: message.content
            for message in messages
            if message.metadata.dst_node_id not in left_out
        }
        if not contents:
            raise BelowThresholdError("no client is left to ask")
        message_type = messages[0].metadata.message_type
        content, *others = contents.values()
        digest = content_digest(content, message_type)
        if any(
            other is not content and content_digest(other, message_type) != digest
            for other in others
        ) or any(message.metadata.message_type != message_type for message in messages):
            raise FedveilError("under secure aggregation all clients must be asked the same")
        trains = message_type.split(".")[0] == "train"
        shapes = _shapes(content) if trains else []
        self._failures = {}
        session = self._set_up(sorted(contents), sum(map(math.prod, shapes)))
        ready = {name: node for node, name in self._names.items() if node in contents}
        secure_round = session.open_round(
            round_,
            attempt,
            [name for name in session.ready if name in ready],
            digest,
            purpose=UPDATE if trains else FIGURES,
            weight_key=weight_key,
        )
        decoded = self._run(secure_round, content, message_type, shapes, timeout, on_reply)
        self._sitting_out = set()
        survivors = {ready[name] for name in secure_round.survivors}
        for node in contents:
            if node not in survivors:
                self._failures.setdefault(node, "it did not answer in time")
        failures = {n: reason for n, reason in self._failures.items() if n not in survivors}
        return SecureSum(decoded, tuple(sorted(survivors)), failures)

    @property
    def failures(self) -> Mapping[int, str]:
        """Why nodes failed in the last attempt."""
        return dict(self._failures)

    def _run(
        self,
        secure_round: ServerRound,
        content: RecordDict,
        message_type: str,
        shapes: Sequence[tuple[int, ...]],
        timeout: float,
        on_reply: Callable[[int], None],
    ) -> DecodedSum:
        patience = self._settings.stage_timeout
        try:
            self._ask(
                secure_round.requests(),
                lambda name, data, reply: secure_round.add_input(name, data, vector_in(reply)),
                timeout,
                content=content,
                message_type=message_type,
                on_reply=on_reply,
            )
            self._ask(
                secure_round.close_input(),
                lambda name, data, _: secure_round.add_confirmation(name, data),
                patience,
            )
            self._ask(
                secure_round.close_confirm(),
                lambda name, data, _: secure_round.add_unmasking(name, data),
                patience,
            )
            return secure_round.finish(shapes)
        finally:
            node_of = {name: node for node, name in self._names.items()}
            for name, fault in secure_round.faults.items():
                self._failures[node_of[name]] = fault
            self._expelled |= {node_of[name] for name in secure_round.dishonest}
            self._sitting_out = {node_of[name] for name in secure_round.lost}
            self._losses.update(self._sitting_out)
            self._expelled |= {n for n in self._sitting_out if self._losses[n] >= _MOST_LOSSES}

    def _set_up(self, nodes: Sequence[int], dimension: int) -> ServerSession:
        """Return the set-up that serves these nodes, a new one where the last does not."""
        session = self._session
        if (
            session is not None
            and session.slots_left
            and dimension in (0, session.settings.dimension)
            and {n for n in nodes if self._names.get(n) not in session.ready} <= self._refusing
            and len(nodes) >= session.plan.quorum
        ):
            return session
        while True:
            session = self._new_set_up([n for n in nodes if n not in self._expelled], dimension)
            strangers = self._strangers(len(self._names))
            if not strangers:
                break
            self._expelled |= strangers
        if len(session.ready) >= session.plan.quorum:
            self._session = session
        return session

    def _strangers(self, members: int) -> set[int]:
        """Return the nodes that most members of the set-up refuse to be summed with."""
        return {
            node for node, name in self._names.items() if 2 * len(self._objections[name]) > members
        }

    def _new_set_up(self, nodes: Sequence[int], dimension: int) -> ServerSession:
        self._session, self._names, self._refusing = None, {}, set()
        self._objections.clear()
        session = ServerSession(
            Settings(
                run=self._settings.run,
                dimension=dimension,
                clip_norm=self._settings.clip_norm,
                max_weight=self._settings.max_weight,
                max_clients=len(nodes),
                ring_bits=self._settings.ring_bits,
                slots=self._settings.setup_rounds,
            ),
            self._settings.plan,
            self._roster,
        )
        request = session.request()
        for node, (data, _) in self._exchange(
            {node: seal(request) for node in nodes}, _STAGE_TYPE, self._settings.stage_timeout
        ).items():
            try:
                self._names[node] = session.add_advertisement(data)
            except FedveilError as error:
                self._failures[node] = str(error)
        self._ask(
            session.close_advertising(),
            lambda name, data, _: session.add_shares(name, data),
            self._settings.stage_timeout,
        )
        return session

    def _ask(
        self,
        requests: Mapping[str, bytes],
        take: Callable[[str, bytes, RecordDict], None],
        timeout: float,
        *,
        content: RecordDict | None = None,
        message_type: str = _STAGE_TYPE,
        on_reply: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Send a stage's requests by name, and hand in what comes; note who fails."""
        node_of = {name: node for node, name in self._names.items()}
        sealed = {node_of[name]: seal(data, content) for name, data in requests.items()}
        for node, (data, reply) in self._exchange(sealed, message_type, timeout, on_reply).items():
            try:
                take(self._names[node], data, reply)
            except FedveilError as error:
                self._failures[node] = str(error)

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
                self._failures[node] = str(error)
        for node in contents:
            if node not in answers:
                self._failures.setdefault(node, "it did not answer in time")
        return answers

    def _answer_in(self, reply: Message) -> bytes:
        if reply.has_error():
            raise FedveilError(error_reason(reply))
        data = open_envelope(reply.content)
        if kind_of(data) != Refusal.KIND:
            return data
        refusal = Refusal.decode(data)
        if refusal.code == UnknownSessionError.__name__:
            # It was started anew and has lost its keys: the next attempt makes new ones.
            self._session = None
        else:
            self._refusing.add(reply.metadata.src_node_id)
            self._objections[refusal.member].add(reply.metadata.src_node_id)
        raise FedveilError(one_line(refusal.reason))


def _shapes(content: RecordDict) -> list[tuple[int, ...]]:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise FedveilError(f"a request to train holds one ArrayRecord, not {len(records)}")
    return [tuple(records[0][name].shape) for name in float_arrays(records[0])]
