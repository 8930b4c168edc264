"""What a client checks of model and data before it trains privately, each with a title."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.client.dp_training import clipped_sum, noise_alone
from fedveil.config import Config
from fedveil.privacy import preflight
from fedveil.tasks.base import Examples, Task

__all__ = ["Check", "client_checks"]

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
    run: Callable[[], None]


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
    x, y, clip_norm = examples.x, examples.y, config.dp.clip_norm
    checks = [
        finite,
        Check(
            "no record has changed another one's inputs (public preprocessing)",
            lambda: preflight.check_preprocessing(
                config.task.name, is_independent=task.record_preprocessing_is_independent
            ),
        ),
        Check(
            "every layer has per-record gradients (no BatchNorm)",
            lambda: preflight.check_model(model),
        ),
        Check(
            "the model's output for a record depends on no other record",
            lambda: preflight.check_records_do_not_mix(model, x),
        ),
        Check(
            "the loss is the mean of the records' losses",
            lambda: preflight.check_loss(task.loss, model, x, y),
        ),
        Check(
            "gradients are clipped at the norm that the noise is scaled with",
            lambda: _check_sensitivity(config, model, task, examples),
        ),
    ]
    noise = config.dp.noise_multiplier
    if noise is not None:
        checks.append(
            Check(
                "the noise has the standard deviation that is accounted, as measured",
                lambda: preflight.check_noise(noise_alone(model, config.dp), noise * clip_norm),
            )
        )
    return checks


def _check_finite(examples: Examples) -> None:
    bad = examples.non_finite_records()
    if bad:
        # The number stays here: it is counted from private records.
        _log.warning("%d of %d training records hold NaN or infinity", bad, len(examples))
    preflight.check_finite(bad)


def _check_sensitivity(config: Config, model: nn.Module, task: Task, examples: Examples) -> None:
    clip_norm = config.dp.clip_norm
    few = Examples(examples.x[: preflight.PROBE_RECORDS], examples.y[: preflight.PROBE_RECORDS])
    if len(few):
        gradients = [_gradient(model, task, x, y) for x, y in zip(few.x, few.y, strict=True)]
        clipped = clipped_sum(model, task, few, clip_norm, config.training.engine)
        preflight.check_sensitivity(clipped, gradients, clip_norm)


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
