"""Quality of a model on examples, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from fedveil.client.layout import channels_last
from fedveil.tasks.base import Examples, Task, TaskError

__all__ = ["CLIENTS", "EXAMPLES", "MEAN", "WEIGHTED", "correct_answers", "evaluate", "summands"]

_BATCH = 2048

MEAN = "mean/"
"""Prefix of a metric that is to be summed over clients."""

WEIGHTED = "weighted/"
"""Prefix of a metric that is to be summed over records."""

CLIENTS = "clients/"
"""Prefix of the number of clients that a metric is summed over."""

EXAMPLES = "examples/"
"""Prefix of the number of records that a metric is summed over."""


def evaluate(model: nn.Module, task: Task, examples: Examples) -> dict[str, float]:
    """Return the task's metrics of `model` on `examples`, of which there is at least one.

    The model stays on its device and comes back in the mode it had.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), channels_last(model):
            outputs = torch.cat(
                [model(x.to(device)).cpu() for x in torch.split(examples.x, _BATCH)]
            )
    finally:
        model.train(training)
    return task.metrics(outputs, examples.y)


def summands(examples: int, figures: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """Return what a client adds to the sums from which means over clients and records follow.

    Parameters
    ----------
    examples : int
        Number of its test records.
    figures : Mapping of str to float
        Its metrics; none where it has no records.
    names : iterable of str
        All metrics that any client may have. To one that this client lacks it adds nothing, but
        names it all the same: sums need equal names.
    """
    told = {}
    for name in names:
        has = float(name in figures)
        value = figures.get(name, 0.0)
        told[MEAN + name], told[CLIENTS + name] = value, has
        told[WEIGHTED + name], told[EXAMPLES + name] = value * examples, examples * has
    return told


def correct_answers(model: nn.Module, task: Task, examples: Examples) -> float:
    """Return how many examples a model answers rightly; 0 where its outputs are not finite.

    Whether it fails must not hang on one record: the number is released with noise, a failure
    would be without.
    """
    try:
        return evaluate(model, task, examples)["accuracy"] * len(examples) if len(examples) else 0.0
    except TaskError:
        return 0.0
