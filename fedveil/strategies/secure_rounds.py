"""Sums over clients by secure aggregation, over a Flower grid, round after round."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import Message, RecordDict
from flwr.serverapp.grid import Grid

from fedveil.envelope import content_digest, float_arrays, vector_in
from fedveil.errors import FedveilError
from fedveil.secagg.encoding import DecodedSum
from fedveil.secagg.errors import BelowThresholdError
from fedveil.secagg.identity import Roster
from fedveil.secagg.messages import FIGURES, INTEGERS, UPDATE, Settings
from fedveil.secagg.parameters import Plan, plan_for
from fedveil.secagg.server_round import ServerRound
from fedveil.secagg.server_session import ServerSession
from fedveil.strategies.failures import Failure, FailureKind
from fedveil.strategies.secure_stages import Stages
from fedveil.strategies.stage_clock import Stage, StageClock

__all__ = ["SecureRounds", "SecureSettings", "SecureSum"]

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
    min_survivors : int
        Least number of clients in a sum, where that is more than what is safe.
    """

    run: str
    clip_norm: float
    max_weight: float
    ring_bits: int = 32
    setup_rounds: int = 10
    corrupt_share: float = 0.05
    dropped_share: float = 0.05
    stage_timeout: float = 60.0
    min_survivors: int = 0

    def plan(self, clients: int) -> Plan:
        """Return the numbers for so many clients.

        Raises
        ------
        BelowThresholdError
            If they are fewer than `min_survivors`.
        """
        if clients < self.min_survivors:
            raise BelowThresholdError(
                f"{clients} clients can be summed, {self.min_survivors} are needed"
            )
        plan = plan_for(clients, corrupt=self.corrupt_share, dropped=self.dropped_share)
        return replace(plan, quorum=max(plan.quorum, self.min_survivors))


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
    word : float
        What one word is worth in an update of the largest weight: rounding moves a coordinate by
        less than that.
    """

    decoded: DecodedSum
    nodes: tuple[int, ...]
    failures: Mapping[int, str]
    word: float


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
    clock : StageClock, optional
        Told how long the stages take.
    """

    def __init__(
        self,
        grid: Grid,
        settings: SecureSettings,
        roster: Roster | None = None,
        clock: StageClock | None = None,
    ) -> None:
        self._stages = Stages(grid)
        self._clock = clock or StageClock()
        self._settings = settings
        self._roster = roster
        self._session: ServerSession | None = None
        # Who is not asked any more: whose own commitments prove that it dealt wrong shares, whose
        # secret was lost more than once, and whom most others do not know.
        self._expelled: dict[int, str] = {}
        self._sitting_out: set[int] = set()
        self._losses: Counter[int] = Counter()

    def attempt(
        self,
        round_: int,
        attempt: int,
        messages: Sequence[Message],
        *,
        weight_key: str,
        timeout: float,
        on_reply: Callable[[int], None] = lambda _: None,
        integers: int | None = None,
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
        integers : int, optional
            How many integers each client answers with, in the place of an update.

        Raises
        ------
        BelowThresholdError
            If too few clients are left. Nothing was unmasked; another attempt uses other keys.
        FedveilError
            If the messages differ, or the sum is impossible.
        """
        contents = {message.metadata.dst_node_id: message.content for message in messages}
        left_out = {
            **dict.fromkeys(
                self._sitting_out,
                Failure(FailureKind.EXCLUDED, "it sits out after a secret of its was lost"),
            ),
            **self._expelled,
        }
        self._stages.failures = {n: left_out[n] for n in contents if n in left_out}
        contents = {node: content for node, content in contents.items() if node not in left_out}
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
        shapes = _shapes(content) if trains and integers is None else []
        size = sum(map(math.prod, shapes)) if integers is None else integers
        with self._clock.stage(Stage.SET_UP):
            session = self._set_up(sorted(contents), size)
        asked = {name for node, name in self._stages.names.items() if node in contents}
        secure_round = session.open_round(
            round_,
            attempt,
            [name for name in session.ready if name in asked],
            digest,
            purpose=(UPDATE if integers is None else INTEGERS) if trains else FIGURES,
            weight_key=weight_key,
        )
        decoded = self._run(secure_round, content, message_type, shapes, timeout, on_reply)
        self._sitting_out = set()
        survivors = {self._stages.node(name) for name in secure_round.survivors}
        for node in contents:
            if node not in survivors:
                self._stages.failures.setdefault(
                    node, Failure(FailureKind.SILENT, "it did not answer in time")
                )
        failures = {n: why for n, why in self._stages.failures.items() if n not in survivors}
        word = 1.0 / session.settings.encoding().scale
        return SecureSum(decoded, tuple(sorted(survivors)), failures, word)

    @property
    def failures(self) -> Mapping[int, str]:
        """Why nodes failed in the last attempt."""
        return dict(self._stages.failures)

    def name_of(self, node: int) -> str:
        """Return the name under which a node takes part; empty where that is not known."""
        return self._stages.names.get(node, "")

    def who(self, node: int) -> str:
        """Return a node as a person should see it: with its client's name, where that is known."""
        name = self.name_of(node)
        return f"{name} (node {node})" if name else f"node {node}"

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
            with self._clock.stage(Stage.INPUT):
                self._stages.ask(
                    secure_round.requests(),
                    lambda name, data, reply: secure_round.add_input(name, data, vector_in(reply)),
                    timeout,
                    content=content,
                    message_type=message_type,
                    on_reply=on_reply,
                )
            with self._clock.stage(Stage.CONFIRM):
                self._stages.ask(
                    secure_round.close_input(),
                    lambda name, data, _: secure_round.add_confirmation(name, data),
                    patience,
                )
            with self._clock.stage(Stage.UNMASK):
                self._stages.ask(
                    secure_round.close_confirm(),
                    lambda name, data, _: secure_round.add_unmasking(name, data),
                    patience,
                )
                return secure_round.finish(shapes)
        finally:
            self._judge(secure_round)

    def _judge(self, secure_round: ServerRound) -> None:
        """Note who was at fault, and whom to leave out from now on."""
        node = self._stages.node
        for name, fault in secure_round.faults.items():
            self._stages.failures[node(name)] = Failure(FailureKind.PROTOCOL, fault)
        for name in secure_round.dishonest:
            self._expelled[node(name)] = Failure(FailureKind.EXCLUDED, secure_round.faults[name])
        self._sitting_out = {node(name) for name in secure_round.lost}
        self._losses.update(self._sitting_out)
        for lost in self._sitting_out:
            if self._losses[lost] >= _MOST_LOSSES:
                self._expelled[lost] = Failure(
                    FailureKind.EXCLUDED, "its secrets could not be put together more than once"
                )

    def _set_up(self, nodes: Sequence[int], dimension: int) -> ServerSession:
        """Return the set-up that serves these nodes, a new one where the last does not."""
        session, stages = self._session, self._stages
        if (
            session is not None
            and not stages.has_lost_session
            and session.slots_left
            and dimension in (0, session.settings.dimension)
            # Who refused is asked again with the next set-up; who was silent, in the next round.
            and {n for n in nodes if stages.names.get(n) not in session.ready} <= stages.refusing
            and len(nodes) >= session.plan.quorum
        ):
            return session
        self._session = None
        while True:
            session = self._new_set_up([n for n in nodes if n not in self._expelled], dimension)
            strangers = stages.strangers()
            if not strangers:
                break
            self._expelled |= strangers
            stages.failures |= strangers
        if len(session.ready) >= session.plan.quorum:
            self._session = session
        return session

    def _new_set_up(self, nodes: list[int], dimension: int) -> ServerSession:
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
        patience = self._settings.stage_timeout

        def name_node(node: str, data: bytes, _: RecordDict) -> None:
            self._stages.names[int(node)] = session.add_advertisement(data)

        self._stages.begin_set_up(session.request(), nodes, patience, name_node)
        self._stages.ask(
            session.close_advertising(),
            lambda name, data, _: session.add_shares(name, data),
            patience,
        )
        return session


def _shapes(content: RecordDict) -> list[tuple[int, ...]]:
    records = list(content.array_records.values())
    if len(records) != 1:
        raise FedveilError(f"a request to train holds one ArrayRecord, not {len(records)}")
    return [tuple(records[0][name].shape) for name in float_arrays(records[0])]
