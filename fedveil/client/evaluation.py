"""Quality of a model on examples, in batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from fedveil.tasks.base import Examples, Task

__all__ = ["MEAN", "WEIGHTED", "evaluate", "summands"]

_BATCH = 2048

MEAN = "mean/"
"""Prefix of a metric that is to be summed over clients."""

WEIGHTED = "weighted/"
"""Prefix of a metric that is to be summed over records."""


def evaluate(model: nn.Module, task: Task, examples: Examples) -> dict[str, float]:
    """Return the task's metrics of `model` on `examples`, of which there is at least one.

    The model stays on its device and comes back in the mode it had.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            outputs = torch.cat(
                [model(x.to(device)).cpu() for x in torch.split(examples.x, _BATCH)]
            )
    finally:
        model.train(training)
    return task.metrics(outputs, examples.y)


def summands(examples: int, figures: Mapping[str, float]) -> dict[str, float]:
    """Return what a client adds to the sums from which means over clients and records follow.

    Parameters
    ----------
    examples : int
        Number of its test records; with none it adds nothing.
    figures : Mapping of str to float
        Its metrics.
    """
    counts = {"clients": float(examples > 0), "examples": float(examples)}
    means = {MEAN + name: value * counts["clients"] for name, value in figures.items()}
    weighted = {WEIGHTED + name: value * examples for name, value in figures.items()}
    return {**counts, **means, **weighted}
