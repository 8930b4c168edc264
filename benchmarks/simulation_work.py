"""What `simulation.py` has trained on MNIST's writers, the same for all who do it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Work"]


@dataclass(frozen=True)
class Work:
    """Rounds of federated averaging with SGD.

    Parameters
    ----------
    data_dir : str
        Folder with ``mnist.npz`` and ``mnist_writers.npz``.
    model : {"linear", "mlp", "cnn"}
        The model of the task `mnist`.
    noise_multiplier : float, optional
        Of the noise that the server adds to the sum of the clipped updates; None for no privacy.
    clip_norm : float
        L2 bound of a client's update, under privacy.
    clients, cohort, rounds : int
        Writers, how many train in a round, and how many rounds.
    local_steps, batch_size : int
        Steps of a client in a round, and its records in each.
    learning_rate : float
        Of a client's SGD.
    engine : str
        What runs our clients.
    seed : int
        Of weights, cohorts and batches.
    """

    data_dir: str
    model: str
    noise_multiplier: float | None = None
    clip_norm: float = 1.0
    clients: int = 539
    cohort: int = 50
    rounds: int = 20
    local_steps: int = 10
    batch_size: int = 10
    learning_rate: float = 0.1
    engine: str = "auto"
    seed: int = 0
