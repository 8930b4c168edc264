"""Blank rows: every pass has the same number of rows, so that no record bears on another's bits.

Matrix products of other sizes add in another order. With weights that a malicious server has made
huge, the rounding of a record's gradient is as large as the gradient, and would then tell how
many records were computed beside it: by more than the clip norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["physical_rows", "with_blanks"]

_MULTIPLE = 16
"""Below as many rows, and between multiples, kernels treat the last rows unlike the others."""


def physical_rows(expected: float, most: int) -> int:
    """Return how many rows each pass has.

    Parameters
    ----------
    expected : float
        Public: expected number of records in a batch. Most batches fit into one pass.
    most : int
        Most rows in memory at once; at least 16 are taken.
    """
    wanted = _MULTIPLE * math.ceil((expected + 2.0 * math.sqrt(expected)) / _MULTIPLE)
    return max(_MULTIPLE, min(wanted, most // _MULTIPLE * _MULTIPLE))


def with_blanks(values: Tensor, rows: int) -> Tensor:
    """Return values with rows of zeros behind them, shape (rows, ...).

    Zero is a valid class, token and measurement for each task.
    """
    blank = values.new_zeros(rows - len(values), *values.shape[1:])
    return torch.cat([values, blank])
