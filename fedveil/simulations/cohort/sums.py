"""Clipped sums of per-record gradients, one for each client."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedveil.client.gradients.bookkeeping import exactly, shared_as_one
from fedveil.client.gradients.clipping import clip_factors
from fedveil.client.gradients.layers import contribution
from fedveil.client.gradients.outer_products import OuterProducts
from fedveil.client.gradients.per_record import Contribution, PerRecord
from fedveil.client.gradients.products import Products
from fedveil.client.gradients.sparse_rows import SparseRows
from fedveil.client.gradients.taps import Flow

__all__ = ["clipped_sums"]


def clipped_sums(
    flows: Sequence[Flow], is_record: Tensor, clip_norm: float
) -> dict[nn.Parameter, Tensor]:
    """Return each client's sum of its records' gradients, each clipped over all parameters.

    Parameters
    ----------
    flows : sequence of Flow
        Of one pass over (clients x rows, ...).
    is_record : Tensor
        Bool, (clients, rows): which rows are records; the others are blank and add nothing.
    clip_norm : float
        L2 bound of one record's gradient. One that is not finite adds zero.

    Returns
    -------
    dict of Parameter to Tensor
        Shapes (clients, *shape), for the parameters that took part.
    """
    with torch.no_grad(), exactly(is_record.device):
        found = shared_as_one([contribution(f.layer, f.inputs, f.outputs) for f in flows])
        if not found:
            return {}
        squares = torch.stack([part.squared_norms() for part in found]).sum(dim=0)
        factors = torch.where(is_record.flatten(), clip_factors(squares, clip_norm), 0.0)
        is_finite = torch.isfinite(squares)
        if not bool(is_finite.all()):
            # Zero times infinity is no zero.
            found = [part.without(~is_finite) for part in found]
        sums: dict[nn.Parameter, Tensor] = {}
        for part in found:
            sums.update(_weighted_sums(part, factors.view(is_record.shape)))
        return sums


def _weighted_sums(part: Contribution, weights: Tensor) -> dict[nn.Parameter, Tensor]:
    """Return the weighted sum over each client's rows; weights (clients, rows), float64."""
    if isinstance(part, OuterProducts):
        return _of_outer_products(part, weights)
    if isinstance(part, Products):
        return _of_products(part, weights)
    if isinstance(part, SparseRows):
        return _of_sparse_rows(part, weights)
    assert isinstance(part, PerRecord)  # noqa: S101  # there is no other
    return {p: _of_rows(g, weights) for p, g in part.gradients.items()}


def _of_rows(gradients: Tensor, weights: Tensor) -> Tensor:
    clients, rows = weights.shape
    flat = gradients.reshape(clients, rows, -1)
    total = weights.to(flat.dtype).unsqueeze(1) @ flat
    return total.view(clients, *gradients.shape[1:])


def _of_outer_products(part: OuterProducts, weights: Tensor) -> dict[nn.Parameter, Tensor]:
    clients, rows = weights.shape
    inputs, outputs = (flow.view(clients, rows, -1) for flow in (part.inputs, part.outputs))
    scaled = outputs * weights.to(outputs.dtype).unsqueeze(2)
    total: dict[nn.Parameter, Tensor] = {}
    if part.weight is not None:
        total[part.weight] = torch.bmm(scaled.mT, inputs)
    if part.bias is not None:
        total[part.bias] = scaled.sum(dim=1)
    return total


def _of_products(part: Products, weights: Tensor) -> dict[nn.Parameter, Tensor]:
    clients, rows = weights.shape
    groups, positions = part.inputs.shape[1:3]
    scaled = part.outputs * weights.to(part.outputs.dtype).view(-1, 1, 1, 1)
    total: dict[nn.Parameter, Tensor] = {}
    if part.weight is not None:
        left, right = (
            flow.view(clients, rows, groups, positions, -1)
            .transpose(1, 2)
            .reshape(clients * groups, rows * positions, -1)
            for flow in (scaled, part.inputs)
        )
        total[part.weight] = torch.bmm(left.mT, right).view(clients, *part.weight.shape)
    if part.bias is not None:
        # Over positions first, as the norm has it: what is clipped is what was measured.
        gradients = part.outputs.sum(dim=2).view(clients * rows, *part.bias.shape)
        total[part.bias] = _of_rows(gradients, weights)
    return total


def _of_sparse_rows(part: SparseRows, weights: Tensor) -> dict[nn.Parameter, Tensor]:
    clients, rows = weights.shape
    vocabulary, width = part.weight.shape
    scaled = part.values * weights.flatten().to(part.values.dtype)[part.owner, None]
    table = scaled.new_zeros(clients * vocabulary, width)
    table.index_add_(0, (part.owner // rows) * vocabulary + part.row, scaled)
    return {part.weight: table.view(clients, vocabulary, width)}
