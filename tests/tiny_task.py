"""A task small enough to compute by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as f

from fedveil.tasks.base import Examples, Task


class TinyTask(Task):
    """Three Gaussian blobs in five dimensions; a linear model."""

    name: ClassVar[str] = "tiny"
    nominal_records: ClassVar[int] = 60

    def __init__(self, records: int = 60, model: Callable[[], nn.Module] | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        y = torch.arange(records) % 3
        x = torch.randn(records, 5, generator=generator) + 2.0 * f.one_hot(y, 5)
        self.examples = Examples(x, y)
        self._model = model or (lambda: nn.Linear(5, 3))

    def model(self) -> nn.Module:
        return self._model()

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        part = slice(partition, None, num_partitions)
        mine = Examples(self.examples.x[part], self.examples.y[part])
        return mine, mine

    def public_test(self) -> Examples | None:
        return self.examples

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return f.cross_entropy

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        right = (outputs.argmax(dim=1) == targets).double().mean()
        return {"accuracy": float(right), "loss": float(f.cross_entropy(outputs, targets))}
