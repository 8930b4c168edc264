"""From the norms of per-record gradients to the factor that clips each record."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clip_factors"]

_STABILIZER = 1e-6
"""Opacus adds as much to a norm before it divides by it; so both engines clip alike."""


def clip_factors(squared_norms: Tensor, clip_norm: float) -> Tensor:
    """Return what each record's gradient is multiplied with (Abadi et al. 2016, Algorithm 1).

    Parameters
    ----------
    squared_norms : Tensor
        Squared L2 norms over all parameters, shape (records,), float64.
    clip_norm : float
        L2 bound of what one record adds to the sum.

    Returns
    -------
    Tensor
        Shape (records,), float64, in [0, 1]. Zero where a norm is NaN or infinite, or so large
        that its factor is no normal float32 number any more, which would round too much.
    """
    factors = (clip_norm / (squared_norms.sqrt() + _STABILIZER)).clamp(max=1.0)
    # False for NaN too, and for an infinite norm, whose factor is zero.
    is_sound = factors >= torch.finfo(torch.float32).tiny
    return torch.where(is_sound, factors, 0.0)
