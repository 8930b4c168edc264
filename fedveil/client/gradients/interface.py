"""What an engine is, whichever computes the sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["EngineName", "GradientEngine", "Loss", "Precision"]

EngineName = Literal["auto", "opacus", "fast"]

Precision = Literal["fp32", "bf16"]

Loss = Callable[[Tensor, Tensor], Tensor]


class GradientEngine(Protocol):
    """Adds up clipped per-record gradients."""

    def add(self, inputs: Tensor, targets: Tensor, records: NDArray[np.int64]) -> None:
        """Add the records' clipped gradients to each parameter's `summed_grad`.

        Parameters
        ----------
        inputs, targets : Tensor
            One row a record, at least one, and then any number of blank rows, which add nothing.
        records : ndarray
            Which records the first rows are: int64, (records,).
        """

    def close(self) -> None:
        """Leave the model as it was."""
