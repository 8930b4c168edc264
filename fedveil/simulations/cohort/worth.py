"""Whether training together, where it is possible, is also faster."""

from __future__ import annotations

import torch
from torch import nn

from fedveil.config import Config
from fedveil.tasks.base import Task

__all__ = ["slower_together"]


def slower_together(config: Config, task: Task) -> str | None:
    """Return why the clients of a run train faster one after another; None where they do not.

    What a stack saves is the cost of calling. Convolutions are arithmetic for the most part, and
    oneDNN's kernels do it worse in groups of many small channels than alone. Where each record's
    gradient is clipped, the records' own products outweigh that.

    The rule is by the model alone, never by a trial against the clock, which would choose another
    rounding from run to run.

    Parameters
    ----------
    config : Config
        The run's settings.
    task : Task
        Its task.
    """
    if config.dp.unit == "record" and config.dp.is_private:
        return None
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    if any(isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) for layer in model.modules()):
        return "convolutions without noise for each record are faster one after another"
    return None
