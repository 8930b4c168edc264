"""What every process but the first does: sums of its share of each batch."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
from torch import nn

from fedveil.client.dp_training import optimizer_for_sums, sum_clipped_gradients
from fedveil.client.gradients.blanks import physical_rows
from fedveil.client.gradients.engine import gradient_engine
from fedveil.client.gradients.interface import Loss
from fedveil.client.local_training import place
from fedveil.client.parallel.link import linked
from fedveil.config import DpConfig, TrainingConfig
from fedveil.tasks.base import Examples

__all__ = ["READY", "Share", "take_part"]

READY = "ready"


@dataclass(frozen=True, eq=False)
class Share:
    """What a process takes part in, and as which.

    Parameters
    ----------
    rank, size : int
        As `Link` has them.
    device : str
        Where it computes.
    folder : Path
        Where the processes meet.
    seed : int
        Of dropout and the like.
    model, examples, training, dp
        As `train_private` takes them; the model on the CPU.
    loss : callable
        The task's.
    """

    rank: int
    size: int
    device: str
    folder: Path
    seed: int
    model: nn.Module
    loss: Loss
    examples: Examples
    training: TrainingConfig
    dp: DpConfig


def take_part(share: Share, channel: Connection) -> None:
    """Compute until the first process has no other step, or is there no more.

    Parameters
    ----------
    share : Share
        In what.
    channel : Connection
        Told `READY`, or what went wrong.
    """
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    try:
        if share.device == "cpu":
            torch.set_num_threads(max(1, torch.get_num_threads() // share.size))
        model = place(share.model, share.device)
        torch.manual_seed(share.seed)
        channel.send(READY)
        _compute(share, model)
    except Exception as error:  # noqa: BLE001  # whatever it is, the first process says it
        channel.send(f"{type(error).__name__}: {error}")
        os._exit(1)


def _compute(share: Share, model: nn.Module) -> None:
    training = share.training
    optimizer = optimizer_for_sums(model, share.dp)
    expected = training.sampling_rate * (training.nominal_records or 1) / share.size
    rows = physical_rows(expected, training.max_physical_batch)
    device = next(model.parameters()).device
    engine_of = (training.engine, model, share.loss, optimizer, None, training.precision)
    with (
        linked(share.rank, share.size, device, share.folder) as link,
        gradient_engine(*engine_of) as engine,
    ):
        while (batch := link.receive(optimizer.params)) is not None:
            sum_clipped_gradients(engine, optimizer, share.examples, batch, rows)
            link.add_up([p.summed_grad for p in optimizer.params])


def _end_with_the_first() -> None:
    first = parent_process()
    if first is not None:
        wait([first.sentinel])
    os._exit(1)
