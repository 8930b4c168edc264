"""How the images of a network lie in memory while it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["channels_last"]


@contextmanager
def channels_last(model: nn.Module, precision: str = "fp32") -> Iterator[None]:
    """Let a network of 2d convolutions keep the channels of a pixel beside each other on the CPU.

    oneDNN's convolutions need no reordering then, and torch's pooling, which goes through the
    channels of each pixel, becomes vectorised. Shapes, names and values stay; when it ends the
    weights lie as before.

    Parameters
    ----------
    model : nn.Module
        Without such convolutions, or elsewhere than on the CPU, nothing is changed.
    precision : {"fp32", "bf16"}
        It computes in; bf16 leaves oneDNN out on the CPU, and nothing is changed.
    """
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d)]
    if precision != "fp32" or not weights or any(w.device.type != "cpu" for w in weights):
        yield
        return
    for weight in weights:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight in weights:
            weight.data = weight.data.contiguous()
