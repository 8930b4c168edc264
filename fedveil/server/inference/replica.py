"""One copy of the model on one device: how rows get there, and answers back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from fedveil.server.inference.buckets import bucket, ladder
from fedveil.server.inference.devices import tensors_of, wipe_tensors
from fedveil.server.inference.oip import Array, TensorSpec
from fedveil.server.inference.pooling import with_pairwise_pools

__all__ = ["Forward", "Replica", "forward"]

_IMAGE_AXES = 3

Forward: TypeAlias = Callable[[nn.Module, Tensor], Tensor]


def forward(module: nn.Module, rows: Tensor) -> Tensor:
    """Run a model.

    With the model as an argument, one compilation of this is good for the weights of every round.
    """
    outputs: Tensor = module(rows)
    return outputs


class Replica:
    """A device, with memory for what goes to it and comes from it that is used again and again.

    One thread at a time may use it.

    Parameters
    ----------
    device : device
        The device.
    given : TensorSpec
        What the model takes.
    most_rows : int
        Rows that the model is given at once; more are run in pieces.
    is_bf16 : bool
        Whether the model and its inputs are turned into bfloat16.
    padded : Forward or None
        Runs the model on batches that are padded to the sizes of `ladder`; None where any shape
        is as good as any other, so that padding would be wasted work.
    """

    def __init__(
        self,
        device: torch.device,
        given: TensorSpec,
        most_rows: int,
        *,
        is_bf16: bool = False,
        padded: Forward | None = None,
    ) -> None:
        self.device = device
        self._given = given
        self._most_rows = most_rows
        self._sizes = ladder(most_rows)
        self._padded = padded
        self._float = torch.bfloat16 if is_bf16 else None
        dtype = torch.from_numpy(np.empty(0, given.numpy)).dtype
        self._dtype = torch.bfloat16 if is_bf16 and dtype.is_floating_point else dtype
        self._is_cuda = device.type == "cuda"
        self._is_of_images = len(given.row_shape) == _IMAGE_AXES
        self._there = self._memory(0, given.row_shape, self._dtype)
        self._back = self._memory(0, (), torch.float32)

    @property
    def trial_rows(self) -> tuple[int, ...]:
        """Numbers of rows that between them meet every shape the model will be run in."""
        if self._padded is None:
            return tuple(sorted({1, min(2, self._most_rows), min(16, self._most_rows)}))
        return (1, *(size + 1 for size in self._sizes[:-1]))

    def place(self, module: nn.Module) -> nn.Module:
        """Move a model here, ready to answer; no copy of its weights is left where it was."""
        before = tensors_of(module)
        module = module.eval().requires_grad_(False)
        layout = torch.channels_last if self._is_of_images else None
        module = module.to(self.device, self._float, memory_format=layout)  # type: ignore[call-overload]
        kept = {tensor.untyped_storage().data_ptr() for tensor in tensors_of(module)}
        wipe_tensors(old for old in before if old.untyped_storage().data_ptr() not in kept)
        # GPUs and the compiler have good kernels of their own.
        if self._is_cuda or self._padded is not None or not self._is_of_images:
            return module
        return with_pairwise_pools(module)

    def answer(self, module: nn.Module, rows: Array) -> Array:
        """Return the outputs of a model that was placed here.

        Parameters
        ----------
        module : Module
            The model.
        rows : ndarray, shape (n, ...)
            At least one row, of the type and shape that the model takes.

        Returns
        -------
        ndarray, shape (n, ...)
            In memory of its own; float32 where the model computes in bfloat16.
        """
        if len(rows) <= self._most_rows:
            return self._answer(module, rows)
        pieces = range(0, len(rows), self._most_rows)
        return np.concatenate(
            [self._answer(module, rows[begin : begin + self._most_rows]) for begin in pieces]
        )

    def plain(self, module: nn.Module, rows: Array) -> Array:
        """Return what `answer` must return, without padding or compiling anything."""
        with torch.inference_mode():
            return self._fetched(forward(module, self._sent(rows, len(rows))))

    def _answer(self, module: nn.Module, rows: Array) -> Array:
        if self._padded is None:
            return self.plain(module, rows)
        with torch.inference_mode():
            inputs = self._sent(rows, bucket(self._sizes, len(rows)))
            return self._fetched(self._padded(module, inputs)[: len(rows)])

    def _sent(self, rows: Array, size: int) -> Tensor:
        """Return rows on the device, with rows of zeros after them up to a size."""
        # torch warns of memory that it may not write, and of a stride that is not its own.
        given = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        if self._is_cuda or size > len(rows):
            if len(self._there) < size:
                self._there = self._memory(bucket(self._sizes, size), given.shape[1:], self._dtype)
            staged = self._there[:size]
            staged[: len(rows)].copy_(given)
            staged[len(rows) :].zero_()
            # The copy may still be under way when this returns; `_fetched` waits for all.
            given = staged.to(self.device, non_blocking=True)
        given = given.to(self._dtype)
        return given.contiguous(memory_format=torch.channels_last) if self._is_of_images else given

    def _fetched(self, outputs: Tensor) -> Array:
        """Return outputs as an array of its own: what they may be a view of will change."""
        if outputs.dtype == torch.bfloat16:
            outputs = outputs.float()
        if self._is_cuda:
            if (
                len(self._back) < len(outputs)
                or self._back.shape[1:] != outputs.shape[1:]
                or self._back.dtype != outputs.dtype
            ):
                self._back = self._memory(
                    bucket(self._sizes, len(outputs)), outputs.shape[1:], outputs.dtype
                )
            staged = self._back[: len(outputs)]
            staged.copy_(outputs, non_blocking=True)
            torch.cuda.current_stream(self.device).synchronize()
            outputs = staged
        answer: Array = outputs.numpy().copy()
        return answer

    def _memory(self, rows: int, row_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty((rows, *row_shape), dtype=dtype, pin_memory=self._is_cuda)
