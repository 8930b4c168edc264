"""Contributions of linear layers that each record passes once: one outer product a record."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedveil.client.gradients.factors import LEAST_NORM, Factors
from fedveil.client.gradients.per_record import Gradients, row_norms

__all__ = ["OuterProducts"]


@dataclass(frozen=True, eq=False)
class OuterProducts(Factors):
    """Gradients of the form (output gradient) x (input), and of a bias the output gradient.

    A record's norm is a product of two norms, and the clipped sum is one product (book-keeping:
    Bu et al. 2023, "Differentially private optimization on large model at small cost",
    Algorithm 1).

    Inputs have the shape (records, inputs), outputs (records, outputs).
    """

    def squared_norms(self) -> Tensor:
        """Return each record's squared norm over weight and bias: (records,), float64."""
        outputs = row_norms(self.outputs).clamp_(min=LEAST_NORM).square_()
        if self.weight is None:
            return outputs
        inputs = row_norms(self.inputs).clamp_(min=LEAST_NORM).square_()
        # The bias has a gradient like a weight whose input is always 1.
        return outputs * inputs if self.bias is None else outputs.addcmul(outputs, inputs)

    def weighted_sum(self, weights: Tensor) -> Gradients:
        """Return the weighted sums, that of the weight one product."""
        scaled = self.outputs * weights.to(self.outputs.dtype).unsqueeze(1)
        total: dict[nn.Parameter, Tensor] = {}
        if self.weight is not None:
            total[self.weight] = scaled.t() @ self.inputs
        if self.bias is not None:
            total[self.bias] = scaled.sum(dim=0)
        return total

    def per_record(self) -> Gradients:
        """Return every record's gradient."""
        gradients: dict[nn.Parameter, Tensor] = {}
        if self.weight is not None:
            gradients[self.weight] = self.outputs.unsqueeze(2) * self.inputs.unsqueeze(1)
        if self.bias is not None:
            gradients[self.bias] = self.outputs
        return gradients
