"""Rounds, one after another, from any round on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg

from fedveil.errors import FedveilError
from fedveil.privacy.accounting import Release
from fedveil.privacy.journal import Intent, PrivacyJournal
from fedveil.strategies.cohort import CohortGrid, choose_cohort
from fedveil.strategies.dtypes import cast_like
from fedveil.strategies.exchange import exchange
from fedveil.strategies.factory import WEIGHT_KEY
from fedveil.strategies.replies import ReplyError, TrainingReply, check_training_reply
from fedveil.strategies.secure_mean import mean_reply
from fedveil.strategies.secure_rounds import SecureRounds

__all__ = ["RoundError", "RoundOutcome", "RoundPlan", "run_rounds"]


class RoundError(FedveilError):
    """A round could not be finished; the rounds before it stand."""


@dataclass(frozen=True)
class RoundPlan:
    """What every round of a run has in common.

    Parameters
    ----------
    request : ConfigRecord
        What the clients are asked to do; the round and the attempt are added.
    releases : tuple of Release
        What one round releases of each client; empty without privacy.
    fraction : float
        Share of the clients in a cohort.
    min_clients : int
        Least number of usable replies.
    timeout : float
        Seconds to wait for them.
    seed : int
        Fixes the cohorts.
    secure : SecureRounds, optional
        Sums the updates; without it each comes in clear.
    """

    request: ConfigRecord
    releases: tuple[Release, ...]
    fraction: float
    min_clients: int
    timeout: float
    seed: int
    secure: SecureRounds | None = None


@dataclass(frozen=True)
class RoundOutcome:
    """A finished round, not yet committed.

    Parameters
    ----------
    round, attempt : int
        Which round, and which try at it.
    arrays : ArrayRecord
        The next global model; dtypes and shapes of the one before.
    clients : tuple of str
        Whose replies are in it.
    failures : Mapping[str, str]
        Why the replies of the others are not.
    train_loss : float, optional
        Weighted mean of the losses that the replies tell; None where none does.
    seconds : float
        How long the round took.
    clipped : int
        How many updates secure aggregation scaled down to its clip norm.
    """

    round: int
    attempt: int
    arrays: ArrayRecord
    clients: tuple[str, ...]
    failures: Mapping[str, str]
    train_loss: float | None
    seconds: float
    clipped: int = 0


@dataclass(frozen=True)
class _Collected:
    """What came of one attempt at a round, in either way."""

    replies: Sequence[Message]
    steps: Mapping[str, int]
    failures: Mapping[str, str]
    train_loss: float | None
    clipped: int = 0


@dataclass
class _Replies:
    usable: dict[str, TrainingReply] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_rounds(
    grid: Grid,
    strategy: FedAvg,
    arrays: ArrayRecord,
    plan: RoundPlan,
    journal: PrivacyJournal,
    rounds: Sequence[int],
    clients: Callable[[], Mapping[str, int]],
    on_reply: Callable[[int, int, int], None] = lambda *_: None,
) -> Iterator[RoundOutcome]:
    """Run rounds; yield each when it is done, for the caller to commit before the next.

    Parameters
    ----------
    grid : Grid
        Where the clients are.
    strategy : FedAvg
        Flower's strategy of that family, shown the cohort only.
    arrays : ArrayRecord
        The global model before the first of `rounds`.
    plan : RoundPlan
        What is common to all rounds.
    journal : PrivacyJournal
        Told of the releases before the clients are asked.
    rounds : sequence of int
        Numbers of the rounds to run, ascending.
    clients : callable
        Returns who can be asked now: client to node.
    on_reply : callable
        Told (round, replies so far, size of the cohort).

    Raises
    ------
    RoundError
        If fewer than `plan.min_clients` replies are usable, or the new model is not finite.
    BelowThresholdError
        If under secure aggregation too few clients are left. The round was charged; it can be
        tried again.
    """
    for round_ in rounds:
        started = time.monotonic()
        nodes = clients()
        cohort = choose_cohort(
            nodes,
            fraction=plan.fraction,
            at_least=plan.min_clients,
            seed=plan.seed,
            round_=round_,
        )
        intent = journal.intend(round_, cohort, plan.releases)
        request = ConfigRecord({**plan.request, "round": round_, "attempt": intent.attempt})
        messages = list(
            strategy.configure_train(
                round_, arrays, request, CohortGrid(grid, [nodes[c] for c in cohort])
            )
        )

        def tell(replies: int, number: int = round_, size: int = len(cohort)) -> None:
            on_reply(number, replies, size)

        client_of = {nodes[client]: client for client in cohort}
        if plan.secure is None:
            collected = _collect_in_clear(grid, messages, plan, client_of, arrays, tell)
        else:
            collected = _collect_sum(messages, plan, intent, client_of, arrays, tell)
        journal.done(intent, collected.steps)
        _require_enough(round_, collected, plan.min_clients)
        aggregate, _ = strategy.aggregate_train(round_, collected.replies)
        if aggregate is None:
            raise RoundError(f"round {round_}: the strategy returned no model")
        arrays = _next_model(round_, aggregate, arrays)
        yield RoundOutcome(
            round=round_,
            attempt=intent.attempt,
            arrays=arrays,
            clients=tuple(sorted(collected.steps)),
            failures=collected.failures,
            train_loss=collected.train_loss,
            seconds=time.monotonic() - started,
            clipped=collected.clipped,
        )


def _collect_in_clear(
    grid: Grid,
    messages: Sequence[Message],
    plan: RoundPlan,
    client_of: Mapping[int, str],
    model: ArrayRecord,
    tell: Callable[[int], None],
) -> _Collected:
    replies = _sort_replies(
        exchange(grid, messages, plan.timeout, tell),
        client_of,
        model,
        equal_weights=bool(plan.releases),
    )
    return _Collected(
        replies=[reply.message for reply in replies.usable.values()],
        steps={client: reply.steps for client, reply in replies.usable.items()},
        failures=replies.failures,
        train_loss=_mean_loss(replies),
    )


def _collect_sum(
    messages: Sequence[Message],
    plan: RoundPlan,
    intent: Intent,
    client_of: Mapping[int, str],
    model: ArrayRecord,
    tell: Callable[[int], None],
) -> _Collected:
    assert plan.secure is not None  # noqa: S101  # the caller chose this way
    found = plan.secure.attempt(
        intent.round,
        intent.attempt,
        messages,
        weight_key=WEIGHT_KEY,
        timeout=plan.timeout,
        on_reply=tell,
    )
    decoded = found.decoded
    if plan.releases and decoded.weight != decoded.clients:
        raise RoundError(
            f"round {intent.round}: the weights of {decoded.clients} clients add up to "
            f"{decoded.weight:g}; under privacy each must be 1"
        )
    steps = decoded.figures.get("steps", 0.0) / decoded.weight
    if plan.releases and steps != plan.releases[0].count:
        # Whoever took more is unknown, and what it cost, too.
        raise RoundError(
            f"round {intent.round}: the clients took {steps:g} optimiser steps on average, "
            f"{plan.releases[0].count} were asked for: some client runs another version, or lies; "
            "the round is not used"
        )
    loss = decoded.figures.get("train_loss")
    return _Collected(
        replies=[mean_reply(messages[0], model, decoded, WEIGHT_KEY)],
        steps={client_of[node]: math.ceil(steps) for node in found.nodes},
        failures={client_of[node]: reason for node, reason in found.failures.items()},
        train_loss=None if loss is None else loss / decoded.weight,
        clipped=decoded.clipped,
    )


def _sort_replies(
    received: Sequence[Message],
    client_of: Mapping[int, str],
    model: ArrayRecord,
    *,
    equal_weights: bool,
) -> _Replies:
    replies = _Replies()
    for reply in received:
        client = client_of.get(reply.metadata.src_node_id)
        if client is None:
            continue
        try:
            replies.usable[client] = check_training_reply(reply, model, equal_weights=equal_weights)
        except ReplyError as error:
            replies.failures[client] = str(error)
    for client in client_of.values():
        if client not in replies.usable:
            replies.failures.setdefault(client, "no reply in time")
    return replies


def _mean_loss(replies: _Replies) -> float | None:
    told = [(r.weight, r.train_loss) for r in replies.usable.values() if r.train_loss is not None]
    return sum(w * loss for w, loss in told) / sum(w for w, _ in told) if told else None


def _require_enough(round_: int, collected: _Collected, least: int) -> None:
    if len(collected.steps) >= least:
        return
    first = next(iter(collected.failures.items()), None)
    reason = f"; {first[0]}: {first[1]}" if first else ""
    raise RoundError(
        f"round {round_}: {len(collected.steps)} usable replies, {least} are needed{reason}"
    )


def _next_model(round_: int, aggregate: ArrayRecord, before: ArrayRecord) -> ArrayRecord:
    """Return the aggregate in the dtypes of the model before, or refuse it."""
    for name in before:
        if not bool(np.isfinite(aggregate[name].numpy()).all()):
            raise RoundError(
                f"round {round_}: the aggregate of {name} holds NaN or infinity; the model stays "
                "as it was. Lower server_optimizer.learning_rate or training.learning_rate"
            )
    return cast_like(aggregate, before)
