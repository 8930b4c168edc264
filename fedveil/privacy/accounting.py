"""What was released and what it costs: `Release` values, their epsilon, and calibration."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from fedveil.errors import FedveilError

if TYPE_CHECKING:
    from dp_accounting import dp_event

__all__ = [
    "VALUE_DISCRETIZATION_INTERVAL",
    "AccountingError",
    "Release",
    "calibrate_noise_multiplier",
    "compose",
    "pld_epsilon",
    "rdp_epsilon",
]

VALUE_DISCRETIZATION_INTERVAL = 1e-3
"""Grid of the privacy-loss distribution, in nats; smaller is tighter and slower."""

_LARGEST_NOISE_MULTIPLIER = 1e4
_SMALLEST_NOISE_MULTIPLIER = 0.1
# Small orders do not converge for high sampling rates and are left out by the library with a
# warning a call; they never decide an epsilon of practical size.
_RDP_ORDERS = [1.5, 1.75, *range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024]


class AccountingError(FedveilError):
    """A release is impossible, or a budget cannot be met."""


@dataclass(frozen=True, order=True)
class Release:
    """Describe identical sampled Gaussian releases of one data set.

    Parameters
    ----------
    sampling_rate : float
        Probability of a record to be in the Poisson sample, in (0, 1]; 1 is no sampling.
    noise_multiplier : float
        Standard deviation of the noise over the L2 sensitivity, > 0.
    count : int
        How many such releases, >= 0.

    Raises
    ------
    AccountingError
        If a value lies outside its range.
    """

    sampling_rate: float
    noise_multiplier: float
    count: int

    def __post_init__(self) -> None:
        if not 0.0 < self.sampling_rate <= 1.0:
            raise AccountingError(f"sampling_rate must lie in (0, 1], not {self.sampling_rate}")
        if not (self.noise_multiplier > 0.0 and math.isfinite(self.noise_multiplier)):
            raise AccountingError(
                f"noise_multiplier must be positive and finite, not {self.noise_multiplier}"
            )
        if self.count < 0:
            raise AccountingError(f"count must not be negative, but is {self.count}")

    def event(self) -> dp_event.DpEvent:
        """Return these releases as one event of dp-accounting."""
        # It is imported where an epsilon is wanted: with SciPy that takes a second, and a deployed
        # client starts a process for every message.
        from dp_accounting import dp_event

        one: dp_event.DpEvent = dp_event.GaussianDpEvent(self.noise_multiplier)
        if self.sampling_rate < 1.0:
            one = dp_event.PoissonSampledDpEvent(self.sampling_rate, one)
        return dp_event.SelfComposedDpEvent(one, self.count)


def compose(releases: Iterable[Release]) -> tuple[Release, ...]:
    """Group equal releases, so that 200 equal rounds cost one self-composition.

    The result is sorted: equal multisets of releases give equal tuples.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for release in releases:
        counts[release.sampling_rate, release.noise_multiplier] += release.count
    return tuple(sorted(Release(q, sigma, n) for (q, sigma), n in counts.items() if n))


def pld_epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon of the composition by privacy-loss distributions.

    Adding or removing one record is the neighbouring relation. The bound is pessimistic by the
    discretisation, never optimistic.

    Parameters
    ----------
    releases : iterable of Release
        All releases of one data set.
    delta : float
        In (0, 1).

    References
    ----------
    Koskela, Jälkö & Honkela 2020; Doroshenko et al. 2022; implemented by dp-accounting.
    """
    return _pld_epsilon(compose(releases), delta)


def rdp_epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon of the composition by Rényi differential privacy (Mironov et al. 2019).

    Shown beside `pld_epsilon`; it is the looser of the two.
    """
    return _rdp_epsilon(compose(releases), delta)


def calibrate_noise_multiplier(
    target_epsilon: float,
    delta: float,
    *,
    sampling_rate: float,
    count: int,
    beside: Iterable[Release] = (),
) -> float:
    """Return a noise multiplier with which `count` releases meet a budget.

    Parameters
    ----------
    target_epsilon, delta : float
        The budget for everything together.
    sampling_rate : float
        Sampling rate of the releases to calibrate.
    count : int
        How many of them, >= 1.
    beside : iterable of Release
        What the same budget pays for as well: past releases, noisy metrics.

    Returns
    -------
    float
        Rounded up to four decimals, which only adds noise.

    Raises
    ------
    AccountingError
        If `beside` alone spends the budget, or the budget is out of reach.
    """
    fixed = compose(beside)
    spent = _pld_epsilon(fixed, delta)
    if spent >= target_epsilon:
        raise AccountingError(
            f"epsilon = {target_epsilon:g} at delta = {delta:g} is not reachable: {spent:.4g} of "
            "it is spent already (past rounds, noisy metrics); raise dp.target_epsilon"
        )

    def meets(sigma: float, epsilon_of: Callable[[tuple[Release, ...], float], float]) -> bool:
        together = compose([*fixed, Release(sampling_rate, sigma, count)])
        return epsilon_of(together, delta) <= target_epsilon

    if not meets(_LARGEST_NOISE_MULTIPLIER, _pld_epsilon):
        raise AccountingError(
            f"epsilon = {target_epsilon:g} at delta = {delta:g} is not reachable over {count} "
            f"steps at sampling rate {sampling_rate:g}, whatever the noise; raise "
            "dp.target_epsilon, or train with fewer rounds, fewer steps or a smaller sampling rate"
        )
    # RDP is cheap and never the smaller epsilon, so it bounds the answer from above. A PLD far
    # below the answer would be very large: the search must come down to it, not up.
    high = _LARGEST_NOISE_MULTIPLIER
    while high > _SMALLEST_NOISE_MULTIPLIER and meets(high / 1.25, _rdp_epsilon):
        high /= 1.25
    if not meets(high, _pld_epsilon):
        high = _LARGEST_NOISE_MULTIPLIER
    low = high / 1.25
    while meets(low, _pld_epsilon):
        if low < _SMALLEST_NOISE_MULTIPLIER:
            return _SMALLEST_NOISE_MULTIPLIER
        low, high = low / 1.25, low
    while high - low > 2e-5 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if meets(middle, _pld_epsilon) else (middle, high)
    return math.ceil(high * 1e4) / 1e4


@lru_cache(maxsize=4096)
def _pld_epsilon(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, VALUE_DISCRETIZATION_INTERVAL)
    for release in releases:
        accountant.compose(release.event())
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _rdp_epsilon(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    from dp_accounting.rdp import RdpAccountant

    # The library warns once an order that does not converge; the order is left out, soundly.
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        accountant = RdpAccountant(_RDP_ORDERS)
        for release in releases:
            accountant.compose(release.event())
        return float(accountant.get_epsilon(delta))
    finally:
        absl_logger.setLevel(level)
