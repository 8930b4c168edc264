"""What a client answers with where its noise is a share of the whole, or where the server adds it.

Nothing else leaves: no loss, no count of records, no word on whether anything was clipped. Records
on which training fails contribute zero, so that the failure is not told either.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.client.gradient_sums import sum_of_clipped_gradients
from fedveil.client.local_training import TrainingError, poisson_batches
from fedveil.client.shared_noise import skellam_mechanism
from fedveil.client.sum_check import rotation_seed
from fedveil.client.trainer import TrainingJob, current_trainer
from fedveil.client.vectors import clipped, difference, slots_of, trainable_names
from fedveil.client.weights import packed
from fedveil.config import Config
from fedveil.envelope import WITHIN
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples, Task

__all__ = ["answer_privately"]

_log = logging.getLogger(__name__)


def answer_privately(
    model: nn.Module,
    task: Task,
    examples: Examples,
    config: Config,
    turn: tuple[int, int],
    clip_norm: float,
    generator: SecureGenerator,
) -> RecordDict:
    """Train as the mode has it, and return what leaves the client.

    Parameters
    ----------
    model : nn.Module
        The global model, on its device already.
    examples : Examples
        The client's training records; there may be none.
    config : Config
        With ``dp.noise_multiplier`` and ``training.nominal_records`` resolved; its mode is
        record/distributed, client/distributed or client/central.
    turn : tuple of int
        Round and attempt.
    clip_norm : float
        Of this round.
    generator : SecureGenerator
        Draws batches and noise.

    Returns
    -------
    RecordDict
        One ArrayRecord, of integers or of new weights, and one MetricRecord.

    Raises
    ------
    TrainingError
        If a constant is unresolved, or training changed a buffer of the model.
    """
    noise = config.dp.noise_multiplier
    if noise is None or config.training.nominal_records is None:
        raise TrainingError(
            "the request leaves dp.noise_multiplier or training.nominal_records open; a client "
            "trains only with both fixed"
        )
    metrics: dict[str, int | float] = {"weight": 1.0, "steps": 1}
    names = trainable_names(model)
    within: bool | None = None
    if config.dp.unit == "record":
        vector = _summed_gradients(model, task, examples, config, clip_norm, generator)
    else:
        before = {name: value.detach().clone() for name, value in model.state_dict().items()}
        vector, within = _update(model, before, task, examples, config, clip_norm, generator)
        if config.dp.noise == "central":
            if config.dp.adaptive is not None:
                metrics[WITHIN] = float(within)
            arrays = _moved(model, names, before, vector)
            return RecordDict({"arrays": arrays, "metrics": MetricRecord(dict(metrics))})
    mechanism = skellam_mechanism(config, len(vector), noise, clip_norm)
    bit = within if config.dp.adaptive is not None else None
    integers = mechanism.encode(vector, rotation_seed(config, *turn), generator, bit=bit)
    return RecordDict(
        {
            "arrays": ArrayRecord({"integers": Array(integers)}),
            "metrics": MetricRecord(dict(metrics)),
        }
    )


def _summed_gradients(
    model: nn.Module,
    task: Task,
    examples: Examples,
    config: Config,
    clip_norm: float,
    generator: SecureGenerator,
) -> NDArray[np.float64]:
    (batch,) = poisson_batches(len(examples), config.training.sampling_rate, 1, generator)
    seeds = generator.words(len(examples))
    return sum_of_clipped_gradients(model, task, examples, batch, clip_norm, seeds)


def _update(
    model: nn.Module,
    before: Mapping[str, Tensor],
    task: Task,
    examples: Examples,
    config: Config,
    clip_norm: float,
    generator: SecureGenerator,
) -> tuple[NDArray[np.float64], bool]:
    """Train without noise; return the clipped update and whether it was within the clip norm."""
    optimizer = config.server_optimizer
    mu = optimizer.proximal_mu if optimizer.name == "fedprox" else 0.0
    if not len(examples):
        _, size = slots_of(model)
        return np.zeros(size), True
    try:
        job = TrainingJob(model, task, examples, config.training, None, generator, mu)
        current_trainer().train(job)
    except TrainingError:
        # Of the settings, whatever the records are.
        raise
    except Exception as error:  # noqa: BLE001  # dropping out would tell of the records
        _log.error("training failed; this client contributes nothing to the round: %s", error)
        _, size = slots_of(model)
        return np.zeros(size), False
    update = difference(model, before)
    if not bool(np.isfinite(update).all()):
        _log.warning(
            "training left NaN or infinity in the model; this client contributes nothing to the "
            "round. Lower training.learning_rate"
        )
    return clipped(update, clip_norm)


def _moved(
    model: nn.Module,
    names: tuple[str, ...],
    before: Mapping[str, Tensor],
    step: NDArray[np.float64],
) -> ArrayRecord:
    """Return weights that differ from those before by `step`, nowhere by more.

    A weight is rounded to its type; where that would lengthen the step, towards the old weight, so
    that the step's norm still holds.
    """
    slots, _ = slots_of(model)
    moved = dict(before)
    for name in names:
        old = before[name].to("cpu")
        wanted = torch.from_numpy(step[slots[name]]).view(old.shape)
        new = (old.to(torch.float64) + wanted).to(old.dtype)
        is_longer = (new.to(torch.float64) - old.to(torch.float64)).abs() > wanted.abs()
        moved[name] = torch.where(is_longer, torch.nextafter(new, old), new)
    return packed(moved)
