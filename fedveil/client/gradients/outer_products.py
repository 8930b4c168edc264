"""Contributions of linear layers that each record passes once: one outer product a record."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor, nn

from fedveil.client.gradients.per_record import Gradients, row_norms

__all__ = ["LEAST_NORM", "OuterProducts"]

LEAST_NORM = 1e-15
"""What a factor's norm is at least taken to be: squares of less may be lost in float32."""


@dataclass(frozen=True, eq=False)
class OuterProducts:
    """Gradients of the form (output gradient) x (input), and of a bias the output gradient.

    A record's norm is a product of two norms, and the clipped sum is one product (book-keeping:
    Bu et al. 2023, "Differentially private optimization on large model at small cost",
    Algorithm 1).

    Parameters
    ----------
    weight, bias : Parameter, optional
        None where there is none, or it is not trained.
    inputs : Tensor
        Shape (records, inputs).
    outputs : Tensor
        Gradients of each record's own loss: (records, outputs).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    inputs: Tensor
    outputs: Tensor

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trained ones of weight and bias."""
        return tuple(p for p in (self.weight, self.bias) if p is not None)

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

    def without(self, dropped: Tensor) -> OuterProducts:
        """Return the same with zeros for the dropped records."""
        gone = dropped.unsqueeze(1)
        return replace(
            self,
            inputs=self.inputs.masked_fill(gone, 0.0),
            outputs=self.outputs.masked_fill(gone, 0.0),
        )
