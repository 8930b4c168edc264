"""Which engine computes the clipped sums of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from opacus.optimizers import DPOptimizer
from torch import nn

from fedveil.client.gradients.bookkeeping import BookkeepingEngine
from fedveil.client.gradients.interface import EngineName, GradientEngine, Loss, Precision
from fedveil.client.gradients.opacus_hooks import OpacusEngine
from fedveil.client.local_training import TrainingError
from fedveil.client.probing import Probe

__all__ = ["chosen", "gradient_engine"]


def chosen(
    name: EngineName, model: nn.Module, precision: Precision = "fp32"
) -> Literal["opacus", "fast"]:
    """Return the engine for a model: what is asked for, or the fast one where it can.

    Opacus' own layers (its LSTM, its attention) and EmbeddingBag take their inputs in ways that
    only Opacus' hooks know.

    Raises
    ------
    TrainingError
        If the fast engine is asked for and cannot, or no engine may train the model, or not in
        this precision.
    """
    kind = _chosen(name, model)
    if kind == "opacus" and precision != "fp32":
        raise TrainingError(
            f'training.precision = "{precision}" needs the fast engine, and this model or '
            'training.engine takes Opacus\' hooks; use "fp32"'
        )
    return kind


def _chosen(name: EngineName, model: nn.Module) -> Literal["opacus", "fast"]:
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
            raise TrainingError(
                f"layer {path}: max_norm = {layer.max_norm:g} rescales the rows that the records "
                "use, which no noise covers; leave max_norm out"
            )
        only_opacus = type(layer).__module__.startswith("opacus.layers")
        if only_opacus or isinstance(layer, nn.EmbeddingBag):
            if name == "fast":
                raise TrainingError(
                    f'training.engine = "fast" cannot train layer {path} '
                    f'({type(layer).__name__}); use "auto" or "opacus"'
                )
            return "opacus"
    return "opacus" if name == "opacus" else "fast"


@contextmanager
def gradient_engine(
    name: EngineName,
    model: nn.Module,
    loss: Loss,
    optimizer: DPOptimizer,
    probe: Probe | None = None,
    precision: Precision = "fp32",
) -> Iterator[GradientEngine]:
    """Put a model into training mode and an engine on it, until the end.

    Parameters
    ----------
    name : {"auto", "opacus", "fast"}
        As configured.
    model : nn.Module
        On its device.
    loss : callable
        From outputs and targets to the mean of the records' losses.
    optimizer : DPOptimizer
        Over the model's trainable parameters; it says the clip norm.
    probe : Probe, optional
        Of an audit.
    precision : {"fp32", "bf16"}
        Of the passes through the model.

    Raises
    ------
    TrainingError
        As `chosen` does.
    """
    engine: OpacusEngine | BookkeepingEngine
    if chosen(name, model, precision) == "opacus":
        engine = OpacusEngine(model, loss, optimizer, probe)
    else:
        engine = BookkeepingEngine(model, loss, optimizer, probe, precision)
    try:
        yield engine
    finally:
        engine.close()
