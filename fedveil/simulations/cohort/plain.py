"""Training of many clients at once, without privacy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedveil.client.local_training import plain_batches
from fedveil.client.trainer import TrainingJob
from fedveil.simulations.cohort.rows import Batch, Records, pieces_of
from fedveil.simulations.cohort.stack import Stack

__all__ = ["train_plainly"]

_MOST_PADDING = 2.0
"""Rows of a pass over its records, above which large batches are cut into pieces."""


def train_plainly(jobs: Sequence[TrainingJob], stack: Stack) -> list[float]:
    """Train the stacked models as `fedveil.client.local_training.train_plain` trains each.

    An empty batch is no step, so that clients may take different numbers of steps. Each takes its
    own without a gap; who is done keeps what it had then.

    Parameters
    ----------
    jobs : sequence of TrainingJob
        Alike but for models, records and generators; each has a record.
    stack : Stack
        Of their models.

    Returns
    -------
    list of float
        Each client's mean loss over its batches.
    """
    training, mu = jobs[0].training, jobs[0].proximal_mu
    records = Records([job.examples for job in jobs])
    batches = [
        [
            first + batch
            for batch in plain_batches(len(job.examples), training, job.generator)
            if len(batch)
        ]
        for first, job in zip(records.first, jobs, strict=True)
    ]
    steps = torch.tensor([len(own) for own in batches])
    optimizer = stack.optimizer(training)
    anchor = {p: stacked.detach().clone() for p, stacked in stack.trained.items()} if mu else {}
    most = int(steps.max())
    done: list[tuple[Tensor, list[Tensor]]] = []
    losses = torch.zeros(len(jobs), dtype=torch.float64)
    nothing = np.empty(0, dtype=np.int64)
    for step in range(most):
        ready = steps == step
        if bool(ready.any()):
            done.append((ready, [stacked.detach()[ready] for stacked in stack.weights.values()]))
        optimizer.zero_grad()
        current = [own[step] if step < len(own) else nothing for own in batches]
        mean = _mean_losses(jobs[0], stack, records, current)
        mean.sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for p, stacked in stack.trained.items():
            if mu and stacked.grad is not None:
                stacked.grad.add_(stacked.detach() - anchor[p], alpha=mu)
        optimizer.step()
        losses += mean.detach().where(step < steps, 0.0)
    for ready, kept in done:
        for stacked, values in zip(stack.weights.values(), kept, strict=True):
            stacked.data[ready] = values
    means: list[float] = (losses / steps.clamp(min=1)).tolist()
    return means


def _mean_losses(
    job: TrainingJob, stack: Stack, records: Records, batches: Sequence[Batch]
) -> Tensor:
    """Return each client's mean loss over its batch, (clients,); zero over an empty one."""
    counts = torch.tensor([len(batch) for batch in batches])
    total, largest = int(counts.sum()), int(counts.max())
    if len(batches) * largest <= _MOST_PADDING * total:
        rows, clients = largest, None
    else:
        rows = math.ceil(total / len(batches))
        pieces = pieces_of(batches, rows)
        clients, batches = torch.from_numpy(pieces.clients), pieces.batches
    chosen = records.pick(batches, rows, repeat=True)
    with stack.only(clients):
        outputs = stack.model(chosen.inputs)
    each = torch.vmap(lambda output, target: job.task.loss(output[None], target[None]))(
        outputs, chosen.targets
    )
    sums = each.view(chosen.is_record.shape).where(chosen.is_record, 0.0).sum(dim=1)
    if clients is not None:
        sums = sums.new_zeros(len(counts)).index_add(0, clients, sums)
    return sums / counts.clamp(min=1)
