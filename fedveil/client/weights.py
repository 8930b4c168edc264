"""A model's arrays, out of a message and into one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fedveil.envelope import array_of, values_of

__all__ = ["load", "packed"]


def load(model: nn.Module, arrays: ArrayRecord) -> None:
    """Give a model the arrays of a message.

    Raises
    ------
    RuntimeError
        If they have other names or shapes than the model's.
    """
    model.load_state_dict({name: torch.tensor(values_of(one)) for name, one in arrays.items()})


def packed(state: Mapping[str, Tensor]) -> ArrayRecord:
    """Return a model's arrays, wherever they are, as a message holds them."""
    return ArrayRecord({k: array_of(v.detach().cpu().numpy()) for k, v in state.items()})
