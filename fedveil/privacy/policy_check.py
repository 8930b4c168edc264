"""What of a server's request a data owner's policy refuses, and in which words."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Literal

from fedveil.errors import PublicError
from fedveil.privacy.accounting import Release
from fedveil.privacy.ledger_entries import Charge, Purpose
from fedveil.privacy.policy import DataSetPolicy, Policy

__all__ = ["PolicyRefusedError", "Reason", "Refusal", "Request", "refusals"]


@dataclass(frozen=True)
class Request:
    """What of a run's settings a policy looks at; all of it comes from the server.

    Parameters
    ----------
    task : str
        Name of the task.
    mode : str
        Unit and noise as in `Mode`; ``none`` also where the noise is reproducible.
    metrics : {"off", "noisy", "clear"}
        What clients release of their own test records.
    secure_aggregation : bool
        Whether it is on.
    cohort, rounds, local_steps : int
        Planned clients in a round, rounds of the run, optimiser steps of a client in a round.
    sampling_rate, clip_norm : float
        As configured.
    noise_multiplier : float or None
        None without privacy, and where it is not calibrated yet.
    training : Release or None
        What a round of training releases; None without privacy, and where noise or model are not
        known yet.
    metrics_noise_multiplier : float
        Noise of ``noisy``.
    """

    task: str
    mode: str
    metrics: Literal["off", "noisy", "clear"]
    secure_aggregation: bool
    cohort: int
    rounds: int
    local_steps: int
    sampling_rate: float
    clip_norm: float
    noise_multiplier: float | None
    training: Release | None
    metrics_noise_multiplier: float

    @property
    def unit(self) -> Literal["record", "client", "none"]:
        """Whom the noise protects."""
        if self.mode == "none":
            return "none"
        return "client" if self.mode.startswith("client/") else "record"

    def charge(
        self, purpose: Purpose, dataset: str, run: str, round_: int, attempt: int
    ) -> Charge | None:
        """Return what one message releases; None where that is not known yet."""
        exact = self.mode == "none" or (purpose == "evaluate" and self.metrics == "clear")
        noisy_metrics = Release(1.0, self.metrics_noise_multiplier, 1)
        release = noisy_metrics if purpose == "evaluate" else self.training
        if release is None and not exact:
            return None
        return Charge(
            dataset=dataset,
            task=self.task,
            run=run,
            round=round_,
            attempt=attempt,
            purpose=purpose,
            unit="none" if exact else self.unit,
            neighbours="none" if exact else "add-or-remove-one",
            releases=() if exact or release is None else (release,),
        )


class Reason(StrEnum):
    """Why a request is refused: all that the server is told of the owner's side."""

    BUDGET = "budget"
    CLIP_NORM = "clip norm"
    COHORT = "cohort"
    EXPIRED = "expired"
    LEDGER = "ledger"
    METRICS = "metrics"
    MODE = "mode"
    NOISE = "noise"
    POLICY = "policy file"
    ROSTER = "roster"
    ROUNDS = "rounds"
    SAMPLING = "sampling rate"
    SECURE_AGGREGATION = "secure aggregation"
    STEPS = "steps"
    TASK = "task"


@dataclass(frozen=True)
class Refusal:
    """One reason why a request is refused.

    Parameters
    ----------
    reason : Reason
        Its class.
    told : str
        What the server may hear: nothing but what it sent itself.
    figures : str
        The same with the owner's own figures, for the owner.
    """

    reason: Reason
    told: str
    figures: str


class PolicyRefusedError(PublicError):
    """The data owner's policy refuses; nothing was touched.

    Parameters
    ----------
    refusal : Refusal
        Why.
    tell_figures : bool
        Whether the message, which leaves the client, has the owner's figures.
    """

    def __init__(self, refusal: Refusal, *, tell_figures: bool = False) -> None:
        words = refusal.figures if tell_figures else refusal.told
        super().__init__(f"refused by the data owner's policy ({refusal.reason}): {words}")
        self.refusal = refusal


def refusals(policy: Policy, request: Request, today: date) -> tuple[Refusal, ...]:
    """Return all reasons why a policy refuses a request, budgets apart; none if it accepts it.

    Parameters
    ----------
    policy : Policy
        The owner's.
    request : Request
        The server's.
    today : datetime.date
        The day in UTC.
    """
    return tuple(_refusals(policy, request, today))


def _refusals(policy: Policy, request: Request, today: date) -> Iterator[Refusal]:
    if policy.expires is not None and today > policy.expires:
        yield Refusal(
            Reason.EXPIRED,
            "this client's policy has expired",
            f"the policy expired on {policy.expires}; set expires anew",
        )
    if policy.secure_aggregation and not request.secure_aggregation:
        yield Refusal(
            Reason.SECURE_AGGREGATION,
            "secagg.enabled = false; this client answers under secure aggregation only",
            "secagg.enabled = false, and the policy has secure_aggregation = true",
        )
    if request.cohort < policy.min_cohort:
        yield Refusal(
            Reason.COHORT,
            f"{request.cohort} clients a round are fewer than this client insists on",
            f"{request.cohort} clients a round are fewer than min_cohort = {policy.min_cohort}",
        )
    found = policy.data_set_of(request.task)
    if found is None:
        yield Refusal(
            Reason.TASK,
            f"task {request.task} is not allowed here",
            f"task {request.task} stands in no data set of the policy",
        )
        return
    name, data = found
    if not data.allows(request.mode):
        shown = "no privacy" if request.mode == "none" else f"mode {request.mode}"
        yield Refusal(
            Reason.MODE,
            f"{shown} is not allowed for task {request.task}",
            f"{shown} is asked for; data set {name} allows {', '.join(data.modes)}",
        )
    if request.metrics == "clear" and "none" not in data.modes:
        yield Refusal(
            Reason.METRICS,
            'dp.metrics = "clear" is not allowed; "noisy" and "off" are',
            f'dp.metrics = "clear" releases exact figures, which the budget of data set {name} '
            "cannot bear",
        )
    yield from _beyond_limits(name, data, request)


def _beyond_limits(name: str, data: DataSetPolicy, request: Request) -> Iterator[Refusal]:
    def beyond(reason: Reason, setting: str, value: float, limit: str, bound: float) -> Refusal:
        less = limit.startswith("min")
        return Refusal(
            reason,
            f"{setting} = {value:g} is {'less' if less else 'more'} than this client allows",
            f"{setting} = {value:g} is {'below' if less else 'above'} {limit} = {bound:g} of data "
            f"set {name}",
        )

    ceilings = (
        (Reason.CLIP_NORM, "dp.clip_norm", request.clip_norm, "max_clip_norm"),
        (Reason.SAMPLING, "training.sampling_rate", request.sampling_rate, "max_sampling_rate"),
        (Reason.STEPS, "training.local_steps", request.local_steps, "max_local_steps"),
        (Reason.ROUNDS, "federation.rounds", request.rounds, "max_rounds"),
    )
    for reason, setting, value, limit in ceilings:
        ceiling: float | None = getattr(data, limit)
        if ceiling is not None and value > ceiling:
            yield beyond(reason, setting, value, limit, ceiling)
    floor = data.min_noise_multiplier
    if floor is None:
        return
    noises = [("dp.noise_multiplier", request.noise_multiplier)]
    if request.metrics == "noisy":
        noises.append(("dp.metrics_noise_multiplier", request.metrics_noise_multiplier))
    for setting, noise in noises:
        if noise is not None and not (math.isfinite(noise) and noise >= floor):
            yield beyond(Reason.NOISE, setting, noise, "min_noise_multiplier", floor)
