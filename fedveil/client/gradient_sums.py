"""The sum of a batch's clipped gradients: each record's computed alone, and added exactly.

What one record adds must be bounded, and must not depend on the others, whatever weights a server
sends. Per-record gradients out of one batched pass do not have that: single precision rounds a
row of a matrix product according to its neighbours' values in the batch or their number, and
weights chosen for it make of the last bit another gradient. Floating-point sums depend on their
order besides. So a record goes through the model alone, and sums are of integers.
"""

from __future__ import annotations

import logging
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.client.local_training import TrainingError, refuse_changed_buffers, seed_torch
from fedveil.client.vectors import slots_of
from fedveil.tasks.base import Examples, Task

__all__ = ["MOST_RECORDS", "clipped_gradient", "sum_of_clipped_gradients", "unit_of"]

MOST_RECORDS = 2**20
"""Records in one batch, so that no sum passes 2^53 units, up to which a double is exact."""

_log = logging.getLogger(__name__)

_FRACTION_BITS = 32
_MARGIN = 1.0 - 2.0**-30
"""Keeps the norm below the clip norm through the rounding of the norm itself."""


def unit_of(clip_norm: float) -> float:
    """Return what one unit of the integers is worth: a power of two, `clip_norm` / 2^33 .. 2^32."""
    return 2.0 ** (math.floor(math.log2(clip_norm)) - _FRACTION_BITS)


def sum_of_clipped_gradients(
    model: nn.Module,
    task: Task,
    examples: Examples,
    batch: NDArray[np.int64],
    clip_norm: float,
    seeds: NDArray[np.uint64],
) -> NDArray[np.float64]:
    """Return the sum of the clipped gradients of a batch's records.

    Parameters
    ----------
    model : nn.Module
        On its device already; has passed the checks of `fedveil.privacy.preflight`.
    examples : Examples
        The client's training records.
    batch : ndarray
        Shape (records,), int64: which of them are in the batch.
    clip_norm : float
        L2 bound of one record's gradient.
    seeds : ndarray
        Shape (len(examples),), uint64: what dropout and the like draw from, for each record its
        own.

    Returns
    -------
    ndarray
        Shape (d,), float64, over the floating-point arrays of the model in their order; zero where
        nothing is trained. It is a multiple of `unit_of`, exactly, in whatever order the records
        come. A record on which model or loss raise anything adds zero, as one whose gradient is
        not finite does: an error that left would tell of that record without noise.

    Raises
    ------
    TrainingError
        If the batch is too large to add up exactly, or a record changed a buffer of the model.
    """
    if len(batch) > MOST_RECORDS:
        raise TrainingError(
            f"a batch holds more than {MOST_RECORDS} records; lower training.sampling_rate"
        )
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    slots, size = slots_of(model)
    total = np.zeros(size, dtype=np.int64)
    failure: Exception | None = None
    model.train()
    with torch.random.fork_rng():
        for record in batch.tolist():
            seed_torch(int(seeds[record] >> np.uint64(1)))
            # Indexing copies the record to memory of its own, aligned alike wherever it lies.
            index = torch.tensor([record])
            try:
                gradients = clipped_gradient(
                    model, task, examples.x[index], examples.y[index], clip_norm
                )
            except Exception as error:  # noqa: BLE001  # dropping out would tell of the record
                failure = failure or error
                continue
            for name, gradient in gradients.items():
                total[slots[name]] += gradient
    if failure is not None:
        _log.error(
            "records whose gradient cannot be computed add nothing to the round; of the first: %s",
            failure,
        )
    refuse_changed_buffers(model, buffers)
    return total.astype(np.float64) * unit_of(clip_norm)


def clipped_gradient(
    model: nn.Module, task: Task, x: Tensor, y: Tensor, clip_norm: float
) -> dict[str, NDArray[np.int64]]:
    """Return one record's gradient, clipped, in units of `unit_of`.

    Parameters
    ----------
    x, y : Tensor
        The record: a batch of one.
    clip_norm : float
        L2 bound; after rounding towards zero it holds for the integers as well.

    Returns
    -------
    dict of str to ndarray
        For each trainable parameter int64, flat. All zero where the gradient is not finite.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    device = next(iter(named.values())).device
    loss: Tensor = task.loss(model(x.to(device)), y.to(device))
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    parts = [
        torch.zeros(p.numel(), dtype=torch.float64)
        if gradient is None
        else gradient.detach().reshape(-1).to("cpu", torch.float64)
        for gradient, p in zip(found, named.values(), strict=True)
    ]
    whole = torch.cat(parts)
    is_finite = bool(torch.isfinite(whole).all())
    whole = whole * _factor(whole, clip_norm) if is_finite else torch.zeros_like(whole)
    integers = whole.to(torch.int64).numpy()
    ends = np.cumsum([p.numel() for p in named.values()])[:-1]
    return dict(zip(named, np.split(integers, ends), strict=True))


def _factor(gradient: Tensor, clip_norm: float) -> float:
    """Return what a finite gradient is multiplied by: to the clip norm, and to units."""
    # By its peak first: the square of a large double is infinite.
    peak = float(gradient.abs().max()) or 1.0
    scaled = gradient / peak
    norm = peak * math.sqrt(float(scaled @ scaled))
    return min(1.0, clip_norm / norm if norm else 1.0) * _MARGIN / unit_of(clip_norm)
