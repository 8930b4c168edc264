"""DP-SGD on one client: per-record clipping, Poisson batches, cryptographic noise."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from fedveil.client.gradients.blanks import physical_rows, with_blanks
from fedveil.client.gradients.engine import gradient_engine
from fedveil.client.gradients.interface import EngineName, GradientEngine
from fedveil.client.gradients.per_record import working
from fedveil.client.local_training import (
    TrainingError,
    add_proximal_gradient,
    make_optimizer,
    poisson_batches,
    refuse_changed_buffers,
)
from fedveil.client.probing import current_probe
from fedveil.config import DpConfig, TrainingConfig
from fedveil.privacy.gaussian.mechanism import GaussianMechanism
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples, Task

if TYPE_CHECKING:
    from fedveil.client.parallel.link import Link

__all__ = [
    "SecureDPOptimizer",
    "clipped_sum",
    "noise_alone",
    "optimizer_for_sums",
    "sum_clipped_gradients",
    "train_private",
]


class SecureDPOptimizer(DPOptimizer):  # type: ignore[misc]  # opacus has no types
    """Opacus' optimiser with cryptographic noise, and no way for NaN into the sum.

    Parameters
    ----------
    optimizer : Optimizer
        Takes the step on the noisy gradient.
    noise_multiplier : float
        Standard deviation of the noise over `max_grad_norm`.
    max_grad_norm : float
        L2 bound of one record's gradient, over all parameters together.
    expected_batch_size : float
        Public constant that the noisy sum is divided by.
    noise : SecureGenerator
        Source of the noise.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        noise_multiplier: float,
        max_grad_norm: float,
        expected_batch_size: float,
        noise: SecureGenerator,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=noise_multiplier,
            max_grad_norm=max_grad_norm,
            expected_batch_size=expected_batch_size,
        )
        self._noise = noise

    def clip_and_accumulate(self) -> None:
        """Clip each record's gradient and add them up; a record that is not finite adds zero."""
        finite = torch.stack(
            [torch.isfinite(g.flatten(1)).all(dim=1) for g in self.grad_samples]
        ).all(dim=0)
        if not bool(finite.all()):
            for p in self.params:
                p.grad_sample[~finite] = 0.0
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Round the sum to a grid and add discrete Gaussian noise, as accounted.

        See `GaussianMechanism`. In place: no exact sum is left behind.
        """
        dimension = sum(p.numel() for p in self.params)
        mechanism = GaussianMechanism(self.noise_multiplier, self.max_grad_norm, dimension)
        sums = [p.summed_grad.detach() for p in self.params]
        rows = [working(one).cpu().contiguous().view(1, -1) for one in sums]
        mechanism.add([row.numpy() for row in rows], [self._noise])
        for p, exact, noisy in zip(self.params, sums, rows, strict=True):
            # Most share their memory, and need no copy.
            p.grad = exact if _is_same(exact, noisy) else exact.copy_(noisy.view_as(exact))

    def scale_grad(self) -> None:
        """Divide by the public constant, however many pieces the batch was computed in."""
        for p in self.params:
            p.grad /= self.expected_batch_size


def train_private(
    model: nn.Module,
    task: Task,
    examples: Examples,
    training: TrainingConfig,
    dp: DpConfig,
    generator: SecureGenerator,
    proximal_mu: float = 0.0,
    link: Link | None = None,
) -> int:
    """Train `model` in place with DP-SGD (Abadi et al. 2016, Algorithm 1).

    Batches are Poisson with the configured rate; the noisy sum is divided by the configured
    constant sampling_rate * nominal_records, never by a number counted from the records. An
    empty batch is a step of noise alone.

    Parameters
    ----------
    model : nn.Module
        On its device already; has passed the checks of `fedveil.privacy.preflight`.
    examples : Examples
        The client's training records; there may be none.
    training, dp : TrainingConfig, DpConfig
        With `nominal_records` and `noise_multiplier` resolved.
    generator : SecureGenerator
        Draws batches and noise.
    proximal_mu : float
        Weight of FedProx's proximal term, added after the noise.
    link : Link, optional
        To other processes that sum their share of each batch's clipped gradients.

    Returns
    -------
    int
        Optimiser steps taken, as the accountant must count them.

    Raises
    ------
    TrainingError
        If a constant is unresolved, or training changed a buffer of the model (a statistic of
        private records that no noise covers), or left a weight that is not finite.
    """
    probe = current_probe()
    if probe is not None:
        examples, dp, generator = probe.begin(examples, dp, generator)
    if dp.noise_multiplier is None or training.nominal_records is None:
        raise TrainingError(
            "the request leaves dp.noise_multiplier or training.nominal_records open; a client "
            "trains only with both fixed"
        )
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    optimizer = SecureDPOptimizer(
        make_optimizer(model, training),
        noise_multiplier=dp.noise_multiplier,
        max_grad_norm=dp.clip_norm,
        expected_batch_size=training.sampling_rate * training.nominal_records,
        noise=generator,
    )
    anchor = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
    processes = 1 if link is None else link.size
    rows = physical_rows(optimizer.expected_batch_size / processes, training.max_physical_batch)
    steps = 0
    with gradient_engine(
        training.engine, model, task.loss, optimizer, probe, training.precision
    ) as engine:
        for batch in poisson_batches(
            len(examples), training.sampling_rate, training.local_steps, generator
        ):
            own = batch if link is None else link.hand_out(batch, optimizer.params)
            sum_clipped_gradients(engine, optimizer, examples, own, rows)
            if link is not None:
                totals = link.add_up([p.summed_grad for p in optimizer.params])
                for p, total in zip(optimizer.params, totals, strict=True):
                    p.summed_grad = total
            optimizer.add_noise()
            if probe is not None:
                probe.after_noise([p.grad for p in optimizer.params])
            optimizer.scale_grad()
            if proximal_mu:
                add_proximal_gradient(anchor, proximal_mu)
            optimizer.original_optimizer.step()
            steps += 1
    refuse_changed_buffers(model, buffers)
    _refuse_non_finite_weights(model)
    return steps


def clipped_sum(
    model: nn.Module,
    task: Task,
    examples: Examples,
    clip_norm: float,
    engine: EngineName = "auto",
) -> list[Tensor]:
    """Return what training adds up for one batch of all `examples`, before any noise.

    For checks; a model in evaluation mode has no per-record gradients, so only its dropout is.

    Returns
    -------
    list of Tensor
        One a trainable parameter, of its shape.
    """
    own = copy.deepcopy(model)
    optimizer = optimizer_for_sums(own, DpConfig(noise_multiplier=1.0, clip_norm=clip_norm))
    with gradient_engine(engine, own, task.loss, optimizer) as gradients:
        for module in own.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        everything = np.arange(len(examples))
        rows = physical_rows(len(examples), len(examples))
        sum_clipped_gradients(gradients, optimizer, examples, everything, rows)
    return [p.summed_grad.detach() for p in optimizer.params]


def noise_alone(model: nn.Module, dp: DpConfig) -> Tensor:
    """Return the noise that training adds to the sum over a batch of nothing, shape (parameters,).

    For checks: it is drawn anew, and touches no record.
    """
    own = copy.deepcopy(model)
    optimizer = optimizer_for_sums(own, dp)
    for p in optimizer.params:
        p.summed_grad = torch.zeros_like(p)
    optimizer.add_noise()
    return torch.cat([p.grad.detach().flatten() for p in optimizer.params])


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and one.data_ptr() == other.data_ptr()


def optimizer_for_sums(model: nn.Module, dp: DpConfig) -> SecureDPOptimizer:
    """Return an optimiser that says what is trained and how it is clipped, and takes no step."""
    return SecureDPOptimizer(
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0),
        noise_multiplier=dp.noise_multiplier or 0.0,
        max_grad_norm=dp.clip_norm,
        expected_batch_size=1.0,
        noise=SecureGenerator(),
    )


def sum_clipped_gradients(
    engine: GradientEngine,
    optimizer: SecureDPOptimizer,
    examples: Examples,
    batch: NDArray[np.int64],
    rows: int,
) -> None:
    """Leave the sum of the batch's clipped gradients in each parameter's `summed_grad`.

    Each pass has `rows` rows, however many records there are.
    """
    optimizer.zero_grad(set_to_none=True)
    if not len(batch):
        for p in optimizer.params:
            p.summed_grad = torch.zeros_like(p)
        return
    device = optimizer.params[0].device
    for start in range(0, len(batch), rows):
        records = batch[start : start + rows]
        index = torch.from_numpy(records)
        inputs, targets = (with_blanks(part, index, rows) for part in (examples.x, examples.y))
        engine.add(inputs.to(device), targets.to(device), records)


def _refuse_non_finite_weights(model: nn.Module) -> None:
    for name, value in model.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise TrainingError(
                f"training left NaN or infinity in {name}; lower training.learning_rate"
            )
