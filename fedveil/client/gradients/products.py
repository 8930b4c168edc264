"""Contributions of linear and convolutional layers: sums of outer products over positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedveil.client.gradients.factors import LEAST_NORM, Factors
from fedveil.client.gradients.per_record import Gradients, PerRecord, row_norms

__all__ = ["Products", "products"]

_MOST_CANCELLATION = 1024.0
"""How many times shorter than the sum of its terms' norms a gradient is taken to be."""

_FLOPS_A_NUMBER = 30.0
"""What writing and reading a number in memory costs, in floating-point operations."""


@dataclass(frozen=True, eq=False)
class Products(Factors):
    """Gradients of the form sum over t of (output gradient at t) x (input at t).

    Nothing of the size records x parameters is made (book-keeping: Bu et al. 2023,
    "Differentially private optimization on large model at small cost", Algorithm 1): the norm at
    one position is a product of two norms, and over T positions it follows from two Gram matrices
    of size T x T (ghost norm, Li et al. 2022, section 4). The clipped sum is one product.

    The Gram matrices cancel where the positions' gradients do, so they are in double precision,
    and a gradient that cancels more than a thousandfold is taken to be longer than it is: then
    the rounding of the clipped product is small beside the clip norm whatever the weights are.

    Inputs have the shape (records, groups, positions, inputs a group), outputs (records, groups,
    positions, outputs a group).
    """

    def squared_norms(self) -> Tensor:
        """Return each record's squared norm over weight and bias: (records,), float64."""
        total = torch.zeros(len(self.inputs), dtype=torch.float64, device=self.inputs.device)
        if self.weight is not None:
            total += self._weight_squares()
        if self.bias is not None:
            total += row_norms(self._bias_gradients()).square()
        return total

    def weighted_sum(self, weights: Tensor) -> Gradients:
        """Return the weighted sums, each one product."""
        scale = weights.to(self.outputs.dtype)
        total: dict[nn.Parameter, Tensor] = {}
        if self.weight is not None:
            groups = self.inputs.shape[1]
            scaled = (self.outputs * scale[:, None, None, None]).movedim(1, 0).flatten(1, 2)
            inputs = self.inputs.movedim(1, 0).reshape(groups, -1, self.inputs.shape[3])
            total[self.weight] = (scaled.transpose(1, 2) @ inputs).view_as(self.weight)
        if self.bias is not None:
            total[self.bias] = scale @ self._bias_gradients()
        return total

    def per_record(self) -> Gradients:
        """Return every record's gradient."""
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight is not None:
            matrices = self.outputs.transpose(2, 3) @ self.inputs
            gradients[self.weight] = matrices.reshape(-1, *self.weight.shape)
        if self.bias is not None:
            gradients[self.bias] = self._bias_gradients()
        return gradients

    def _weight_squares(self) -> Tensor:
        # (records, groups, positions): the norm of each term.
        terms = row_norms(self.inputs).clamp(min=LEAST_NORM) * row_norms(self.outputs).clamp(
            min=LEAST_NORM
        )
        if terms.shape[2] == 1:
            return terms.square().sum(dim=(1, 2))
        a, g = self.inputs.double(), self.outputs.double()
        squares = ((a @ a.mT) * (g @ g.mT)).sum(dim=(2, 3))
        least = (terms.sum(dim=2) / _MOST_CANCELLATION).square()
        return torch.maximum(squares, least).sum(dim=1)

    def _bias_gradients(self) -> Tensor:
        if self.outputs.shape[2] == 1:
            return self.outputs.flatten(1)
        return self.outputs.sum(dim=2).flatten(1)


def products(
    weight: nn.Parameter | None, bias: nn.Parameter | None, inputs: Tensor, outputs: Tensor
) -> Products | PerRecord:
    """Return a layer's contribution, by whichever way costs less at its size.

    Parameters
    ----------
    weight, bias : Parameter, optional
        None where there is none, or it is not trained.
    inputs : Tensor
        Shape (records, groups, positions, inputs a group), float32 or float64.
    outputs : Tensor
        Gradients of the outputs, shape (records, groups, positions, outputs a group).
    """
    found = Products(weight, bias, inputs, outputs)
    positions, size = inputs.shape[2], (inputs.shape[3], outputs.shape[3])
    if weight is None or positions == 1:
        return found
    # Double precision counts twice. The product that sums, or makes, the gradients is in both.
    ghost = positions**2 * (4.0 * sum(size) + 4.0 * _FLOPS_A_NUMBER)
    made = size[0] * size[1] * _FLOPS_A_NUMBER
    return found if ghost < made else PerRecord(found.per_record())
