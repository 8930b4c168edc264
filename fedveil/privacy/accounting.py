"""What was released and what it costs: `Release` values and their epsilon."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedveil.errors import FedveilError
from fedveil.privacy.renyi import INTEGER_ORDERS, divergences
from fedveil.privacy.skellam.near_gaussian import SkellamNoise, log_ratio_bound

if TYPE_CHECKING:
    from dp_accounting import dp_event
    from dp_accounting.pld import PLDAccountant

__all__ = [
    "VALUE_DISCRETIZATION_INTERVAL",
    "Accountant",
    "AccountingError",
    "IntegerSensitivity",
    "Release",
    "accountant_of",
    "accountant_of_largest",
    "compose",
    "epsilon",
    "pld_epsilon",
    "rdp_epsilon",
]

VALUE_DISCRETIZATION_INTERVAL = 1e-3
"""Grid of the privacy-loss distribution, in nats; smaller is tighter and slower."""

Accountant = Literal["PLD", "RDP"]

_MOST_COORDINATES = 2**53

_MOST_COMPOSED = 2**20
"""Equal releases that are composed as distributions; dp-accounting computes the size of one to the
power of their number as an integer, which with 2^30 of them takes minutes and all memory."""

_MOST_COUNTED = 2**53
"""Equal releases beyond which no epsilon is computed."""

_SHARE_OF_DELTA = 1e-4
"""Of delta, for the odds that Skellam noise looks much more, or less, likely than Gaussian."""

_LARGEST_DISTRIBUTION = 100.0
"""Epsilon beyond which a distribution may not fit into memory where noise is Skellam's."""

_LARGEST_GAUSSIAN = 500.0
"""The same where all noise is Gaussian; a server can ask for anything."""

# Small orders do not converge for high sampling rates and are left out by the library with a
# warning a call; they never decide an epsilon of practical size.
_RDP_ORDERS = [1.5, 1.75, *range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024]


class AccountingError(FedveilError):
    """A release is impossible, or a budget cannot be met."""


@dataclass(frozen=True)
class IntegerSensitivity:
    """How far one unit can move a sum of integer vectors.

    Parameters
    ----------
    l1, l2 : float
        Bounds of the two norms of the difference, in integer units; 0 < l2 <= l1 < infinity,
        since no integer vector has a smaller L1 norm than L2 norm.
    coordinates : int
        How many integers the vector has, each with noise of its own; 1 to 2^53.

    Raises
    ------
    AccountingError
        If a bound is not positive and finite, l1 is below l2, or no vector has so many coordinates.
    """

    l1: float
    l2: float
    coordinates: int

    def __post_init__(self) -> None:
        for name, value in (("l1", self.l1), ("l2", self.l2)):
            if not (value > 0.0 and math.isfinite(value)):
                raise AccountingError(
                    f"the {name} sensitivity must be positive and finite, not {value}"
                )
        if self.l1 < self.l2:
            raise AccountingError(
                f"the l1 sensitivity {self.l1} must not be below the l2 sensitivity {self.l2}"
            )
        if not 1 <= self.coordinates <= _MOST_COORDINATES:
            raise AccountingError(
                f"coordinates must lie in 1 .. {_MOST_COORDINATES}, not {self.coordinates}"
            )


@dataclass(frozen=True)
class Release:
    """Describe identical sampled noisy releases of one data set.

    Without `integers` the noise is Gaussian. With it, it is Skellam: each coordinate the
    difference of two Poisson variates, of variance (`noise_multiplier` x `integers.l2`)^2.

    Parameters
    ----------
    sampling_rate : float
        Probability of a record to be in the Poisson sample, in (0, 1]; 1 is no sampling.
    noise_multiplier : float
        Standard deviation of the noise over the L2 sensitivity, > 0; where several parties add
        shares, of what the honest ones add together.
    count : int
        How many such releases, >= 0.
    integers : IntegerSensitivity, optional
        Of a sum of integers with Skellam noise.

    Raises
    ------
    AccountingError
        If a value lies outside its range.
    """

    sampling_rate: float
    noise_multiplier: float
    count: int
    integers: IntegerSensitivity | None = None

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
        """Return these releases as one event of dp-accounting.

        Raises
        ------
        AccountingError
            If the noise is Skellam, which dp-accounting does not know.
        """
        if self.integers is not None:
            raise AccountingError(
                "dp-accounting has no event of Skellam noise; pld_epsilon and rdp_epsilon have "
                "bounds for it"
            )
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
    counts: Counter[tuple[float, float, IntegerSensitivity | None]] = Counter()
    for release in releases:
        counts[release.sampling_rate, release.noise_multiplier, release.integers] += release.count
    grouped = (Release(q, sigma, n, integers) for (q, sigma, integers), n in counts.items() if n)
    return tuple(sorted(grouped, key=_order))


def _order(release: Release) -> tuple[float, ...]:
    integers = release.integers
    sensitivity = () if integers is None else (integers.l2, integers.l1, integers.coordinates)
    return (release.sampling_rate, release.noise_multiplier, release.count, *sensitivity)


def accountant_of(releases: Iterable[Release], delta: float) -> Accountant:
    """Return which accountant `epsilon` uses.

    Returns
    -------
    {"PLD", "RDP"}
        Whichever gives the smaller epsilon; both are bounds. Where all noise is Gaussian that is
        privacy-loss distributions, but for so many releases that the grid's pessimism adds up.
    """
    grouped = compose(releases)
    return "PLD" if _pld_epsilon(grouped, delta) <= _rdp_epsilon(grouped, delta) else "RDP"


def accountant_of_largest(parties: Iterable[tuple[Release, ...]], delta: float) -> Accountant:
    """Return which accountant the largest epsilon of several parties is computed by."""
    return accountant_of(max(parties, key=lambda one: epsilon(one, delta), default=()), delta)


def epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon of the composition by the accountant that `accountant_of` names.

    Adding or removing one unit is the neighbouring relation.

    Parameters
    ----------
    releases : iterable of Release
        All releases of one data set.
    delta : float
        In (0, 1).
    """
    return _epsilon(compose(releases), delta)


def pld_epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon of the composition by privacy-loss distributions.

    Adding or removing one record is the neighbouring relation. The bound is pessimistic by the
    discretisation, never optimistic. Skellam noise is accounted for as the Gaussian noise of its
    variance, and what both differ by is added to epsilon and delta.

    Parameters
    ----------
    releases : iterable of Release
        All releases of one data set.
    delta : float
        In (0, 1).

    Returns
    -------
    float
        Infinite where Skellam noise is too far from Gaussian noise for the bound to be of use, and
        where more than 2^20 releases are alike.

    References
    ----------
    Koskela, Jälkö & Honkela 2020; Doroshenko et al. 2022; implemented by dp-accounting. Of Skellam
    noise: docs/decisions/0010-skellam-as-gaussian.md.
    """
    return _pld_epsilon(compose(releases), delta)


def rdp_epsilon(releases: Iterable[Release], delta: float) -> float:
    """Return epsilon of the composition by Rényi differential privacy (Mironov et al. 2019).

    Where all noise is Gaussian it is nearly always the looser of the two. Where some is Skellam
    everything is composed at `INTEGER_ORDERS`: one release by Agarwal, Kairouz & Liu 2021, "The
    Skellam mechanism for differentially private federated learning", theorem 3.5; a sampled one by
    the binomial expansion of its moments. What that rests on stands in
    docs/decisions/0009-skellam.md.
    """
    return _rdp_epsilon(compose(releases), delta)


def _is_gaussian(releases: tuple[Release, ...]) -> bool:
    return all(release.integers is None for release in releases)


def _epsilon(releases: tuple[Release, ...], delta: float) -> float:
    return min(_pld_epsilon(releases, delta), _rdp_epsilon(releases, delta))


@lru_cache(maxsize=4096)
def _pld_epsilon(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    if max(release.count for release in releases) > _MOST_COMPOSED:
        return math.inf
    if _is_gaussian(releases):
        if _rdp_epsilon(releases, delta) > _LARGEST_GAUSSIAN:
            return math.inf
        return float(_loss_distribution(releases).get_epsilon(delta))
    return _near_gaussian_epsilon(releases, delta)


def _near_gaussian_epsilon(releases: tuple[Release, ...], delta: float) -> float:
    """Return epsilon where some noise is Skellam noise, from that of Gaussian noise in its place.

    With P and Q the laws of all noise, whatever holds of Q with epsilon and delta holds of P with
    epsilon + 2 b and odds + e^b delta + e^(b + epsilon) odds', where the log-ratios of P to Q and
    of Q to P pass b with those odds only.
    """
    ceiling = _rdp_epsilon(releases, delta)
    if ceiling > _LARGEST_DISTRIBUTION:
        return math.inf
    # An epsilon above that by Rényi divergences is of no use, so that one bounds the exponent.
    log_odds = math.log(_SHARE_OF_DELTA) + math.log(delta) - ceiling - 1.0
    noises = [
        SkellamNoise(
            r.noise_multiplier * r.integers.l2 * r.noise_multiplier * r.integers.l2,
            r.count * r.integers.coordinates,
        )
        for r in releases
        if r.integers is not None
    ]
    bound = log_ratio_bound(noises, log_odds)
    if bound > ceiling:
        return math.inf
    left = delta * (1.0 - 2.0 * _SHARE_OF_DELTA) * math.exp(-bound)
    gaussian = compose(replace(release, integers=None) for release in releases)
    found = float(_loss_distribution(gaussian).get_epsilon(left))
    return found + 2.0 * bound if found + bound <= ceiling + 1.0 else math.inf


@lru_cache(maxsize=64)
def _loss_distribution(releases: tuple[Release, ...]) -> PLDAccountant:
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, VALUE_DISCRETIZATION_INTERVAL)
    for release in releases:
        accountant.compose(release.event())
    return accountant


@lru_cache(maxsize=4096)
def _rdp_epsilon(releases: tuple[Release, ...], delta: float) -> float:
    if not releases:
        return 0.0
    if max(release.count for release in releases) > _MOST_COUNTED:
        return math.inf
    if not _is_gaussian(releases):
        return _integer_order_epsilon(releases, delta)
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


def _integer_order_epsilon(releases: tuple[Release, ...], delta: float) -> float:
    from dp_accounting.rdp import compute_epsilon

    total = np.zeros(len(INTEGER_ORDERS))
    for release in releases:
        integers = release.integers
        sensitivity = None if integers is None else (integers.l1, integers.l2)
        total += release.count * divergences(
            release.sampling_rate, release.noise_multiplier, sensitivity
        )
    # Each order bounds epsilon by itself; one that overflowed bounds nothing.
    usable = [(a, float(r)) for a, r in zip(INTEGER_ORDERS, total, strict=True) if r < math.inf]
    if not usable:
        return math.inf
    orders, bounds = zip(*usable, strict=True)
    return float(compute_epsilon(orders, bounds, delta)[0])
