"""What the coordinator checks of the settings before it asks anybody."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from inspect import getattr_static

import torch

from fedveil.client.local_training import make_optimizer, resolve_device
from fedveil.client.preflight import Check
from fedveil.config import Config
from fedveil.privacy import preflight
from fedveil.privacy.accounting import Release
from fedveil.server.budget import round_releases
from fedveil.tasks.base import Task

__all__ = ["settings_checks"]


def settings_checks(
    config: Config,
    task: Task,
    noise: float | None,
    *,
    rounds: int,
    spent: Collection[tuple[Release, ...]] = (),
) -> Sequence[Check]:
    """Return the checks of the settings.

    Parameters
    ----------
    config : Config
        The settings, with what the task knows filled in.
    task : Task
        What is trained.
    noise : float, optional
        Noise multiplier of the rounds to come; None without privacy.
    rounds : int
        How many are to come.
    spent : collection of tuple of Release
        What clients have released already, each as one tuple.
    """
    trainable = Check("device and optimiser are there", lambda: _check_optimizer(config, task))
    if noise is None:
        return [trainable]
    dp, training = config.dp, config.training
    planned = round_releases(config, noise) * rounds

    def check_epsilon() -> None:
        for before in spent or [()]:
            preflight.check_epsilon([*before, *planned], dp.delta, dp.target_epsilon)

    def check_delta() -> None:
        if training.nominal_records is not None:
            preflight.check_delta(dp.delta, training.nominal_records)

    return [
        trainable,
        Check(
            "batches are Poisson samples, as accounted",
            lambda: preflight.check_sampling(training.sampling),
        ),
        Check(
            "sums are divided by a published constant, not by a private count",
            lambda: preflight.check_denominator(
                config.task.name,
                getattr_static(type(task), "nominal_records"),
                training.nominal_records,
            ),
        ),
        Check("delta is below 1 / records of a client", check_delta),
        Check(
            "the planned rounds cost at most the budget, at the claim's own delta", check_epsilon
        ),
        Check(
            "the sampling of clients is not counted as amplification",
            lambda: preflight.check_client_sampling(planned, (training.sampling_rate, 1.0)),
        ),
    ]


def _check_optimizer(config: Config, task: Task) -> None:
    resolve_device(config.training.device)
    with torch.random.fork_rng(devices=[]):
        make_optimizer(task.model(), config.training)
