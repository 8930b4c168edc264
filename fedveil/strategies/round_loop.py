"""Rounds, one after another, from any round on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.grid import Grid
from flwr.serverapp.strategy import FedAvg

from fedveil.privacy.accounting import Release
from fedveil.privacy.journal import PrivacyJournal
from fedveil.strategies.cohort import CohortGrid, choose_cohort
from fedveil.strategies.collecting import (
    Asking,
    Collected,
    RoundError,
    collect_in_clear,
    collect_sum,
)
from fedveil.strategies.dtypes import cast_like
from fedveil.strategies.private_sums import PrivateSum, collect_privately
from fedveil.strategies.secure_rounds import SecureRounds
from fedveil.strategies.stage_clock import Stage, StageClock

__all__ = ["RoundError", "RoundOutcome", "RoundPlan", "run_rounds"]


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
    summing : PrivateSum, optional
        Makes the step out of a sum, in the modes whose noise is not each client's own.
    clock : StageClock
        Told how long the stages take; `secure` has the same.
    """

    request: ConfigRecord
    releases: tuple[Release, ...]
    fraction: float
    min_clients: int
    timeout: float
    seed: int
    secure: SecureRounds | None = None
    summing: PrivateSum | None = None
    clock: StageClock = field(default_factory=StageClock)


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
    clip_norm : float, optional
        Of this round, where it adapts.
    """

    round: int
    attempt: int
    arrays: ArrayRecord
    clients: tuple[str, ...]
    failures: Mapping[str, str]
    train_loss: float | None
    seconds: float
    clipped: int = 0
    clip_norm: float | None = None


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
        clip_norm = None if plan.summing is None else plan.summing.clip_norm
        adapted = {} if clip_norm is None else {"clip_norm": clip_norm}
        request = ConfigRecord(
            {**plan.request, **adapted, "round": round_, "attempt": intent.attempt}
        )
        messages = list(
            strategy.configure_train(
                round_, arrays, request, CohortGrid(grid, [nodes[c] for c in cohort])
            )
        )

        def tell(replies: int, number: int = round_, size: int = len(cohort)) -> None:
            on_reply(number, replies, size)

        client_of = {nodes[client]: client for client in cohort}
        asking = Asking(grid, messages, plan.timeout, intent, client_of, arrays, tell)
        collected = _collect(asking, plan)
        journal.done(intent, collected.steps)
        _require_enough(round_, collected, plan.min_clients)
        with plan.clock.stage(Stage.AGGREGATE):
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
            clip_norm=clip_norm,
        )


def _collect(asking: Asking, plan: RoundPlan) -> Collected:
    if plan.secure is None:
        # One exchange; under secure aggregation each of several is a stage of its own.
        with plan.clock.stage(Stage.INPUT):
            if plan.summing is not None:
                return collect_privately(asking, plan.summing, None)
            return collect_in_clear(asking, equal_weights=bool(plan.releases))
    if plan.summing is not None:
        return collect_privately(asking, plan.summing, plan.secure)
    return collect_sum(asking, plan.secure, plan.releases)


def _require_enough(round_: int, collected: Collected, least: int) -> None:
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
