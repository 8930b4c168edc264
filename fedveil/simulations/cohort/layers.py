"""What a layer computes where each client has weights of its own.

Inputs and outputs have the clients' rows one after another, as many of each: shape
(clients x rows, ...). Weights have a first axis more: (clients, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Apply", "apply_of", "why_not"]

Apply = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
"""From inputs, stacked weight and stacked bias to outputs."""

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CONVOLVE: Mapping[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: functional.conv1d,
    nn.Conv2d: functional.conv2d,
    nn.Conv3d: functional.conv3d,
}


def why_not(layer: nn.Module) -> str | None:
    """Return why a layer with parameters cannot be stacked; None where it can."""
    # By exact type: a subclass may compute something else.
    kind = type(layer)
    if kind in (nn.Linear, nn.LayerNorm, nn.GroupNorm):
        return None
    if kind in _CONVOLVE:
        mode = cast(_Convolution, layer).padding_mode
        return None if mode == "zeros" else f"padding_mode = {mode!r}"
    if kind is nn.Embedding:
        table = cast(nn.Embedding, layer)
        for option in ("padding_idx", "max_norm"):
            if getattr(table, option) is not None:
                return f"{option} = {getattr(table, option)}"
        if table.scale_grad_by_freq or table.sparse:
            return "scale_grad_by_freq or sparse"
        return None
    return f"layers of type {kind.__name__} are not known"


def apply_of(layer: nn.Module) -> Apply:
    """Return what a layer computes; `why_not` has nothing against it."""
    if isinstance(layer, nn.Linear):
        return _linear
    if isinstance(layer, nn.Embedding):
        return _embedding
    if isinstance(layer, nn.LayerNorm):
        return _layer_norm(layer)
    if isinstance(layer, nn.GroupNorm):
        return _group_norm(layer)
    return _convolution(cast(_Convolution, layer))


def _linear(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    assert weight is not None  # noqa: S101  # narrows the type
    clients, width, _ = weight.shape
    columns = x.reshape(clients, -1, x.shape[-1]).mT
    # The weight on the left, so that its gradient comes out as it lies.
    if bias is None:
        outputs = torch.bmm(weight, columns)
    else:
        outputs = torch.baddbmm(bias.unsqueeze(2), weight, columns)
    return outputs.mT.reshape(*x.shape[:-1], width)


def _embedding(x: Tensor, weight: Tensor | None, _: Tensor | None) -> Tensor:
    assert weight is not None  # noqa: S101  # narrows the type
    clients, vocabulary, width = weight.shape
    # An index beyond the table must not find the next client's.
    if x.numel() and not 0 <= int(x.min()) <= int(x.max()) < vocabulary:
        raise IndexError("index out of range in self")
    first = torch.arange(clients, device=x.device) * vocabulary
    indices = (x.view(clients, -1) + first[:, None]).view(x.shape)
    return functional.embedding(indices, weight.view(-1, width))


def _convolution(layer: _Convolution) -> Apply:
    convolve = _CONVOLVE[type(layer)]
    places = (layer.stride, layer.padding, layer.dilation)

    def apply(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        assert weight is not None  # noqa: S101  # narrows the type
        clients, size = len(weight), x.shape[1:]
        # The clients' channels beside each other, and groups that keep them apart.
        beside = (
            x.view(clients, -1, *size).transpose(0, 1).reshape(-1, clients * size[0], *size[1:])
        )
        flat = None if bias is None else bias.flatten()
        outputs = convolve(beside, weight.flatten(0, 1), flat, *places, clients * layer.groups)
        image = outputs.shape[2:]
        split = outputs.view(len(outputs), clients, layer.out_channels, *image).transpose(0, 1)
        return split.reshape(len(x), layer.out_channels, *image)

    return apply


def _layer_norm(layer: nn.LayerNorm) -> Apply:
    def apply(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        normal = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return _scaled(normal, layer.normalized_shape, weight, bias)

    return apply


def _group_norm(layer: nn.GroupNorm) -> Apply:
    def apply(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        normal = functional.group_norm(x, layer.num_groups, eps=layer.eps)
        stacked = (None if one is None else one.unsqueeze(-1) for one in (weight, bias))
        return _scaled(normal, (layer.num_channels, x.shape[2:].numel()), *stacked)

    return apply


def _scaled(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Return each client's rows, seen in pieces of that shape, times its weight plus its bias."""
    clients = next(len(one) for one in (weight, bias) if one is not None)
    pieces = x.reshape(clients, -1, *shape)
    if weight is not None:
        pieces = pieces * weight.unsqueeze(1)
    if bias is not None:
        pieces = pieces + bias.unsqueeze(1)
    return pieces.view(x.shape)
