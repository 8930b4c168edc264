"""Blank rows: every pass has the same number of rows, so that no record bears on another's bits.

Matrix products of other sizes add in another order. With weights that a malicious server has made
huge, the rounding of a record's gradient is as large as the gradient, and would then tell how
many records were computed beside it: by more than the clip norm.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["blanks", "physical_rows", "with_blanks"]

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


def blanks(like: Tensor, rows: int) -> Tensor:
    """Return rows of zeros of the same kind, shape (rows, ...).

    Zero is a valid class, token and measurement for each task.
    """
    return like.new_zeros(rows, *like.shape[1:])


def with_blanks(values: Tensor, records: Tensor, rows: int) -> Tensor:
    """Return the records' values with blank rows behind them, shape (rows, ...).

    Parameters
    ----------
    values : Tensor
        Of all records.
    records : Tensor
        Whose to take: int64, (at most `rows`,).
    rows : int
        How many rows there are in all.
    """
    chosen = values.new_empty(rows, *values.shape[1:])
    # Each value is copied once.
    torch.index_select(values, 0, records, out=chosen[: len(records)])
    chosen[len(records) :] = 0
    return chosen
