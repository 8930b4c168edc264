"""Local training without privacy, and what both ways of training share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from fedveil.config import TrainingConfig
from fedveil.errors import FedveilError
from fedveil.privacy.randomness import SecureGenerator
from fedveil.tasks.base import Examples, Task

__all__ = [
    "TrainingError",
    "add_proximal_gradient",
    "in_precision",
    "make_optimizer",
    "place",
    "plain_batches",
    "poisson_batches",
    "refuse_changed_buffers",
    "resolve_device",
    "torch_seeded",
    "train_plain",
]

_NEEDS_A_CLOSURE = {"LBFGS"}
_SPARSE_ONLY = {"SparseAdam"}
_WORTH_THREADS = 100_000
"""Parameters from which on more than one thread pays."""


class TrainingError(FedveilError):
    """Local training cannot start, or its result must not leave the client."""


def resolve_device(name: str) -> torch.device:
    """Return the device to train on.

    Parameters
    ----------
    name : str
        ``auto`` (CUDA where there is one), ``cpu``, ``cuda`` or ``cuda:N``.

    Raises
    ------
    TrainingError
        If CUDA is asked for by name and is not there.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= available:
        raise TrainingError(
            f'training.device = "{name}" is not there: this machine has {available} CUDA devices; '
            'use "auto" or "cpu"'
        )
    return device


def place(model: nn.Module, device: str) -> nn.Module:
    """Return `model` on its device, with as many CPU threads as its size is worth.

    A step of a small model is shorter than waking a second thread for it; where the other core
    is busy, waiting for that thread makes the step ten times as long.
    """
    if sum(p.numel() for p in model.parameters()) < _WORTH_THREADS:
        torch.set_num_threads(1)
    return model.to(resolve_device(device))


@contextmanager
def in_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Let a model compute in the precision "fp32" or "bf16"."""
    is_half = precision == "bf16"
    # A small model's step is short enough to feel it when what holds is said again.
    if not is_half and not torch.is_autocast_enabled(device.type):
        yield
        return
    enabled = torch.backends.mkldnn.enabled
    # oneDNN's convolution in bfloat16 is wrong on processors with AMX where the stride is as long
    # as the kernel (PyTorch 2.13).
    _use_onednn(bool(enabled) and not (is_half and device.type == "cpu"))
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=is_half):
            yield
    finally:
        _use_onednn(bool(enabled))


def _use_onednn(enabled: bool) -> None:
    torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]  # torch's own property


@contextmanager
def torch_seeded(generator: SecureGenerator) -> Iterator[None]:
    """Let dropout and the like draw from `generator`, and leave torch's stream as it was."""
    seed = int(generator.words(1)[0] >> 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def make_optimizer(model: nn.Module, training: TrainingConfig) -> Optimizer:
    """Return the configured optimiser of `torch.optim` over the model's parameters.

    Raises
    ------
    TrainingError
        If there is no such optimiser, or it does not take the options.
    """
    usable = {
        name.lower(): kind
        for name, kind in vars(torch.optim).items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
        if name not in _NEEDS_A_CLOSURE | _SPARSE_ONLY
    }
    kind = usable.get(training.optimizer.lower())
    if kind is None:
        raise TrainingError(
            f'training.optimizer = "{training.optimizer}" is unknown; known: '
            + ", ".join(sorted(usable))
        )
    parameters = [p for p in model.parameters() if p.requires_grad]
    try:
        options: dict[str, Any] = {"lr": training.learning_rate, **training.optimizer_options}
        return kind(parameters, **options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(f"training.optimizer_options: {error}") from None


def poisson_batches(
    records: int, rate: float, steps: int, generator: SecureGenerator
) -> Iterator[NDArray[np.int64]]:
    """Yield `steps` batches, each record in each with probability `rate`, independently.

    A batch may be empty; it is a step all the same.
    """
    for _ in range(steps):
        yield np.flatnonzero(generator.bernoulli(records, rate)).astype(np.int64)


def plain_batches(
    records: int, training: TrainingConfig, generator: SecureGenerator
) -> Iterator[NDArray[np.int64]]:
    """Yield the batches of a round without privacy, by the configured sampling."""
    if training.sampling == "poisson":
        yield from poisson_batches(records, training.sampling_rate, training.local_steps, generator)
        return
    order = np.empty(0, dtype=np.int64)
    for _ in range(training.local_steps):
        if not len(order):
            order = generator.permutation(records)
        yield order[: training.batch_size]
        order = order[training.batch_size :]


def add_proximal_gradient(anchor: Mapping[nn.Parameter, Tensor], mu: float) -> None:
    """Add the gradient of mu/2 |w - anchor|^2 to each parameter's gradient.

    It depends on no record, so it may follow the noise (Li et al. 2020, equation 2).
    """
    for parameter, start in anchor.items():
        if parameter.grad is not None:
            parameter.grad.add_(parameter.detach() - start, alpha=mu)


def train_plain(
    model: nn.Module,
    task: Task,
    examples: Examples,
    training: TrainingConfig,
    generator: SecureGenerator,
    proximal_mu: float = 0.0,
) -> float:
    """Train `model` in place, without privacy.

    Parameters
    ----------
    model : nn.Module
        On its device already.
    examples : Examples
        The client's training records; at least one.
    generator : SecureGenerator
        Draws the batches.
    proximal_mu : float
        Weight of FedProx's proximal term.

    Returns
    -------
    float
        Mean loss over the non-empty batches, in the loss's own unit.

    Raises
    ------
    TrainingError
        If there are no records.
    """
    if not len(examples):
        raise TrainingError("there are no training records")
    device = next(model.parameters()).device
    optimizer = make_optimizer(model, training)
    anchor = {p: p.detach().clone() for p in model.parameters() if p.requires_grad}
    model.train()
    losses = []
    for batch in plain_batches(len(examples), training, generator):
        if not len(batch):
            continue
        index = torch.from_numpy(batch)
        optimizer.zero_grad()
        with in_precision(training.precision, device):
            loss = task.loss(model(examples.x[index].to(device)), examples.y[index].to(device))
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if proximal_mu:
            add_proximal_gradient(anchor, proximal_mu)
        optimizer.step()
        losses.append(loss.item())
    return float(np.mean(losses)) if losses else 0.0


def refuse_changed_buffers(model: nn.Module, before: Mapping[str, Tensor]) -> None:
    """Refuse a model whose buffers training changed.

    Parameters
    ----------
    before : Mapping of str to Tensor
        Copies of its buffers before.

    Raises
    ------
    TrainingError
        Which one.
    """
    for name, value in model.named_buffers():
        if not torch.equal(value, before[name]):
            raise TrainingError(
                f"training changed the buffer {name} of the model: it now holds a statistic of "
                "private records that no noise covers"
            )
