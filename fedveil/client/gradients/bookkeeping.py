"""The fast engine: per-record norms first, then one clipped product a layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedveil.client.gradients.clipping import clip_factors
from fedveil.client.gradients.interface import Loss, Precision
from fedveil.client.gradients.layers import contribution, forget, prepare, trained_layers
from fedveil.client.gradients.per_record import (
    Contribution,
    Gradients,
    PerRecord,
    added_up,
)
from fedveil.client.gradients.taps import Taps
from fedveil.client.local_training import in_precision
from fedveil.client.probing import Probe

__all__ = ["BookkeepingEngine", "exactly", "shared_as_one"]


class BookkeepingEngine:
    """Clipped sums by book-keeping (Bu et al. 2023, Algorithm 1), with Opacus' results.

    Parameters
    ----------
    model : nn.Module
        On its device; it is put into training mode.
    loss : callable
        From outputs and targets to the mean of the records' losses.
    optimizer : DPOptimizer
        Over the model's trainable parameters; it says the clip norm.
    probe : Probe, optional
        Of an audit; for it every record's gradient is made, to be seen and changed.
    precision : {"fp32", "bf16"}
        Of the passes through the model. What flowed through the layers is taken to float32 before
        norms are measured, and the same numbers are added up: what is clipped is what was measured.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: DPOptimizer,
        probe: Probe | None,
        precision: Precision = "fp32",
    ) -> None:
        model.train()
        self._model = model
        self._parameters: Sequence[nn.Parameter] = optimizer.params
        self._loss = loss
        self._optimizer = optimizer
        self._probe = probe
        self._precision: Precision = precision
        self._layers = trained_layers(model)
        for layer in self._layers.values():
            prepare(layer)
        self._taps = Taps(self._layers)

    def close(self) -> None:
        """Leave the model as it was."""
        self._taps.close()
        for layer in self._layers.values():
            forget(layer)

    def add(self, inputs: Tensor, targets: Tensor, records: NDArray[np.int64]) -> None:
        """Add the records' clipped gradients to each parameter's `summed_grad`.

        Raises
        ------
        TrainingError
            If the model's layers do not keep records apart.
        """
        rows = len(inputs)

        def loss() -> Tensor:
            with in_precision(self._precision, inputs.device):
                return self._loss(self._model(inputs), targets)

        flows = self._taps.flows(loss, rows)
        with torch.no_grad(), exactly(inputs.device):
            found = [contribution(flow.layer, flow.inputs, flow.outputs) for flow in flows]
            if self._probe is None:
                contributions = shared_as_one(found)
            else:
                contributions = [self._probed(found, self._probe, records, rows)]
            sums = self._clipped(contributions, len(records), rows)
            for p in self._optimizer.params:
                added = sums[p].to(p.dtype) if p in sums else torch.zeros_like(p)
                p.summed_grad = added if p.summed_grad is None else p.summed_grad + added

    def _probed(
        self, found: Sequence[Contribution], probe: Probe, records: NDArray[np.int64], rows: int
    ) -> Contribution:
        """Let the probe at every record's gradient, in the optimiser's order of parameters."""
        made = added_up(found).gradients
        whole = {p: made[p] if p in made else p.new_zeros(rows, *p.shape) for p in self._parameters}
        probe.before_clipping([made[: len(records)] for made in whole.values()], records)
        return PerRecord(whole)

    def _clipped(self, contributions: Sequence[Contribution], records: int, rows: int) -> Gradients:
        norms = [part.squared_norms() for part in contributions]
        squares = torch.stack(norms).sum(dim=0) if norms else torch.zeros(rows)
        factors = clip_factors(squares, self._optimizer.max_grad_norm)
        factors[records:] = 0.0
        if not math.isfinite(float(squares.sum())):
            # Zero times infinity is no zero.
            dropped = ~torch.isfinite(squares)
            contributions = [part.without(dropped) for part in contributions]
        sums: dict[nn.Parameter, Tensor] = {}
        for part in contributions:
            sums.update(part.weighted_sum(factors))
        return sums


def shared_as_one(found: Sequence[Contribution]) -> list[Contribution]:
    """Return the contributions, those that share a parameter as one."""
    uses = Counter(p for part in found for p in part.parameters)
    shared = [part for part in found if any(uses[p] > 1 for p in part.parameters)]
    alone: list[Contribution] = [part for part in found if part not in shared]
    return [*alone, added_up(shared)] if shared else alone


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Multiply in full float32: autocast and TF32 would make norms too short."""
    precision = torch.get_float32_matmul_precision()
    if precision == "highest" and not torch.is_autocast_enabled(device.type):
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
