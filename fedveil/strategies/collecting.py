"""One attempt at a round: who is asked, and what the strategy gets of the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import ArrayRecord, Message
from flwr.serverapp.grid import Grid

from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release
from fedveil.privacy.journal import Intent
from fedveil.secagg.encoding import DecodedSum
from fedveil.strategies.exchange import exchange
from fedveil.strategies.factory import WEIGHT_KEY
from fedveil.strategies.failures import Failure, FailureKind, failure_of
from fedveil.strategies.replies import ReplyError, TrainingReply, check_training_reply
from fedveil.strategies.secure_mean import mean_reply
from fedveil.strategies.secure_rounds import SecureRounds, SecureSum

__all__ = [
    "Asking",
    "Collected",
    "Replies",
    "RoundError",
    "check_one_each",
    "collect_in_clear",
    "collect_sum",
    "sort_replies",
    "sum_of",
]


class RoundError(FedveilError):
    """A round could not be finished; the rounds before it stand."""


@dataclass(frozen=True)
class Asking:
    """One attempt at a round.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    messages : sequence of Message
        The requests, one a client of the cohort.
    timeout : float
        Seconds to wait for the replies.
    intent : Intent
        What the journal holds of it.
    client_of : Mapping of int to str
        Node to client, of the cohort.
    model : ArrayRecord
        The global model that the clients are sent.
    tell : callable
        Told how many replies are there.
    """

    grid: Grid
    messages: Sequence[Message]
    timeout: float
    intent: Intent
    client_of: Mapping[int, str]
    model: ArrayRecord
    tell: Callable[[int], None]


@dataclass(frozen=True)
class Collected:
    """What came of one attempt at a round, in whatever way.

    Parameters
    ----------
    replies : sequence of Message
        What the strategy is given.
    steps : Mapping of str to int
        How many releases each client in them made.
    failures : Mapping of str to str
        Why the replies of the others are not in them.
    train_loss : float, optional
        Weighted mean of the losses that the replies tell; None where none does.
    clipped : int
        How many updates secure aggregation scaled down to its clip norm.
    """

    replies: Sequence[Message]
    steps: Mapping[str, int]
    failures: Mapping[str, str]
    train_loss: float | None
    clipped: int = 0


@dataclass
class Replies:
    """The replies of the cohort's clients that can be used, and why the others cannot."""

    usable: dict[str, TrainingReply] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def collect_in_clear(asking: Asking, *, equal_weights: bool) -> Collected:
    """Collect each client's new weights.

    Parameters
    ----------
    equal_weights : bool
        Whether every weight must be 1.
    """
    received = exchange(asking.grid, asking.messages, asking.timeout, asking.tell)
    replies = sort_replies(received, asking, equal_weights=equal_weights)
    return Collected(
        replies=[reply.message for reply in replies.usable.values()],
        steps={client: reply.steps for client, reply in replies.usable.items()},
        failures=replies.failures,
        train_loss=_mean_loss(replies),
    )


def collect_sum(asking: Asking, secure: SecureRounds, releases: Sequence[Release]) -> Collected:
    """Collect the mean of the clients' new weights by secure aggregation.

    Raises
    ------
    RoundError
        If under privacy the clients did something else than they were asked for.
    BelowThresholdError
        If too few clients are left.
    """
    found = sum_of(asking, secure)
    decoded = found.decoded
    if releases:
        check_one_each(asking.intent.round, decoded, releases[0].count)
    steps = decoded.figures.get("steps", 0.0) / decoded.weight
    loss = decoded.figures.get("train_loss")
    return Collected(
        replies=[mean_reply(asking.messages[0], asking.model, decoded, WEIGHT_KEY)],
        steps={asking.client_of[node]: math.ceil(steps) for node in found.nodes},
        failures={asking.client_of[node]: reason for node, reason in found.failures.items()},
        train_loss=None if loss is None else loss / decoded.weight,
        clipped=decoded.clipped,
    )


def sum_of(asking: Asking, secure: SecureRounds, integers: int | None = None) -> SecureSum:
    """Try once to sum what the clients answer; see `SecureRounds.attempt`."""
    return secure.attempt(
        asking.intent.round,
        asking.intent.attempt,
        asking.messages,
        weight_key=WEIGHT_KEY,
        timeout=asking.timeout,
        on_reply=asking.tell,
        integers=integers,
    )


def check_one_each(round_: int, decoded: DecodedSum, releases: int) -> None:
    """Refuse a sum in which clients weigh, or released, something else than they were asked for.

    Raises
    ------
    RoundError
        What it is.
    """
    if decoded.weight != decoded.clients:
        raise RoundError(
            f"round {round_}: the weights of {decoded.clients} clients add up to "
            f"{decoded.weight:g}; under privacy each must be 1"
        )
    steps = decoded.figures.get("steps", 0.0) / decoded.weight
    if steps != releases:
        # Whoever took more is unknown, and what it cost, too.
        raise RoundError(
            f"round {round_}: the clients took {steps:g} optimiser steps on average, {releases} "
            "were asked for: some client runs another version, or lies; the round is not used"
        )


def sort_replies(received: Sequence[Message], asking: Asking, *, equal_weights: bool) -> Replies:
    """Return which replies of the cohort can be used, and why the others cannot."""
    replies = Replies()
    for reply in received:
        client = asking.client_of.get(reply.metadata.src_node_id)
        if client is None:
            continue
        try:
            replies.usable[client] = check_training_reply(
                reply, asking.model, equal_weights=equal_weights
            )
        except ReplyError as error:
            replies.failures[client] = failure_of(error, FailureKind.UNUSABLE)
    for client in asking.client_of.values():
        if client not in replies.usable:
            replies.failures.setdefault(client, Failure(FailureKind.SILENT, "no reply in time"))
    return replies


def _mean_loss(replies: Replies) -> float | None:
    told = [(r.weight, r.train_loss) for r in replies.usable.values() if r.train_loss is not None]
    return sum(w * loss for w, loss in told) / sum(w for w, _ in told) if told else None
