"""What flows in and out of a layer: the factors that its records' gradients are products of."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn

__all__ = ["LEAST_NORM", "Factors"]

LEAST_NORM = 1e-15
"""What a factor's norm is at least taken to be: squares of less may be lost in float32."""


@dataclass(frozen=True, eq=False)
class Factors:
    """A layer's inputs, and the gradients of what flows out of it.

    Parameters
    ----------
    weight, bias : Parameter, optional
        None where there is none, or it is not trained.
    inputs : Tensor
        Shape (records, ..., inputs).
    outputs : Tensor
        Gradients of each record's own loss: (records, ..., outputs).
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    inputs: Tensor
    outputs: Tensor

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        """The trained ones of weight and bias."""
        return tuple(p for p in (self.weight, self.bias) if p is not None)

    def without(self, dropped: Tensor) -> Self:
        """Return the same with zeros for the dropped records."""
        gone = dropped.view(-1, *[1] * (self.inputs.dim() - 1))
        return replace(
            self,
            inputs=self.inputs.masked_fill(gone, 0.0),
            outputs=self.outputs.masked_fill(gone, 0.0),
        )
