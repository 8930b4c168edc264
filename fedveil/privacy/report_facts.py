"""What a privacy report is told of a run; all else in it follows from this and from the journal."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "AdaptiveClip",
    "Mechanism",
    "ModelFacts",
    "RoundFigures",
    "RunFacts",
    "SharedNoise",
]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SharedNoise(_Value):
    """Who brings the noise of a sum, where each client adds a share.

    Parameters
    ----------
    colluding : int
        Clients of a sum whose shares are taken to protect nobody.
    min_survivors : int
        Least number of clients in a sum.
    ring_bits : int
        Bits of a masked number.
    max_records : int
        Norm of a client's sum of gradients, in clip norms, beyond which it is scaled down; 1 where
        an update is sent.
    dimension : int, optional
        How many numbers the model has.
    """

    colluding: int
    min_survivors: int
    ring_bits: int
    max_records: int
    dimension: int | None

    @property
    def honest(self) -> int:
        """Clients who together bring the whole noise."""
        return self.min_survivors - self.colluding


class AdaptiveClip(_Value):
    """How the clip norm follows a quantile.

    Parameters
    ----------
    target_quantile, learning_rate : float
        As configured.
    bit_noise : float, optional
        Standard deviation of the noise on the sum of the bits, in clients; None before a round.
    """

    target_quantile: float
    learning_rate: float
    bit_noise: float | None


class Mechanism(_Value):
    """How the noise is made; all of it public and configured.

    Parameters
    ----------
    unit : {"record", "client", "none"}
        Whom the guarantee holds for.
    noise : {"local", "distributed", "central", "none"}
        Who adds the noise.
    delta, clip_norm, sampling_rate, nominal_records : float or int
        As configured; with an adaptive clip norm the first round's.
    steps_per_round : int
        Optimiser steps of a client in a round.
    cohort : int
        Clients that a round is planned with.
    target_epsilon : float, optional
        What the run was calibrated to.
    metrics : {"off", "noisy", "clear"}
        What clients release of their own test records.
    insecure_seed : bool
        Whether noise was reproducible.
    shared : SharedNoise, optional
        With distributed noise: who brings it.
    adaptive : AdaptiveClip, optional
        Where the clip norm adapts: how.
    """

    unit: Literal["record", "client", "none"]
    noise: Literal["local", "distributed", "central", "none"]
    delta: float
    clip_norm: float
    sampling_rate: float
    nominal_records: int
    steps_per_round: int
    cohort: int
    target_epsilon: float | None
    metrics: Literal["off", "noisy", "clear"]
    insecure_seed: bool
    shared: SharedNoise | None = None
    adaptive: AdaptiveClip | None = None

    @property
    def mode(self) -> str:
        """Unit and noise together, as ``record/local``; ``none`` without privacy."""
        return "none" if self.unit == "none" else f"{self.unit}/{self.noise}"

    @property
    def claims(self) -> bool:
        """Whether any guarantee is claimed."""
        return self.unit != "none" and not self.insecure_seed


class RunFacts(_Value):
    """Which run it is.

    Parameters
    ----------
    data : str
        Hash of what says which client holds which record: task, options, partition, clients, seed.
        Where it is the same, clients of one name hold the same records.
    settings_sha256 : str
        Of the run's ``config.toml``.
    """

    run: str
    task: str
    data: str
    settings_sha256: str
    fedveil: str
    created: str
    rounds_planned: int
    clients_planned: int
    public_test: bool
    secagg: bool
    mechanism: Mechanism


class RoundFigures(_Value):
    """One committed round; `accuracy` and `loss` where known, `clip_norm` where it adapts."""

    round: int
    clients: int
    seconds: float
    accuracy: float | None
    loss: float | None
    clip_norm: float | None = None


class ModelFacts(_Value):
    """The newest committed model: its round and the sha256 of its encrypted file."""

    round: int
    sha256: str
