"""From a layer, its inputs and the gradients of its outputs to what its records contribute."""

from __future__ import annotations

import torch
from opacus import GradSampleModule
from opacus.grad_sample.functorch import ft_compute_per_sample_gradient, prepare_layer
from torch import Tensor, nn
from torch.nn import functional

from fedveil.client.gradients.outer_products import OuterProducts
from fedveil.client.gradients.per_record import Contribution, PerRecord, working
from fedveil.client.gradients.products import products
from fedveil.client.gradients.sparse_rows import sparse_rows

__all__ = ["contribution", "forget", "prepare", "trained_layers"]

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def trained_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers to differentiate, by name.

    These are the modules with trainable parameters of their own. One that Opacus has no function
    for is taken whole, with all that it holds, as Opacus does.
    """
    found: dict[str, nn.Module] = {}

    def walk(name: str, module: nn.Module) -> None:
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            found[name] = module
            if not _has_function(module):
                return
        for child, inner in module.named_children():
            if inner not in found.values():
                walk(f"{name}.{child}" if name else child, inner)

    walk("", model)
    return found


def prepare(layer: nn.Module) -> None:
    """Make a layer ready, before any hook is on it: Opacus keeps a copy of some."""
    if not _has_function(layer):
        prepare_layer(layer)


def forget(layer: nn.Module) -> None:
    """Take away what `prepare` left on a layer."""
    if hasattr(layer, "ft_compute_sample_grad"):
        del layer.ft_compute_sample_grad


def contribution(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> Contribution:
    """Return what the records contribute to the gradients of a layer's trainable parameters.

    Parameters
    ----------
    layer : nn.Module
        One of `trained_layers`.
    inputs : Tensor
        What flowed in: (records, ...).
    outputs : Tensor
        Gradients of each record's own loss in what flowed out: (records, ...).
    """
    # By exact type: a subclass may compute something else.
    kind = type(layer)
    if isinstance(layer, nn.Linear) and kind is nn.Linear:
        return _linear(layer, inputs, outputs)
    if isinstance(layer, _Convolution) and kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return _convolution(layer, inputs, outputs)
    if isinstance(layer, nn.Embedding) and kind is nn.Embedding:
        table = _trained(layer.weight)
        if table is not None:
            return sparse_rows(table, inputs, working(outputs), layer.padding_idx)
    if isinstance(layer, nn.LayerNorm) and kind is nn.LayerNorm:
        return _layer_norm(layer, inputs, outputs)
    if isinstance(layer, nn.GroupNorm) and kind is nn.GroupNorm:
        return _group_norm(layer, inputs, outputs)
    return _other(layer, inputs, outputs)


def _linear(layer: nn.Linear, inputs: Tensor, outputs: Tensor) -> Contribution:
    weight, bias = _trained(layer.weight), _trained(layer.bias)
    if inputs.dim() == 2:
        return OuterProducts(weight, bias, working(inputs), working(outputs))
    records = len(inputs)
    a, g = (
        working(x).reshape(records, 1, -1, size)
        for x, size in ((inputs, layer.in_features), (outputs, layer.out_features))
    )
    return products(weight, bias, a, g)


def _convolution(layer: _Convolution, inputs: Tensor, outputs: Tensor) -> Contribution:
    """Take each place that the kernel visits as a position."""
    records, groups = len(inputs), layer.groups
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    image = functional.pad(working(inputs), _margins(layer), mode=mode)
    # A view of the patches: (records, groups, *places, channels a group, *kernel).
    batch, channel, *steps = image.stride()
    size = layer.in_channels // groups
    patches = image.as_strided(
        (records, groups, *outputs.shape[2:], size, *layer.kernel_size),
        (
            batch,
            size * channel,
            *(step * by for step, by in zip(steps, layer.stride, strict=True)),
            channel,
            *(step * by for step, by in zip(steps, layer.dilation, strict=True)),
        ),
    )
    g = working(outputs).reshape(records, groups, layer.out_channels // groups, -1).mT
    a = patches.reshape(records, groups, g.shape[2], -1)
    return products(_trained(layer.weight), _trained(layer.bias), a, g)


def _margins(layer: _Convolution) -> list[int]:
    """Return how far to pad, last dimension first, as `functional.pad` has it."""
    margins: list[int] = []
    for axis in reversed(range(len(layer.kernel_size))):
        if layer.padding == "valid":
            margins += [0, 0]
        elif layer.padding == "same":
            both = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            margins += [both // 2, both - both // 2]
        else:
            margins += [int(layer.padding[axis])] * 2
    return margins


def _layer_norm(layer: nn.LayerNorm, inputs: Tensor, outputs: Tensor) -> Contribution:
    normal = functional.layer_norm(working(inputs), layer.normalized_shape, eps=layer.eps)
    shape = (len(inputs), -1, *layer.normalized_shape)
    return _scale_and_shift(layer, normal.reshape(shape), working(outputs).reshape(shape), 1)


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, outputs: Tensor) -> Contribution:
    normal = functional.group_norm(working(inputs), layer.num_groups, eps=layer.eps)
    shape = (len(inputs), layer.num_channels, -1)
    return _scale_and_shift(layer, normal.reshape(shape), working(outputs).reshape(shape), 2)


def _scale_and_shift(
    layer: nn.LayerNorm | nn.GroupNorm, normal: Tensor, outputs: Tensor, positions: int
) -> Contribution:
    """Take the gradients of a norm's weight and bias; `positions` is the axis to add up."""
    gradients: dict[nn.Parameter, Tensor] = {}
    weight, bias = _trained(layer.weight), _trained(layer.bias)
    if weight is not None:
        gradients[weight] = (normal * outputs).sum(dim=positions)
    if bias is not None:
        gradients[bias] = outputs.sum(dim=positions)
    return PerRecord(gradients)


def _other(layer: nn.Module, inputs: Tensor, outputs: Tensor) -> Contribution:
    """Ask Opacus for the gradients of any other layer."""
    sampler = GradSampleModule.GRAD_SAMPLERS.get(type(layer), ft_compute_per_sample_gradient)
    with torch.no_grad():
        found: dict[nn.Parameter, Tensor] = sampler(layer, [_real(inputs)], working(outputs))
    return PerRecord({p: working(g) for p, g in found.items() if p.requires_grad})


def _real(inputs: Tensor) -> Tensor:
    return working(inputs) if inputs.is_floating_point() else inputs


def _has_function(layer: nn.Module) -> bool:
    return type(layer) in GradSampleModule.GRAD_SAMPLERS


def _trained(parameter: Tensor | None) -> nn.Parameter | None:
    if isinstance(parameter, nn.Parameter) and parameter.requires_grad:
        return parameter
    return None
