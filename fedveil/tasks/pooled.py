"""Tasks whose records lie in one pool that is dealt out to clients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from torch import Tensor

from fedveil.tasks.base import Examples, Task
from fedveil.tasks.options import Number, Option
from fedveil.tasks.partition import partition_indices, split_off_test

__all__ = ["CLIENT_TEST_FRACTION", "Pool", "PooledTask", "fixed_hold_out"]

CLIENT_TEST_FRACTION: Mapping[str, Option] = {"client_test_fraction": Number(0.1, 0.0, 0.9)}

# The public test set of data that comes without one must not change with a user's seed.
_HOLD_OUT_STATE = 20_170_417
_HOLD_OUT_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Pool:
    """The records of a task, as they lie in its files.

    Parameters
    ----------
    x, labels : ndarray, shape (n, ...) and (n,)
        Records that the clients share, and their classes (integers).
    test_x, test_labels : ndarray, shape (m, ...) and (m,)
        Records of the public test set.
    groups : ndarray of int, shape (n,), optional
        Natural group of every record that the clients share.
    """

    x: NDArray[np.generic]
    labels: NDArray[np.int64]
    test_x: NDArray[np.generic]
    test_labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None


class PooledTask(Task):
    """A task over one `Pool`; each client splits off its own test examples.

    The share of those is the option ``client_test_fraction``, rounded down, 0.1 unless given;
    0 leaves every record for training.
    """

    known_options: ClassVar[Mapping[str, Option]] = CLIENT_TEST_FRACTION

    @abstractmethod
    def read_pool(self) -> Pool:
        """Read the records; called once.

        Raises
        ------
        TaskError
            If a data file is missing or damaged.
        """

    @abstractmethod
    def inputs(self, x: NDArray[np.generic]) -> Tensor:
        """Return the model's inputs for some records of the pool, each from itself alone."""

    @abstractmethod
    def targets(self, labels: NDArray[np.int64]) -> Tensor:
        """Return the targets for some labels of the pool."""

    def load(self, partition: int, num_partitions: int) -> tuple[Examples, Examples]:
        """Return one client's training and test examples; see `Task.load`."""
        self._check_client(partition, num_partitions)
        key = (partition, num_partitions)
        if key not in self._loaded:
            fraction = float(self.options["client_test_fraction"])
            mine = self._parts(num_partitions)[partition]
            train, test = split_off_test(mine, fraction, self.seed, partition)
            self._loaded[key] = (self._examples(train), self._examples(test))
        return self._loaded[key]

    def public_test(self) -> Examples:
        """Return the public test set, the same for every seed and partition."""
        return self._public_test

    @cached_property
    def _pool(self) -> Pool:
        return self.read_pool()

    @cached_property
    def _loaded(self) -> dict[tuple[int, int], tuple[Examples, Examples]]:
        return {}

    @cached_property
    def _divided(self) -> dict[int, list[NDArray[np.int64]]]:
        return {}

    @cached_property
    def _public_test(self) -> Examples:
        pool = self._pool
        return Examples(self.inputs(pool.test_x), self.targets(pool.test_labels))

    def _parts(self, num_partitions: int) -> list[NDArray[np.int64]]:
        if num_partitions not in self._divided:
            pool = self._pool
            self._divided[num_partitions] = partition_indices(
                self.partition, pool.labels, num_partitions, self.seed, pool.groups
            )
        return self._divided[num_partitions]

    def _examples(self, rows: NDArray[np.int64]) -> Examples:
        return Examples(self.inputs(self._pool.x[rows]), self.targets(self._pool.labels[rows]))


def fixed_hold_out(x: NDArray[np.generic], labels: NDArray[np.int64]) -> Pool:
    """Hold out a fifth of the records, stratified, as the public test set.

    Parameters
    ----------
    x, labels : ndarray, shape (n, ...) and (n,)
        All records of a data set that was published without a test set.

    Returns
    -------
    Pool
        The same split whatever the user's seed.
    """
    train_x, test_x, train_labels, test_labels = train_test_split(
        x, labels, test_size=_HOLD_OUT_FRACTION, random_state=_HOLD_OUT_STATE, stratify=labels
    )
    return Pool(train_x, train_labels, test_x, test_labels)
