"""One model whose layers hold the weights of many clients."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fedveil.client.local_training import make_optimizer
from fedveil.config import TrainingConfig
from fedveil.simulations.cohort.layers import apply_of

__all__ = ["Stack", "layers_of"]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have parameters of their own, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    }


class Stack:
    """The models of some clients as one: what has parameters computes with each client's own.

    All else of the model sees only more rows, and must treat each on its own.

    Parameters
    ----------
    models : sequence of nn.Module
        Of one architecture, on one device; they are left as they are. At least one.

    Attributes
    ----------
    model : nn.Module
        In training mode; takes (clients x rows, ...), the clients' rows one after another.
    weights : mapping of Parameter to Parameter
        For each parameter of `model`, in its order, the clients' own: (clients, *shape). The
        parameters themselves are NaN.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.model = copy.deepcopy(models[0]).train()
        rows = zip(*(model.parameters() for model in models), strict=True)
        self.weights: Mapping[nn.Parameter, nn.Parameter] = {
            p: nn.Parameter(torch.stack([one.detach() for one in own]), p.requires_grad)
            for p, own in zip(self.model.parameters(), rows, strict=True)
        }
        self._used: Mapping[nn.Parameter, Tensor] = self.weights
        for layer in layers_of(self.model).values():
            self._take_over(layer)
        for p in self.weights:
            # Nobody uses them any more; who does, unforeseen, shall not go unnoticed.
            p.detach().fill_(torch.nan)

    @property
    def clients(self) -> int:
        """How many clients there are."""
        return len(next(iter(self.weights.values())))

    @property
    def trained(self) -> Mapping[nn.Parameter, nn.Parameter]:
        """Those of `weights` that are trained."""
        return {p: stacked for p, stacked in self.weights.items() if p.requires_grad}

    def optimizer(self, training: TrainingConfig) -> Optimizer:
        """Return the configured optimiser over the trained weights, each number on its own."""
        return make_optimizer(nn.ParameterList(self.trained.values()), training)

    @contextmanager
    def only(self, clients: Tensor | None) -> Iterator[None]:
        """Let `model` take the rows of these clients alone: int64, (some,); None are all."""
        if clients is not None:
            self._used = {p: stacked[clients] for p, stacked in self.weights.items()}
        try:
            yield
        finally:
            self._used = self.weights

    def _take_over(self, layer: nn.Module) -> None:
        apply = apply_of(layer)
        own = dict(layer.named_parameters(recurse=False))

        def forward(x: Tensor) -> Tensor:
            weight, bias = own.get("weight"), own.get("bias")
            return apply(
                x,
                None if weight is None else self._used[weight],
                None if bias is None else self._used[bias],
            )

        layer.forward = forward  # in the copy alone
