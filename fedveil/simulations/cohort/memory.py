"""What a client takes in memory, and so how many are trained at once."""

from __future__ import annotations

import math
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from fedveil.client.gradients.blanks import blanks, physical_rows
from fedveil.client.trainer import TrainingJob
from fedveil.simulations.cohort.stack import layers_of
from fedveil.tasks.base import Task

__all__ = ["Room", "bytes_of"]

_MOST_BYTES = 2**26
_MOST_CLIENTS = 512
"""Each waits in a thread of its own."""

_COPIES_OF_WEIGHTS = 9
"""The model and its answer, the stack, its gradient and anchor, an optimiser's two, noise twice."""

_COPIES_OF_ACTIVATIONS = 2
"""What flows out of a layer, and the gradient of it."""

_bytes_a_row: WeakKeyDictionary[Task, tuple[int, int]] = WeakKeyDictionary()
"""Of activations, and of what the norms of convolutions' gradients are made of."""


class Room:
    """Room in memory for clients that are trained together; there is always room for one.

    Parameters
    ----------
    most_bytes : int
        Estimated bytes of stacked weights, activations and records from which on it is full.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._clients = 0

    @property
    def is_full(self) -> bool:
        """Whether the next client must wait."""
        return self._bytes >= self._most_bytes or self._clients >= _MOST_CLIENTS

    def take(self, job: TrainingJob) -> None:
        """Make room for a client."""
        self._bytes += bytes_of(job)
        self._clients += 1


def bytes_of(job: TrainingJob) -> int:
    """Return about how many bytes training a client takes, beside others."""
    weights = sum(_size(p) for p in job.model.parameters())
    records = _size(job.examples.x) + _size(job.examples.y)
    known = _bytes_a_row.get(job.task)
    if known is None:
        known = _bytes_a_row[job.task] = _measure(job)
    row = sum(known) if job.dp is not None else known[0]
    return _COPIES_OF_WEIGHTS * weights + records + _rows(job) * row


def _rows(job: TrainingJob) -> int:
    training = job.training
    if job.dp is not None and training.nominal_records is not None:
        expected = training.sampling_rate * training.nominal_records
        return physical_rows(expected, training.max_physical_batch)
    if training.sampling == "shuffle":
        return min(training.batch_size, len(job.examples))
    return math.ceil(training.sampling_rate * len(job.examples))


def _measure(job: TrainingJob) -> tuple[int, int]:
    activations = norms = 0

    def hear(layer: nn.Module, _: object, output: object) -> None:
        nonlocal activations, norms
        if not isinstance(output, Tensor):
            return
        activations += _COPIES_OF_ACTIVATIONS * _size(output)
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            positions = math.prod(output.shape[2:])
            patch = math.prod(layer.kernel_size) * layer.in_channels
            # Patches, and two Gram matrices in double precision or the gradient itself.
            norms += output.element_size() * positions * patch
            norms += min(24 * positions**2, _size(layer.weight))

    leaves = {m for m in job.model.modules() if not list(m.children())}
    handles = [m.register_forward_hook(hear) for m in leaves | set(layers_of(job.model).values())]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            job.model(blanks(job.examples.x, 1))
    finally:
        for handle in handles:
            handle.remove()
    return activations, norms


def _size(values: Tensor) -> int:
    return values.numel() * values.element_size()
