"""Who trains a model on a client's records: by default the client alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from fedveil.config import DpConfig, TrainingConfig
    from fedveil.privacy.randomness import SecureGenerator
    from fedveil.tasks.base import Examples, Task

__all__ = ["Alone", "Trainer", "TrainingJob", "TrainingResult", "current_trainer", "training_with"]


@dataclass(frozen=True, eq=False)
class TrainingJob:
    """One client's local training in one round; policy and ledger have allowed it.

    Parameters
    ----------
    model : nn.Module
        On its device; trained in place.
    task : Task
        Its loss, among others.
    examples : Examples
        The client's training records.
    training : TrainingConfig
        With `nominal_records` resolved where `dp` is given.
    dp : DpConfig, optional
        With `noise_multiplier` resolved. None trains without noise and clipping.
    generator : SecureGenerator
        Draws batches and noise; nobody else's.
    proximal_mu : float
        Weight of FedProx's proximal term.
    """

    model: nn.Module
    task: Task
    examples: Examples
    training: TrainingConfig
    dp: DpConfig | None
    generator: SecureGenerator
    proximal_mu: float = 0.0


@dataclass(frozen=True)
class TrainingResult:
    """What training says beside the model.

    Parameters
    ----------
    steps : int
        Optimiser steps, as the accountant must count them.
    loss : float, optional
        Mean loss over the batches; None under privacy, where it is private.
    """

    steps: int
    loss: float | None


class Trainer(Protocol):
    """Whoever does the training jobs of clients."""

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train the job's model in place.

        Raises
        ------
        fedveil.client.local_training.TrainingError
            If training cannot start, or its result must not leave the client.
        """


class Alone:
    """Trains each client's model when it is asked to, and nobody else's beside it."""

    def train(self, job: TrainingJob) -> TrainingResult:
        """Train the job's model in place."""
        from fedveil.client.local_training import torch_seeded, train_plain

        common = (job.generator, job.proximal_mu)
        with torch_seeded(job.generator):
            if job.dp is None:
                loss = train_plain(job.model, job.task, job.examples, job.training, *common)
                return TrainingResult(job.training.local_steps, loss)
            from fedveil.client.dp_training import train_private

            steps = train_private(job.model, job.task, job.examples, job.training, job.dp, *common)
            return TrainingResult(steps, None)


_trainer: ContextVar[Trainer | None] = ContextVar("fedveil_trainer", default=None)


def current_trainer(own: Trainer | None = None) -> Trainer:
    """Return who does the jobs of this thread.

    Unless a simulation steps in, it is the client's own trainer, or the client alone.
    """
    return _trainer.get() or own or Alone()


@contextmanager
def training_with(trainer: Trainer) -> Iterator[None]:
    """Let `trainer` do the jobs of this thread, until the end."""
    token = _trainer.set(trainer)
    try:
        yield
    finally:
        _trainer.reset(token)
