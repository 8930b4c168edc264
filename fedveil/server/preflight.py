"""What the coordinator checks of the settings before it asks anybody."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from inspect import getattr_static

import torch

from fedveil.client.local_training import make_optimizer, resolve_device
from fedveil.client.preflight import Check, check_delta_of
from fedveil.client.shared_noise import bit_noise, noise_shares, skellam_mechanism
from fedveil.client.vectors import slots_of
from fedveil.config import Config
from fedveil.privacy import preflight
from fedveil.privacy.accounting import Release
from fedveil.server.budget import round_releases
from fedveil.tasks.base import Task

__all__ = ["model_dimension", "settings_checks"]

_DELTA = {
    "record/local": "delta is below 1 / records of a client",
    "record/distributed": "delta is below 1 / records of all clients",
    "client/distributed": "delta is below 1 / clients",
    "client/central": "delta is below 1 / clients",
}


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
    dimension = model_dimension(task)

    def planned() -> list[Release]:
        return [*round_releases(config, noise, dimension)] * rounds

    def check_epsilon() -> None:
        for before in spent or [()]:
            preflight.check_epsilon([*before, *planned()], dp.delta, dp.target_epsilon)

    def check_client_sampling() -> None:
        rates = (1.0,) if dp.unit == "client" else (training.sampling_rate, 1.0)
        preflight.check_client_sampling(planned(), rates)

    of_records = [
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
    ]
    return [
        trainable,
        *(of_records if dp.unit == "record" else []),
        *_mode_checks(config, noise, dimension),
        Check(_DELTA[dp.mode], lambda: check_delta_of(config)),
        Check(
            "the planned rounds cost at most the budget, at the claim's own delta", check_epsilon
        ),
        Check("the sampling of clients is not counted as amplification", check_client_sampling),
    ]


def model_dimension(task: Task) -> int:
    """Return how many floating-point numbers a model of a task has."""
    # Building a model draws first weights; the caller's stream must not notice.
    with torch.random.fork_rng(devices=[]):
        return slots_of(task.model())[1]


def _mode_checks(config: Config, noise: float, dimension: int) -> Sequence[Check]:
    """Return what must hold of shares of the noise, and of a clip norm that adapts."""
    dp, checks = config.dp, list[Check]()
    if dp.noise == "distributed":
        checks = [
            Check(
                "the honest clients of the smallest sum bring the whole noise",
                lambda: noise_shares(config),
            ),
            Check(
                "rounding costs little, and sums with their noise fit into secagg.ring_bits",
                lambda: skellam_mechanism(config, dimension, noise),
            ),
        ]
    if dp.adaptive is not None:
        checks.append(
            Check(
                "the bits of adaptive clipping leave noise for the updates",
                lambda: bit_noise(config, noise),
            )
        )
    return checks


def _check_optimizer(config: Config, task: Task) -> None:
    resolve_device(config.training.device)
    with torch.random.fork_rng(devices=[]):
        make_optimizer(task.model(), config.training)
