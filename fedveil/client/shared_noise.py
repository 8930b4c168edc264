"""What a mode's settings come to in numbers: shares of the noise, the mechanism, the release."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import ArrayRecord

from fedveil.config import Config
from fedveil.privacy.accounting import Release
from fedveil.privacy.skellam.mechanism import SkellamMechanism
from fedveil.secagg.errors import SecAggError
from fedveil.secagg.parameters import COMPLETE_UP_TO, colluders_borne, plan_for
from fedveil.settings import ConfigError

__all__ = [
    "NoiseShares",
    "bit_noise",
    "dimension_of",
    "noise_shares",
    "records_bound",
    "skellam_mechanism",
    "training_release",
]

_ROOM_FOR_BATCHES = 4.0
"""A client's batch may hold so many times what is expected before its sum is scaled down."""


@dataclass(frozen=True)
class NoiseShares:
    """Who brings the noise of a sum.

    Parameters
    ----------
    cohort : int
        Clients that a round is planned with.
    colluding : int
        Those of a sum whose shares protect nobody.
    min_survivors : int
        Least number of clients in a sum.

    Raises
    ------
    ConfigError
        If no honest client would be left.
    """

    cohort: int
    colluding: int
    min_survivors: int

    def __post_init__(self) -> None:
        if not self.colluding < self.min_survivors <= self.cohort:
            raise ConfigError(
                f"dp.min_survivors = {self.min_survivors} must be more than dp.colluding = "
                f"{self.colluding} and at most the {self.cohort} clients that a round is planned "
                "with"
            )

    @property
    def honest(self) -> int:
        """Clients who together bring the whole noise."""
        return self.min_survivors - self.colluding


def noise_shares(config: Config) -> NoiseShares:
    """Return who brings the noise: as configured or, by default, as secure aggregation plans.

    Raises
    ------
    ConfigError
        If the numbers leave no honest client, or the cohort bears no plan.
    """
    dp, secagg, cohort = config.dp, config.secagg, config.federation.cohort
    try:
        plan = plan_for(cohort, corrupt=secagg.corrupt_share, dropped=secagg.dropped_share)
    except SecAggError as error:
        raise ConfigError(f"in mode {dp.mode}: {error}") from None
    borne = (
        colluders_borne(cohort)
        if cohort <= COMPLETE_UP_TO
        else math.ceil(secagg.corrupt_share * cohort)
    )
    return NoiseShares(
        cohort=cohort,
        colluding=borne if dp.colluding is None else dp.colluding,
        min_survivors=plan.quorum if dp.min_survivors is None else dp.min_survivors,
    )


def bit_noise(config: Config, noise: float) -> float:
    """Return the standard deviation of the noise on the sum of the bits of adaptive clipping.

    Parameters
    ----------
    config : Config
        The settings.
    noise : float
        The noise multiplier of update and bit together.

    Raises
    ------
    ConfigError
        If the clip norm does not adapt, or the bits alone would cost more than everything may.
    """
    adaptive = config.dp.adaptive
    if adaptive is None:
        raise ConfigError("dp.adaptive is not set, so that no bit is sent")
    # A twentieth of the cohort is Andrew et al. 2021, section 3.1, for cohorts of 100. In a small
    # cohort it would leave no budget for the update; at the noise multiplier it costs a seventh.
    found = max(config.federation.cohort / 20.0, noise)
    if adaptive.bit_noise is not None:
        found = adaptive.bit_noise
    if not 2.0 * found > noise:
        raise ConfigError(
            f"dp.adaptive.bit_noise = {found:g} spends more than the whole budget on the bits: it "
            f"must exceed half of the noise multiplier {noise:g}"
        )
    return found


def dimension_of(arrays: ArrayRecord) -> int:
    """Return how many numbers of a model a client's vector holds: all that are floating point."""
    return sum(
        math.prod(array.shape) for array in arrays.values() if array.dtype.startswith("float")
    )


def records_bound(config: Config) -> int:
    """Return the norm, in clip norms, beyond which a client's sum is scaled down; public."""
    if config.dp.unit != "record":
        return 1
    expected = config.training.sampling_rate * (config.training.nominal_records or 1)
    return math.ceil(_ROOM_FOR_BATCHES * expected)


def skellam_mechanism(
    config: Config, dimension: int, noise: float, clip_norm: float | None = None
) -> SkellamMechanism:
    """Return the mechanism of distributed noise.

    Parameters
    ----------
    config : Config
        The settings, the same for all clients.
    dimension : int
        Of the model; see `dimension_of`.
    noise : float
        Noise multiplier.
    clip_norm : float, optional
        Of this round; by default ``dp.clip_norm``.

    Raises
    ------
    FedveilError
        If sum and noise do not fit into ``secagg.ring_bits``, or the numbers contradict each other.
    """
    dp, shares = config.dp, noise_shares(config)
    return SkellamMechanism(
        unit="record" if dp.unit == "record" else "client",
        dimension=dimension,
        clip_norm=dp.clip_norm if clip_norm is None else clip_norm,
        noise_multiplier=noise,
        clients=shares.cohort,
        honest=shares.honest,
        ring_bits=config.secagg.ring_bits,
        max_records=records_bound(config),
        bit_noise=None if dp.adaptive is None else bit_noise(config, noise),
    )


def training_release(config: Config, noise: float, dimension: int) -> Release:
    """Return what training of one round releases of each client, in any mode.

    Parameters
    ----------
    config : Config
        The settings.
    noise : float
        Noise multiplier.
    dimension : int
        Of the model; it matters with distributed noise only.

    Raises
    ------
    FedveilError
        If the mode's mechanism cannot be made.
    """
    training, mode = config.training, config.dp.mode
    if mode == "record/local":
        return Release(training.sampling_rate, noise, training.local_steps)
    if mode == "client/central":
        return Release(1.0, noise, 1)
    rate = training.sampling_rate if mode == "record/distributed" else 1.0
    integers = skellam_mechanism(config, dimension, noise).sensitivity
    return Release(rate, noise, 1, integers)
