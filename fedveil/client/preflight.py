"""What a client checks of model and data before it trains privately, each with a title."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedveil.client.dp_training import clipped_sum, noise_alone
from fedveil.client.gradient_sums import clipped_gradient, unit_of
from fedveil.client.local_training import refuse_changed_buffers
from fedveil.client.shared_noise import skellam_mechanism
from fedveil.client.vectors import slots_of
from fedveil.config import Config
from fedveil.privacy import preflight
from fedveil.privacy.gaussian.mechanism import GaussianMechanism
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples, Task

__all__ = ["Check", "check_delta_of", "client_checks"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Check:
    """One check before a run.

    Parameters
    ----------
    title : str
        What is true when it passes.
    run : callable
        Raises a `FedveilError` with one line when it does not.
    """

    title: str
    run: Callable[[], object]


def client_checks(
    config: Config, task: Task, examples: Examples, model: nn.Module
) -> Sequence[Check]:
    """Return the checks of one client; without privacy, of its data alone.

    Parameters
    ----------
    config : Config
        The run's settings; where the noise is still open it is not measured.
    task : Task
        What is trained.
    examples : Examples
        The client's training records.
    model : nn.Module
        A model of the task, with any weights; it is left as it was.
    """
    finite = Check("training records hold no NaN or infinity", lambda: _check_finite(examples))
    if not config.dp.is_private:
        return [finite]
    public = Check(
        "no record has changed another one's inputs (public preprocessing)",
        lambda: preflight.check_preprocessing(
            config.task.name, is_independent=task.record_preprocessing_is_independent
        ),
    )
    of_unit = (
        _record_checks(config, task, examples, model)
        if config.dp.unit == "record"
        else [
            Check(
                "training changes nothing of the model but what is averaged (no BatchNorm)",
                lambda: _check_buffers(model, task, examples),
            )
        ]
    )
    return [finite, public, *of_unit, *_noise_checks(config, model)]


def check_delta_of(config: Config) -> None:
    """Refuse a delta that says nothing for so many units as a sum is over.

    Raises
    ------
    PreflightError
        With the numbers.
    """
    clients, nominal = config.federation.clients, config.training.nominal_records
    if config.dp.unit == "client":
        preflight.check_delta(config.dp.delta, clients, "clients")
    elif config.dp.unit == "record" and nominal is not None:
        if config.dp.noise == "distributed":
            preflight.check_delta(config.dp.delta, nominal * clients, "records of all clients")
        else:
            preflight.check_delta(config.dp.delta, nominal, "records a client")


def _record_checks(
    config: Config, task: Task, examples: Examples, model: nn.Module
) -> Sequence[Check]:
    return [
        Check(
            "every layer has per-record gradients (no BatchNorm)",
            lambda: preflight.check_model(model),
        ),
        Check(
            "the model's output for a record depends on no other record",
            lambda: preflight.check_records_do_not_mix(model, examples.x),
        ),
        Check(
            "the loss is the mean of the records' losses",
            lambda: preflight.check_loss(task.loss, model, examples.x, examples.y),
        ),
        Check(
            "gradients are clipped at the norm that the noise is scaled with",
            lambda: _check_sensitivity(config, model, task, examples),
        ),
    ]


def _noise_checks(config: Config, model: nn.Module) -> Sequence[Check]:
    """Return the check of what this client adds; none where the server adds it."""
    dp, noise = config.dp, config.dp.noise_multiplier
    if noise is None or dp.noise == "central":
        return []
    if dp.noise == "local":

        def check_local() -> None:
            alone = noise_alone(model, dp)
            # With what rounding to the grid adds to the sensitivity.
            std = GaussianMechanism(noise, dp.clip_norm, len(alone)).std
            preflight.check_noise(alone, std)

        return [
            Check(
                "the noise has the standard deviation that is accounted, as measured", check_local
            )
        ]

    def check_share() -> None:
        mechanism = skellam_mechanism(config, slots_of(model)[1], noise)
        nothing, bit = np.zeros(mechanism.dimension), None if dp.adaptive is None else False
        share = mechanism.encode(nothing, bytes(32), SecureGenerator(), bit=bit)
        # Behind the vector stands the bit of adaptive clipping, which is never nothing.
        measured = torch.from_numpy(share[: mechanism.dimension])
        preflight.check_noise(measured, math.sqrt(mechanism.share_variance))

    return [
        Check(
            "this client's share of the noise has the standard deviation that is accounted, as "
            "measured",
            check_share,
        )
    ]


def _check_finite(examples: Examples) -> None:
    bad = examples.non_finite_records()
    if bad:
        # The number stays here: it is counted from private records.
        _log.warning("%d of %d training records hold NaN or infinity", bad, len(examples))
    preflight.check_finite(bad)


def _check_buffers(model: nn.Module, task: Task, examples: Examples) -> None:
    few = Examples(examples.x[: preflight.PROBE_RECORDS], examples.y[: preflight.PROBE_RECORDS])
    if not len(few):
        return
    own = copy.deepcopy(model)
    before = {name: value.clone() for name, value in own.named_buffers()}
    own.train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        # The loss as well: a task that fails on everything shows here, and in a round no more.
        task.loss(own(few.x), few.y)
    refuse_changed_buffers(own, before)


def _check_sensitivity(config: Config, model: nn.Module, task: Task, examples: Examples) -> None:
    few = Examples(examples.x[: preflight.PROBE_RECORDS], examples.y[: preflight.PROBE_RECORDS])
    if not len(few):
        return
    clip_norm = config.dp.clip_norm
    gradients = [_gradient(model, task, x, y) for x, y in zip(few.x, few.y, strict=True)]
    if config.dp.noise == "distributed":
        added_up = _exact_sum(model, task, few, clip_norm)
    else:
        added_up = clipped_sum(model, task, few, clip_norm, config.training.engine)
    preflight.check_sensitivity(added_up, gradients, clip_norm)


def _exact_sum(model: nn.Module, task: Task, few: Examples, clip_norm: float) -> list[Tensor]:
    """Return what distributed noise is added to, for one batch of some records, dropout apart."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    training = model.training
    model.eval()
    try:
        found = [
            clipped_gradient(model, task, few.x[[i]], few.y[[i]], clip_norm)
            for i in range(len(few))
        ]
    finally:
        model.train(training)
    return [
        torch.from_numpy(sum(one[name] for one in found) * unit_of(clip_norm)).reshape(p.shape)
        for name, p in trained.items()
    ]


def _gradient(model: nn.Module, task: Task, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Return one record's gradient without Opacus."""
    training = model.training
    model.eval()
    try:
        loss = task.loss(model(x[None]), y[None])
        trained = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, trained, allow_unused=True)
    finally:
        model.train(training)
    return tuple(
        torch.zeros_like(p) if g is None else g for p, g in zip(trained, found, strict=True)
    )
