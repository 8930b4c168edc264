"""Contributions of embeddings: a few rows a record, whatever the vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fedveil.client.gradients.per_record import Gradients, row_norms

__all__ = ["SparseRows", "sparse_rows"]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """The rows of an embedding that each record's gradient has, each once.

    Parameters
    ----------
    weight : Parameter
        Shape (vocabulary, width).
    records : int
        Records of the batch.
    owner, row : Tensor
        Whose row it is, and which: int64, (rows,).
    values : Tensor
        The gradients: (rows, width).
    """

    weight: nn.Parameter
    records: int
    owner: Tensor
    row: Tensor
    values: Tensor

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The embedding's weight."""
        return (self.weight,)

    def squared_norms(self) -> Tensor:
        """Return each record's squared norm: (records,), float64."""
        squares = row_norms(self.values).square()
        return squares.new_zeros(self.records).index_add_(0, self.owner, squares)

    def weighted_sum(self, weights: Tensor) -> Gradients:
        """Return the weighted sum over the records."""
        scaled = self.values * weights.to(self.values.dtype)[self.owner, None]
        total = scaled.new_zeros(self.weight.shape).index_add_(0, self.row, scaled)
        return {self.weight: total}

    def per_record(self) -> Gradients:
        """Return every record's gradient, zeros and all."""
        dense = self.values.new_zeros(self.records, *self.weight.shape)
        dense[self.owner, self.row] = self.values
        return {self.weight: dense}

    def without(self, dropped: Tensor) -> SparseRows:
        """Return the same with zeros for the dropped records."""
        return replace(self, values=self.values.masked_fill(dropped[self.owner, None], 0.0))


def sparse_rows(
    weight: nn.Parameter, indices: Tensor, outputs: Tensor, padding: int | None
) -> SparseRows:
    """Return an embedding's contribution.

    Parameters
    ----------
    weight : Parameter
        Shape (vocabulary, width).
    indices : Tensor
        What was looked up: integers, (records, ...).
    outputs : Tensor
        Gradients of what came out: (records, ..., width).
    padding : int, optional
        The row that is never trained.
    """
    records, vocabulary = len(indices), len(weight)
    flat = indices.reshape(records, -1).long()
    owners = torch.arange(records, device=flat.device)[:, None]
    keys, values = (owners * vocabulary + flat).flatten(), outputs.reshape(-1, weight.shape[1])
    if padding is not None:
        kept = flat.flatten() != padding
        keys, values = keys[kept], values[kept]
    unique, where = torch.unique(keys, return_inverse=True)
    added = values.new_zeros(len(unique), weight.shape[1]).index_add_(0, where, values)
    return SparseRows(weight, records, unique // vocabulary, unique % vocabulary, added)
