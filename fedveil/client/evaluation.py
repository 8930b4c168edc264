"""Quality of a model on examples, in batches."""

from __future__ import annotations

import torch
from torch import nn

from fedveil.tasks.base import Examples, Task

__all__ = ["evaluate"]

_BATCH = 2048


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
