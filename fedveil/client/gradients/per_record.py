"""Contributions with every record's gradient in memory, and what a contribution is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch import Tensor, nn

__all__ = ["Contribution", "Gradients", "PerRecord", "added_up", "row_norms", "working"]

Gradients = Mapping[nn.Parameter, Tensor]

_BLOCK = 256


class Contribution(Protocol):
    """What the records of a batch contribute to the gradients of one layer's parameters."""

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trainable parameters in question."""

    def squared_norms(self) -> Tensor:
        """Return each record's squared L2 norm over these parameters: (records,), float64.

        It is never below the squared norm of what `weighted_sum` adds for the record at weight
        one, but for the rounding of float32.
        """

    def weighted_sum(self, weights: Tensor) -> Gradients:
        """Return the sum of the records' gradients, weighted: weights (records,), float64."""

    def per_record(self) -> Gradients:
        """Return every record's gradient: (records, *shape of the parameter)."""

    def without(self, dropped: Tensor) -> Self:
        """Return the same with nothing of the dropped records: bool, (records,)."""


@dataclass(frozen=True, eq=False)
class PerRecord:
    """Every record's gradient in memory.

    What is clipped is what was measured, whatever the rounding before.

    Parameters
    ----------
    gradients : mapping of Parameter to Tensor
        Shapes (records, *shape of the parameter); at least one.
    """

    gradients: Gradients

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The parameters whose gradients these are."""
        return tuple(self.gradients)

    def squared_norms(self) -> Tensor:
        """Return each record's squared norm: (records,), float64."""
        norms = [row_norms(g.flatten(1)) for g in self.gradients.values()]
        return torch.stack(norms).square().sum(dim=0)

    def weighted_sum(self, weights: Tensor) -> Gradients:
        """Return the weighted sum over the records."""
        return {
            p: (weights.to(g.dtype) @ g.flatten(1)).view_as(p) for p, g in self.gradients.items()
        }

    def per_record(self) -> Gradients:
        """Return every record's gradient."""
        return self.gradients

    def without(self, dropped: Tensor) -> PerRecord:
        """Return the same with zeros for the dropped records."""
        return PerRecord(
            {
                p: g.masked_fill(dropped.view(-1, *[1] * (g.dim() - 1)), 0.0)
                for p, g in self.gradients.items()
            }
        )


def added_up(contributions: Iterable[Contribution]) -> PerRecord:
    """Return contributions as one, parameters that occur several times added up a record.

    A parameter that is used twice has the sum of both gradients; the norm of a sum does not
    follow from the norms of its terms.
    """
    total: dict[nn.Parameter, Tensor] = {}
    for contribution in contributions:
        for p, gradient in contribution.per_record().items():
            total[p] = total[p] + gradient if p in total else gradient
    return PerRecord(total)


def row_norms(values: Tensor) -> Tensor:
    """Return the L2 norms over the last dimension, in float64.

    Squares are added up in float32 over a few hundred numbers at most, so that the error stays
    below 1e-6 of a norm however long it is; a copy of all in float64 would cost more than the norm.
    A norm whose square is beyond float32 is infinite.
    """
    width = values.shape[-1]
    if width <= _BLOCK:
        return _norms(values).double()
    block = _block(width)
    whole = width // block * block
    blocks = _norms(values[..., :whole].reshape(*values.shape[:-1], -1, block))
    if whole < width:
        blocks = torch.cat([blocks, _norms(values[..., whole:]).unsqueeze(-1)], dim=-1)
    return _norms(blocks.double())


def working(values: Tensor) -> Tensor:
    """Return values in a precision to add up in: float32, or float64 where they are.

    Under autocast layers hand over bfloat16, whose 8 bits would move a record beyond the clip
    norm by half a percent.
    """
    return values if values.dtype == torch.float64 else values.float()


@lru_cache
def _block(width: int) -> int:
    """Return the longest block that leaves nothing over; the longest of all if those are short."""
    fitting = [size for size in range(_BLOCK // 2, _BLOCK + 1) if width % size == 0]
    return fitting[-1] if fitting else _BLOCK


def _norms(values: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(values, dim=-1)
    return norms
