"""Max pooling that the CPU computes several times as fast, with the same outputs.

For windows that overlap, and channels_last, PyTorch's kernel looks at each window anew and keeps
the place of its largest value, which only training needs. The largest of a 2x2 window is the
largest of two neighbours, of two rows: two vectorized passes over the whole batch. A maximum
rounds nothing, so that no answer depends on which of both was taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["PairwiseMaxPool2d", "with_pairwise_pools"]

# Below this two passes cost more to begin than one kernel costs to run.
_LEAST_VALUES = 32_768


class PairwiseMaxPool2d(nn.Module):
    """Takes the maximum of each 2x2 window, one step apart: ``MaxPool2d(2, stride=1)``."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the pooled inputs.

        Parameters
        ----------
        inputs : Tensor, shape (n, channels, height, width)
            Values of any floating type; NaN in a window makes its maximum NaN.

        Returns
        -------
        Tensor, shape (n, channels, height - 1, width - 1)
        """
        if inputs.numel() < _LEAST_VALUES:
            return torch.max_pool2d(inputs, 2, 1)
        rows = torch.maximum(inputs[..., 1:, :], inputs[..., :-1, :])
        return torch.maximum(rows[..., 1:], rows[..., :-1])


def with_pairwise_pools(module: nn.Module) -> nn.Module:
    """Put `PairwiseMaxPool2d` in the place of each pool of a model that it equals.

    Parameters
    ----------
    module : Module
        The model; it is changed.
    """
    for name, child in list(module.named_modules(remove_duplicate=False)):
        if name and _is_pairwise(child):
            module.set_submodule(name, PairwiseMaxPool2d())
    return PairwiseMaxPool2d() if _is_pairwise(module) else module


def _is_pairwise(module: nn.Module) -> bool:
    # A subclass may do anything else.
    return (
        type(module) is nn.MaxPool2d
        and _pair(module.kernel_size) == (2, 2)
        and _pair(module.stride) == (1, 1)
        and _pair(module.padding) == (0, 0)
        and _pair(module.dilation) == (1, 1)
        and not module.return_indices
        and not module._forward_hooks  # there is no public way to ask
        and not module._forward_pre_hooks
    )


def _pair(size: int | tuple[int, ...]) -> tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)
