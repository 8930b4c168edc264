"""What flows into each layer, and the gradients of what flows out, of one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from fedveil.client.local_training import TrainingError

__all__ = ["Flow", "Taps"]


@dataclass(frozen=True, eq=False)
class Flow:
    """One use of a layer.

    Parameters
    ----------
    layer : nn.Module
        The layer.
    inputs : Tensor
        What flowed in: (records, ...).
    outputs : Tensor
        The gradients of each record's own loss in what flowed out: (records, ...).
    """

    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


@dataclass(frozen=True, eq=False)
class _Call:
    name: str
    layer: nn.Module
    inputs: Tensor
    version: int
    edge: GradientEdge


class Taps:
    """Hooks on the layers of a model that listen to one pass at a time.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        Whom to listen to, by name.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._calls: list[_Call] | None = None
        self._rows = 0
        self._handles = [
            layer.register_forward_hook(partial(self._hear, name)) for name, layer in layers.items()
        ]

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def flows(self, loss: Callable[[], Tensor], records: int) -> Sequence[Flow]:
        """Run a pass forward and backward and return the uses of the layers in it.

        No gradient of a parameter is computed: the pass back goes through the layers' outputs
        alone.

        Parameters
        ----------
        loss : callable
            The mean of the records' losses.
        records : int
            How many there are; each row of each layer must belong to one of them.

        Raises
        ------
        TrainingError
            If a layer's inputs or outputs are not one row a record, or were overwritten.
        """
        with self._listening(records) as calls:
            mean = loss()
        edges = [call.edge for call in calls]
        # The gradients of the records' own losses are those of their sum.
        found = torch.autograd.grad(mean * records, edges, allow_unused=True) if edges else ()
        flows = []
        for call, gradient in zip(calls, found, strict=True):
            if call.inputs._version != call.version:
                raise TrainingError(
                    f"layer {call.name}: its inputs were overwritten in place after it had read "
                    "them, so that its gradient cannot be computed; change the model"
                )
            if gradient is not None:
                flows.append(Flow(call.layer, call.inputs, gradient))
        return flows

    @contextmanager
    def _listening(self, records: int) -> Iterator[list[_Call]]:
        self._calls, self._rows = [], records
        try:
            yield self._calls
        finally:
            self._calls = None

    def _hear(
        self, name: str, layer: nn.Module, inputs: tuple[object, ...], output: object
    ) -> None:
        if self._calls is None or not torch.is_grad_enabled():
            return
        entered = inputs[0] if len(inputs) == 1 else None
        if not isinstance(entered, Tensor) or not isinstance(output, Tensor):
            raise TrainingError(
                f"layer {name}: only layers from one tensor to one tensor have per-record gradients"
            )
        for flow in (entered, output):
            if not flow.dim() or len(flow) != self._rows:
                raise TrainingError(
                    f"layer {name}: a tensor of shape {tuple(flow.shape)} is not one row for each "
                    f"of {self._rows} records, so that records have no gradients of their own"
                )
        # The edge, not the tensor: the next layer may write into the output.
        edge = get_gradient_edge(output)
        self._calls.append(_Call(name, layer, entered.detach(), entered._version, edge))
