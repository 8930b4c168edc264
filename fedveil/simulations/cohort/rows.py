"""The clients' records in one place, and rows of a pass picked from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedveil.tasks.base import Examples

__all__ = ["Batch", "Pass", "Pieces", "Records", "pieces_of"]

Batch = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pass:
    """What goes through a stack at once.

    Parameters
    ----------
    inputs, targets : Tensor
        Shapes (slots x rows, ...).
    is_record : Tensor
        Bool, (slots, rows): which rows count.
    """

    inputs: Tensor
    targets: Tensor
    is_record: Tensor


class Records:
    """The records of some clients behind each other, and a blank one at the end.

    Parameters
    ----------
    examples : sequence of Examples
        Each client's training records, of one shape and type; there may be none.

    Attributes
    ----------
    first : ndarray
        Where each client's records begin: int64, (clients,).
    """

    def __init__(self, examples: Sequence[Examples]) -> None:
        ends = np.cumsum([len(one) for one in examples], dtype=np.int64)
        self.first = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        self._blank = int(ends[-1])
        self._x, self._y = (
            torch.cat([*parts, parts[0].new_zeros(1, *parts[0].shape[1:])])
            for parts in ([one.x for one in examples], [one.y for one in examples])
        )

    def pick(self, batches: Sequence[Batch], rows: int, *, repeat: bool = False) -> Pass:
        """Return a pass with one slot a batch.

        Parameters
        ----------
        batches : sequence of ndarray
            Which records each slot takes, counted over all clients: int64, (at most `rows`,).
        rows : int
            Rows a slot has. Those behind its records are blank.
        repeat : bool
            Fill up with a batch's first record instead, if there is one: it is no stranger to the
            model, as a blank row may be.
        """
        index = np.full((len(batches), rows), self._blank)
        for row, batch in zip(index, batches, strict=True):
            row[: len(batch)] = batch
            if repeat and len(batch):
                row[len(batch) :] = batch[0]
        counts = np.array([len(batch) for batch in batches])
        is_record = torch.from_numpy(np.arange(rows) < counts[:, None])
        flat = torch.from_numpy(index.reshape(-1))
        return Pass(self._x[flat], self._y[flat], is_record)


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of batches, for one slot each.

    Parameters
    ----------
    clients : ndarray
        Whose they are: int64, (pieces,).
    batches : sequence of ndarray
        Their records.
    """

    clients: NDArray[np.int64]
    batches: Sequence[Batch]


def pieces_of(batches: Sequence[Batch], rows: int, first: int = 0) -> Pieces:
    """Cut batches into pieces of `rows` records, beginning with record `first` of each."""
    found = [
        (client, batch[start : start + rows])
        for client, batch in enumerate(batches)
        if len(batch) > first
        for start in range(first, len(batch), rows)
    ]
    clients = np.array([client for client, _ in found], dtype=np.int64)
    return Pieces(clients, [piece for _, piece in found])
