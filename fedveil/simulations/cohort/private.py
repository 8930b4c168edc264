"""DP-SGD of many clients at once, each with batches and noise of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedveil.client.gradients.blanks import physical_rows
from fedveil.client.gradients.interface import Loss
from fedveil.client.gradients.layers import trained_layers
from fedveil.client.gradients.per_record import working
from fedveil.client.gradients.taps import Taps
from fedveil.client.trainer import TrainingJob
from fedveil.privacy.gaussian.mechanism import GaussianMechanism
from fedveil.simulations.cohort.rows import Batch, Pass, Records, pieces_of
from fedveil.simulations.cohort.stack import Stack
from fedveil.simulations.cohort.sums import clipped_sums

__all__ = ["sums_of_batches", "train_privately"]

_SHARE_OF_LARGE_BATCHES = 8
"""One in as many clients is expected to have more records in a batch than fit into one pass."""


def train_privately(jobs: Sequence[TrainingJob], stack: Stack) -> None:
    """Train the stacked models as `fedveil.client.dp_training.train_private` trains each.

    Every pass has one public number of slots, and each slot one public number of rows, so that a
    record bears neither on the rounding of its neighbours' gradients nor of other clients'.

    Parameters
    ----------
    jobs : sequence of TrainingJob
        Alike but for models, records and generators; `why_alone` has nothing against them.
    stack : Stack
        Of their models.
    """
    training, dp, mu = jobs[0].training, jobs[0].dp, jobs[0].proximal_mu
    assert dp is not None  # noqa: S101  # these two narrow types; `why_alone` saw to it
    assert dp.noise_multiplier is not None and training.nominal_records is not None  # noqa: S101, PT018
    expected = training.sampling_rate * training.nominal_records
    rows = physical_rows(expected, training.max_physical_batch)
    generators = [job.generator for job in jobs]
    records = Records([job.examples for job in jobs])
    optimizer = stack.optimizer(training)
    anchor = {p: stacked.detach().clone() for p, stacked in stack.trained.items()} if mu else {}
    dimension = sum(p.numel() for p in stack.trained)
    mechanism = GaussianMechanism(dp.noise_multiplier, dp.clip_norm, dimension)
    taps = Taps(trained_layers(stack.model))
    for _ in range(training.local_steps):
        batches = [
            first
            + np.flatnonzero(job.generator.bernoulli(len(job.examples), training.sampling_rate))
            for first, job in zip(records.first, jobs, strict=True)
        ]
        sums = sums_of_batches(stack, taps, jobs[0].task.loss, dp.clip_norm, records, batches, rows)
        noisy = [working(one).cpu().contiguous().view(len(jobs), -1) for one in sums.values()]
        mechanism.add([one.numpy() for one in noisy], generators)
        for (p, stacked), one in zip(stack.trained.items(), noisy, strict=True):
            stacked.grad = sums[p].copy_(one.view_as(stacked)).div_(expected)
            if mu:
                stacked.grad.add_(stacked.detach() - anchor[p], alpha=mu)
        optimizer.step()


def sums_of_batches(
    stack: Stack,
    taps: Taps,
    loss: Loss,
    clip_norm: float,
    records: Records,
    batches: Sequence[Batch],
    rows: int,
) -> dict[nn.Parameter, Tensor]:
    """Return each client's sum of its batch's clipped gradients.

    Parameters
    ----------
    stack, taps : Stack, Taps
        The models, and what listens to their trained layers.
    loss : callable
        From outputs and targets to the mean of the rows' losses.
    clip_norm : float
        L2 bound of one record's gradient.
    records, batches : Records, sequence of ndarray
        Each client's batch, counted over all records.
    rows : int
        Rows of a slot.

    Returns
    -------
    dict of Parameter to Tensor
        Shapes (clients, *shape), for every trained parameter.
    """
    sums = {p: torch.zeros_like(stacked.detach()) for p, stacked in stack.trained.items()}
    for clients, piece in _passes(records, batches, rows):
        with stack.only(clients):
            flows = taps.flows(
                lambda piece=piece: loss(stack.model(piece.inputs), piece.targets),  # type: ignore[misc]  # no default is inferred
                len(piece.inputs),
            )
        for p, found in clipped_sums(flows, piece.is_record, clip_norm).items():
            if clients is None:
                sums[p] += found
            else:
                sums[p].index_add_(0, clients, found.to(sums[p].dtype))
    return sums


def _passes(
    records: Records, batches: Sequence[Batch], rows: int
) -> Iterator[tuple[Tensor | None, Pass]]:
    """Yield the passes of a step, with the clients of each one's slots.

    First one with a slot for every client, None for short; then, of a smaller constant number of
    slots, as many as the rest of larger batches needs.
    """
    yield None, records.pick([batch[:rows] for batch in batches], rows)
    rest = pieces_of(batches, rows, first=rows)
    slots = math.ceil(len(batches) / _SHARE_OF_LARGE_BATCHES)
    for start in range(0, len(rest.batches), slots):
        some = list(rest.batches[start : start + slots])
        clients = np.zeros(slots, dtype=np.int64)
        clients[: len(some)] = rest.clients[start : start + slots]
        nothing = [np.empty(0, dtype=np.int64)] * (slots - len(some))
        yield torch.from_numpy(clients), records.pick([*some, *nothing], rows)
