"""A model's floating-point arrays as one vector, in the order in which they are sent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedveil.client.local_training import TrainingError

__all__ = ["clipped", "difference", "slots_of", "trainable_names"]

_MARGIN = 1.0 - 2.0**-30


def slots_of(model: nn.Module) -> tuple[dict[str, slice], int]:
    """Return where in the vector each floating-point array of the model lies, and its length."""
    slots, end = {}, 0
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            slots[name] = slice(end, end + value.numel())
            end += value.numel()
    return slots, end


def trainable_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the arrays that training moves.

    Raises
    ------
    TrainingError
        If an array has two names: moved under one, it would stay under the other.
    """
    every = dict(model.named_parameters(remove_duplicate=False))
    once = dict(model.named_parameters())
    twice = sorted(every.keys() - once.keys())
    if twice:
        raise TrainingError(
            f"the model's array {twice[0]} has another name as well, which no sum of updates can "
            "keep equal; tie no weights, or train in mode record/local"
        )
    return tuple(name for name, p in once.items() if p.requires_grad)


def difference(model: nn.Module, before: Mapping[str, Tensor]) -> NDArray[np.float64]:
    """Return by how much training moved the model, shape (d,), float64.

    Parameters
    ----------
    model : nn.Module
        After training.
    before : Mapping of str to Tensor
        Its arrays before.

    Raises
    ------
    TrainingError
        If something moved that is no trainable parameter: a statistic of private records.
    """
    slots, size = slots_of(model)
    vector = np.zeros(size)
    moving = set(trainable_names(model))
    for name, value in model.state_dict().items():
        if name in moving:
            step = torch.from_numpy(vector[slots[name]])
            step.copy_(value.reshape(-1)).sub_(before[name].reshape(-1).to("cpu", torch.float64))
        elif not torch.equal(value, before[name]):
            raise TrainingError(
                f"training changed the buffer {name} of the model, which is not averaged under "
                "client-level privacy; train a model without running statistics"
            )
    return vector


def clipped(vector: NDArray[np.float64], clip_norm: float) -> tuple[NDArray[np.float64], bool]:
    """Return a vector scaled down to an L2 norm, and whether it was within it.

    What is not finite becomes zero, so that it spoils no sum and tells nothing.

    Parameters
    ----------
    vector : ndarray
        Shape (d,), float64.
    clip_norm : float
        L2 bound; it holds through the rounding of the norm itself.
    """
    if not bool(np.isfinite(vector).all()):
        return np.zeros_like(vector), False
    peak = float(np.abs(vector).max(initial=0.0)) or 1.0
    scaled = vector / peak
    length = math.sqrt(float(scaled @ scaled))
    bound = clip_norm * _MARGIN
    # Never divided by the norm itself: of a huge one no more than a few bits would be left.
    return (vector, True) if peak * length <= bound else (scaled * (bound / length), False)
