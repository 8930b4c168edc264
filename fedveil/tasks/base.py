"""What is trained: the `Task` interface and the `Examples` it hands out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from fedveil.tasks.errors import TaskError
from fedveil.tasks.files import DataFiles
from fedveil.tasks.forms import FieldsForm, ImageForm, TextForm
from fedveil.tasks.options import Option, OptionValue, resolve_options
from fedveil.tasks.partition import PartitionSpec, check_seed

__all__ = ["Examples", "ModelInputs", "Task", "TaskError"]


@dataclass(frozen=True, eq=False)
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

    def first(self) -> Examples:
        """Return the first record alone."""
        return Examples(self.x[:1], self.y[:1])

    def non_finite_records(self) -> int:
        """Count the records that hold a NaN or an infinity."""
        bad = torch.zeros(len(self), dtype=torch.bool)
        for values in (self.x, self.y):
            if values.is_floating_point():
                rows = values.reshape(len(self), math.prod(values.shape[1:]))
                bad |= ~torch.isfinite(rows).all(dim=1)
        return int(bad.sum())


@dataclass(frozen=True)
class ModelInputs:
    """What a model takes, known without any data file.

    Parameters
    ----------
    row_shape : tuple of int
        Shape of one record, without the first axis.
    dtype : dtype
        Of torch.
    below : int, optional
        Of integers that are codes: each is at least 0 and below this.
    """

    row_shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    below: int | None = None


class Task(ABC):
    """One learning problem: a model, its data by client, a loss and metrics.

    Third parties register theirs under the entry-point group `fedveil.tasks`; it is built with
    the parameters below.

    Parameters
    ----------
    seed : int
        >= 0. Fixes who holds which record, and each client's own test split.
    partition : PartitionSpec
        How records are divided among clients.
    data_dir : Path, optional
        Where `data_files` lie. No file is touched before examples are asked for.
    options : Mapping[str, str | int | float | bool]
        Values for some of `known_options`.

    Attributes
    ----------
    name : str
        The name in a configuration, for example ``"digits"``.
    data_files : Mapping[str, str]
        File name to sha256 (hex) of what must lie in the data directory; empty when the data
        comes with an installed package. Of a file ending in ``.npz`` the arrays are hashed
        (`fedveil.tasks.files.arrays_sha256`), of any other its bytes.
    data_source : str
        The public place that `data_files` come from, for the message when one is missing.
    nominal_records : int
        The published number of training records over all clients. A public constant: it scales
        noisy sums, so it must never be counted from private data.
    natural_groups : str or None
        What the groups of the scheme "natural" are, for example ``"hospital"``; None when the
        records come in no groups.
    partial_metrics : frozenset of str
        Metrics that a client may lack, as the ROC curve's where all its records are of one class.
        Under secure aggregation all clients must name the same ones.
    known_options : Mapping[str, Option]
        The options of the task.
    options_without_privacy : Mapping[str, OptionValue]
        Defaults that hold where a run asks for no privacy: what a guarantee forbids, as
        standardising with private statistics, is often what comparisons without one expect.
    class_names : tuple of str
        What the classes are called, by their number; empty where the number is the name.
    options : Mapping[str, str | float]
        A value for each of `known_options`, checked.

    Raises
    ------
    TaskError
        If a setting is not allowed.
    """

    name: ClassVar[str]
    data_files: ClassVar[Mapping[str, str]] = MappingProxyType({})
    data_source: ClassVar[str] = ""
    nominal_records: ClassVar[int]
    natural_groups: ClassVar[str | None] = None
    partial_metrics: ClassVar[frozenset[str]] = frozenset()
    known_options: ClassVar[Mapping[str, Option]] = MappingProxyType({})
    options_without_privacy: ClassVar[Mapping[str, OptionValue]] = MappingProxyType({})
    class_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        seed: int,
        partition: PartitionSpec,
        data_dir: Path | None = None,
        options: Mapping[str, OptionValue] = MappingProxyType({}),
    ) -> None:
        check_seed(seed)
        if partition.scheme == "natural" and self.natural_groups is None:
            raise TaskError(
                f"the records of task {self.name} come in no natural groups;"
                " choose the partition scheme iid, dirichlet or shards"
            )
        self.seed = seed
        self.partition = partition
        self.options: Mapping[str, str | float] = MappingProxyType(
            resolve_options(self.name, self.known_options, options)
        )
        self.files = DataFiles(self.name, data_dir, self.data_files, self.data_source)

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a freshly initialised model (draws from torch's global generator)."""

    def model_inputs(self) -> ModelInputs:
        """Return what the model takes, for a service that offers it.

        As it stands here, it is read off the public test set; a task whose data lie in files says
        it outright, since a service has no data.

        Raises
        ------
        TaskError
            If there is no public test set, or it cannot be read.
        """
        public = self.public_test()
        if public is None:
            raise TaskError(
                f"the task {self.name} does not say what its model takes: it has no public test"
                " set, and no model_inputs of its own"
            )
        return ModelInputs(tuple(public.x.shape[1:]), public.x.dtype)

    def form(self) -> FieldsForm | ImageForm | TextForm | None:
        """Return how people give an input, for a page or a command line; None where unknown."""
        return None

    @abstractmethod
    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        """Return one client's training and test examples.

        A client may be left without test examples. What was loaded is kept, so that calling
        this every round is cheap.

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
        """Return quality figures of the outputs; ``accuracy`` in [0, 1] is always among them.

        Raises
        ------
        TaskError
            If there are no outputs, or some are NaN or infinite.
        """

    @property
    def record_preprocessing_is_independent(self) -> bool:
        """Whether every example is computed from its own record and public constants alone.

        Where it is not (standardising with the mean of private records, say), one record
        changes other examples too, and a record-level guarantee would be false.
        """
        return True

    def _check_client(self, partition: int, num_partitions: int) -> None:
        if not 0 <= partition < num_partitions:
            raise TaskError(
                f"client {partition} of {num_partitions} does not exist;"
                f" clients count from 0 to {num_partitions - 1}"
            )
