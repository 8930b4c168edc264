"""Opacus' hooks as an engine: every record's gradient of every parameter in memory."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedveil.client.gradients.interface import Loss
from fedveil.client.probing import Probe

__all__ = ["OpacusEngine"]


class OpacusEngine:
    """Clipped sums as Opacus computes them.

    Parameters
    ----------
    model : nn.Module
        On its device; it is put into training mode.
    loss : callable
        From outputs and targets to the mean of the records' losses.
    optimizer : DPOptimizer
        Over the model's trainable parameters; it clips.
    probe : Probe, optional
        Of an audit; it sees and changes the gradients before they are clipped.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, optimizer: DPOptimizer, probe: Probe | None
    ) -> None:
        # torch remarks at every step that inputs need no gradient; they do not.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        self._wrapped = GradSampleModule(model, loss_reduction="mean")
        self._wrapped.train()
        self._loss = loss
        self._optimizer = optimizer
        self._probe = probe

    def add(self, inputs: Tensor, targets: Tensor, records: NDArray[np.int64]) -> None:
        """Add the records' clipped gradients to each parameter's `summed_grad`."""
        for p in self._optimizer.params:
            p.grad_sample = None
        self._loss(self._wrapped(inputs), targets).backward()  # type: ignore[no-untyped-call]  # torch's
        gradients = self._optimizer.grad_samples
        for made in gradients:
            made[len(records) :] = 0.0
        if self._probe is not None:
            self._probe.before_clipping([made[: len(records)] for made in gradients], records)
        self._optimizer.clip_and_accumulate()

    def close(self) -> None:
        """Take the hooks off."""
        self._wrapped.to_standard_module()
