"""What is trained: the `Task` interface and the `Examples` it hands out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedveil.errors import FedveilError

__all__ = ["Examples", "Task", "TaskError"]


class TaskError(FedveilError):
    """A task cannot be built, or its data cannot be had or used."""


@dataclass(frozen=True)
class Examples(Dataset[tuple[Tensor, Tensor]]):
    """Examples held in memory, one record a row.

    Parameters
    ----------
    x : Tensor
        Inputs, shape (n, ...), on the CPU.
    y : Tensor
        Targets, shape (n, ...), on the CPU.

    Raises
    ------
    TaskError
        If `x` and `y` have different lengths.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise TaskError(f"{len(self.x)} inputs do not match {len(self.y)} targets")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]

    def non_finite_records(self) -> int:
        """Count the records that hold a NaN or an infinity."""
        bad = torch.zeros(len(self), dtype=torch.bool)
        for values in (self.x, self.y):
            if values.is_floating_point():
                bad |= ~torch.isfinite(values.reshape(len(self), -1)).all(dim=1)
        return int(bad.sum())


class Task(ABC):
    """One learning problem: a model, its data by client, a loss and metrics.

    Third parties register theirs under the entry-point group `fedveil.tasks`. The constructor
    takes keyword arguments only: those of `fedveil.tasks.registry.create_task`.

    Attributes
    ----------
    name : str
        The name in a configuration, for example ``"digits"``.
    data_files : Mapping[str, str]
        File name to sha256 (hex) of what must lie in the data directory; empty when the data
        comes with an installed package.
    nominal_records : int
        The published number of training records over all clients. A public constant: it scales
        noisy sums, so it must never be counted from private data.
    """

    name: ClassVar[str]
    data_files: ClassVar[Mapping[str, str]] = {}
    nominal_records: ClassVar[int]

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a freshly initialised model (draws from torch's global generator)."""

    @abstractmethod
    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        """Return one client's training and test examples.

        Parameters
        ----------
        partition : int
            Index of the client, 0 <= partition < num_partitions.
        num_partitions : int
            Number of clients that the data is divided among.

        Raises
        ------
        TaskError
            If the data is missing or damaged, or cannot be divided like this.
        """

    @abstractmethod
    def public_test(self) -> Examples | None:
        """Return the test set that is declared public, or None when there is none."""

    @property
    @abstractmethod
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The mean loss of a batch: (outputs, targets) to a scalar tensor.

        It must be a mean of terms that depend on one record each, as per-record gradients are.
        """

    @abstractmethod
    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, float]:
        """Return quality figures of the outputs; ``accuracy`` in [0, 1] is always among them."""

    @property
    def record_preprocessing_is_independent(self) -> bool:
        """Whether every example is computed from its own record and public constants alone.

        Where it is not (standardising with the mean of private records, say), one record
        changes other examples too, and a record-level guarantee would be false.
        """
        return True
